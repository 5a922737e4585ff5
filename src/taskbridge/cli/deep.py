"""What `taskbridge check --deep` does: it tries on the real servers what messages need, and has them examined."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from time import monotonic
from typing import Any, Final

from taskbridge import Bridge
from taskbridge.brokers.base import ExaminedBroker, Publication, Remark, Taken
from taskbridge.exceptions import BrokerUnavailable, TaskBridgeError
from taskbridge.message import DeadLetter, Message, new_id
from taskbridge.stores.backend import Backend, Write

_TASK: Final = "taskbridge.check"
_DELAY_S: Final = 1.0
_LATE_S: Final = 10.0
"""How late a delayed message may be, and how long a notification may take: a busy server is none that is broken."""
_KEPT_S: Final = 60.0
"""How long a server keeps what is tried, if this process is killed; but a delayed message and a dead letter stay."""
_FEW: Final = 1000  # with more dead letters none is buried: on RabbitMQ all are read to find one
_PERMISSION: Final = re.compile(r"no permissions|can't publish|ACCESS_REFUSED|permission denied", re.IGNORECASE)


class _Amiss(TaskBridgeError):
    """What was tried ended otherwise than it should."""


def remarks(bridge: Bridge, management: str | None) -> Iterator[Remark]:
    """Yield what is found out about a bridge's servers; raises `BrokerUnavailable` if one doesn't answer."""
    settings, broker, store, timeout_s = bridge.settings, bridge.broker, bridge.store, bridge.settings.send_timeout_s
    if isinstance(broker, ExaminedBroker):
        found = broker.examine(bridge.queues(), management=management, timeout_s=timeout_s)
        yield from (each._replace(text=_hinted(each.text)) for each in found)
        yield _of_broker(bridge)
    if store is not None and store.backend.is_shared:
        if settings.store is not None:
            yield from store.backend.examine(timeout_s=timeout_s)
        yield _of_store(store.backend, timeout_s)


class _Wire:
    """The words of an engine that is none: no worker takes what is tried."""

    def __init__(self, bridge: Bridge) -> None:
        self.engine: str = f"check-{new_id()[:8]}"
        self._settings = bridge.settings

    def encode(self, message: Message) -> Any:
        [place], body = self.places(message.queue), message.dumps().encode()
        if self._settings.url.broker == "redis":
            return [("LPUSH", place, body), ("EXPIRE", place, int(_KEPT_S))]
        arguments = {"x-queue-type": "classic", "x-expires": int(_KEPT_S * 1000)}
        return Publication(queue=place, arguments=arguments, body=body)

    def places(self, queue: str) -> Sequence[str]:
        return [f"{self._settings.namespace}.{queue}"]


def _of_broker(bridge: Bridge) -> Remark:
    wire, timeout_s, began, stop = _Wire(bridge), bridge.settings.send_timeout_s, monotonic(), threading.Event()
    queue, step, broker = wire.engine, "sending", bridge.broker_for(wire)
    assert isinstance(broker, ExaminedBroker)
    message = Message(id=new_id(), task=_TASK, queue=queue, args_json="[]", kwargs_json="{}", enqueued_at=bridge.now())
    pump = threading.Thread(target=partial(broker.pump, knows=lambda task: task == _TASK, stop=stop), daemon=True)
    try:
        broker.publish([message], timeout_s=timeout_s)
        _until(lambda: broker.counts([queue]).waiting[queue] > 0, "a message that was taken is not in its queue")
        step, parked_at = "delays", monotonic()
        broker.park([(message, _DELAY_S)], timeout_s=timeout_s)
        pump.start()
        late = f"a message that was delayed by {_DELAY_S:g} s has not come after {_LATE_S:g} s"
        _until(lambda: broker.counts([queue]).waiting[queue] > 1, late)
        if (took_s := monotonic() - parked_at) < _DELAY_S:
            raise _Amiss(f"a message that was delayed by {_DELAY_S:g} s came after {took_s:.2f} s")
        step = "dead"
        if has_few := broker.counts([]).dead < _FEW:
            broker.bury(DeadLetter(message=message, reason="check", died_at=time.time()), timeout_s=timeout_s)
            if not broker.take_dead(lambda _: Taken(), ids=[message.id], timeout_s=timeout_s):
                raise _Amiss("a dead letter that was taken is not among them")
    except (BrokerUnavailable, _Amiss) as exc:
        return Remark(step, "failed", _hinted(str(getattr(exc, "problem", exc))))
    finally:
        stop.set()
        if pump.ident is not None:
            pump.join(_LATE_S)
        with suppress(BrokerUnavailable):
            broker.forget([queue], timeout_s=timeout_s)
        broker.close()
    done = "sent, delayed and dead-lettered" if has_few else f"sent and delayed (there are {_FEW} dead letters or more)"
    return Remark("broker", "ok", f"a message was {done}, in {monotonic() - began:.1f} s")


def _of_store(backend: Backend, timeout_s: float) -> Remark:
    key, told, began = f"check:{new_id()}", threading.Event(), monotonic()
    swap = partial(Write, key=key, text="2\n-", kept_s=_KEPT_S, tells=True, cancels=key, cancellation_kept_s=1.0)
    silent = (
        "a write woke nobody who waited for it, so results come late: is PgBouncer between, with pooled transactions?"
    )
    ending = ExitStack()
    try:
        backend.create([(key, "1\n-", _KEPT_S)], timeout_s=timeout_s)
        written = backend.write([swap(seen="1")], timeout_s=timeout_s)  # before it is watched: a refusal says why
        ending.callback(backend.watch(key, told.set))
        if written + backend.write([swap(seen="2")], timeout_s=timeout_s) != [True, True]:
            raise _Amiss("what was read is not what was written")
        _until(told.is_set, silent)
        backend.cancelled_since("", most=1, timeout_s=timeout_s)
        backend.put_soon(key, "3\n-", kept_s=_KEPT_S)
        _until(lambda: backend.get([key], timeout_s=timeout_s) == ["3\n-"], "a write that nobody waits for is lost")
        backend.remove([key], timeout_s=timeout_s)
        if why := backend.why_polled():
            return Remark("results", "warning", _hinted(why))
    except (BrokerUnavailable, _Amiss) as exc:
        return Remark("results", "failed", _hinted(str(getattr(exc, "problem", exc))))
    finally:
        ending.close()
        with suppress(BrokerUnavailable):
            backend.remove([key], timeout_s=timeout_s)
    return Remark("results", "ok", f"kept, told and cancelled, in {monotonic() - began:.1f} s")


def _until(condition: Callable[[], bool], problem: str) -> None:
    deadline = monotonic() + _LATE_S
    while not condition():
        if monotonic() > deadline:
            raise _Amiss(problem)
        time.sleep(0.1)


def _hinted(text: str) -> str:
    return f"{text}; the page *Security* lists the permissions that are enough" if _PERMISSION.search(text) else text
