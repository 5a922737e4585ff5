"""Two applications in one namespace are told apart by what they know, and what they consume (rule Q9)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from taskbridge import Bridge
from taskbridge.cli import applications

Make = Callable[..., Bridge]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Bridge] = []

    def bridge(*tasks: str, namespace: str = "one") -> Bridge:
        made.append(Bridge("celery+amqp://127.0.0.1:1", store=f"sqlite:///{tmp_path}/store.db", namespace=namespace))
        for task in tasks:
            made[-1].task(name=task)(lambda: None)
        return made[-1]

    yield bridge
    for each in made:
        each.close()


def started(bridge: Bridge, app: str, queues: Sequence[str] = ("default",)) -> list[str]:
    return applications.others(bridge, app, queues, is_started=True, timeout_s=60)


def checked(bridge: Bridge, app: str, queues: Sequence[str] = ("default",)) -> list[str]:
    return applications.others(bridge, app, queues, is_started=False, timeout_s=60)


def test_another_application_is_told_by_either(make: Make) -> None:
    shop, blog = make("shop.mail", "shop.bill"), make("blog.index")
    assert started(shop, "shop.tasks") == []
    [told] = checked(blog, "blog.tasks")
    for part in ("a worker of shop.tasks", "queue 'default'", "namespace 'one'", "TASKBRIDGE_NAMESPACE"):
        assert part in told
    assert started(blog, "blog.tasks") == [told]
    assert "blog.tasks" in started(shop, "shop.tasks")[0]


def test_a_check_leaves_nothing(make: Make) -> None:
    shop, blog = make("shop.mail"), make("blog.index")
    assert checked(shop, "shop.tasks") == []
    assert checked(blog, "blog.tasks") == []


def test_names_of_modules_are_not_compared(make: Make) -> None:
    first, second = make("add"), make("subtract")
    assert started(first, "tasks") == []
    assert len(started(second, "tasks")) == 1
    assert len(started(first, "tasks")) == 1


@pytest.mark.parametrize(
    ("tasks", "queues", "namespace"),
    [
        (("shop.mail", "shop.new"), ("default",), "one"),  # the next release
        (("shop.report",), ("slow",), "one"),  # its other module, on a queue of its own
        (("blog.index",), ("default",), "two"),
        ((), ("default",), "one"),  # a process that sends by name, say
    ],
)
def test_no_other_application_is_made_up(
    make: Make, tasks: Sequence[str], queues: Sequence[str], namespace: str
) -> None:
    assert started(make("shop.mail", "shop.old"), "shop.tasks") == []
    assert started(make(*tasks, namespace=namespace), "another", queues) == []


def test_what_is_a_week_old_is_forgotten(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, blog = make("shop.mail"), make("blog.index")
    now = time.time()
    monkeypatch.setattr(Bridge, "now", lambda self: now - 8 * 86400)
    started(shop, "shop.tasks")
    monkeypatch.setattr(Bridge, "now", lambda self: now)
    assert checked(blog, "blog.tasks") == []


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "1\n", "1\nnothing", "1\n[]", '1\n{"a": 5}', "x\n{}"),
        '1\n{"a": {"tasks": [], "queues": 5, "at": "x"}}',
        '1\n{"a": {"tasks": [], "at": 9e9}}',
        '1\n{"a": {"tasks": [], "queues": 5, "at": 9e9}}',
        '1\n{"a": {"tasks": [[]], "queues": [], "at": 9e9}}',
        '1\n{"a": {"tasks": [], "queues": ["default"], "at": -1e300}}',
    ],
)
def test_what_anybody_has_written_counts_as_nothing(make: Make, text: str) -> None:
    shop, blog = make("shop.mail"), make("blog.index")
    assert shop.store is not None
    shop.store.backend.put("applications", text or "0", kept_s=3600, timeout_s=60)
    assert started(shop, "shop.tasks") == []
    assert len(checked(blog, "blog.tasks")) == 1


@pytest.mark.parametrize("at", ["Infinity", "1e300", "9e9", "NaN"])
def test_what_another_writes_of_the_future_is_told_and_stops_nobody(make: Make, at: str) -> None:
    shop = make("shop.mail")
    assert shop.store is not None
    text = '1\n{"a": {"tasks": [], "queues": ["default"], "at": %s}}' % at  # noqa: UP031
    shop.store.backend.put("applications", text, kept_s=3600, timeout_s=60)
    assert len(started(shop, "shop.tasks")) == 1


def test_without_a_store_nothing_is_remembered() -> None:
    with closing(Bridge("celery+amqp://127.0.0.1:1")) as bridge:
        bridge.task(name="shop.mail")(lambda: None)
        assert started(bridge, "shop.tasks") == []
