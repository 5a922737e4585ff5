"""Unique tasks: what may be declared, and which calls have the same key."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
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
from taskbridge.message import loads
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
    assert (len(refused.value.sent), len(refused.value.unsent), refused.value.maybe_taken) == (1, 2, False)
    assert isinstance(refused.value.__cause__, UniqueConflict)
    assert bridge.run_until_idle() == 2


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
    held = task.schedule(25)
    bridge.run_schedules(40)

    assert status(bridge, held.id).state == "done"
    assert len(ran) in (2, 3)  # the one that was held, and the ticks after it


def status(bridge: Bridge, message_id: str) -> Status:
    return bridge.handle(message_id).status()


def test_fields_of_messages_are_read_as_they_were_written() -> None:
    message = Message(
        id="a", task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=1.0, unique=f"e:{'0' * 32}"
    )

    assert loads(message.dumps()) == message
    assert loads(message.dumps()).next_attempt(ValueError()).unique == message.unique
