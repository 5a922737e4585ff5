"""What a worker process knows of cancellations, and when it asks the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator

import pytest

from taskbridge import Bridge, BrokerUnavailable, Message
from taskbridge.engines.cancellations import PERIOD_S, Cancellations
from taskbridge.retry import CancelledVerdict
from taskbridge.runner import Run, Runs
from taskbridge.stores.memory import MemoryBackend
from taskbridge.stores.records import CANCEL_KNOWN_S, Records


class Store(Records):
    """Records that can be away, and that count how often they were asked, and by which threads."""

    def __init__(self, bridge: Bridge) -> None:
        self.kept = MemoryBackend(time.time)
        super().__init__(bridge.settings, self.kept)
        self.is_away = False
        self.askers: list[str] = []

    def cancelled_since(self, cursor: str, *, timeout_s: float) -> tuple[str, Collection[str]]:
        self.askers.append(threading.current_thread().name)
        if self.is_away:
            raise BrokerUnavailable("it is away")
        return super().cancelled_since(cursor, timeout_s=timeout_s)

    def add(self, message: Message, *, cancelled: bool = False) -> Message:
        self.create([(message, 0.0)], timeout_s=1)
        if cancelled:
            self.cancel(message.id, at=time.time(), timeout_s=1)
        return message


def message(number: int) -> Message:
    return Message(id=f"m{number}", task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=time.time())


@pytest.fixture
def store() -> Store:
    return Store(Bridge("celery+redis://localhost"))


@pytest.fixture
def known(store: Store) -> Iterator[Cancellations]:
    known = Cancellations(lambda: store, settings=Bridge("celery+redis://localhost").settings)
    yield known
    known.close()


def is_soon(condition: Callable[[], bool], within_s: float = 30.0) -> bool:
    deadline = time.monotonic() + within_s
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def until_known(known: Cancellations, one: Message) -> bool:
    return is_soon(lambda: known.knows(one))


def until_asked(store: Store, times: int) -> bool:
    """Wait until the store was asked so often again; with the second time, the first has been dealt with."""
    before = len(store.askers)
    return is_soon(lambda: len(store.askers) >= before + times)


def test_the_first_start_waits_for_what_is_cancelled_already(known: Cancellations, store: Store) -> None:
    cancelled, other = store.add(message(1), cancelled=True), store.add(message(2))

    assert (known.has(cancelled), known.has(other)) == (True, False)


def test_starts_ask_nobody_while_a_thread_does(known: Cancellations, store: Store) -> None:
    known.has(store.add(message(1)))
    later = store.add(message(2), cancelled=True)

    assert until_known(known, later)
    assert known.has(later)
    assert set(store.askers[1:]) == {"taskbridge-cancelled"}
    assert PERIOD_S * 2 < CANCEL_KNOWN_S


def test_a_running_task_is_told_without_waiting_for_the_store(known: Cancellations, store: Store) -> None:
    store.is_away = True
    running = store.add(message(1), cancelled=True)

    assert not known.knows(running)
    store.is_away = False
    assert until_known(known, running)
    assert set(store.askers) == {"taskbridge-cancelled"}


def test_a_store_that_is_away_is_told_of_once(
    known: Cancellations, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        store.is_away = True
        known.knows(message(1))
        assert until_asked(store, 4)
        store.is_away = False
        assert until_known(known, store.add(message(len(store.askers)), cancelled=True))
        assert until_asked(store, 2), "it is known that the store is back"

    assert known._thread is not None
    own = [record for record in caplog.records if record.thread == known._thread.ident]
    assert len([record for record in own if record.levelname == "WARNING"]) == 2


def test_nothing_starts_on_old_knowledge(known: Cancellations, store: Store) -> None:
    one = store.add(message(1))
    assert not known.has(one)
    store.is_away = True

    time.sleep(CANCEL_KNOWN_S)
    with pytest.raises(BrokerUnavailable, match="it is away"):
        known.has(one)
    store.is_away = False
    assert not known.has(one)


def test_what_this_process_cancels_it_knows_at_once(known: Cancellations, store: Store) -> None:
    one = store.add(message(1))
    known.has(one)
    known.add(one.life)

    assert known.has(one)
    assert known.knows(one)


def test_a_replay_is_another_life(known: Cancellations, store: Store) -> None:
    one = store.add(message(1), cancelled=True)

    assert known.has(one)
    assert not known.has(one.replayed(time.time()))


def test_many_are_learned_part_by_part(known: Cancellations, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskbridge.stores.records.CANCELLATIONS_AT_ONCE", 3)
    cancelled = [store.add(message(number), cancelled=True) for number in range(8)]

    assert all(known.has(each) for each in cancelled)
    assert len(store.askers) >= 4
    assert len(set(store.askers[:4])) == 1, "whoever asks first asks for all"
    assert len(store.cancelled_since("", timeout_s=1)[1]) == 3


def test_what_the_store_forgets_is_forgotten(
    known: Cancellations, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskbridge.engines.cancellations._MOST_FORGOTTEN", 10)
    known._enough = 10
    old = [store.add(message(number), cancelled=True) for number in range(9)]
    assert known.has(old[0])
    del store.kept._cancelled[:9]
    store.kept._cancelled_before = 9
    recent = [store.add(message(number), cancelled=True) for number in range(9, 20)]

    assert until_known(known, recent[-1])
    assert is_soon(lambda: not any(known.has(each) for each in old)), "soon after that"
    assert all(known.has(each) for each in recent)


def test_a_process_that_only_cancels_remembers_nothing(known: Cancellations, store: Store) -> None:
    one = store.add(message(1), cancelled=True)
    known.add(one.life)

    assert len(known._lives) == 0
    assert known.has(one)


def test_in_one_process_too_what_the_store_forgets_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskbridge.engines.cancellations._MOST_FORGOTTEN", 10)
    bridge = Bridge("inline://")
    store = Store(bridge)
    known = Cancellations(lambda: store, settings=bridge.settings)
    lives = [store.add(message(number), cancelled=True) for number in range(12)]
    for each in lives[:10]:
        known.add(each.life)
    del store.kept._cancelled[:10]
    store.kept._cancelled_before = 10
    for each in lives[10:]:
        known.add(each.life)

    assert [known.has(each) for each in lives] == [False] * 10 + [True] * 2


@pytest.mark.parametrize("url", ["inline://", "celery+memory://"])
def test_where_nobody_else_can_cancel_nobody_is_asked(url: str) -> None:
    bridge = Bridge(url)
    store = Store(bridge)
    known = Cancellations(lambda: store, settings=bridge.settings)

    assert not known.has(store.add(message(1)))
    assert store.askers == []


def running(bridge: Bridge, known: Cancellations, one: Message) -> tuple[threading.Thread, list[object]]:
    """Run a message that waits to be interrupted, in a thread."""
    runs, verdicts, begun = Runs(), list[object](), threading.Event()

    @bridge.task(name=one.task)
    def waits() -> None:
        begun.set()
        while True:
            time.sleep(0.01)

    known.runs = runs
    work = threading.Thread(target=lambda: verdicts.append(runs.run(bridge.bound(one.task), one)), daemon=True)
    known.has(one)
    work.start()
    assert begun.wait(30)
    assert waits.name == one.task
    return work, verdicts


def test_a_run_is_interrupted_if_that_is_asked_for_and_only_then(store: Store, known: Cancellations) -> None:
    one = store.add(message(1))
    work, verdicts = running(Bridge("inline://?threads=0"), known, one)
    store.started(one, worker="w", at=time.time())
    store.cancel(one.id, at=time.time(), timeout_s=1)
    assert until_known(known, one)
    work.join(3 * PERIOD_S)
    assert work.is_alive()
    store.cancel(one.id, at=time.time(), interrupt=True, timeout_s=1)
    work.join(30)
    assert isinstance(verdicts[0], CancelledVerdict)


def test_a_run_is_interrupted_that_begins_long_after_its_message_was_seen_not_to_be_cancelled(
    store: Store, known: Cancellations
) -> None:
    one = store.add(message(1))
    runs: list[Run] = []
    known.runs = Runs()
    known.runs.all = lambda: runs  # type: ignore[method-assign]
    interrupted: list[Run] = []
    known.runs.cancel = interrupted.append  # type: ignore[method-assign, assignment]
    known.has(one)
    store.cancel(one.id, at=time.time(), interrupt=True, timeout_s=1)
    assert until_known(known, one)  # it had been asked about before, and no run was there yet
    time.sleep(4 * PERIOD_S)
    runs.append(Run(one, None, 0.0, 0.0))
    assert is_soon(lambda: bool(interrupted))


def test_a_run_is_interrupted_when_the_store_is_back(store: Store, known: Cancellations) -> None:
    one = store.add(message(1))
    work, verdicts = running(Bridge("inline://?threads=0"), known, one)
    get, away = store.get, [True]

    def away_at_first(*given: object, **named: object) -> object:
        if away:
            away.pop()
            raise BrokerUnavailable("it is away")
        return get(*given, **named)  # type: ignore[arg-type]

    store.get = away_at_first  # type: ignore[assignment, method-assign]
    store.cancel(one.id, at=time.time(), interrupt=True, timeout_s=1)
    work.join(30)
    assert isinstance(verdicts[0], CancelledVerdict)
    assert not away
