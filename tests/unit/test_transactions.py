"""Sends that are a part of an application's transactions, of databases that the library doesn't know."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count
from typing import Any, TypeVar

import pytest

from taskbridge import Bridge, BrokerUnavailable, Message, UnsupportedError, outbox
from taskbridge.stores import entries
from taskbridge.stores.backend import Commit, Entry
from taskbridge.stores.entries import loads_held
from taskbridge.transactions import Transactions, checked_commit
from tests.servers import PrivateRedis
from tests.unit.redis_helpers import wait_until

T = TypeVar("T")


class Ledger:
    """An application's databases: each has one transaction at a time, and `ledger` holds the outbox."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.numbers = count()
        self.leased: set[str] = set()
        self.error: Exception | None = None
        self.held: dict[str, list[tuple[Sequence[Any], Callable[[Sequence[Any]], None]]]] = {}
        self.outbox: Ledger = self
        self.may_hold: bool = False
        self.threads: list[str] = []
        self.has_left: bool = False

    # As transactions

    def begin(self, *databases: str) -> None:
        self.held |= {each: [] for each in databases}

    def commit(self, database: str) -> None:
        for held, publish in self.held.pop(database):
            publish(held)

    def open_on(self, databases: Sequence[str]) -> Sequence[str]:
        return [each for each in databases if each in self.held]

    def hold(self, database: str, held: Sequence[T], publish: Callable[[Sequence[T]], None]) -> None:
        self.held[database].append((held, publish))

    async def aside(self, act: Callable[[], T]) -> T:
        self.threads.append(threading.current_thread().name)
        return act()

    # As an outbox

    def put(self, texts: Sequence[str], then: Callable[[], object] | None) -> None:
        self.may_hold = True
        self.rows |= {str(next(self.numbers)): text for text in texts}
        if then is not None:
            then()

    def due_entries(self, *, most: int, lease_s: float, timeout_s: float) -> list[tuple[str, str]]:
        if self.error is not None:
            raise self.error
        due = [(key, text) for key, text in self.rows.items() if key not in self.leased][:most]
        self.leased.update(key for key, _ in due)
        return due

    def remove_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        self.rows = {key: text for key, text in self.rows.items() if key not in ids}

    def hand_on_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        self.leased -= {*ids}

    def leave(self) -> None:
        self.has_left = True


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def bridge(ledger: Ledger) -> Iterator[Bridge]:
    bridge = Bridge("inline://?threads=0")
    transactions: Transactions = ledger
    bridge.transactions = transactions
    bridge.task(name="note")(ran.append)
    ran.clear()
    yield bridge
    bridge.close()


ran: list[int] = []


def test_a_message_waits_until_all_open_transactions_are_committed(bridge: Bridge, ledger: Ledger) -> None:
    task = bridge.named("note").using(commit=("one", "two", "three"))
    ledger.begin("one", "two")
    task.send(1)
    ledger.commit("two")
    task.send(2)  # waits for one of them
    assert bridge.run_until_idle() == 0
    ledger.commit("one")
    task.send(3)
    bridge.run_until_idle()
    assert ran == [1, 2, 3]


def test_a_message_that_a_rolled_back_transaction_shares_is_not_sent(bridge: Bridge, ledger: Ledger) -> None:
    ledger.begin("one", "two")
    bridge.named("note").using(commit=("one", "two")).send(1)
    del ledger.held["two"]
    ledger.commit("one")
    assert bridge.run_until_idle() == 0


def test_a_commit_that_is_told_twice_publishes_once(bridge: Bridge, ledger: Ledger) -> None:
    ledger.begin("default")
    bridge.named("note").on_commit.send(1)
    [(held, publish)] = ledger.held["default"]
    publish(held)
    publish(held)
    assert bridge.run_until_idle() == 1


def test_many_calls_may_differ_in_what_they_wait_for(bridge: Bridge, ledger: Ledger) -> None:
    note = bridge.named("note")
    ledger.begin("one")
    handles = note.using(commit="one").send_many(
        [note.call(1), note.using(commit=None).call(2), note.using(commit="outbox").call(3), note.call(4)]
    )
    assert [loads_held(text).message.id for text in ledger.rows.values()] == [handles[2].id]
    bridge.run_until_idle()
    assert sorted(ran) == [2, 3]
    ledger.commit("one")
    bridge.run_until_idle()
    assert sorted(ran) == [1, 2, 3, 4]
    assert [handle.status().state for handle in handles] == ["done"] * 4


def test_asend_acts_where_the_transactions_are_only_if_it_may_wait_for_one(bridge: Bridge, ledger: Ledger) -> None:
    note = bridge.named("note")

    async def work() -> None:
        await note.asend(1)
        assert ledger.threads == []
        await note.on_commit.asend(2)
        await note.on_commit.aschedule(3, 3)
        await note.asend_many([note.call(4)])  # whose calls are not looked at on the loop

    asyncio.run(work())
    assert ledger.threads == ["MainThread"] * 3
    assert bridge.run_until_idle() == 4


def test_an_outbox_that_fails_is_told_once_and_keeps_back_nothing_else(
    bridge: Bridge, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    note = bridge.named("note")
    note.using(commit="outbox").send(1)
    ledger.error = BrokerUnavailable("the database is away")
    note.send(2)
    assert bridge.run_until_idle() == 1
    ledger.error = KeyError("odd")
    assert bridge.run_until_idle() == 0
    assert caplog.text.count("the application's outbox waits") == 1

    ledger.error = None
    assert bridge.run_until_idle() == 1
    ledger.error = KeyError("odd")
    bridge.run_until_idle()
    assert caplog.text.count("the application's outbox waits") == 2
    assert "KeyError" in caplog.text


def test_a_row_of_an_unknown_task_is_handed_on_once(bridge: Bridge, ledger: Ledger) -> None:
    bridge.named("unknown").using(commit="outbox").send(1)
    bridge.relay.step()
    assert ledger.leased == set()
    bridge.relay.step()
    assert ledger.leased == {"0"}


def test_the_thread_of_the_relay_closes_its_connections_as_it_ends(bridge: Bridge, ledger: Ledger) -> None:
    bridge.named("note").using(commit="outbox").send(1)
    with bridge.embedded_worker():
        wait_until(lambda: bool(ran), timeout_s=60, saw=lambda: ran)
    wait_until(lambda: ledger.has_left, timeout_s=60, saw=lambda: "no connection that is closed")
    assert ran == [1]


def test_a_database_that_hangs_holds_nothing_else_back(
    bridge: Bridge, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answers = threading.Event(), threading.Event()
    due_entries = ledger.due_entries

    def hang(**options: Any) -> list[tuple[str, str]]:
        asked.set()
        assert answers.wait(60)
        return due_entries(**options)

    monkeypatch.setattr(ledger, "due_entries", hang)
    bridge.named("note").using(commit="outbox").send(1)
    store = bridge.store
    assert store is not None
    try:
        with bridge.embedded_worker():
            assert asked.wait(60)
            message = Message(id="a", task="note", queue="default", args_json="[2]", kwargs_json="{}", enqueued_at=0)
            entry = Entry("a", entries.held(message, 0.0).dumps())
            store.backend.commit([Commit((), [entry])], timeout_s=1.0)  # as a killed sender of a unique task leaves it
            wait_until(lambda: ran == [2], timeout_s=60, saw=lambda: ran)
            answers.set()
            wait_until(lambda: ran == [2, 1], timeout_s=60, saw=lambda: ran)
    finally:
        answers.set()


def test_an_outbox_that_is_set_after_the_worker_has_started_is_relayed(bridge: Bridge, ledger: Ledger) -> None:
    bridge.transactions = None
    with bridge.embedded_worker():
        bridge.named("note").send(1).result(timeout=60)
        bridge.transactions = ledger
        bridge.named("note").using(commit="outbox").send(2)
        wait_until(lambda: ran == [1, 2], timeout_s=60, saw=lambda: ran)


def test_what_runs_what_it_sends_asks_an_outbox_only_for_what_it_has_put_there(bridge: Bridge, ledger: Ledger) -> None:
    ledger.error = AssertionError("no query")
    bridge.named("note").send(1)
    assert bridge.run_until_idle() == 1


def test_without_a_store_the_outbox_is_refused(ledger: Ledger) -> None:
    bridge = Bridge("dramatiq+amqp://localhost//")
    bridge.transactions = ledger
    with pytest.raises(UnsupportedError, match="TASKBRIDGE_STORE"):
        bridge.named("note").using(commit="outbox").send(1)
    assert ledger.rows == {}


@pytest.mark.parametrize(
    ("given", "names"),
    [(None, None), ("default", ("default",)), (["a", "b", "a"], ("a", "b")), ("outbox", ("outbox",))],
)
def test_commit_is_read(given: object, names: tuple[str, ...] | None) -> None:
    assert checked_commit(given) == names


def test_an_outbox_that_nobody_seems_to_use_is_looked_into_seldom(
    ledger: Ledger, redis_server: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = [1000.0], list[float]()
    due_entries = ledger.due_entries

    def noted(**asked: Any) -> list[tuple[str, str]]:
        looks.append(now[0])
        return due_entries(**asked)

    monkeypatch.setattr(outbox, "monotonic", lambda: now[0])
    monkeypatch.setattr(ledger, "due_entries", noted)
    bridge = Bridge(f"celery+{redis_server.url}", namespace="seldom")
    bridge.task(name="note")(print)
    bridge.transactions = ledger

    for after_s in (0.0, 4.0, 1.0):
        now[0] += after_s
        bridge.relay.step()
    assert looks == [1000, 1005]
    assert ledger.has_left, "the connection is closed meanwhile"

    message = Message(id="found", task="note", queue="default", args_json="[]", kwargs_json="{}", enqueued_at=0)
    ledger.rows["0"] = entries.held(message, 0.0).dumps()
    for after_s in (5.0, 0.1, 0.1):
        now[0] += after_s
        bridge.relay.step()
    assert looks == [1000, 1005, 1010, 1010.1, 1010.2], "it is in use"
    assert ledger.rows == {}
    bridge.close()


@pytest.mark.parametrize("commit", ["a", "outbox"])
@pytest.mark.parametrize("chosen", [None, "late"])
def test_a_delay_counts_from_the_call(bridge: Bridge, ledger: Ledger, commit: str, chosen: str | None) -> None:
    began = bridge.now()
    ledger.begin("a")
    handle = bridge.named("note").using(id=chosen, commit=commit).schedule(60, 1)
    ledger.error = BrokerUnavailable("the database is away")
    bridge.run_schedules(30)
    ledger.error = None
    ledger.commit("a")
    bridge.relay.step()

    due_at = handle.status().due_at
    assert due_at is not None
    assert due_at.timestamp() == pytest.approx(began + 60, abs=15)
    bridge.run_schedules(10)
    assert ran == []
    bridge.run_schedules(60)
    assert ran == [1]


def test_what_is_overdue_starts_at_once(bridge: Bridge, ledger: Ledger) -> None:
    ledger.begin("a")
    for chosen in (None, "chosen"):
        bridge.named("note").using(id=chosen, commit="a").schedule(60, 1)
    bridge.run_schedules(100)
    ledger.commit("a")

    bridge.run_schedules(0.1)
    assert ran == [1, 1]
