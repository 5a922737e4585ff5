"""The pump: takes delayed messages that are due and publishes them to their queues."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Final

from pika import spec

from taskbridge.brokers.base import Buried, unpublished
from taskbridge.brokers.rabbitmq.channel import Channel, Outcome, channel_of_its_own
from taskbridge.brokers.rabbitmq.connection import HEARTBEAT_S, ClientError, Deadline
from taskbridge.brokers.rabbitmq.frames import Delivery
from taskbridge.brokers.rabbitmq.hosts import Hosts
from taskbridge.brokers.rabbitmq.publication import EncodedPublication, Encoder
from taskbridge.exceptions import NewerFormError
from taskbridge.failures import text_of
from taskbridge.logs import logger
from taskbridge.message import Message, loads

_log = logger("taskbridge.pump")

_TOGETHER: Final = 100
_PREFETCH: Final = 2 * _TOGETHER  # the next batch arrives while one is being confirmed
_TOGETHER_BYTES: Final = 4 * 1024 * 1024  # a batch is no larger than this, unless it is one message
_QUIET_S: Final = 0.2
_CALL_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0
_CALM_S: Final = 1.0

_POSTPONED_S: Final = 30.0  # how long a message waits that only a newer release can read
_REFUSED_S: Final = 5.0  # how long a message waits whose queue is full
_LOOK_S: Final = 1.0
_LOOKS: Final = 3
"""How often another engine must be seen without a pump in a row: pumps that lost their connection are back by then."""

_STRANGERS_LOOKS: Final = 10  # the same after a look at messages of which no task was known here
_CHANNELS: Final = 3  # a pump consumes on one, publishes on another, and takes another engine's messages on a third
_LOOKED_AT: Final = 1000  # how many of another engine's messages are looked at together


class Pump:
    """Publishes the due messages of one engine, and of engines that have no pump; any number may run at once."""

    def __init__(
        self,
        hosts: Hosts,
        encoder: Encoder,
        *,
        knows: Callable[[str], bool],
        stop: threading.Event,
        buried: Buried | None = None,
    ) -> None:
        self._hosts = hosts.changed(_attentive)
        self._encoder = encoder
        self._due, *others = map(encoder.topology.due, encoder.engines)
        # How many more looks at another engine's due queue must find it without a pump.
        self._looks = dict.fromkeys(others, _LOOKS)
        self._next_look = 0.0
        self._knows = knows
        self._stop = stop
        self._buried = buried
        self._pause_s = 0.0

    def run(self) -> None:
        """Publish what falls due; while RabbitMQ is unreachable, retry with growing pauses."""
        while not self._stop.is_set():
            try:
                with channel_of_its_own(self._hosts, self._call_deadline()) as channel:
                    self._publisher = Channel(channel.connection)  # what closes it takes no acknowledgement along
                    self._publisher.call(spec.Confirm.Select(), self._call_deadline())
                    self._publisher.declare(self._encoder.due, self._call_deadline())
                    self._consume(channel, self._due, _PREFETCH)
                    self._serve(channel)
            except ClientError as exc:
                if not self._stop.is_set():
                    self._wait(exc)

    def _wait(self, failure: Exception) -> None:
        if self._pause_s == 0:
            _log.warning("delayed messages wait until RabbitMQ takes them: %s", failure)
        self._pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, self._pause_s * 2))
        self._stop.wait(self._pause_s)

    def _consume(self, channel: Channel, queue: str, prefetch: int) -> None:
        consume = spec.Basic.Qos(prefetch_count=prefetch), spec.Basic.Consume(queue=queue)
        channel.call_all(consume, self._call_deadline())

    def _serve(self, channel: Channel) -> None:
        began_at = time.monotonic()
        while not self._stop.is_set():
            if not channel.deliveries:
                channel.connection.read(_QUIET_S)
            channel.check()
            taken = _taken(channel)
            if taken:
                self._promote(channel, taken)
            if self._pause_s > 0 and time.monotonic() - began_at > _CALM_S:
                self._pause_s = 0.0
                _log.warning("RabbitMQ is back, delayed messages are published again")
            if time.monotonic() > self._next_look:
                self._next_look = time.monotonic() + _LOOK_S
                self._look_at_others(channel)

    def _call_deadline(self) -> Deadline:
        return Deadline(_CALL_S, self._stop)

    def _promote(self, channel: Channel, taken: Sequence[Delivery]) -> None:
        """Publish a batch, and then acknowledge it; what could not be published is delivered again."""
        outcome = self._deliver(self._decided(taken, is_own=True))
        if outcome.refused:
            again = {index: self._encoder.parked(taken[index].body, _REFUSED_S) for index in sorted(outcome.refused)}
            _log.warning("%d delayed messages wait %g s more: %s", len(again), _REFUSED_S, outcome.problem)
            outcome.accepted |= self._deliver(again).accepted
        channel.ack(taken[index].tag for index in sorted(outcome.accepted))
        if len(outcome.accepted) < len(taken):
            raise ClientError(str(outcome.problem))
        _log.debug("published %d delayed messages", len(taken))

    def _deliver(self, publications: Mapping[int, EncodedPublication]) -> Outcome:
        """Publish without a time limit: during a memory alarm each retry could be a duplicate."""
        outcome = Outcome()
        try:
            self._publisher.publish(publications, outcome, Deadline(stop=self._stop))
        except ClientError as exc:
            outcome.problem = str(exc)
        return outcome

    def _decided(self, taken: Sequence[Delivery], *, is_own: bool) -> dict[int, EncodedPublication]:
        """Return what to publish for due messages; nothing for those of another engine that stay in its queue."""
        decided = {index: self._publication(delivery, is_own=is_own) for index, delivery in enumerate(taken)}
        return {index: publication for index, publication in decided.items() if publication is not None}

    def _publication(self, delivery: Delivery, *, is_own: bool) -> EncodedPublication | None:
        try:
            message = _read(delivery)
            return self._encoder.native(message) if is_own or self._knows(message.task) else None
        except Exception as exc:  # one message that can't be read or encoded must not block the others
            if not is_own:  # that is for its own engine to bury, or for a newer release
                _log.debug("a delayed message of another engine can't be published here: %s", text_of(exc))
                return None
            if isinstance(exc, NewerFormError):
                _log.warning("a delayed message waits for a newer release: %s", exc)
                return self._encoder.parked(delivery.body, _POSTPONED_S)
            self._publisher.connection.read()  # heartbeats: telling of a burial may take as long as the store's silence
            return self._encoder.letter(unpublished(delivery.body, exc, self._buried))

    def _look_at_others(self, channel: Channel) -> None:
        """Publish the due messages of engines that have no pump, if their task is known here."""
        for due in self._looks:
            state = channel.call(self._encoder.topology.own_queue(due), self._call_deadline())
            self._looks[due] = _LOOKS if state.consumer_count > 0 else self._looks[due] - 1
            if self._looks[due] < 0 and state.message_count > 0:
                self._looks[due] = 0 if self._adopt(Channel(channel.connection), due) else _STRANGERS_LOOKS

    def _adopt(self, channel: Channel, due: str) -> bool:
        """Publish what is known here of a queue, and leave the rest; return whether any of it was known."""
        self._consume(channel, due, _LOOKED_AT)
        taken = list(channel.arriving(due, self._call_deadline))
        adopted = self._decided(taken, is_own=False)
        accepted = self._deliver(adopted).accepted if adopted else set[int]()
        channel.ack(taken[index].tag for index in sorted(accepted))
        channel.leave()
        self._publisher.check()
        if accepted:
            _log.info("published %d delayed messages of queue %s, which has no pump", len(accepted), due)
        return bool(accepted) or not taken


def _read(delivery: Delivery) -> Message:
    """Return a due message.

    If it was delivered before, a pump may have died after publishing it and before acknowledging it. Then there are two
    copies, and this one says that its attempt may have been started (rule A7).
    """
    message = loads(delivery.body)
    return replace(message, redelivered=message.redelivered + 1) if delivery.redelivered else message


def _taken(channel: Channel) -> list[Delivery]:
    taken: list[Delivery] = []
    size = 0
    while channel.deliveries and len(taken) < _TOGETHER and size < _TOGETHER_BYTES:
        delivery = channel.deliveries.popleft()
        taken.append(delivery)
        size += len(delivery.body)
    return taken


def _attentive(parameters: Any) -> Any:
    """Return parameters that a pump needs: it notices a dead connection in time, and has all its channels.

    Whatever the URL says: that may name no heartbeat, or a long one, and fewer channels.
    """
    found = copy(parameters)
    found.channel_max = max(found.channel_max, _CHANNELS)
    if not (isinstance(found.heartbeat, int) and 0 < found.heartbeat <= HEARTBEAT_S):
        found.heartbeat = None
    return found
