"""The pump: takes delayed messages that are due and publishes them to their queues."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pika import spec

from taskbridge.brokers.rabbitmq.channel import Channel, ChannelClosedError, Delivery, Outcome
from taskbridge.brokers.rabbitmq.connection import Connection, connect
from taskbridge.brokers.rabbitmq.deadline import Deadline
from taskbridge.brokers.rabbitmq.publication import EncodedPublication, Encoder
from taskbridge.brokers.rabbitmq.publishing import FAILURES, declare, look, publish
from taskbridge.brokers.rabbitmq.topology import Topology
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

_ADOPTED_TOGETHER: Final = 100
_LOOKED_AT: Final = 1000


class _NotPublishedError(Exception):
    """Due messages could not be published; they return to their queue, and are delivered again."""


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
        self,
        hosts: Sequence[Any],
        encoder: Encoder,
        topology: Topology,
        engine: str,
        others: Iterable[str],
        *,
        knows: Callable[[str], bool],
        stop: threading.Event,
    ) -> None:
        self._hosts = hosts
        self._encoder = encoder
        self._due = topology.due(engine)
        self._orphans = [_Orphan(topology.due(other)) for other in others]
        self._knows = knows
        self._stop = stop
        self._pause_s = 0.0
        self._serving_since = 0.0

    def run(self) -> None:
        """Publish what falls due; while RabbitMQ is unreachable, retry with growing pauses."""
        while not self._stop.is_set():
            connection: Connection | None = None
            try:
                connection = connect(self._hosts, self._call_deadline(), heartbeat_s=_HEARTBEAT_S, kind=Connection)
                self._serve(connection)
            except (*FAILURES, _NotPublishedError) as exc:
                if not self._stop.is_set():
                    self._wait(exc)
            finally:
                if connection is not None:
                    connection.close(_LEAVE_S)  # what was not acknowledged goes back

    def _wait(self, failure: Exception) -> None:
        if self._pause_s == 0:
            _log.warning("delayed messages wait until RabbitMQ takes them: %s", failure)
        self._pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, self._pause_s * 2))
        self._stop.wait(self._pause_s)

    def _serve(self, connection: Connection) -> None:
        deadline = self._call_deadline()
        declare(connection, self._encoder.due, deadline)
        channel = Channel(connection)
        channel.open(deadline)
        channel.consume(self._due, prefetch=_PREFETCH, exclusive=False, deadline=deadline)
        self._serving_since = time.monotonic()
        while not self._stop.is_set():
            if not channel.deliveries:
                connection.read(_QUIET_S)
            channel.check()
            taken = _taken(channel)
            if taken:
                self._promote(connection, channel, taken)
            self._note_calm()
            self._adopt(connection)

    def _note_calm(self) -> None:
        if self._pause_s > 0 and time.monotonic() - self._serving_since > _CALM_S:
            self._pause_s = 0.0
            _log.warning("RabbitMQ is back, delayed messages are published again")

    def _call_deadline(self) -> Deadline:
        return Deadline(_CALL_S, self._stop)

    # Messages of the own engine

    def _promote(self, connection: Connection, channel: Channel, taken: Sequence[Delivery]) -> None:
        """Publish a batch, and then acknowledge it."""
        publications = [self._decided(index, delivery) for index, delivery in enumerate(taken)]
        outcome = self._deliver(connection, publications)
        if outcome.refused:
            again = [self._encoder.parked(index, taken[index].body, _REFUSED_S) for index in sorted(outcome.refused)]
            _log.warning("%d delayed messages wait %g s more: %s", len(again), _REFUSED_S, outcome.problem)
            outcome.accepted |= self._deliver(connection, again).accepted
        if len(outcome.accepted) == len(taken):
            channel.ack([taken[-1].tag], multiple=True)
            _log.debug("published %d delayed messages", len(taken))
        else:
            channel.ack(taken[index].tag for index in sorted(outcome.accepted))
            raise _NotPublishedError(outcome.problem)

    def _deliver(self, connection: Connection, publications: Sequence[EncodedPublication]) -> Outcome:
        """Publish without a time limit: during a memory alarm each retry could be a duplicate."""
        outcome = Outcome()
        try:
            publish(connection, publications, outcome, Deadline(stop=self._stop))
        except FAILURES as exc:  # what was accepted before is to be acknowledged
            outcome.problem = str(exc)
        return outcome

    def _decided(self, index: int, delivery: Delivery) -> EncodedPublication:
        """Return what to publish for a due message of this engine."""
        body = delivery.body
        try:
            return self._encoder.native(index, _read(delivery))
        except NewerFormError as exc:
            _log.warning("a delayed message waits for a newer release: %s", exc)
        except DecodeError as exc:
            _log.error("a delayed message is dead, reason undecodable: %s", exc)
            letter = DeadLetter(message=None, reason="undecodable", raw=body, died_at=time.time())
            return self._encoder.letter(index, letter)
        except MessageTooLarge as exc:
            _log.error("a delayed message is dead, reason too_large: %s", exc)
            error = ErrorInfo.of(exc)
            letter = DeadLetter(message=_read(delivery), reason="too_large", error=error, died_at=time.time())
            return self._encoder.letter(index, letter)
        except Exception:  # one message that can't be encoded must not block the others
            _log.exception("a delayed message can't be published, tried again in %g s", _POSTPONED_S)
        return self._encoder.parked(index, body, _POSTPONED_S)

    # Messages of other engines

    def _adopt(self, connection: Connection) -> None:
        """Publish the due messages of engines that have no pump, if their task is known here."""
        now = time.monotonic()
        looked_at = [orphan for orphan in self._orphans if orphan.next_look <= now]
        if not looked_at:
            return
        states = look(connection, [orphan.due for orphan in looked_at], self._call_deadline())
        for orphan in looked_at:
            state = states.get(orphan.due)
            orphan.next_look = now + (_MISSING_LOOK_S if state is None else _LOOK_S)
            orphan.alone = 0 if state is None or state.consumers > 0 else orphan.alone + 1
            if state is not None and orphan.alone >= _LOOKS and state.messages > 0:
                self._adopt_from(connection, orphan, state.messages)

    def _adopt_from(self, connection: Connection, orphan: _Orphan, number: int) -> None:
        adopted = left = 0
        try:
            channel = Channel(connection)
            channel.open(self._call_deadline())
            while adopted + left < min(number, _LOOKED_AT) and not self._stop.is_set():
                asked = [spec.Basic.Get(queue=orphan.due)] * min(number, _ADOPTED_TOGETHER)
                replies = channel.call_all(asked, self._call_deadline())
                taken = [reply for reply in replies if isinstance(reply, Delivery)]
                published = self._publish_adopted(connection, channel, taken)
                adopted += published
                left += len(taken) - published
                if len(taken) < len(asked):
                    break
            channel.close(self._call_deadline())  # those left go back to their places
        except ChannelClosedError as exc:
            _log.info("queue %s went away while it was looked at: %s", orphan.due, exc)
        if adopted:
            _log.info("published %d delayed messages of queue %s, which has no pump", adopted, orphan.due)
        elif left:
            orphan.next_look = time.monotonic() + _STRANGERS_LOOK_S

    def _publish_adopted(self, connection: Connection, channel: Channel, taken: Sequence[Delivery]) -> int:
        publications = [
            publication
            for index, delivery in enumerate(taken)
            if (publication := self._adopted(index, delivery)) is not None
        ]
        if not publications:
            return 0
        outcome = self._deliver(connection, publications)
        channel.ack(taken[index].tag for index in sorted(outcome.accepted))
        return len(outcome.accepted)

    def _adopted(self, index: int, delivery: Delivery) -> EncodedPublication | None:
        """Return what to publish for a due message of another engine; None leaves it in its queue."""
        try:
            message = _read(delivery)
            return self._encoder.native(index, message) if self._knows(message.task) else None
        except DecodeError:
            return None  # for its own engine to bury, or for a newer release
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
