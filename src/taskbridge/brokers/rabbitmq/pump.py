"""The pump: takes delayed messages that are due and publishes them to their queues."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from pika import spec

from taskbridge.brokers.rabbitmq.channel import Channel, Outcome, Session
from taskbridge.brokers.rabbitmq.connection import ClientError, connect
from taskbridge.brokers.rabbitmq.dead_letter_queue import wait_for_deliveries
from taskbridge.brokers.rabbitmq.deadline import Deadline
from taskbridge.brokers.rabbitmq.frames import Delivery
from taskbridge.brokers.rabbitmq.publication import EncodedPublication, Encoder
from taskbridge.brokers.rabbitmq.topology import other_engines
from taskbridge.exceptions import DecodeError, MessageTooLarge, NewerFormError
from taskbridge.message import DeadLetter, Message, loads
from taskbridge.retry import ErrorInfo

_log = logging.getLogger("taskbridge.pump")

_TOGETHER: Final = 100
_PREFETCH: Final = 2 * _TOGETHER
"""The next batch arrives while one is being confirmed."""

_TOGETHER_BYTES: Final = 4 * 1024 * 1024
"""A batch is no larger than this, unless it is one message."""

_HEARTBEAT_S: Final = 10.0
"""A pump that has nothing to publish notices a dead connection only by missing heartbeats."""

_QUIET_S: Final = 0.2
_CALL_S: Final = 10.0
_LEAVE_S: Final = 0.2
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0
_CALM_S: Final = 1.0

_POSTPONED_S: Final = 30.0
"""How long a message waits that only a newer release can read or publish."""

_REFUSED_S: Final = 5.0
"""How long a message waits whose queue is full."""

_LOOK_S: Final = 1.0
_MISSING_LOOK_S: Final = 60.0
_STRANGERS_LOOK_S: Final = 10.0
_LOOKS: Final = 3
"""How often another engine must be seen without a pump in a row: pumps that lost their connection are back by then."""

_LOOKED_AT: Final = 1000
"""How many of another engine's messages are looked at together."""


@dataclass(slots=True)
class _Orphan:
    """Another engine, whose due messages are published here while it has no pump.

    Attributes:
        due: Its due queue.
        alone: How often in a row its due queue had no consumer.
        next_look: When to look again, by the monotonic clock.
    """

    due: str
    alone: int = 0
    next_look: float = 0.0


class Pump:
    """One run of a pump, until `stop` is set; any number may run at once."""

    def __init__(
        self, hosts: Sequence[Any], encoder: Encoder, *, knows: Callable[[str], bool], stop: threading.Event
    ) -> None:
        self._hosts = hosts
        self._encoder = encoder
        self._due = encoder.topology.due(encoder.engine)
        self._orphans = [_Orphan(encoder.topology.due(other)) for other in other_engines(encoder.engine)]
        self._knows = knows
        self._stop = stop
        self._pause_s = 0.0

    def run(self) -> None:
        """Publish what falls due; while RabbitMQ is unreachable, retry with growing pauses."""
        while not self._stop.is_set():
            session: Session | None = None
            try:
                session = connect(self._hosts, self._call_deadline(), kind=Session, heartbeat_s=_HEARTBEAT_S)
                self._serve(session)
            except ClientError as exc:
                if not self._stop.is_set():
                    self._wait(exc)
            finally:
                if session is not None:
                    session.close(_LEAVE_S)  # what was not acknowledged goes back

    def _wait(self, failure: Exception) -> None:
        if self._pause_s == 0:
            _log.warning("delayed messages wait until RabbitMQ takes them: %s", failure)
        self._pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, self._pause_s * 2))
        self._stop.wait(self._pause_s)

    def _serve(self, session: Session) -> None:
        session.declare(self._encoder.due, self._call_deadline())
        channel = Channel(session)
        consume = spec.Basic.Qos(prefetch_count=_PREFETCH), spec.Basic.Consume(queue=self._due)
        channel.open(self._call_deadline(), *consume)
        began_at = time.monotonic()
        while not self._stop.is_set():
            if not channel.deliveries:
                session.read(_QUIET_S)
            channel.check()
            taken = _taken(channel)
            if taken:
                self._promote(session, channel, taken)
            if self._pause_s > 0 and time.monotonic() - began_at > _CALM_S:
                self._pause_s = 0.0
                _log.warning("RabbitMQ is back, delayed messages are published again")
            self._adopt(session)

    def _call_deadline(self) -> Deadline:
        return Deadline(_CALL_S, self._stop)

    # Messages of the own engine

    def _promote(self, session: Session, channel: Channel, taken: Sequence[Delivery]) -> None:
        """Publish a batch, and then acknowledge it; what could not be published is delivered again."""
        outcome = self._deliver(session, {index: self._decided(delivery) for index, delivery in enumerate(taken)})
        if outcome.refused:
            again = {index: self._encoder.parked(taken[index].body, _REFUSED_S) for index in sorted(outcome.refused)}
            _log.warning("%d delayed messages wait %g s more: %s", len(again), _REFUSED_S, outcome.problem)
            outcome.accepted |= self._deliver(session, again).accepted
        channel.ack(taken[index].tag for index in sorted(outcome.accepted))
        if len(outcome.accepted) < len(taken):
            raise ClientError(str(outcome.problem))
        _log.debug("published %d delayed messages", len(taken))

    def _deliver(self, session: Session, publications: Mapping[int, EncodedPublication]) -> Outcome:
        """Publish without a time limit: during a memory alarm each retry could be a duplicate."""
        outcome = Outcome()
        try:
            session.publish(publications, outcome, Deadline(stop=self._stop))
        except ClientError as exc:  # what was accepted before is to be acknowledged
            outcome.problem = str(exc)
        return outcome

    def _decided(self, delivery: Delivery) -> EncodedPublication:
        """Return what to publish for a due message of this engine."""
        body = delivery.body
        try:
            return self._encoder.native(_read(delivery))
        except NewerFormError as exc:
            _log.warning("a delayed message waits for a newer release: %s", exc)
        except DecodeError as exc:
            _log.error("a delayed message is dead, reason undecodable: %s", exc)
            return self._encoder.letter(DeadLetter(message=None, reason="undecodable", raw=body, died_at=time.time()))
        except MessageTooLarge as exc:
            _log.error("a delayed message is dead, reason too_large: %s", exc)
            letter = DeadLetter(
                message=_read(delivery), reason="too_large", error=ErrorInfo.of(exc), died_at=time.time()
            )
            return self._encoder.letter(letter)
        except Exception:  # one message that can't be encoded must not block the others
            _log.exception("a delayed message can't be published, tried again in %g s", _POSTPONED_S)
        return self._encoder.parked(body, _POSTPONED_S)

    # Messages of other engines

    def _adopt(self, session: Session) -> None:
        """Publish the due messages of engines that have no pump, if their task is known here."""
        now = time.monotonic()
        looked_at = [orphan for orphan in self._orphans if orphan.next_look <= now]
        if not looked_at:
            return
        states = session.look([orphan.due for orphan in looked_at], self._call_deadline())
        for orphan in looked_at:
            state = states.get(orphan.due)
            orphan.next_look = now + (_MISSING_LOOK_S if state is None else _LOOK_S)
            orphan.alone = 0 if state is None or state.consumer_count > 0 else orphan.alone + 1
            if state is not None and orphan.alone >= _LOOKS and state.message_count > 0:
                self._adopt_from(session, orphan)

    def _adopt_from(self, session: Session, orphan: _Orphan) -> None:
        channel = Channel(session)
        consume = spec.Basic.Qos(prefetch_count=_LOOKED_AT), spec.Basic.Consume(queue=orphan.due)
        try:
            channel.open(self._call_deadline(), *consume)
            wait_for_deliveries(channel, orphan.due, self._call_deadline())
            taken = list(channel.deliveries)
            publications = {
                index: publication for index, each in enumerate(taken) if (publication := self._adopted(each))
            }
            if publications:
                adopted = self._deliver(session, publications).accepted
                channel.ack(taken[index].tag for index in sorted(adopted))
                _log.info("published %d delayed messages of queue %s, which has no pump", len(adopted), orphan.due)
            elif taken:
                orphan.next_look = time.monotonic() + _STRANGERS_LOOK_S
            channel.close(self._call_deadline())  # those left go back to their places
        except ClientError as exc:
            if not exc.code:
                raise
            _log.info("queue %s went away while it was looked at: %s", orphan.due, exc)

    def _adopted(self, delivery: Delivery) -> EncodedPublication | None:
        """Return what to publish for a due message of another engine; None leaves it in its queue."""
        with suppress(DecodeError):  # that is for its own engine to bury, or for a newer release
            message = _read(delivery)
            try:
                return self._encoder.native(message) if self._knows(message.task) else None
            except Exception:
                _log.exception("a delayed message of another engine can't be published here")
        return None


def _read(delivery: Delivery) -> Message:
    """Return a due message.

    If it was delivered before, a pump may have died after publishing it and before acknowledging it. Then there are two
    copies, and this one says that its attempt may have been started (rule A7).
    """
    message = loads(delivery.body)
    return replace(message, redelivered=message.redelivered + 1) if delivery.redelivered else message


def _taken(channel: Channel) -> list[Delivery]:
    """Return what has been delivered, up to a batch."""
    taken: list[Delivery] = []
    size = 0
    while channel.deliveries and len(taken) < _TOGETHER and size < _TOGETHER_BYTES:
        delivery = channel.deliveries.popleft()
        taken.append(delivery)
        size += len(delivery.body)
    return taken
