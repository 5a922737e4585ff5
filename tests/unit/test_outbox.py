"""The outbox: what becomes of its entries, odd ones too, whoever has left them there."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from taskbridge import Bridge, BrokerUnavailable, Message, Unique, outbox
from taskbridge.engines.settle import NotRun, run_and_settle
from taskbridge.message import FORM, new_id
from taskbridge.stores.backend import Backend, Commit, Entry, head_of
from taskbridge.stores.entries import Held, loads_held
from taskbridge.stores.transitions import pointed_to, pointer_to, released


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    bridge = Bridge("inline://?threads=0")
    bridge.task(name="known")(lambda: ran.append("known"))
    ran.clear()
    yield bridge
    bridge.close()


ran: list[str] = []


def backend_of(bridge: Bridge) -> Backend:
    store = bridge.store
    assert store is not None
    return store.backend


def message(task: str = "known", **fields: Any) -> Message:
    given: dict[str, Any] = {"id": new_id(), "args_json": "[]", "kwargs_json": "{}", "enqueued_at": time.time()}
    given |= fields
    return Message(task=task, queue="default", **given)


def leave(bridge: Bridge, **texts: str) -> None:
    entries = [Entry(key, text) for key, text in texts.items()]
    backend_of(bridge).commit([Commit((), entries)], timeout_s=1.0)


def text_of(key: str, task: str = "known", starts_at: float = 0.0) -> str:
    return Held(message(task, id=key), starts_at).dumps()


def left(bridge: Bridge) -> list[str]:
    bridge.run_schedules(60)  # by then all leases are over
    return [key for key, _ in backend_of(bridge).due_entries(most=100, lease_s=0.0, timeout_s=1.0)]


@pytest.mark.parametrize("held", [Held(message()), Held(message(headers={"a": "\u00e9"}), 12.5, "replayed")])
def test_an_entry_is_read_as_it_was_written(held: Held) -> None:
    assert loads_held(held.dumps()) == held


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ("x", "undecodable"),
        ("0.0 sent\n", "undecodable"),
        ("0.0 sent\n[]", "undecodable"),
        ("0.0 odd\n" + message().dumps(), "internal_error"),
        ("nan sent\n" + message().dumps(), "internal_error"),
        ("-1 sent\n" + message().dumps(), "internal_error"),
        ("1e999 sent\n" + message().dumps(), "internal_error"),
        ("sent\n" + message().dumps(), "internal_error"),
        ("0.0 sent\n" + message().dumps().replace("{", "\udc80{", 1), "undecodable"),
        (Held(message(id="of another id")).dumps(), "internal_error"),
    ],
)
def test_an_odd_entry_is_dead_and_the_one_behind_it_is_published(bridge: Bridge, odd: str, reason: str) -> None:
    leave(bridge, odd=odd, behind=text_of("behind"))
    bridge.run_until_idle()

    assert ran == ["known"]
    assert [entry.reason for entry in bridge.dead.list().entries] == [reason]  # one that can be read can be replayed
    assert left(bridge) == []


def test_what_is_not_for_this_release_or_worker_is_left_to_others(bridge: Bridge) -> None:
    newer = text_of("newer").replace('"form":1', f'"form":{FORM + 1}')
    leave(bridge, newer=newer, unknown=text_of("unknown", "unknown"), behind=text_of("behind"))
    bridge.run_until_idle()
    assert ran == ["known"]
    assert left(bridge) == ["newer", "unknown"]

    bridge.task(name="unknown")(lambda: ran.append("unknown"))
    bridge.run_schedules(60)
    bridge.run_until_idle()
    assert ran == ["known", "unknown"]


def test_one_that_can_not_be_published_keeps_back_no_other(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = bridge.wire
    encode = wire.encode

    def refuse(each: Message) -> Any:
        if each.id == "odd":
            raise ValueError("it can't be written")
        return encode(each)

    monkeypatch.setattr(wire, "encode", refuse)
    leave(bridge, **{key: text_of(key) for key in ("before", "odd", "behind")})
    bridge.run_until_idle()

    assert len(ran) in (2, 3)  # what was published before is published again, and inline nothing tells
    assert [(entry.id, entry.reason) for entry in bridge.dead.list().entries] == [("odd", "internal_error")]


def test_what_can_not_be_published_is_recorded_as_dead_and_holds_no_key(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = bridge.task(name="table", unique=True)(lambda number: ran.append("table"))

    def refuse(_: Message) -> Any:
        raise ValueError("it can't be written")

    with monkeypatch.context() as broken:
        broken.setattr(bridge.wire, "encode", refuse)
        handle = task.send(1)
    with monkeypatch.context() as broken:  # and one that its sender has left in the outbox
        broken.setattr(bridge.wire, "encode", refuse)
        leave(bridge, left=text_of("left", "table"))
        bridge.run_schedules(1)

    assert {entry.id for entry in bridge.dead.list().entries} == {handle.id, "left"}
    assert (handle.status().state, task.send(1).is_new) == ("dead", True)


def test_what_one_worker_does_not_know_another_one_finds_at_once(bridge: Bridge) -> None:
    leave(
        bridge, unknown=text_of("unknown", "unknown"), newer=text_of("newer").replace('"form":1', f'"form":{FORM + 1}')
    )
    bridge.relay.step()

    due = backend_of(bridge).due_entries(most=100, lease_s=6.0, timeout_s=1.0)
    assert {key for key, _ in due} == {"unknown", "newer"}


def test_what_came_among_many_unknown_ones_is_left_to_others_later(bridge: Bridge) -> None:
    backend, keys = backend_of(bridge), [f"unknown {number}" for number in range(100)]
    leave(bridge, **{key: text_of(key, "unknown") for key in keys})
    assert bridge.relay.step()
    assert backend.due_entries(most=100, lease_s=6.0, timeout_s=1.0) == []  # as many again may be behind them

    backend.commit([Commit((), [Entry(key, None) for key in keys[:50]])], timeout_s=1.0)  # as after their lease
    assert not bridge.relay.step()
    assert {key for key, _ in backend.due_entries(most=100, lease_s=6.0, timeout_s=1.0)} == {*keys[:50]}


def test_what_follows_is_not_asked_for_again_and_again(bridge: Bridge) -> None:
    task = bridge.task(name="table", unique=Unique("number", on_conflict="after"))(lambda number: ran.append("table"))
    task.schedule(3600, 1)
    task.send(1)
    bridge.run_schedules(10)
    bridge.run_until_idle()

    assert backend_of(bridge).due_entries(most=100, lease_s=6.0, timeout_s=1.0) == []
    bridge.run_schedules(40)
    assert backend_of(bridge).due_entries(most=100, lease_s=6.0, timeout_s=1.0) == []


def test_what_waits_for_the_broker_stays(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, timeout_s: float) -> None:
        raise BrokerUnavailable("nobody listens")

    leave(bridge, a=text_of("a"))
    with monkeypatch.context() as broken:
        broken.setattr(bridge.broker, "publish", refuse)
        with pytest.raises(BrokerUnavailable):
            bridge.relay.step()
    bridge.run_schedules(10)
    bridge.run_until_idle()

    assert ran == ["known"]
    assert left(bridge) == []


@pytest.mark.parametrize("who", ["this worker", "another worker"])
def test_an_outage_is_told_once_and_so_is_its_end(
    bridge: Bridge, who: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker, backend, is_away = bridge.broker, backend_of(bridge), threading.Event()
    publish, ping = broker.publish, broker.ping

    def failing(act: Callable[..., None]) -> Callable[..., None]:
        def fail_if_away(*given: Any, **options: Any) -> None:
            if is_away.is_set():
                raise BrokerUnavailable("nobody listens")
            act(*given, **options)

        return fail_if_away

    class Looks(threading.Event):
        """Lets 2 s pass with each look; the broker is away for 20 of them."""

        left = 40

        def wait(self, timeout: float | None = None) -> bool:
            bridge.engine.clock.move_to(bridge.now() + 2)  # type: ignore[attr-defined]  # it is the virtual one
            self.left -= 1
            if self.left == 20:
                is_away.clear()
                if who == "another worker":
                    backend.remove_entries(["a"], timeout_s=1.0)
            if self.left == 0:
                self.set()
            return self.is_set()

    monkeypatch.setattr(broker, "publish", failing(publish))
    monkeypatch.setattr(broker, "ping", failing(ping))
    monkeypatch.setattr(outbox, "monotonic", bridge.now)
    caplog.set_level(logging.INFO, "taskbridge.outbox")
    is_away.set()
    leave(bridge, a=text_of("a"))
    bridge.relay.run(Looks())

    assert [record.getMessage() for record in caplog.records] == [
        "what is in the store's outbox waits: nobody listens",
        "what is in the store's outbox is published again",
    ]
    assert bridge.run_until_idle() == (who == "this worker")


def test_what_is_delayed_starts_at_its_time(bridge: Bridge) -> None:
    started: list[float] = []
    bridge.task(name="later")(lambda: started.append(bridge.now()))
    at = bridge.now() + 100
    leave(bridge, a=text_of("a", "later", at))
    bridge.run_until_idle()

    assert at <= started[0] < at + 1


def test_what_follows_starts_though_the_message_before_it_is_gone(bridge: Bridge) -> None:
    task = bridge.task(name="table", unique=Unique("number", on_conflict="after"))(lambda number: ran.append("table"))
    held = task.schedule(3600, 1)
    assert task.send(1).is_new
    bridge.run_schedules(60)
    assert ran == []

    backend_of(bridge).remove([f"record:{held.id}"], timeout_s=1.0)
    bridge.run_schedules(60)
    assert ran == ["table"]


def test_what_follows_and_is_cancelled_never_starts(bridge: Bridge) -> None:
    task = bridge.task(name="table", unique=Unique("number", on_conflict="after"))(lambda number: ran.append("table"))
    task.schedule(10, 1)
    cancelled = task.send(1)
    cancelled.cancel()
    assert task.send(1).is_new
    bridge.run_until_idle()
    bridge.run_schedules(60)
    bridge.run_until_idle()

    assert ran == ["table", "table"]
    assert left(bridge) == []


def test_a_replay_whose_caller_is_killed_goes_on(bridge: Bridge) -> None:
    fails = [True]

    def run(number: int) -> None:
        ran.append("run")
        if fails:
            raise ValueError

    task = bridge.task(name="table", unique=True)(run)
    handle = task.send(1)
    bridge.run_until_idle()
    fails.clear()
    ran.clear()
    [letter] = bridge.dead_letters()
    store = bridge.store
    assert letter.message is not None
    assert store is not None
    assert store.claims.replay(letter.message.replayed(bridge.now()), 0.0, timeout_s=1.0)
    assert [task.send(1).is_new, len(bridge.dead_letters())] == [False, 1]
    store.backend.remove_entries([handle.id], timeout_s=1.0)  # of the entry that was sent at first, and comes late

    bridge.run_schedules(1)
    bridge.run_until_idle()
    assert (ran, bridge.dead_letters(), handle.status().state) == (["run"], [], "done")
    assert bridge.dead.replay(handle.id).missing == (handle.id,)


def test_a_copy_that_comes_much_later_is_not_run_though_nothing_is_recorded() -> None:
    bridge = Bridge("celery+memory://")
    bridge.task(name="quiet", results=False)(lambda: ran.append("quiet"))
    copies = [message("quiet", relayed=True) for _ in range(2)]
    copies[1] = replace(copies[0])
    ran.clear()
    kept: list[float] = []
    backend: Any = backend_of(bridge)
    put_soon = backend.put_soon

    def noting(key: str, text: str, *, kept_s: float) -> None:
        kept.append(kept_s)
        put_soon(key, text, kept_s=kept_s)

    backend.put_soon = noting
    verdicts = [run_and_settle(bridge, each) for each in copies]
    bridge.close()

    assert ran == ["quiet"]
    assert isinstance(verdicts[1], NotRun)
    assert min(kept) >= 7 * 86400


ME = pointer_to("me", 1)


@pytest.mark.parametrize(
    ("pointer", "left_of_it", "hastened"),
    [
        (None, None, []),
        (ME, None, []),
        (pointer_to("me", 1, "next"), pointer_to("next", 0), ["next"]),
        (pointer_to("other", 0, "me"), pointer_to("other", 0, "me"), []),  # it was so before it was replayed
        (pointer_to("other", 0), pointer_to("other", 0), []),
        (pointer_to("me", 0, "next"), pointer_to("me", 0, "next"), []),
        ("", "", []),
        ("\t\t\t", "\t\t\t", []),
        ("x\ty\tz\tw", "x\ty\tz\tw", []),
        (f"{ME}\nodd", None, []),
        (pointer_to("me", 1, "next") + "\nodd", pointer_to("next", 0), ["next"]),
    ],
)
def test_a_key_is_freed_by_who_holds_it(pointer: str | None, left_of_it: str | None, hastened: list[str]) -> None:
    writes, entries = released("key", pointer, ME)

    assert [write.text for write in writes] == ([] if left_of_it == pointer else [left_of_it])
    assert [(entry.id, entry.text) for entry in entries] == [(each, None) for each in hastened]
    assert all(write.seen == head_of(pointer) for write in writes)


def test_a_pointer_is_read_as_it_was_written() -> None:
    assert pointed_to(pointer_to("a b", 2, "c")) == ("a b", 2, "c")
    assert pointed_to(pointer_to("a", 0)) == ("a", 0, "")
    assert pointed_to(None) == ("", 0, "")


class OnePause(threading.Event):
    """Is set after one wait, and knows how long that should have been."""

    asked_s: float | None = None

    def wait(self, timeout: float | None = None) -> bool:
        self.asked_s = timeout
        self.set()
        return True


@pytest.mark.parametrize(
    ("url", "unique", "pause_s"),
    [
        ("celery+redis://localhost:1/0", False, 2.0),
        ("celery+redis://localhost:1/0", True, 0.4),
        ("celery+memory://", False, 0.4),
    ],
)
def test_an_outbox_that_nothing_needs_is_seldom_looked_at(
    url: str, unique: bool, pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge, stop = Bridge(url), OnePause()
    bridge.task(name="task", unique=unique)(lambda: None)
    monkeypatch.setattr(bridge.relay, "step_store", lambda: 0)
    bridge.relay.run(stop)

    assert stop.asked_s == pause_s
    bridge.close()
