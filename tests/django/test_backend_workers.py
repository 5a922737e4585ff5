"""Django's tasks on workers in processes of their own, on each engine and broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final, cast

import pytest
from django.utils.timezone import now

from taskbridge.bridge import default_bridge
from tests.django.project import Project, project
from tests.django.site.reports import tasks as reports

PAIRS: Final = ("celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp")


@pytest.fixture(scope="module", params=PAIRS)
def site(
    request: pytest.FixtureRequest,
    url_of: Callable[[str], str],
    store_of: Callable[[str], str | None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Project]:
    """The project with a worker, to which the default bridge of this process sends."""
    url, store = url_of(request.param), store_of(request.param)
    given = {} if store is None else {"TASKBRIDGE_STORE": store}
    with (
        project(tmp_path_factory.mktemp("site"), url, **given) as made,
        default_bridge().temporarily(url=url, store=store, namespace=made.env["SITE_NAMESPACE"], send_timeout=60),
    ):
        made.worker("--processes", "1", "--threads", "2")
        yield made


def ended(site: Project, *results: Any) -> None:
    """Wait for the end of what was sent, and refresh its results."""

    def are_finished() -> bool:
        for result in results:
            result.refresh()
        return all(result.is_finished for result in results)

    site.until(are_finished, f"the end of {[result.task.name for result in results]}")


def test_workers_run_what_was_enqueued_and_results_tell_of_it(site: Project) -> None:
    total, mail = reports.total.enqueue([1, 2], discount=1), cast("Any", reports.mail.enqueue("me"))
    fails, twice = reports.fails.enqueue("so"), reports.twice.using(priority=90).enqueue("hm")

    ended(site, total, mail, fails, twice)

    assert (total.return_value, mail.return_value) == ({"total": 2}, "to me")
    assert (total.args, total.kwargs) == ([[1, 2]], {"discount": 1})
    assert fails.errors[0].exception_class is ValueError
    assert "in fails" in fails.errors[0].traceback
    assert twice.return_value == [2, twice.id, ["hm"], ["builtins.LookupError"]]
    assert (twice.attempts, twice.task.priority) == (2, 90)
    assert fails.id in [letter.id for letter in default_bridge().dead_letters()]


def test_workers_log_as_django_does(site: Project) -> None:
    succeeds, fails = reports.total.enqueue([1]), reports.fails.enqueue("very so")

    ended(site, succeeds, fails)

    site.until(lambda: "ValueError: very so" in site.log(), "the traceback in the log")
    for result, states in ((succeeds, ("RUNNING", "SUCCESSFUL")), (fails, ("RUNNING", "FAILED"))):
        lines = [line for line in site.log().splitlines() if f"Task id={result.id} " in line]
        assert [line.rpartition("state=")[2].split()[0] for line in lines] == list(states)


def test_a_run_that_is_due_later_starts_later(site: Project) -> None:
    when = now() + timedelta(seconds=2)
    result = reports.total.using(run_after=when).enqueue([1])

    ended(site, result)

    assert result.started_at is not None
    assert result.started_at >= when - timedelta(seconds=0.5)  # what each process takes for the store's clock
