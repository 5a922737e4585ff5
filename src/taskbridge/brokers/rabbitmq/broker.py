"""The broker of RabbitMQ: publishes, parks and buries messages, and counts what waits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

from pika import spec

from taskbridge.brokers.base import Counts, Decide, Publication, Taken, Wire
from taskbridge.brokers.rabbitmq.channel import Delivery
from taskbridge.brokers.rabbitmq.connection import Connection, connect, parameters_of
from taskbridge.brokers.rabbitmq.dead_letter_queue import Removal, browse, take_out
from taskbridge.brokers.rabbitmq.deadline import Deadline
from taskbridge.brokers.rabbitmq.pool import Pool
from taskbridge.brokers.rabbitmq.publication import EncodedPublication, Encoder
from taskbridge.brokers.rabbitmq.publishing import FAILURES, QueueState, declare, look, main_channel
from taskbridge.brokers.rabbitmq.pump import Pump
from taskbridge.brokers.rabbitmq.topology import LEVELS, LONGEST_EXPIRATION_S, Topology, other_engines, sign_queue
from taskbridge.exceptions import BrokerUnavailable, DecodeError, PartlyPublished, SettingsError
from taskbridge.message import DeadLetter, Message, loads_letter
from taskbridge.settings import Settings

_EMPTY: Final = QueueState(0, 0)

_log = logging.getLogger("taskbridge.rabbitmq")


class RabbitMQBroker:
    """Keeps messages in RabbitMQ. Threads share it, and a forked process makes its own connections.

    A process has a pool of connections for sending, and one for looking, which a memory alarm doesn't block because
    nothing is published on it. At rest each pool keeps one connection. A pump has a connection of its own.
    """

    def __init__(self, settings: Settings, wire: Wire[Publication]) -> None:
        if settings.dead_ttl_s > LONGEST_EXPIRATION_S:
            raise SettingsError("dead_ttl", "RabbitMQ keeps no time longer than 10 years")
        self._settings = settings
        self._wire = wire
        self._topology = Topology(settings.namespace)
        self._encoder = Encoder(settings, wire)
        try:
            self._hosts = [parameters_of(settings.url.broker_url)]
        except (ValueError, TypeError, OSError) as exc:
            raise SettingsError("url", str(exc)) from exc
        self._publisher = Pool(self._hosts)
        self._looker = Pool(self._hosts)

    def publish(self, messages: Sequence[Message], *, timeout_s: float) -> None:
        """Publish messages to their queues, pipelined, in order; missing queues are declared.

        Raises:
            PartlyPublished: Of several messages, not all were published.
            BrokerUnavailable: The only message was not published.
        """
        deadline = Deadline(timeout_s)
        self._deliver([self._encoder.native(number, message) for number, message in enumerate(messages)], deadline)

    def park(self, messages: Sequence[tuple[Message, float]], *, timeout_s: float) -> None:
        """Keep messages, each for so many seconds, rounded up; more than 2**28 - 1 (8.5 years) are cut to that.

        Raises:
            PartlyPublished: Of several messages, not all were parked.
            BrokerUnavailable: The only message was not parked.
        """
        deadline = Deadline(timeout_s)
        publications = [
            self._encoder.parked(index, message.dumps().encode(), delay_s, message.id)
            for index, (message, delay_s) in enumerate(messages)
        ]
        self._deliver(publications, deadline)

    def bury(self, letter: DeadLetter, *, timeout_s: float) -> None:
        """Keep a dead letter for the setting `dead_ttl`.

        Raises:
            BrokerUnavailable: It was not buried.
        """
        self._deliver([self._encoder.letter(0, letter)], Deadline(timeout_s))

    def _deliver(self, publications: Sequence[EncodedPublication], deadline: Deadline) -> None:
        if not publications:
            return
        outcome = self._publisher.deliver(publications, deadline)
        if len(outcome.accepted) == len(publications):
            return
        problem = outcome.problem or "RabbitMQ did not confirm it"
        cause = BrokerUnavailable(problem, maybe_taken=bool(outcome.unsure))
        if len(publications) == 1:
            raise cause
        raise PartlyPublished(cause, accepted=frozenset(outcome.accepted), unsure=frozenset(outcome.unsure))

    def pump(self, *, knows: Callable[[str], bool], stop: threading.Event) -> None:
        """Publish parked messages as they fall due, until `stop` is set."""
        others = other_engines(self._wire.engine)
        Pump(self._hosts, self._encoder, self._topology, self._wire.engine, others, knows=knows, stop=stop).run()

    def counts(self, queues: Sequence[str]) -> Counts:
        """Return how much waits in these queues, and how much is delayed and dead in this namespace.

        Raises:
            BrokerUnavailable: RabbitMQ doesn't answer within `send_timeout`.
        """
        places = {queue: self._wire.places(queue) for queue in queues}
        engines = [self._wire.engine, *other_engines(self._wire.engine)]
        levels = [self._topology.level(level) for level in range(LEVELS)]
        due = [self._topology.due(engine) for engine in engines]
        names = [*due, self._topology.dead, *(name for names in places.values() for name in names)]

        def states_of(connection: Connection, deadline: Deadline) -> dict[str, QueueState]:
            made = look(connection, levels, deadline, until_missing=True)  # they are made in this order
            return {**made, **look(connection, names, deadline)}

        states = self._looker.ask(states_of, self._settings.send_timeout_s)

        def count(names: Sequence[str]) -> int:
            return sum(states.get(name, _EMPTY).messages for name in names)

        waiting = {queue: count(names) for queue, names in places.items()}
        return Counts(waiting=waiting, delayed=count([*levels, *due]), dead=count([self._topology.dead]))

    def dead_letters(self, ids: Collection[str] | None = None) -> list[DeadLetter]:
        """Return the dead letters, or those of these ids, the oldest first, and leave them where they are.

        One that this release can't read comes with reason `undecodable`, and its text as `raw`.

        Raises:
            BrokerUnavailable: RabbitMQ doesn't answer within `send_timeout`.
        """
        bodies = self._looker.ask(
            lambda connection, deadline: browse(connection, self._topology.dead, deadline),
            self._settings.send_timeout_s,
        )
        letters = [_letter(body) for body in bodies]
        return [letter for letter in letters if ids is None or letter.id in ids]

    def take_dead(self, decide: Decide, *, ids: Collection[str] | None = None, timeout_s: float) -> list[str]:
        """Take dead letters out, up to 100 in a transaction, which also publishes what is replayed as due now.

        Raises:
            BrokerUnavailable: Some may have been taken out.
        """
        chosen: dict[str, Removal] = {}
        taken: list[str] = []

        def choose(deliveries: Iterator[Delivery]) -> Sequence[Removal]:
            chosen.update(self._chosen(deliveries, decide, ids))
            return list(chosen.values())

        def done(number: int) -> None:
            taken[:] = list(chosen)[:number]

        connection: Connection | None = None
        try:
            connection = connect(self._hosts, Deadline(timeout_s), kind=Connection)  # a transaction is never repeated
            declare(connection, self._encoder.due, Deadline(timeout_s))
            take_out(connection, self._topology.dead, choose, done, timeout_s)
        except FAILURES as exc:
            problem = f"{exc}; of {len(chosen)} dead letters {len(taken)} were taken out before" if taken else str(exc)
            raise BrokerUnavailable(problem, maybe_taken=bool(chosen)) from exc
        finally:
            if connection is not None:
                connection.close()
        return taken

    def _chosen(
        self, deliveries: Iterator[Delivery], decide: Decide, ids: Collection[str] | None
    ) -> dict[str, Removal]:
        """Return by id what is to be taken out: all copies of a letter at once, and one message in their stead."""
        tags: dict[str, list[int]] = {}
        fates: dict[str, Taken] = {}
        for delivery in deliveries:
            letter = _letter(delivery.body)
            tags.setdefault(letter.id, []).append(delivery.tag)
            fate = decide(letter) if ids is None or letter.id in ids else None
            if fate is not None:
                fates[letter.id] = fate
        return {
            letter_id: Removal(tags=tags[letter_id], publication=self._replayed(index, fate.message))
            for index, (letter_id, fate) in enumerate(fates.items())
        }

    def _replayed(self, index: int, message: Message | None) -> EncodedPublication | None:
        if message is None:
            return None
        return self._encoder.parked(index, message.dumps().encode(), 0.0, message.id)

    def ping(self, *, timeout_s: float) -> None:
        """Return if RabbitMQ answers.

        Raises:
            BrokerUnavailable: It doesn't.
        """
        self._looker.ask(lambda connection, deadline: look(connection, [self._topology.dead], deadline), timeout_s)

    def ask(self, probes: Sequence[Message], *, timeout_s: float) -> None:
        """Publish probes; RabbitMQ drops them as they expire."""
        publications = [
            self._encoder.native(index, probe, life_s=None if probe.expires_at is None else timeout_s)
            for index, probe in enumerate(probes)
        ]
        self._deliver(publications, Deadline(timeout_s))

    def withdraw(self, probes: Sequence[Message], signs: Sequence[str], *, timeout_s: float) -> None:
        """Remove these signs; RabbitMQ drops the probes by itself."""
        calls = [spec.Queue.Delete(queue=self._topology.sign(name)) for name in signs]
        self._call_all(calls, timeout_s)

    def leave_signs(self, names: Sequence[str], *, life_s: float, timeout_s: float) -> None:
        """Leave signs for so many seconds."""
        publications = [self._encoder.sign(index, name, life_s=life_s) for index, name in enumerate(names)]
        self._deliver(publications, Deadline(timeout_s))

    def see_signs(self, names: Sequence[str], *, timeout_s: float) -> Collection[str]:
        """Return those of these signs that are there."""
        calls = [sign_queue(self._topology.sign(name)) for name in names]
        replies = self._call_all(calls, timeout_s)
        return {name for name, reply in zip(names, replies, strict=True) if reply.message_count}

    def _call_all(self, calls: Sequence[Any], timeout_s: float) -> list[Any]:
        return self._looker.ask(
            lambda connection, deadline: main_channel(connection, deadline).call_all(calls, deadline), timeout_s
        )

    def close(self) -> None:
        """Close the connections; the next call makes new ones."""
        self._publisher.close()
        self._looker.close()


def _letter(body: bytes) -> DeadLetter:
    try:
        return loads_letter(body)
    except DecodeError as exc:
        _log.warning("a dead letter can't be read: %s", exc)
        # Not now, for the id is made of the time too, and must be the same each time.
        return DeadLetter(message=None, reason="undecodable", raw=body, died_at=0.0)
