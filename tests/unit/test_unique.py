"""Unique tasks: what may be declared, and which calls have the same key."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, cast

import pytest

from taskbridge import (
    Bridge,
    BrokerUnavailable,
    DeclarationError,
    EncodeError,
    Handle,
    IdempotencyConflict,
    Message,
    RetryPolicy,
    SendError,
    Status,
    Unique,
    UniqueConflict,
)
from taskbridge.engines.settle import begin, put_off_unknown
from taskbridge.exceptions import PartlyPublished
from taskbridge.message import loads
from taskbridge.retry import CancelledVerdict
from taskbridge.stores.base import Store
from taskbridge.stores.transitions import pointed_to, pointer_key
from taskbridge.unique import digest_of, hash_of


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    bridge = Bridge("inline://?threads=0")
    yield bridge
    bridge.close()


def sync(table: int, rows: Any = (), *, full: bool = False) -> None: ...


call = Bridge("inline://").task(name="sync")(sync).call


def key_of(unique: Unique, *args: Any, **kwargs: Any) -> str:
    return unique.held_by(call(*args, **kwargs))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Unique(until="never"), "until 'never' is not one of end, start"),  # type: ignore[arg-type]
        (lambda: Unique(on_conflict="raises"), "did you mean 'raise'"),  # type: ignore[arg-type]
        (lambda: Unique(debounce=5, until="end"), "leave out until and on_conflict"),
        (lambda: Unique(debounce=5, on_conflict="skip"), "leave out until and on_conflict"),
        (lambda: Unique(at_most=5), "give debounce too"),
        (lambda: Unique(debounce=5, at_most=4), "at_most (4 s) is shorter than debounce (5 s)"),
        (lambda: Unique(debounce=0), "debounce"),
        (lambda: Unique(on_conflict="after", until="start"), "needs until='end'"),
    ],
)
def test_what_does_not_go_together_is_refused(make: Callable[[], Unique], problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace("(", r"\(").replace(")", r"\)")):
        make()


@pytest.mark.parametrize(
    ("unique", "problem"),
    [
        ("tabel", "unique names 'tabel', which is no parameter of .*did you mean 'table'"),
        (["table", "x"], "unique names 'x'"),
        (7, "unique must name parameters, or be True or Unique"),
    ],
)
def test_a_wrong_key_is_found_where_it_is_declared(bridge: Bridge, unique: Any, problem: str) -> None:
    with pytest.raises(DeclarationError, match=problem):
        bridge.task(name="sync", unique=unique)(sync)


def test_a_unique_task_is_recorded(bridge: Bridge) -> None:
    with pytest.raises(DeclarationError, match="leave out results=False"):
        bridge.task(name="sync", unique=True, results=False)(sync)


def test_false_and_none_make_nothing_unique(bridge: Bridge) -> None:
    tasks = [bridge.task(name=f"sync{at}", unique=given)(sync) for at, given in enumerate((False, None))]  # type: ignore[arg-type]

    assert [task.declaration.unique for task in tasks] == [None, None]


def test_the_same_arguments_have_the_same_key_however_they_are_given() -> None:
    every, table = Unique(), Unique("table")

    assert len({key_of(every, 1), key_of(every, table=1), key_of(every, 1, (), full=False)}) == 1
    assert len({key_of(table, 1), key_of(table, 1, [2], full=True), key_of(Unique(["table"]), table=1)}) == 1
    assert len({key_of(each, 1) for each in (every, table, Unique(()), Unique(lambda table: table))}) == 4


@pytest.mark.parametrize("unique", [Unique(), Unique("table"), Unique(["rows", "table"])])
def test_the_kinds_of_parameters_say_nothing_about_keys(unique: Unique) -> None:
    def plain(table: int, rows: Any = ()) -> None: ...

    of_plain = Bridge("inline://").task(name="sync")(plain).call
    keys = [key_of(unique, 1), key_of(unique, 1, [2]), key_of(unique, rows=[2], table=1)]

    assert [unique.held_by(each) for each in (of_plain(1), of_plain(1, [2]), of_plain(rows=[2], table=1))] == keys
    assert digest_of(of_plain(1, [2])) == digest_of(call(1, rows=[2]))


def test_a_key_of_no_arguments_is_one_for_all_messages_of_any_task() -> None:
    bridge = Bridge("inline://?threads=0")

    def starred(*rows: int) -> None: ...

    def by_place(row: int, /, other: int = 0) -> None: ...

    for function in (starred, by_place):
        send = bridge.task(name=function.__name__, unique=Unique(()))(function).send
        assert send(1).id == send(2).id


def test_other_arguments_have_another_key() -> None:
    values = [1, 2, "1", None, date(2026, 1, 1), [1], (1,), {"a": 1}, {1: 2}, {1}, 1.5, True]

    assert len({key_of(Unique("table"), value) for value in values}) == len(values)
    assert len({key_of(Unique(()), value) for value in values}) == 1
    assert key_of(Unique("rows"), 1, {"a": 1, "b": 2}) == key_of(Unique("rows"), 1, {"b": 2, "a": 1})


@dataclass
class Order:
    number: int


def test_values_of_hinted_classes_are_keys_and_travel_with_moves(bridge: Bridge) -> None:
    ran: list[tuple[Order, Order]] = []

    def book(order: Order, other: Order = Order(0)) -> None:  # noqa: B008 - it is a value
        ran.append((order, other))

    once = bridge.task(name="once", unique="order")(book)
    late = bridge.task(name="late", unique=Unique("order", debounce=5))(book)
    chosen = bridge.task(name="chosen")(book).using(id="order 1")
    sent = [once.send(Order(1)), once.send(Order(1), Order(2)), once.send(Order(3)), late.send(Order(4))]
    sent += [late.send(Order(4), Order(5)), chosen.send(Order(6)), chosen.send(order=Order(6))]
    bridge.run_until_idle()

    assert [handle.is_new for handle in sent] == [True, False, True, True, False, True, False]
    assert ran == [
        (Order(1), Order(0)),
        (Order(3), Order(0)),
        (Order(6), Order(0)),
        (Order(4), Order(5)),
    ]


def test_a_key_is_the_same_in_each_process() -> None:
    program = "from taskbridge.unique import hash_of; print(hash_of({frozenset('abcdef'), 1.5}, 'key'))"

    def run(seed: int) -> str:
        env = {"PYTHONHASHSEED": str(seed)}
        return subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=True, env=env, text=True
        ).stdout

    assert {run(1).strip(), run(2).strip()} == {hash_of({frozenset("abcdef"), 1.5}, "key")}


def test_a_key_that_no_message_can_hold_is_refused(bridge: Bridge) -> None:
    with pytest.raises(EncodeError, match="key"):
        key_of(Unique(lambda *_, **__: object()), 1)
    with pytest.raises(EncodeError, match=r"args\["):
        digest_of(call(cast("int", object())))


def test_a_debounced_task_can_not_be_scheduled(bridge: Bridge) -> None:
    task = bridge.task(name="sync", unique=Unique("table", debounce=5))(sync)

    with pytest.raises(ValueError, match="use send, not schedule"):
        task.schedule(60, 1)


def test_a_debounced_message_that_is_never_run_dies_with_the_latest_arguments(bridge: Bridge) -> None:
    unique = Unique("table", debounce=5)
    task = bridge.task(name="sync", unique=unique)(sync)
    handle = task.send(1, "first")
    assert not task.send(1, "latest").is_new
    message = Message(**SENT, id=handle.id, task="sync", unique=unique.held_by(task.call(1)), waits_since=1.0)
    put_off_unknown(bridge, message)

    [letter] = bridge.dead_letters()
    assert letter.message is not None
    assert (letter.reason, letter.message.arguments()[0]) == ("unknown_task", [1, "latest"])


@pytest.mark.parametrize("given", ["", "a\nb", "x" * 256, 7])
def test_an_id_is_checked(bridge: Bridge, given: Any) -> None:
    task = bridge.task(name="sync")(sync)

    with pytest.raises(ValueError, match="an id is text of 1 to 255 bytes"):
        task.using(id=given)


def test_a_handle_is_new_or_not_also_when_it_was_pickled(bridge: Bridge) -> None:
    import pickle

    task = bridge.task(name="sync", unique=True)(sync)
    handles: list[Handle[None]] = [task.send(1), task.send(1)]

    assert [handle.is_new for handle in handles] == [True, False]
    assert [pickle.loads(pickle.dumps(handle)).is_new for handle in handles] == [True, False]
    assert handles[0] == handles[1]


def test_hooks_are_told_of_new_messages_alone(bridge: Bridge) -> None:
    sent: list[str] = []
    bridge.on("after_send")(lambda event: sent.append(event.message.id if event.message else ""))
    task = bridge.task(name="sync", unique="table")(sync)
    handles = [task.send(1), task.send(1), *task.send_many([task.call(1), task.call(2), task.call(2)])]

    assert sent == [handles[0].id, handles[3].id]


def test_unique_and_other_calls_keep_their_order(bridge: Bridge) -> None:
    unique, plain = bridge.task(name="u", unique=True)(sync), bridge.task(name="p")(sync)
    calls = [plain.call(1), unique.call(1), plain.call(2), unique.call(1), plain.using(id="x").call(1)]
    handles = bridge.send_many(calls)

    assert [(handle.task, handle.is_new) for handle in handles] == [
        ("p", True),
        ("u", True),
        ("p", True),
        ("u", False),
        ("p", True),
    ]
    assert bridge.run_until_idle() == 4


def test_a_conflict_among_many_says_what_was_sent(bridge: Bridge) -> None:
    unique, plain = bridge.task(name="u", unique=Unique(on_conflict="raise"))(sync), bridge.task(name="p")(sync)
    first = unique.send(1)

    with pytest.raises(UniqueConflict) as told:
        unique.send(1)
    with pytest.raises(SendError) as refused:
        bridge.send_many([plain.call(1), unique.call(2), unique.call(1)])

    assert (told.value.id, told.value.state) == (first.id, "queued")
    assert (len(refused.value.sent), len(refused.value.unsent), refused.value.maybe_taken) == (2, 1, False)
    assert isinstance(refused.value.__cause__, UniqueConflict)
    assert bridge.run_until_idle() == 3


def test_what_is_skipped_beside_a_conflict_is_not_unsent(bridge: Bridge) -> None:
    raising, skipping = (bridge.task(name=how, unique=Unique(on_conflict=how))(sync) for how in ("raise", "skip"))
    raising.send(1)
    skipping.send(1)

    with pytest.raises(SendError) as refused:
        bridge.send_many([skipping.call(1), raising.call(1), skipping.call(2)])
    assert (len(refused.value.sent), len(refused.value.unsent)) == (1, 1)


def test_what_was_cancelled_before_its_start_was_known_does_not_run_beside_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bridge = Bridge("celery+memory://")
    task = bridge.task(name="sync", unique=True)(sync)
    monkeypatch.setattr(store_of(bridge).backend, "is_shared", True)  # so starts are written later
    handle = task.send(1)
    message = Message(**SENT, id=handle.id, task="sync", unique=task.declaration.unique.held_by(task.call(1)))  # type: ignore[union-attr]

    assert begin(bridge.bound("sync"), message, redelivered=False) is message
    assert handle.cancel().state == "running"
    assert not task.send(1).is_new
    bridge.close()


@pytest.mark.parametrize("cancelled_first", [True, False])
def test_what_runs_was_not_cancelled_first(cancelled_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a start and a cancellation, whatever comes first in the store counts, not the time at which a run began."""
    bridge = Bridge("celery+memory://")
    task = bridge.task(name="sync", unique=True)(sync)
    monkeypatch.setattr(bridge.cancellations, "has", lambda message, timeout_s: False)  # nobody knows it yet
    handle = task.send(1)
    message = Message(**SENT, id=handle.id, task="sync", unique=task.declaration.unique.held_by(task.call(1)))  # type: ignore[union-attr]
    if cancelled_first:
        handle.cancel()
        assert task.send(1).is_new

    verdict = begin(bridge.bound("sync"), message, redelivered=False)
    assert isinstance(verdict, CancelledVerdict) is cancelled_first
    bridge.close()


def test_a_record_that_can_not_be_read_stops_no_id(bridge: Bridge) -> None:
    chosen = bridge.task(name="sync")(sync).using(id="a")
    store_of(bridge).backend.put("record:a", "7\nodd", kept_s=60, timeout_s=1)

    assert chosen.send(1).is_new
    assert bridge.run_until_idle() == 1
    assert status(bridge, "a").state == "done"


def test_a_pointer_of_more_than_a_line_stops_nobody(bridge: Bridge) -> None:
    task = bridge.task(name="sync", unique=Unique("table", on_conflict="after"))(sync)
    first, second = task.schedule(10, 1), task.send(1)
    key, backend = pointer_key("sync", task.declaration.unique.held_by(task.call(1))), store_of(bridge).backend  # type: ignore[union-attr]
    [pointer] = backend.get([key], timeout_s=1)
    backend.put(key, f"{pointer}\njunk", kept_s=60, timeout_s=1)

    assert task.send(1).id == second.id
    backend.put(key, f"{pointer}\njunk", kept_s=60, timeout_s=1)
    bridge.run_schedules(20)
    bridge.run_until_idle()
    assert [status(bridge, each.id).state for each in (first, second)] == ["done", "done"]
    assert task.send(1).is_new


def test_what_follows_one_that_is_gone_is_not_lost(bridge: Bridge) -> None:
    task = bridge.task(name="sync", unique=Unique("table", on_conflict="after"))(sync)
    gone, second = task.schedule(3600, 1), task.send(1)
    store_of(bridge).backend.remove([f"record:{gone.id}"], timeout_s=1.0)
    third = task.send(1)

    assert (third.is_new, third.id != second.id) == (True, True)
    key = pointer_key("sync", task.declaration.unique.held_by(task.call(1)))  # type: ignore[union-attr]
    [pointer] = store_of(bridge).backend.get([key], timeout_s=1)
    assert pointed_to(pointer) == (second.id, 0, third.id)
    bridge.run_until_idle()  # the second is due at once
    assert status(bridge, second.id).state == "done"
    bridge.run_until_idle()
    assert status(bridge, third.id).state == "done"


def test_many_that_can_not_be_published_are_in_the_outbox(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    unique, plain = bridge.task(name="u", unique=True)(sync), bridge.task(name="p")(sync)

    def refuse(*_: Any, timeout_s: float) -> None:
        raise BrokerUnavailable("nobody listens", maybe_taken=False)

    with monkeypatch.context() as broken:
        broken.setattr(bridge.broker, "publish", refuse)
        with pytest.raises(SendError, match="in the outbox") as refused:
            bridge.send_many([unique.call(1), plain.call(1), unique.call(2)])

    assert (len(refused.value.sent), len(refused.value.unsent), refused.value.maybe_taken) == (0, 3, True)
    assert [unique.send(at).is_new for at in (1, 2)] == [False, False]
    bridge.run_schedules(1)  # by then, who has put them there would have published them
    assert bridge.run_until_idle() == 2
    assert [unique.send(at).is_new for at in (1, 2)] == [True, True]


def test_what_of_many_was_published_is_sent_and_the_rest_is_in_the_outbox(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, told, publish = bridge.task(name="sync", unique="table")(sync), list[str](), bridge.broker.publish
    bridge.on("after_send")(lambda event: told.append(event.message.id if event.message else ""))

    def publish_one(messages: Sequence[Message], *, timeout_s: float) -> None:
        publish(messages[:1], timeout_s=timeout_s)
        cause = BrokerUnavailable("it went away", maybe_taken=False)
        raise PartlyPublished(cause, accepted=frozenset({0}), unsure=frozenset())

    with monkeypatch.context() as broken:
        broken.setattr(bridge.broker, "publish", publish_one)
        with pytest.raises(SendError) as refused:
            bridge.send_many([task.call(at) for at in range(3)])

    assert (list(refused.value.sent), len(refused.value.unsent), refused.value.maybe_taken) == (told, 2, True)
    assert (len(told), bridge.run_until_idle()) == (1, 1)
    bridge.run_schedules(1)
    assert bridge.run_until_idle() == 2


def test_a_chosen_id_is_one_call_whatever_it_is_called_by(bridge: Bridge) -> None:
    task = bridge.task(name="sync", retry=RetryPolicy.never())(sync)
    chosen = task.using(id="table 1")

    assert [chosen.send(1).is_new, chosen.send(table=1).is_new, chosen.schedule(60, 1, ()).is_new] == [
        True,
        False,
        False,
    ]
    bridge.run_until_idle()
    assert status(bridge, "table 1").state == "done"
    with pytest.raises(IdempotencyConflict, match="table 1"):
        chosen.send(2)


def test_an_id_is_free_when_its_record_is_gone() -> None:
    bridge = Bridge("inline://?threads=0", result_ttl=60)
    chosen = bridge.task(name="sync")(sync).using(id="a")
    chosen.send(1)
    bridge.run_until_idle()
    assert not chosen.send(1).is_new
    bridge.run_schedules(61)

    assert chosen.send(2).is_new
    assert bridge.run_until_idle() == 1
    bridge.close()


def test_a_tick_of_a_unique_task_is_sent_unless_its_key_is_held(bridge: Bridge) -> None:
    ran: list[float] = []
    task = bridge.task(name="beat", every=10, unique=True)(lambda: ran.append(bridge.now()))
    bridge.run_schedules(1)
    ran.clear()  # of a tick within that second
    held = task.schedule(25)
    bridge.run_schedules(40)

    assert held.is_new
    assert status(bridge, held.id).state == "done"
    assert len(ran) in (2, 3)  # the one that was held, and the ticks after it


SENT: dict[str, Any] = {"queue": "default", "args_json": "[1]", "kwargs_json": "{}", "enqueued_at": 1.0}


def store_of(bridge: Bridge) -> Store:
    store = bridge.store
    assert store is not None
    return store


def status(bridge: Bridge, message_id: str) -> Status:
    return bridge.handle(message_id).status()


def test_fields_of_messages_are_read_as_they_were_written() -> None:
    message = Message(
        id="a", task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=1.0, unique=f"e:{'0' * 32}"
    )

    assert loads(message.dumps()) == message
    assert loads(message.dumps()).next_attempt(ValueError()).unique == message.unique
