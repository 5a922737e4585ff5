"""Whether queues are consumed: a probe goes into each, and a worker that consumes it answers."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from taskbridge.brokers.base import Broker, SignBroker
from taskbridge.exceptions import BrokerUnavailable, StoreUnavailable, UnsupportedError
from taskbridge.logs import logger
from taskbridge.probe import BUSY_LIFE_S, answer_sign, busy_sign, make_probe

if TYPE_CHECKING:
    from taskbridge.pauses import Pauses
    from taskbridge.settings import Address

_log = logger("taskbridge.health")

_FIRST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 0.1
_LEAVE_S: Final = 1.0
_LAST_LOOK_S: Final = 1.0
_PAUSES_S: Final = 1.0  # how long the store may take to say what is paused; an orchestrator waits for little

QueueHealth: TypeAlias = Literal["consumed", "busy", "silent", "paused"]
"""`consumed`: a worker answered. `busy`: none did, but one says that all its slots are taken. `silent`: neither.
`paused`: it is, so that nobody was asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What was found out about queues.

    Attributes:
        queues: By their names, in the order in which they were asked for.
        seconds: How long it took.
    """

    queues: Mapping[str, QueueHealth]
    seconds: float

    @property
    def is_well(self) -> bool:
        """Whether no queue is silent."""
        return "silent" not in self.queues.values()


def examine(
    broker: Broker,
    url: Address,
    queues: Sequence[str],
    *,
    pauses: Pauses | None = None,
    timeout_s: float,
    now: float,
) -> Health:
    """Put a probe in each queue, and wait until workers of this URL's engine answered; raises as `Bridge.health`.

    A probe in one that is paused would find nobody.
    """
    if not isinstance(broker, SignBroker):
        raise UnsupportedError("health", url.target, "its workers are threads of this very process")
    began = time.monotonic()
    paused: Collection[str | None] = ()
    with suppress(StoreUnavailable):  # then nothing is known to be paused
        paused = {each.queue for each in (() if pauses is None else pauses.all(timeout_s=_PAUSES_S))}
    probes = [make_probe(queue, now=now, life_s=timeout_s) for queue in queues if queue not in paused]
    signs = {probe.queue: (answer_sign(probe), busy_sign(url.engine, probe.queue)) for probe in probes}
    if not probes:
        return Health(queues=dict.fromkeys(queues, "paused"), seconds=time.monotonic() - began)
    try:
        broker.ask(probes, timeout_s=timeout_s)
        found = _wait(broker, signs, began, timeout_s)
    finally:
        try:
            broker.withdraw(probes, [answer for answer, _ in signs.values()], timeout_s=_LEAVE_S)
        except BrokerUnavailable as exc:
            _log.info("the probes are left to expire: %s", exc.problem)
    return Health(queues={queue: found.get(queue, "paused") for queue in queues}, seconds=time.monotonic() - began)


def _wait(
    broker: SignBroker, signs: Mapping[str, tuple[str, str]], began: float, timeout_s: float
) -> dict[str, QueueHealth]:
    pause_s = _FIRST_PAUSE_S
    while True:
        passed_s = time.monotonic() - began
        seen = broker.see_signs(list(chain(*signs.values())), timeout_s=max(_LAST_LOOK_S, timeout_s - passed_s))
        found: dict[str, QueueHealth] = {
            queue: "consumed" if answer in seen else "busy" if busy in seen else "silent"
            for queue, (answer, busy) in signs.items()
        }
        states = set(found.values())
        # A sign may have been left before the probe was: only after its life does it tell of now.
        is_settled = states <= {"consumed"} or (passed_s > BUSY_LIFE_S and "silent" not in states)
        if is_settled or passed_s >= timeout_s:
            return found
        time.sleep(min(pause_s, timeout_s - passed_s))
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)
