"""The admin shows what broker and store have, and lets those act who may."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

import pytest
import redis
from django.contrib.admin import site
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.models import DELETION, LogEntry
from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import transaction
from django.test import Client, RequestFactory
from django.test.utils import setup_test_environment, teardown_test_environment
from django.utils.html import escape

from taskbridge import Bridge, DeadEntry, Every, default_bridge
from taskbridge.django.admin import Rows
from taskbridge.django.models import DeadLetter as DeadLetterModel
from taskbridge.exceptions import BrokerUnavailable, DecodeError, SettingsError, UnknownSchedule
from taskbridge.hooks import Event
from taskbridge.message import DeadLetter, Message
from taskbridge.retry import ErrorInfo
from tests.django.project import project
from tests.django.site.office.tasks import fail, linger, remind, report, reported, tidy

ADMIN: Final = "/admin/taskbridge"
LISTS: Final = ("queue", "deadletter", "message", "flow", "schedule")
TIDY: Final = tidy.name
PAUSED: Final = '<td class="field-state">paused</td>'
VIEWS: Final = tuple(f"view_{name}" for name in LISTS)


@cache
def migrate() -> None:
    call_command("migrate", verbosity=0)


@pytest.fixture
def database() -> Iterator[None]:
    """Have the tables, and leave them empty."""
    setup_test_environment()  # for the contexts of templates
    try:
        migrate()
        with transaction.atomic():
            yield
            transaction.set_rollback(True)
    finally:
        teardown_test_environment()


@pytest.fixture(params=["inline", "celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp"])
def bridge(
    request: pytest.FixtureRequest,
    database: None,
    url_of: Callable[[str], str],
    store_of: Callable[[str], str | None],
) -> Iterator[Bridge]:
    """Return the default bridge, on each target; no workers are needed here."""
    url = "inline://?threads=0" if request.param == "inline" else url_of(request.param)
    namespace = f"admin-{uuid4().hex}"
    with default_bridge().temporarily(url=url, store=store_of(request.param), namespace=namespace):
        yield default_bridge()


@pytest.fixture
def inline(database: None) -> Iterator[Bridge]:
    """Return the default bridge where `run_until_idle` runs what waits."""
    with default_bridge().temporarily(url="inline://?threads=0", namespace=f"admin-{uuid4().hex}"):
        yield default_bridge()


def browser(*permissions: str, checks_csrf: bool = False) -> Client:
    """Return the browser of somebody of the staff who has these permissions, or all of them."""
    user = User.objects.create_user(f"user-{uuid4().hex}", is_staff=True, is_superuser=permissions == ("all",))
    if permissions != ("all",):
        found = Permission.objects.filter(content_type__app_label="taskbridge", codename__in=permissions)
        assert found.count() == len(permissions), "each permission is there"
        user.user_permissions.set(found)
    client = Client(enforce_csrf_checks=checks_csrf)
    client.force_login(user)
    return client


def page(client: Client, path: str, status: int = 200) -> str:
    """Return what a page says, where it has been followed to its end."""
    response = client.get(f"{ADMIN}/{path}")
    assert response.status_code == status, response.content.decode()
    return str(response.content.decode())


def act(client: Client, model: str, action: str, *ids: str, status: int = 302, **more: str) -> str:
    data: dict[str, Any] = {"action": action, "index": "0", "_selected_action": list(ids), **more}
    response = client.post(f"{ADMIN}/{model}/", data)
    assert response.status_code == status, response.content.decode()
    return str(response.content.decode())


def bury(bridge: Bridge, number: int = 0, *, task: str = "", queue: str = "default", **more: Any) -> str:
    """Bury a letter, as a worker does, and return its id."""
    message = Message(
        id=f"letter-{number:04}",
        task=task or report.name,
        queue=queue,
        args_json=more.pop("args_json", "[7]"),
        kwargs_json=more.pop("kwargs_json", "{}"),
        enqueued_at=bridge.now(),
        headers=more.pop("headers", {}),
    )
    letter = DeadLetter(message=message, reason="exhausted", died_at=bridge.now(), **more)
    bridge.broker.bury(letter, timeout_s=20)
    return letter.id


def logged() -> list[tuple[str, str]]:
    return [(str(each.object_id), each.get_change_message()) for each in LogEntry.objects.order_by("pk")]


# Looking


def test_the_section_has_a_page_for_each_list(bridge: Bridge) -> None:
    bury(bridge)
    report.send(1)
    report.schedule(3600, 2)
    client = browser("all")

    assert "Tasks" in client.get("/admin/").content.decode()
    assert "1 delayed and 1 dead" in page(client, "queue/")
    assert "letter-0000" in page(client, "deadletter/")
    assert TIDY in page(client, "schedule/")
    assert "0 messages" in page(client, "message/")


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_for_those_who_may_view_it(inline: Bridge, name: str) -> None:
    others = tuple(f"view_{other}" for other in LISTS if other != name)

    assert page(browser(f"view_{name}"), f"{name}/")
    page(browser(*others), f"{name}/", status=403)


def test_objects_are_for_those_who_may_view_them(inline: Bridge) -> None:
    handle, letter = report.send(1), bury(inline)
    paths = (f"deadletter/{letter}/change/", f"message/{handle.id}/change/")

    for path in (*paths, f"deadletter/{letter}/history/"):
        page(browser("view_schedule"), path, status=403)
        assert page(browser(*VIEWS), path)


def test_a_letter_is_shown_with_its_error_and_traceback(inline: Bridge) -> None:
    fail.send("no such customer")
    inline.run_until_idle()
    [entry] = inline.dead.list().entries

    text = page(browser("all"), f"deadletter/{entry.id}/change/")

    assert "ValueError: no such customer" in text
    assert "Traceback (most recent call last)" in text
    assert "exhausted" in text


def test_a_message_is_shown_with_its_attempts(inline: Bridge) -> None:
    handle = fail.send("no such customer")
    inline.run_until_idle()
    client = browser("all")

    assert "dead" in page(client, f"message/?q={handle.id}")
    text = page(client, f"message/{handle.id}/change/")
    assert "Attempt 1" in text
    assert "ValueError: no such customer" in text


@pytest.mark.parametrize("pair", ["celery+redis", "dramatiq+amqp"])
def test_what_runs_is_shown_and_told_to_stop(
    database: None,
    url_of: Callable[[str], str],
    store_of: Callable[[str], str | None],
    pair: str,
    tmp_path: Path,
) -> None:
    given: dict[str, Any] = {"url": url_of(pair), "store": store_of(pair)}
    more = {} if given["store"] is None else {"TASKBRIDGE_STORE": given["store"]}
    runs, script = f"{ADMIN}/message/?state=running", "<script>alert('x')</script>"
    with (
        project(tmp_path, given["url"], **more) as site,
        default_bridge().temporarily(**given, namespace=site.env["SITE_NAMESPACE"]),
    ):
        site.worker()
        handle, waiting = linger.using(id=script).send(), linger.schedule(3600)
        client = browser(*VIEWS, "cancel_message")

        def shown(**more: str) -> str:
            return page(client, f"message/?{urlencode({'state': 'running', **more})}")

        site.until(lambda: linger.name in shown(), "the run in the list")
        assert escape(script) in shown()
        assert "<script>alert" not in shown()
        assert waiting.id not in shown()
        assert linger.name in shown(q="linger", queue="default")
        assert linger.name in shown(q=script)
        assert linger.name not in shown(q="tidy")
        assert linger.name not in shown(queue="bulk")

        act(browser(*VIEWS), "message", "cancel", script, status=403)
        asked = client.post(runs, {"action": "cancel", "index": "0", "_selected_action": script})
        assert (asked.status_code, asked.headers["Location"]) == (302, runs)
        said = f"Message {script} runs, and was told to stop; there is no further attempt."
        assert escape(said) in page(client, "message/?state=running")
        assert logged() == [(script, said)]
        site.until(lambda: handle.status().is_final, "the end of the run, which has seen it")


def test_messages_are_listed_page_by_page(bridge: Bridge) -> None:
    with bridge.temporarily(listing=True):
        ids = {report.send(number).id for number in range(60)}
        bulk = tidy.using(queue="bulk").send()
        deadline = time.monotonic() + 60
        while len(bridge.operations.messages(most=100).items) < 61:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        client = browser("view_message")

        first = page(client, "message/?state=queued")
        after = first.partition("?after=")[2].partition('"')[0].replace("&amp;", "&")
        second = page(client, f"message/?after={after}")

        assert "state=queued" in after
        pages = [
            {each for each in {*ids, bulk.id} if f"/message/{quote(each)}/change/" in text} for text in (first, second)
        ]
        assert [len(each) for each in pages] == [50, 11]
        assert pages[0] | pages[1] == {*ids, bulk.id}
        assert "after=" not in second, "other filters begin on their first page"
        assert 'name="after"' not in second
        for query, number in (
            ("queue=bulk", "1 message\n"),
            ("q=tidy", "1 message\n"),
            (f"q={bulk.id}", "1 message\n"),
            ("q=tests.*.report&queue=bulk", "0 messages\n"),
            ("state=done", "0 messages\n"),
            ("after=nonsense", "0 messages\n"),
        ):
            assert number in page(client, f"message/?{query}"), query


def test_a_message_is_found_by_its_id_if_the_filters_let_it(inline: Bridge) -> None:
    report.using(id="chosen").schedule(3600, 1)
    client = browser("all")

    for filters, number in (
        ("", "1 message\n"),
        ("&state=scheduled&queue=default", "1 message\n"),
        ("&state=odd", "1 message\n"),
        ("&state=done", "0 messages\n"),
        ("&queue=bulk", "0 messages\n"),
    ):
        assert number in page(client, f"message/?q=chosen{filters}"), filters


def test_filters_can_be_cleared(inline: Bridge) -> None:
    client = browser("all")

    assert "Clear all filters" not in page(client, "message/?q=x")
    text = page(client, "message/?q=x&state=done&queue=bulk")
    assert re.search(r'<a href="\?q=x">[^<]* Clear all filters</a>', text)


def test_a_schedules_expression_can_be_copied_from_its_page(inline: Bridge) -> None:
    inline.schedules.put("weekly", report.call(7), cron="0 9 * * 1-5", timezone="Europe/Rome")

    text = page(browser(*VIEWS), "schedule/weekly/change/")

    for label, value in (("When", "0 9 * * 1-5"), ("Zone", "Europe/Rome"), ("State", "enabled")):
        assert f'<label>{label}:</label><div class="readonly">{value}</div>' in text


def test_an_unknown_message_is_said_to_be_unknown(inline: Bridge) -> None:
    client = browser("all")

    assert "No message of this id" in page(client, "message/?q=nobody")
    assert client.get(f"{ADMIN}/message/nobody/change/").status_code == 302
    assert client.get(f"{ADMIN}/deadletter/nobody/change/").status_code == 302


def test_markup_in_a_letter_is_only_text(bridge: Bridge) -> None:
    script = "<script>alert('x')</script>"
    bury(
        bridge,
        task=script,
        queue=script,
        args_json=f'["{script}"]',
        kwargs_json=f'{{"{script}": 1}}',
        headers={script: script},
        error=ErrorInfo(type=script, message=script),
        traceback=script,
        worker=script,
    )
    client = browser("all")

    for path in ("deadletter/", "deadletter/letter-0000/change/", "deadletter/letter-0000/delete/"):
        assert "<script>alert" not in page(client, path)
    assert page(client, "deadletter/letter-0000/change/").count(escape(script)) >= 9
    assert "<script>alert" not in act(client, "deadletter", "delete_selected", "letter-0000", status=200)


def test_markup_in_an_id_or_a_schedule_is_only_text(inline: Bridge) -> None:
    script = "<script>alert('x')</script>"
    handle = report.using(id=script).send(1, title=script)
    inline.schedules.put(script, report.call(1, title=script), every=60)
    client = browser("all")

    for path in (f"message/?q={script}", "schedule/"):
        assert "<script>alert" not in page(client, path)
        assert escape(script) in page(client, path)
    for model in ("message", "schedule"):
        quoted = (
            "_3Cscript_3Ealert_28_27x_27_29_3C_2Fscript_3E".replace("_28", "(").replace("_27", "'").replace("_29", ")")
        )
        text = page(client, f"{model}/{quoted}/change/")
        assert "<script>alert" not in text
        assert escape(script) in text
    act(client, "message", "cancel", handle.id)
    assert handle.status().state == "cancelled"
    assert "<script>alert" not in page(client, "message/")


def test_arguments_and_results_are_for_those_who_may_view_them(inline: Bridge) -> None:
    letter = bury(inline, args_json='["4111 1111"]', headers={"token": "s3cret"})
    handle = report.send(4242)
    inline.schedules.put("put", report.call(4242), every=60)
    inline.run_until_idle()
    may = (*VIEWS, "change_schedule")
    few, more = browser(*may), browser(*may, "view_arguments")

    for path, secrets in (
        (f"deadletter/{letter}/change/", ("4111 1111", "s3cret")),
        (f"message/{handle.id}/change/", ("report 4242",)),
        ("schedule/put/change/", ("4242",)),
    ):
        for secret in secrets:
            assert secret not in page(few, path)
            assert secret in page(more, path)


def test_a_header_may_have_any_name(inline: Bridge) -> None:
    letter = bury(inline, headers={"items": "3 books"})

    assert "3 books" in page(browser("all"), f"deadletter/{letter}/change/")


def test_where_letters_are_redacted_a_messages_errors_are_too(inline: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = fail.send("s3cret")
    inline.run_until_idle()
    few, more = browser(*VIEWS), browser(*VIEWS, "view_arguments")
    assert "s3cret" in page(few, f"message/{handle.id}/change/")

    monkeypatch.setattr(inline.dead, "redacts", True)
    assert "s3cret" not in page(few, f"message/{handle.id}/change/")
    assert "s3cret" in page(more, f"message/{handle.id}/change/")


def test_the_redact_function_decides_for_everybody(inline: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    letter = bury(inline, args_json='["4111 1111"]')

    def hide(entry: DeadEntry) -> DeadEntry:
        return replace(entry, args=("****",))

    monkeypatch.setattr(inline.dead, "_redact", hide)

    text = page(browser("all"), f"deadletter/{letter}/change/")

    assert "4111" not in text
    assert "****" in text


def test_letters_are_shown_page_by_page(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(120):
        bury(bridge, number)

    def letter(number: int) -> str:
        return f'value="letter-{number:04}"'

    client = browser("all")

    first = page(client, "deadletter/")
    after = first.partition("?after=")[2].partition('"')[0]
    second = page(client, f"deadletter/?after={after}")

    assert [letter(0) in first, letter(49) in first, letter(50) in first] == [True, True, False]
    assert [letter(49) in second, letter(50) in second, letter(99) in second] == [False, True, True]
    assert "First page" in second
    assert "0 dead letters" in page(client, "deadletter/?after=nonsense")


def test_letters_are_found_by_the_name_of_their_task(bridge: Bridge) -> None:
    bury(bridge, 1, task="shop.email.welcome")
    bury(bridge, 2, task="shop.charge")
    client = browser("all")

    for search, found in (("welcome", (True, False)), ("shop.*", (True, True)), ("charge", (False, True))):
        text = page(client, f"deadletter/?q={search}")
        assert ("letter-0001" in text, "letter-0002" in text) == found


def test_a_page_costs_as_many_commands_whatever_is_stored(database: None, url_of: Callable[[str], str]) -> None:
    url = url_of("celery+redis")
    with redis.Redis.from_url(url.removeprefix("celery+")) as server:

        def commands() -> int:
            info: Any = server.info("stats")
            return int(info["total_commands_processed"])

        def cost(path: str) -> int:
            page(client, path)
            costs = []
            for _ in range(3):  # for the clock of the store is asked once in a while
                before = commands()
                page(client, path)
                costs.append(commands() - before - 1)  # what it is asked with
            return min(costs)

        with default_bridge().temporarily(url=url, namespace=f"admin-{uuid4().hex}"):
            bridge, client = default_bridge(), browser("all")
            costs: list[list[int]] = []
            for many in (60, 600):
                for number in range(many):
                    bury(bridge, number)
                    if number < many // 10:
                        bridge.schedules.put(f"put-{number}", report.call(number), every=60)
                costs.append(
                    [cost(path) for path in ("queue/", "deadletter/", "schedule/", "deadletter/letter-0007/change/")]
                )

    assert costs[0] == costs[1]
    assert max(costs[0]) < 20


# Acting


def test_letters_are_replayed(bridge: Bridge) -> None:
    ids = [bury(bridge, number) for number in range(3)]

    act(browser(*VIEWS, "replay_deadletter"), "deadletter", "replay", *ids[:2])

    assert [each.id for each in bridge.dead.list().entries] == ids[2:]
    assert bridge.handle(ids[0]).status().state == "queued"
    assert logged() == [(each, "Replayed 2 dead letters.") for each in ids[:2]]
    assert LogEntry.objects.exclude(user__username__startswith="user-").count() == 0


def test_all_letters_of_a_search_are_replayed(bridge: Bridge) -> None:
    for number in range(70):
        bury(bridge, number)

    act(browser("all"), "deadletter", "replay", "letter-0000", select_across="1")

    assert bridge.counts().dead == 0


def test_what_is_not_replayed_is_said(inline: Bridge) -> None:
    raw = DeadLetter(message=None, reason="undecodable", raw=b"?", died_at=1.0)
    inline.broker.bury(raw, timeout_s=20)
    client = browser("all")

    act(client, "deadletter", "replay", raw.id, "gone")

    text = page(client, "deadletter/")
    assert "1 dead letter is not there any more: gone" in text
    assert f"be read and stays: {raw.id}" in text
    assert logged() == []

    act(client, "deadletter", "replay", bury(inline), raw.id)
    assert '<li class="warning">Replayed 1 dead letter; 1 dead letter can' in page(client, "deadletter/")
    act(client, "deadletter", "replay", bury(inline, 1))
    assert '<li class="success">Replayed 1 dead letter.' in page(client, "deadletter/")


def test_letters_are_purged_after_a_question(bridge: Bridge) -> None:
    ids = [bury(bridge, number) for number in range(3)]
    client = browser(*VIEWS, "delete_deadletter")

    assert "Are you sure" in act(client, "deadletter", "delete_selected", *ids[:2], status=200)
    assert "Are you sure" in page(client, f"deadletter/{ids[2]}/delete/")
    assert bridge.counts().dead == 3

    act(client, "deadletter", "delete_selected", *ids[:2], post="yes")
    assert [each.id for each in bridge.dead.list().entries] == ids[2:]
    assert client.post(f"{ADMIN}/deadletter/{ids[2]}/delete/", {"post": "yes"}).status_code == 302
    assert bridge.counts().dead == 0
    assert sorted(each for each, _ in logged()) == ids


def test_a_message_is_cancelled(bridge: Bridge) -> None:
    handle = report.schedule(3600, 1)

    act(browser(*VIEWS, "cancel_message"), "message", "cancel", handle.id)

    assert handle.status().state == "cancelled"
    assert logged() == [(handle.id, f"Message {handle.id} is cancelled: it starts no more.")]


def test_a_message_that_has_ended_is_not_cancelled(inline: Bridge) -> None:
    handle = report.send(1)
    inline.run_until_idle()
    client = browser("all")

    act(client, "message", "cancel", handle.id)

    assert f"Too late: message {handle.id} is done." in page(client, "message/")
    assert logged() == []


def test_queues_are_paused_and_resumed(bridge: Bridge) -> None:
    client = browser(*VIEWS, "pause_queue")
    assert PAUSED not in page(client, "queue/")

    act(client, "queue", "pause", "default")
    assert [each.queue for each in bridge.paused()] == ["default"]
    assert page(client, "queue/").count(PAUSED) == 1
    act(client, "queue", "resume", "default")
    assert bridge.paused() == ()

    assert logged() == [("default", "Queue default is paused."), ("default", "Queue default goes on.")]
    act(client, "queue", "resume", "default")
    assert "Queue default was not paused." in page(client, "queue/")
    assert len(logged()) == 2


def test_queues_say_until_when_they_are_paused(inline: Bridge) -> None:
    inline.pause("bulk", until=datetime(2096, 1, 2, 3, 4, tzinfo=timezone.utc))

    text = page(browser("view_queue"), "queue/")

    assert text.count(PAUSED) == 1
    assert text.count('<td class="field-state">no worker</td>') == 2
    assert "Jan. 2, 2096, 3:04 a.m." in text


def test_who_has_done_what_is_told_to_the_hook_operated(inline: Bridge) -> None:
    ids = [bury(inline, number) for number in range(3)]
    done = report.send(1)
    inline.run_until_idle()
    client, told = browser("all"), list[Event]()

    with inline.hooks.added("operated", told.append):
        act(client, "deadletter", "replay", ids[0])
        act(client, "deadletter", "delete_selected", *ids[1:], post="yes")
        act(client, "message", "cancel", done.id)  # too late
        act(client, "schedule", "pause", TIDY)
        client.post(f"{ADMIN}/schedule/add/", FILLED)
        act(client, "schedule", "delete_selected", "report-7", post="yes")

    acts = [("replay", ids[0]), ("purge", ids[1]), ("purge", ids[2]), ("pause_schedule", TIDY)]
    acts += [("add_schedule", "report-7"), ("remove_schedule", "report-7")]
    assert [(each.action, each.target) for each in told] == acts
    assert {each.operator for each in told} == {User.objects.get().username}


def test_a_hook_that_fails_in_the_database_breaks_no_form(inline: Bridge) -> None:
    client, told = browser("all"), list[str]()

    def fails(event: Event) -> None:
        told.append(event.action)
        User.objects.create_user(event.operator)  # who is there already

    with inline.hooks.added("operated", fails):
        client.post(f"{ADMIN}/schedule/add/", FILLED)
        act(client, "schedule", "pause", "report-7")
        client.post(f"{ADMIN}/schedule/report-7/delete/", {"post": "yes"})

    assert told == ["add_schedule", "pause_schedule", "remove_schedule"]
    assert [each for each, _ in logged()] == ["report-7"] * 3


def test_flows_are_shown_and_cancelled(bridge: Bridge) -> None:
    script = "<script>alert('x')</script>"
    flow = report.call(1).then_call(report.call(2)).using(id=script).send()
    client = browser(*VIEWS, "cancel_flow")
    assert escape(script) in page(client, "flow/")
    shown = page(client, f"flow/{quote(script)}/change/")
    assert report.name in shown
    assert "<script>alert" not in shown
    assert "Cancel</button>" in shown
    assert "Retry</button>" not in shown

    act(client, "flow", "cancel", flow.id)

    assert flow.status().state == "cancelled"
    assert logged() == [(flow.id, f"Flow {flow.id} is cancelled: it starts no step.")]
    assert client.get(f"{ADMIN}/flow/nobody/change/").status_code == 302


def test_a_failed_flow_says_why_and_is_retried(inline: Bridge) -> None:
    flow = fail.call("no such customer").then_call(report.call(2)).send()
    inline.run_until_idle()
    client = browser(*VIEWS, "retry_flow")
    assert "ValueError: no such customer" in page(client, f"flow/{flow.id}/change/")

    act(client, "flow", "retry", flow.id)

    assert flow.status().state == "running"
    assert logged() == [(flow.id, f"Flow {flow.id} goes on.")]
    done = report.call(1).then_call(report.call(2)).send()
    inline.run_until_idle()
    act(client, "flow", "retry", done.id)
    assert f"Nothing to retry: flow {done.id} is done." in page(client, "flow/")
    act(browser("all"), "flow", "cancel", done.id)
    assert done.status().state == "done"


def test_flows_are_shown_page_by_page(inline: Bridge) -> None:
    ids = [report.call(1).then_call(report.call(2)).send().id for _ in range(60)]
    client = browser("all")

    first = page(client, "flow/")
    after = first.partition("?after=")[2].partition('"')[0]
    second = page(client, f"flow/?after={after}")

    assert [each for each in ids if f'value="{each}"' in first] == ids[10:]
    assert [each for each in ids if f'value="{each}"' in second] == ids[:10]
    assert "0 flows" in page(client, "flow/?after=nonsense")


def test_schedules_of_the_code_are_paused_and_resumed(bridge: Bridge) -> None:
    client = browser(*VIEWS, "change_schedule")

    act(client, "schedule", "pause", TIDY)
    assert [each.paused for each in bridge.schedules.list() if each.name == TIDY] == [True]
    act(client, "schedule", "resume", TIDY)
    assert [each.paused for each in bridge.schedules.list() if each.name == TIDY] == [False]

    assert logged() == [(TIDY, f"Schedule {TIDY} is paused."), (TIDY, f"Schedule {TIDY} is active.")]


def test_a_schedule_runs_now(inline: Bridge) -> None:
    reported.clear()
    inline.schedules.put("put", report.call(7, title="monthly"), cron="0 3 1 * *", enabled=False)

    act(browser(*VIEWS, "run_schedule"), "schedule", "run_now", "put")
    inline.run_until_idle()

    assert reported == [(7, "monthly")]
    [(name, message)] = logged()
    assert name == "put"
    assert inline.handle(message.split()[-1].rstrip(".")).status().state == "done"


def test_a_schedule_runs_now_on_every_target(bridge: Bridge) -> None:
    sent = bridge.schedules.run(TIDY)

    assert bridge.handle(sent).status().task == tidy.name
    with pytest.raises(UnknownSchedule):
        bridge.schedules.run("nobody")


def test_schedules_that_were_put_are_deleted(bridge: Bridge) -> None:
    bridge.schedules.put("put", report.call(7), every=60)
    client = browser(*VIEWS, "delete_schedule")

    page(client, f"schedule/{TIDY}/delete/", status=403)
    act(client, "schedule", "delete_selected", TIDY, status=403, post="yes")
    act(client, "schedule", "delete_selected", "put", post="yes")

    assert [each.name for each in bridge.schedules.list()] == [TIDY]


def test_only_what_was_deleted_is_logged_as_deleted(inline: Bridge) -> None:
    inline.schedules.put("put", report.call(7), every=60)

    act(browser("all"), "schedule", "delete_selected", "put", "gone", post="yes")

    assert [each for each, _ in logged()] == ["put"]
    assert LogEntry.objects.get().action_flag == DELETION


def test_what_a_broker_that_is_away_does_not_delete_is_not_logged(database: None) -> None:
    request = RequestFactory().post("/", {"post": "yes"})
    request.user = User.objects.create_superuser("boss")
    with (
        default_bridge().temporarily(url="celery+redis://127.0.0.1:1", send_timeout=0.5),
        pytest.raises(BrokerUnavailable),
    ):
        delete_selected(
            site.get_model_admin(DeadLetterModel), request, Rows.of(DeadLetterModel, [DeadLetterModel("x")])
        )
    assert logged() == []


ACTS: Final = (
    ("deadletter", "replay", "letter-0000"),
    ("deadletter", "delete_selected", "letter-0000"),
    ("queue", "pause", "default"),
    ("queue", "resume", "bulk"),
    ("message", "cancel", "chosen"),
    ("flow", "cancel", "flow"),
    ("flow", "retry", "flow"),
    ("schedule", "pause", "put"),
    ("schedule", "resume", "put"),
    ("schedule", "run_now", "put"),
    ("schedule", "delete_selected", "put"),
)


@pytest.mark.parametrize(("model", "action", "id"), ACTS)
def test_a_forbidden_act_is_answered_with_403(inline: Bridge, model: str, action: str, id: str) -> None:
    _something(inline)
    before = _all(inline)

    act(browser(*VIEWS), model, action, id, status=403, post="yes")

    assert _all(inline) == before
    assert logged() == []


@pytest.mark.parametrize(("model", "action", "id"), ACTS)
def test_an_act_from_another_site_is_refused(inline: Bridge, model: str, action: str, id: str) -> None:
    _something(inline)
    before = _all(inline)

    act(browser("all", checks_csrf=True), model, action, id, status=403, post="yes")

    assert _all(inline) == before


@pytest.mark.parametrize("path", ["schedule/add/", "schedule/put/change/", "schedule/put/delete/"])
def test_forms_are_for_those_who_may_change(inline: Bridge, path: str) -> None:
    _something(inline)
    before = _all(inline)

    assert browser(*VIEWS).post(f"{ADMIN}/{path}", FILLED).status_code == 403
    assert browser("all", checks_csrf=True).post(f"{ADMIN}/{path}", FILLED).status_code == 403

    assert _all(inline) == before


@pytest.mark.parametrize("model", ["queue", "deadletter", "message", "flow"])
def test_nobody_adds_or_changes_what_only_tasks_make(inline: Bridge, model: str) -> None:
    _something(inline)
    client, name = (
        browser("all"),
        {"queue": "default", "deadletter": "letter-0000", "message": "chosen", "flow": "flow"}[model],
    )
    answers = (302, 403) if model == "queue" else (403,)  # it has no page, and Django 6.1 looks first if there is one

    assert client.post(f"{ADMIN}/{model}/add/", {"id": "x"}).status_code == 403
    assert client.post(f"{ADMIN}/{model}/{name}/change/", {"id": "x"}).status_code in answers


def _something(bridge: Bridge) -> None:
    bury(bridge)
    report.using(id="chosen").schedule(3600, 1)
    report.call(1).then_call(report.call(2)).using(id="flow").schedule(3600)
    bridge.schedules.put("put", report.call(7), every=60)
    bridge.pause("bulk")


def _all(bridge: Bridge) -> Any:
    schedules = [replace(each, next_runs=()) for each in bridge.schedules.list()]
    return (
        bridge.counts(),
        bridge.dead_letters(),
        bridge.paused(),
        schedules,
        bridge.handle("chosen").status(),
        bridge.flow("flow").status(),
    )


# Where they don't answer


@pytest.mark.parametrize("url", ["celery+redis://127.0.0.1:1", "dramatiq+amqp://127.0.0.1:1"])
def test_a_broker_that_is_away_is_said_to_be_so(database: None, url: str) -> None:
    with default_bridge().temporarily(url=url, send_timeout=0.5, store="redis://127.0.0.1:1"):
        client = browser("all")

        for path in ("queue/", "deadletter/", "schedule/", "message/?q=x", "message/x/change/", "deadletter/x/change/"):
            text = page(client, path, status=503)
            assert "Not available" in text
            assert "127.0.0.1" in text
        act(client, "deadletter", "replay", "x", status=503)
        assert client.post(f"{ADMIN}/schedule/add/", FILLED).status_code == 503


def test_without_a_store_it_is_said_that_one_is_needed(database: None) -> None:
    with default_bridge().temporarily(url="celery+amqp://127.0.0.1:1", send_timeout=0.5):
        client = browser("all")

        for path in ("schedule/", "message/", "message/?q=x", "message/x/change/"):
            assert "TASKBRIDGE_STORE" in page(client, path, status=503)


def test_what_waits_is_shown_though_the_store_is_away(database: None, url_of: Callable[[str], str]) -> None:
    given: dict[str, Any] = {"url": url_of("celery+redis"), "namespace": f"admin-{uuid4().hex}"}
    with default_bridge().temporarily(**given):
        report.send(1)
    with default_bridge().temporarily(**given, store="redis://127.0.0.1:1"):
        text = page(browser("view_queue"), "queue/")

    assert '<td class="field-waiting">1</td>' in text
    assert "What runs and is paused is not known" in text
    assert "127.0.0.1:1" in text


def test_queues_are_paused_though_the_broker_is_away(database: None, url_of: Callable[[str], str]) -> None:
    store = url_of("celery+redis").partition("+")[2]
    given: dict[str, Any] = {"url": "celery+amqp://127.0.0.1:1", "send_timeout": 0.5, "store": store}
    with default_bridge().temporarily(**given, namespace=f"admin-{uuid4().hex}"):
        client = browser("all")

        act(client, "queue", "pause", "default")
        assert [each.queue for each in default_bridge().paused()] == ["default"]
        act(client, "queue", "resume", "default")
        assert default_bridge().paused() == ()
        act(client, "queue", "pause", "default", status=503, select_across="1")  # all, which takes their list

        assert [text for _, text in logged()] == ["Queue default is paused.", "Queue default goes on."]


def test_an_act_that_the_broker_ends_is_in_the_log(database: None, caplog: pytest.LogCaptureFixture) -> None:
    with default_bridge().temporarily(url="celery+redis://127.0.0.1:1", send_timeout=0.5):
        client = browser("all")
        name = User.objects.get().username

        page(client, "deadletter/", status=503)
        assert "tried" not in caplog.text
        act(client, "deadletter", "replay", "x", "y", status=503)
        assert f"{name} tried {ADMIN}/deadletter/ replay x, y: " in caplog.text
        client.post(f"{ADMIN}/schedule/add/", FILLED)
        assert f"{name} tried {ADMIN}/schedule/add/: " in caplog.text


@pytest.mark.parametrize("error", [SettingsError("store", "it is wrong"), DecodeError("it can't be read")])
def test_an_error_is_not_shown_as_an_empty_list(
    inline: Bridge, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(type(inline.operations), "flows", fail)

    assert escape(error) in page(browser("all"), "flow/?after=1.0+x", status=409)


def test_of_several_rows_those_that_are_there_are_acted_on(inline: Bridge) -> None:
    handle = report.schedule(3600, 1)
    inline.schedules.put("put", report.call(7), every=60)
    client = browser("all")

    act(client, "message", "cancel", "gone", handle.id)
    act(client, "schedule", "pause", "gone", "put")
    act(client, "queue", "pause", "gone", "default")

    assert handle.status().state == "cancelled"
    assert [each.name for each in inline.schedules.list() if each.paused] == ["put"]
    assert [each.queue for each in inline.paused()] == ["default"]
    assert [each for each, _ in logged()] == [handle.id, "put", "default"]
    text = page(client, "message/")
    for said in ("Nothing is known of a message", "There is no schedule", "Queue &#x27;gone&#x27; is not known"):
        assert f'<li class="warning">{said}' in text


def test_what_is_gone_meanwhile_is_said_to_be_gone(inline: Bridge) -> None:
    assert "there is no schedule" in act(browser("all"), "schedule", "pause", "gone", status=409)
    assert "is not known" in act(browser("all"), "queue", "pause", "gone", status=409)


# The form of schedules

FILLED: Final = {
    "name": "report-7",
    "task": report.name,
    "enabled": "on",
    "cron": "0 8 * * *",
    "timezone": "Europe/Rome",
    "every": "",
    "expires_0": "",
    "expires_1": "",
    "catch_up": "one",
    "overlap": "allow",
    "args": "[7]",
    "kwargs": '{"title": "weekly"}',
    "queue": "",
}


def errors(response: Any) -> dict[str, list[str]]:
    assert response.status_code == 200, "the form is shown again"
    return dict(response.context["adminform"].form.errors)


def test_a_schedule_is_added(bridge: Bridge) -> None:
    client = browser(*VIEWS, "add_schedule")
    assert "report-7" not in page(client, "schedule/add/")

    response = client.post(f"{ADMIN}/schedule/add/", {**FILLED, "expires_0": "2096-01-02", "expires_1": "03:04:05"})

    assert response.status_code == 302
    [entry] = [each for each in bridge.schedules.list() if each.name == "report-7"]
    assert (entry.task, entry.timing.spec, entry.paused, entry.source) == (report.name, "0 8 * * *", False, "store")
    assert str(entry.timing.zone) == "Europe/Rome"
    planned = bridge.schedules.planned()["report-7"]
    assert planned.encoded == ("[7]", '{"title":"weekly"}', 1)
    assert planned.using["expires"] == datetime(2096, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert logged() == [("report-7", "Added.")]


def test_a_schedule_is_changed_and_what_the_form_lacks_stays(bridge: Bridge) -> None:
    call = report.using(priority="high", expires=timedelta(minutes=5), headers={"from": "office"}).call(7)
    bridge.schedules.put("report-7", call, every=60)
    client = browser(*VIEWS, "change_schedule", "view_arguments")

    changed = {**FILLED, "cron": "", "timezone": "", "every": "90", "args": "[8]", "enabled": ""}
    del changed["name"], changed["enabled"]
    response = client.post(f"{ADMIN}/schedule/report-7/change/", changed)

    assert response.status_code == 302, errors(response)
    planned = bridge.schedules.planned()["report-7"]
    assert planned.timing == Every(90, name="report-7")
    assert planned.encoded == ("[8]", '{"title":"weekly"}', 1)
    assert planned.using["priority"] == "high"
    assert planned.using["expires"] == timedelta(minutes=5)
    assert planned.using["headers"] == {"from": "office"}
    assert [each.paused for each in bridge.schedules.list() if each.name == "report-7"] == [True]


def test_arguments_that_json_has_not_stay_as_they_are(inline: Bridge) -> None:
    inline.schedules.put("remind", remind.call(timedelta(hours=1)), every=60)
    before = inline.schedules.planned()["remind"].encoded
    client = browser(*VIEWS, "change_schedule", "view_arguments")
    form = client.get(f"{ADMIN}/schedule/remind/change/").context["adminform"].form

    filled = {name: form.get_initial_for_field(field, name) or "" for name, field in form.fields.items()}
    response = client.post(f"{ADMIN}/schedule/remind/change/", {**filled, "every": "90"})

    assert response.status_code == 302, errors(response)
    assert inline.schedules.planned()["remind"].encoded == before
    assert inline.schedules.planned()["remind"].timing == Every(90, name="remind")


def test_arguments_that_the_user_may_not_see_go_to_no_other_task(inline: Bridge) -> None:
    inline.schedules.put("report-7", report.call(4242), every=60)
    client = browser(*VIEWS, "change_schedule")

    client.post(f"{ADMIN}/schedule/report-7/change/", {"task": fail.name, "every": "90", "catch_up": "one"})

    assert inline.schedules.planned()["report-7"].task == report.name


def test_arguments_that_the_user_may_not_see_stay_as_they_are(inline: Bridge) -> None:
    inline.schedules.put("report-7", report.call(4242, title="secret"), every=60)
    client = browser(*VIEWS, "change_schedule")
    assert "4242" not in page(client, "schedule/report-7/change/")

    response = client.post(f"{ADMIN}/schedule/report-7/change/", {**FILLED, "args": "[1]"})

    assert response.status_code == 302, errors(response)
    assert inline.schedules.planned()["report-7"].encoded == ("[4242]", '{"title":"secret"}', 1)
    assert inline.schedules.planned()["report-7"].timing.spec == "0 8 * * *"


@pytest.mark.parametrize(
    ("wrong", "field", "said"),
    [
        ({"name": "  "}, "name", "required"),
        ({"name": "a\nb"}, "name", "text of up to 255 characters"),
        ({"name": TIDY}, "name", "already"),
        ({"name": "taken"}, "name", "already"),
        ({"task": "nobody"}, "task", "not one of the available choices"),
        ({"cron": "0 8 * *"}, "cron", "must have 5 fields"),
        ({"cron": "0 8 30 2 *"}, "cron", "Bad day-of-month"),
        ({"cron": "0 8 * * sat-sun"}, "cron", "a range goes up"),
        ({"cron": "", "timezone": ""}, "every", "Give an expression"),
        ({"every": "60"}, "cron", "give cron or every"),
        ({"cron": "", "every": "60"}, "every", "timezone has an effect only with cron"),
        ({"cron": "", "timezone": "", "every": "0"}, "every", "at least 1"),
        ({"timezone": "Europe/Roma"}, "timezone", "did you mean 'Europe/Rome'"),
        ({"args": "[7"}, "args", "JSON"),
        ({"args": "7"}, "args", "array"),
        ({"args": "[]"}, "args", "can't be called"),
        ({"args": "[1, 2]"}, "args", "can't be called"),
        ({"kwargs": "[]"}, "kwargs", "object"),
        ({"kwargs": '{"titel": 1}'}, "args", "titel"),
        ({"queue": "nobody"}, "queue", "not one of the available choices"),
        ({"catch_up": "some"}, "catch_up", "not one of the available choices"),
        ({"expires_0": "soon"}, "expires", "valid date"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(inline: Bridge, wrong: dict[str, str], field: str, said: str) -> None:
    inline.schedules.put("taken", report.call(7), every=60)
    before = [each.name for each in inline.schedules.list()]

    found = errors(browser("all").post(f"{ADMIN}/schedule/add/", {**FILLED, **wrong}))

    assert list(found) == [field], found
    assert said in " ".join(found[field])
    assert [each.name for each in inline.schedules.list()] == before


def test_a_schedule_of_the_code_is_only_shown(inline: Bridge) -> None:
    path = f"schedule/{TIDY}/change/"
    client = browser("all")

    assert "_save" not in page(client, path)
    assert client.post(f"{ADMIN}/{path}", FILLED).status_code == 403


def test_a_schedule_whose_task_is_not_known_here_can_only_be_deleted(inline: Bridge) -> None:
    call = report.call(7)
    with inline.temporarily():
        pass
    inline.schedules.put("report-7", call, every=60)
    forgotten = inline._tasks.pop(report.name)  # as in a release without it
    try:
        client = browser("all")
        assert "report-7" in page(client, "schedule/")
        assert client.post(f"{ADMIN}/schedule/report-7/change/", FILLED).status_code == 403
        act(client, "schedule", "delete_selected", "report-7", post="yes")
        assert "report-7" not in [each.name for each in inline.schedules.list()]
    finally:
        inline._tasks[report.name] = forgotten


def test_the_migrations_are_those_of_the_models(database: None) -> None:
    call_command("makemigrations", "taskbridge", check=True, dry_run=True, verbosity=0)
    call_command("check")
