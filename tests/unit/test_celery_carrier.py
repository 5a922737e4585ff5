"""What becomes of messages on Celery that can't be settled for a reason nobody thought of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from celery import signals
from celery.app import trace

from taskbridge import Bridge, RetryPolicy
from taskbridge.engines.celery import carrier as celery_carrier
from taskbridge.engines.celery.carrier import Carrier, NotCarried, PutOff
from taskbridge.engines.settle import MOST_REQUEUES, begin, taken_again
from taskbridge.message import Message, new_id
from taskbridge.retry import CancelledVerdict, Dead, Done


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    bridge = Bridge("celery+memory://")

    @bridge.task(name="shop.pay")
    def pay() -> None: ...

    yield bridge
    bridge.close()


def message() -> Message:
    return Message(id=new_id(), task="shop.pay", queue="default", args_json="[]", kwargs_json="{}", enqueued_at=1.0)


def settled(bridge: Bridge, carrier: Carrier, sent: Message, *, redelivered: bool) -> Any:
    return carrier.settle(sent, redelivered=redelivered)


def test_it_is_requeued_without_its_mark_and_dead_in_the_end(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time it is run: a mark that stayed would tell that it runs elsewhere."""
    carrier: Carrier = bridge.native.engine.carrier
    runs: list[str] = []

    def fails(self: Any, task: Any, message: Message) -> Any:
        runs.append(message.id)
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(type(carrier._runs), "run", fails)
    sent = message()
    for number in range(MOST_REQUEUES):
        outcome = settled(bridge, carrier, replace(sent, requeues=number), redelivered=number > 0)
        with pytest.raises(PutOff):
            carrier.carry(outcome, {})
        assert bridge.counts().delayed == number + 1
    last = replace(sent, requeues=MOST_REQUEUES)
    assert settled(bridge, carrier, last, redelivered=True).reason == "internal_error"
    assert len(runs) == MOST_REQUEUES + 1
    (letter,) = bridge.dead_letters()
    assert (letter.id, letter.reason) == (sent.id, "internal_error")
    assert letter.error is not None
    assert letter.error.message == "unforeseen"


def test_a_message_that_comes_back_unstarted_is_dead_in_the_end(bridge: Bridge) -> None:
    """Errors before it came back count as well."""
    sent = replace(message(), requeues=3)
    assert [taken_again(bridge, sent) for _ in range(2)] == [None, None]
    act = taken_again(bridge, sent)
    assert act is not None
    assert isinstance(act(), Dead)
    (letter,) = bridge.dead_letters()
    assert (letter.reason, letter.id) == ("internal_error", sent.id)
    assert taken_again(bridge, sent) is None, "it has ended, as its mark says to whoever takes it"


def test_a_cancelled_message_has_ended_and_one_that_is_delivered_twice_has_not(bridge: Bridge) -> None:
    """Celery's tools are told how a request ends; of one that is put off they are not."""
    carrier: Carrier = bridge.native.engine.carrier

    @bridge.task(name="shop.ship")
    def ship() -> None: ...

    handle = ship.schedule(60)
    handle.cancel()
    cancelled = replace(message(), id=handle.id, task="shop.ship")
    assert isinstance(settled(bridge, carrier, cancelled, redelivered=False), CancelledVerdict)
    other = message()
    assert isinstance(settled(bridge, carrier, other, redelivered=False), Done)
    with pytest.raises(PutOff):
        carrier.carry(settled(bridge, carrier, other, redelivered=True), {})


def test_what_was_started_is_not_counted_as_unstarted(bridge: Bridge) -> None:
    sent = replace(message(), requeues=5)
    assert begin(bridge.bound(sent.task), sent, redelivered=False) is sent
    assert taken_again(bridge, sent) is None


@pytest.mark.parametrize("kind", ["failure", "retry"])
def test_frames_of_a_failed_run_are_kept_for_who_listens_alone(bridge: Bridge, kind: str) -> None:
    """They are most of what Celery's account of a failure costs, and a child sends it to its parent."""
    tell = getattr(bridge.native.tasks["shop.pay"], f"on_{kind}")
    signal: Any = getattr(signals, f"task_{kind}")

    def listen(**_: Any) -> None: ...

    for listens in (False, True):
        account = SimpleNamespace(tb="frames")
        if listens:
            signal.connect(listen, weak=False)
        tell(ValueError(), "id", (), {}, account)
        assert account.tb == ("frames" if listens else None)
    signal.disconnect(listen)


def traced(
    bridge: Bridge,
    sent: Message,
    kwargs: dict[str, Any],
    *,
    is_whole_process: bool = True,
) -> Any:
    """Have a message traced as in a child of Celery's pool, or in an embedded worker."""
    task = bridge.native.tasks[sent.task]
    if is_whole_process:
        trace.setup_worker_optimizations(bridge.native)
    try:
        request: dict[str, Any] = {"id": sent.id, "task": sent.task, "taskbridge": sent.dumps_meta()}
        request["delivery_info"] = {celery_carrier.CARRIED: sent}
        return trace.build_tracer(task.name, task, app=bridge.native)(sent.id, [], kwargs, request)
    finally:
        trace.reset_worker_optimizations(bridge.native)


@pytest.mark.parametrize("is_whole_process", [True, False])
def test_a_traced_message_comes_to_the_carrier_once(bridge: Bridge, is_whole_process: bool) -> None:
    """Even if its task calls itself, which is no message."""
    seen: list[tuple[str | None, int]] = []

    @bridge.task(name="shop.count")
    def count(left: int) -> None:
        itself = bridge.native.tasks["shop.count"]
        seen.append((itself.request.id, left))
        if left:
            itself(left=left - 1)

    ended: list[str] = []
    bridge.on("succeeded")(lambda event: ended.append(event.message.id if event.message else ""))
    sent = replace(message(), task="shop.count", kwargs_json='{"left": 2}')
    traced(bridge, sent, {"left": 2}, is_whole_process=is_whole_process)
    assert [left for _, left in seen] == [2, 1, 0]
    assert (seen[0][0], ended) == (sent.id, [sent.id])


@pytest.mark.parametrize("is_whole_process", [True, False])
def test_an_argument_may_be_called_self(bridge: Bridge, is_whole_process: bool) -> None:
    """Celery's tracer can't call a task with it."""
    ran: list[int] = []

    @bridge.task(name="shop.pack")
    def pack(self: int) -> None:
        ran.append(self)

    sent = replace(message(), task="shop.pack", kwargs_json='{"self": 7}')
    outcome = traced(bridge, sent, {"self": 7}, is_whole_process=is_whole_process)
    assert (ran, outcome.info) == ([7], None)
    bridge.native.tasks["shop.pack"](self=8)
    assert ran == [7, 8]


def test_an_error_before_the_carrier_is_told_from_the_tasks_own(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery would acknowledge either; of the one, nothing has become of the message."""

    @bridge.task(name="shop.break", retry=RetryPolicy.never())
    def fail() -> None:
        raise ValueError("its own")

    own = traced(bridge, replace(message(), task="shop.break"), {})
    assert isinstance(own.info.retval, ValueError)
    assert len(bridge.dead_letters()) == 1

    def before_start(*_: Any) -> None:
        raise LookupError("before it")

    monkeypatch.setattr(type(bridge.native.tasks["shop.break"]), "before_start", before_start)
    with pytest.warns(RuntimeWarning, match="before it"):
        hindered = traced(bridge, replace(message(), task="shop.break"), {})
    assert isinstance(hindered.info.retval, NotCarried)
    assert "before it" in str(hindered.info.retval)
    assert len(bridge.dead_letters()) == 1
