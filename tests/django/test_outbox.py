"""The outbox in Django's database: in the transaction of whoever sends, and relayed by workers whoever is killed."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, connections, transaction
from django.db.transaction import atomic

from taskbridge import Bridge, BrokerUnavailable, NoSuchRecord, Unique, UnsupportedError, default_bridge, group
from taskbridge.django.models import OutboxEntry
from taskbridge.django.outbox import DjangoOutbox
from taskbridge.exceptions import NewerFormError
from taskbridge.stores.entries import KEPT, KEPT_END, loads_held
from taskbridge.testing import capture_sent
from tests.django.kills import count, project_on
from tests.django.site.shop.tasks import add, total
from tests.private_postgresql import PrivatePostgreSQL


class Undo(Exception):
    """Rolls a block back."""


@pytest.fixture(scope="module", autouse=True)
def tables() -> None:
    call_command("migrate", run_syncdb=True, verbosity=0)


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    with default_bridge().temporarily(url="inline://?threads=0", namespace="outbox", commit="outbox"):
        yield default_bridge()
    OutboxEntry.objects.all().delete()


def held() -> list[int]:
    """Return the first argument of each message in the outbox."""
    return [loads_held(each.text).message.arguments()[0][0] for each in OutboxEntry.objects.order_by("id")]


def test_a_send_is_a_row_in_the_senders_transaction(bridge: Bridge) -> None:
    with suppress(Undo), atomic():
        add.send(1, 0)
        raise Undo
    with atomic():
        handle = add.send(2, 0)
        with suppress(Undo), atomic():
            add.send(3, 0)
            raise Undo
        assert held() == [2]
    add.send(4, 0)
    assert held() == [2, 4]
    with pytest.raises(NoSuchRecord):
        handle.status()

    assert bridge.run_until_idle() == 2
    assert handle.result() == 2
    assert held() == []


def test_what_many_send_is_inserted_at_once(bridge: Bridge) -> None:
    queries: list[str] = []

    def note(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        queries.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note), atomic():
        bridge.send_many(add.call(number, 0) for number in range(50))
    assert [sql.split()[0] for sql in queries] == ["BEGIN", "INSERT"]
    assert bridge.run_until_idle() == 50


def test_it_works_where_every_transaction_is_manual(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", False)
    outbox = DjangoOutbox(bridge)
    transaction.set_autocommit(False)
    try:
        add.send(1, 0)
        transaction.rollback()
        add.send(2, 0)
        transaction.commit()

        [(key, _)] = outbox.due_entries(most=9, lease_s=600, timeout_s=1)
        transaction.rollback()  # as a connection that is closed
        assert outbox.due_entries(most=9, lease_s=600, timeout_s=1) == []
        outbox.remove_entries([key], timeout_s=1)
        transaction.rollback()
        assert held() == []
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def test_a_delay_counts_from_the_call(bridge: Bridge) -> None:
    began = bridge.now()
    handle = add.schedule(100, 1, 0)
    assert bridge.run_until_idle() == 1
    started = handle.status().attempts[0].started_at
    assert started is not None
    assert started.timestamp() - began >= 100


def test_options_go_before_the_setting(bridge: Bridge) -> None:
    add.using(commit=None).send(1, 0)
    add.on_commit.send(2, 0)
    assert held() == []
    assert bridge.run_until_idle() == 2


def test_what_is_relayed_twice_is_recorded_once(bridge: Bridge) -> None:
    handle = add.send(1, 2)
    [row] = OutboxEntry.objects.all()
    bridge.run_until_idle()
    ended = handle.status()
    OutboxEntry.objects.create(namespace="outbox", text=row.text)  # as after a kill between publishing and removing it
    bridge.relay.step()
    assert handle.status() == ended


def test_a_row_is_left_to_the_worker_that_claimed_it_until_its_lease_ends(bridge: Bridge) -> None:
    for number in range(3):
        add.send(number, 0)
    outbox = DjangoOutbox(bridge)
    first = outbox.due_entries(most=2, lease_s=600, timeout_s=1)
    second = outbox.due_entries(most=2, lease_s=600, timeout_s=1)
    assert [len(first), len(second)] == [2, 1]
    assert outbox.due_entries(most=2, lease_s=600, timeout_s=1) == []

    outbox.hand_on_entries([key for key, _ in second], timeout_s=1)
    assert outbox.due_entries(most=2, lease_s=600, timeout_s=1) == second
    outbox.remove_entries([key for key, _ in second], timeout_s=1)
    bridge.run_schedules(700)
    assert bridge.run_until_idle() == 2
    assert held() == []


def test_rows_of_other_namespaces_are_left_alone(bridge: Bridge) -> None:
    add.send(1, 0)
    OutboxEntry.objects.update(namespace="other")
    assert bridge.run_until_idle() == 0
    assert held() == [1]


def test_keys_and_ids_are_claimed_as_they_are_relayed(bridge: Bridge, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[int] = []
    caplog.set_level(logging.WARNING, "taskbridge")

    @bridge.task(name=f"single-{uuid4().hex}", unique=Unique("number", on_conflict="raise"))
    def task(number: int) -> None:
        ran.append(number)

    first, second = (task.send(1) for _ in range(2))
    for right in (2, 3):
        assert add.using(id="chosen in outbox").send(1, right).id == "chosen in outbox"
    assert bridge.run_until_idle() == 2
    assert ran == [1]
    assert first.status().state == "done"
    assert f"id {second.id} attempt 1 was left out" in caplog.text
    assert "id chosen in outbox attempt 1 was left out" in caplog.text
    assert held() == []


def test_an_odd_row_is_dead_and_the_one_behind_it_is_published(bridge: Bridge) -> None:
    OutboxEntry.objects.create(namespace="outbox", text="odd")
    bridge.named("unknown task").send(1)
    handle = add.send(2, 2)
    assert bridge.run_until_idle() == 1
    assert handle.result() == 4
    assert [letter.reason for letter in bridge.dead_letters()] == ["undecodable"]
    assert held() == [1]  # it is left to workers that know it


def test_a_flow_is_a_row_in_the_senders_transaction(bridge: Bridge) -> None:
    with suppress(Undo), atomic():
        group(add.call(number, 0) for number in range(3)).then(total).send()
        raise Undo
    with atomic():
        handle = group(add.call(number, 1) for number in range(250)).then(total).send()
        small = add.call(1, 2).then(add, 3).send()
        assert OutboxEntry.objects.count() == 2
    with pytest.raises(NoSuchRecord):
        handle.status()

    bridge.run_until_idle()
    assert (handle.result(), small.result()) == (sum(range(250)) + 250, 6)
    assert OutboxEntry.objects.count() == 0


def test_a_flow_that_is_relayed_twice_is_begun_once(bridge: Bridge) -> None:
    handle = group(add.call(number, 1) for number in range(150)).then(total).send()
    [row] = OutboxEntry.objects.all()
    bridge.run_until_idle()
    assert handle.result() == sum(range(150)) + 150
    bridge.run_schedules(2 * 86400)  # a relay that was killed may be started much later
    OutboxEntry.objects.create(namespace="outbox", text=row.text)
    bridge.relay.step()
    assert bridge.run_until_idle() == 0
    assert OutboxEntry.objects.count() == 0


def test_another_flow_of_the_same_id_is_left_out(bridge: Bridge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "taskbridge")
    for right in (2, 3):
        flow = add.call(1, right).then(add, 0).using(id="flow in outbox")
        handle = flow.send()
    bridge.run_until_idle()
    assert handle.result() == 3
    assert "flow flow in outbox was left out" in caplog.text


def test_the_delay_of_a_flow_counts_from_the_call(bridge: Bridge) -> None:
    began = bridge.now()
    handle = add.call(1, 2).then(add, 3).schedule(100)
    bridge.run_until_idle()
    ended_at = handle.status().ended_at
    assert ended_at is not None
    assert 100 <= ended_at.timestamp() - began < 110


def test_a_flow_that_no_worker_here_knows_is_left_to_others(bridge: Bridge) -> None:
    bridge.named("unknown task").call(1).then(add, 0).send()
    bridge.run_until_idle()
    [row] = OutboxEntry.objects.all()
    with pytest.raises(NewerFormError):  # which is what has an earlier release leave it alone
        loads_held(row.text)


@pytest.mark.parametrize("broken", ["", "[]", "null", '["x",null,null,[]]', '["x","1\\n{}","1\\n{}",[[0,0,"y"]]]'])
def test_a_flow_that_cant_be_read_is_dead(bridge: Bridge, broken: str) -> None:
    OutboxEntry.objects.create(namespace="outbox", text=KEPT + broken + KEPT_END)
    handle = add.send(2, 2)
    bridge.run_until_idle()
    assert handle.result() == 4
    assert OutboxEntry.objects.count() == 0
    assert [letter.reason for letter in bridge.dead_letters()] == ["undecodable"]


def test_captured_sends_are_in_no_outbox(bridge: Bridge) -> None:
    with capture_sent() as sent:
        add.send(1, 2)
    sent.assert_sent(add, 1, 2)
    assert held() == []


def test_eager_messages_run_as_the_transaction_is_committed(bridge: Bridge) -> None:
    with bridge.temporarily(url="inline://?at_send=raise", namespace="outbox", commit="outbox"):
        with atomic():
            handle = add.send(1, 2)
            assert held() == [1]
        assert handle.result() == 3


def test_without_a_store_it_is_refused() -> None:
    with (
        default_bridge().temporarily(url="celery+amqp://localhost//"),
        pytest.raises(UnsupportedError, match="STORE"),
    ):
        add.using(commit="outbox").send(1, 2)


def test_a_missing_table_says_what_to_do(bridge: Bridge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "taskbridge")
    call_command("migrate", "taskbridge", "zero", verbosity=0)
    try:
        with pytest.raises(BrokerUnavailable, match=r"manage\.py migrate taskbridge"):
            add.send(1, 2)
        for _ in range(3):
            bridge.relay.step()
        assert caplog.text.count("manage.py migrate taskbridge") == 1
        add.using(commit=None).send(1, 2)
        assert bridge.run_until_idle() == 1
    finally:
        call_command("migrate", "taskbridge", verbosity=0)


def test_other_errors_of_the_database_are_djangos_own(bridge: Bridge) -> None:
    def fail(*_: object) -> Any:
        raise OperationalError("disk I/O error") from sqlite3.OperationalError()

    with connections["default"].execute_wrapper(fail), pytest.raises(OperationalError):
        add.send(1, 2)
    assert held() == []


# Real workers


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with PrivatePostgreSQL() as server:
        yield {"postgresql": server.url, "sqlite": str(tmp_path_factory.mktemp("site") / "site.db")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "database"),
    [
        ("celery+redis", "postgresql"),
        ("dramatiq+redis", "sqlite"),
        ("celery+amqp", "sqlite"),
        ("dramatiq+amqp", "postgresql"),
    ],
)
def test_killed_senders_lose_nothing_and_nothing_is_run_twice(
    pair: str,
    database: str,
    databases: dict[str, str],
    tmp_path: Path,
    url_of: Callable[[str], str],
    redis_server: Any,
) -> None:
    with project_on(tmp_path, url_of(pair), databases[database], redis_server.url) as site:
        site.worker("--processes", "1", "--threads", "2")
        site.send("outbox", kills=10, twice=5)
        site.send("flow")
        site.until(lambda: len(count(site.notes)) == 14, "the runs of what was sent")
        site.until(site.is_idle, "nothing to be left")
        site.close()  # which lets all end that runs
        assert count(site.notes) == dict.fromkeys([*range(10), *range(1000, 1004)], 1)


def test_a_worker_relays_again_after_the_database_was_away(
    tmp_path: Path, url_of: Callable[[str], str], redis_server: Any
) -> None:
    with (
        PrivatePostgreSQL() as server,
        project_on(tmp_path, url_of("dramatiq+redis"), server.url, redis_server.url) as site,
    ):
        site.worker("--processes", "1", "--threads", "1")
        site.send("outbox", kills=1)
        site.until(lambda: len(count(site.notes)) == 1, "the first run")
        server.restart()
        site.send("outbox", kills=1, first=1)
        site.until(lambda: len(count(site.notes)) == 2, "the run after the restart")
