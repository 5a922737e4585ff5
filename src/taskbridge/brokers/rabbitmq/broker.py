"""The broker of RabbitMQ: publishes, parks and buries messages, and counts what waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Final

from pika import spec

from taskbridge.brokers.base import Buried, Counts, Decide, Place, Publication, Remark, Wire, once, place_of
from taskbridge.brokers.rabbitmq.channel import NOT_FOUND, Channel
from taskbridge.brokers.rabbitmq.connection import ClientError, Deadline
from taskbridge.brokers.rabbitmq.dead_letter_queue import TOGETHER, letter_of, reading, take_out
from taskbridge.brokers.rabbitmq.hosts import Hosts
from taskbridge.brokers.rabbitmq.pool import Pool
from taskbridge.brokers.rabbitmq.publication import Destination, EncodedPublication, Encoder
from taskbridge.brokers.rabbitmq.pump import Pump
from taskbridge.brokers.rabbitmq.topology import LEVELS, LONGEST_EXPIRATION_S, sign_queue
from taskbridge.exceptions import BrokerUnavailable, PartlyPublished, SettingsError
from taskbridge.message import DeadLetter, Message
from taskbridge.probe import make_probe
from taskbridge.settings import Settings

_PRIORITIES_SINCE: Final = (4, 3)  # the RabbitMQ from which quorum queues keep priorities


class RabbitMQBroker:
    """Keeps messages in RabbitMQ; see `Broker`. Threads share it, and a forked process makes its own connections.

    A process has a pool of connections for sending, and one for looking, which a memory alarm doesn't block because
    nothing is published on it. At rest each pool keeps one connection. A pump has one of its own, and so has whoever
    looks at dead letters, as long as that takes. A setting that RabbitMQ can't keep is a `SettingsError`.
    """

    def __init__(self, settings: Settings, wire: Wire[Publication]) -> None:
        if settings.dead_ttl_s > LONGEST_EXPIRATION_S:
            raise SettingsError("dead_ttl", "RabbitMQ keeps no time longer than 10 years")
        self._settings = settings
        self._wire = wire
        self._encoder = Encoder(settings, wire)
        self._topology = self._encoder.topology
        self._hosts = Hosts.of(settings.url)
        self._publisher = Pool(self._hosts)
        self._looker = Pool(self._hosts)
        self._levels = 0  # how many are known to be there
        # Whether missing queues are declared when they are looked at. Who only looks may have other settings than the
        # application, by which they would be of another type.
        self._declares = False

    def publish(self, messages: Sequence[Message], *, timeout_s: float) -> None:
        """Publish messages to their queues, pipelined, in order; missing queues are declared."""
        deadline = Deadline(timeout_s)
        self._deliver(map(self._encoder.native, messages), deadline)

    def park(self, messages: Sequence[tuple[Message, float]], *, timeout_s: float) -> None:
        """Keep messages, each for so many seconds, rounded up; more than 2**28 - 1 (8.5 years) are cut to that."""
        parked = self._encoder.parked
        deadline = Deadline(timeout_s)
        self._deliver((parked(each.dumps().encode(), delay_s, each.id) for each, delay_s in messages), deadline)

    def bury(self, letter: DeadLetter, *, timeout_s: float) -> None:
        self._deliver([self._encoder.letter(letter)], Deadline(timeout_s))

    def _deliver(self, encoded: Iterable[EncodedPublication], deadline: Deadline) -> None:
        publications = dict(enumerate(encoded))
        if not publications:
            return
        self._declares = True
        outcome = self._publisher.deliver(publications, deadline)
        if len(outcome.accepted) == len(publications):
            return
        problem = outcome.problem or "RabbitMQ did not confirm it"
        if outcome.refused:
            problem += self._why_refused(publications[min(outcome.refused)].destination, deadline)
        cause = BrokerUnavailable(problem, maybe_taken=bool(outcome.unsure))
        if len(publications) == 1:
            raise cause
        raise PartlyPublished(cause, accepted=frozenset(outcome.accepted), unsure=frozenset(outcome.unsure))

    def _why_refused(self, destination: Destination, deadline: Deadline) -> str:
        """Return what RabbitMQ says of a queue that took nothing, if it says more than that it is there."""
        try:
            self._declare(destination, deadline)
        except ClientError as exc:
            return f" (RabbitMQ says: {exc.__cause__})" if isinstance(exc.__cause__, ClientError) else ""
        return ""

    def _declare(self, destination: Destination, deadline: Deadline) -> None:
        self._looker.use(lambda channel: channel.declare(destination, deadline, anew=True), deadline)

    def keeps_priorities(self, queue: str, *, timeout_s: float) -> bool:
        """Return whether messages of higher priority overtake others in a queue."""
        if self._settings.type_of(queue) == "classic":
            return True
        if self._hosts.version is None:
            self.ping(timeout_s=timeout_s)
        return self._hosts.version is not None and self._hosts.version >= _PRIORITIES_SINCE

    def pump(self, *, knows: Callable[[str], bool], stop: threading.Event, buried: Buried | None = None) -> None:
        Pump(self._hosts, self._encoder, knows=knows, stop=stop, buried=buried).run()

    def counts(self, queues: Sequence[str]) -> Counts:
        topology, places = self._topology, {queue: self._place(queue) for queue in queues}
        dues = [topology.due(engine) for engine in self._encoder.engines]
        calls = [topology.own_queue(name) for name in (*dues, topology.dead)]
        calls += [call for each in places.values() for call in each.calls()]
        deadline = Deadline(self._settings.send_timeout_s)
        with _told():
            self._find_levels(deadline)
            levels = [topology.level(level) for level in range(LEVELS)]
            # The highest first: what moves down meanwhile is counted twice rather than not at all.
            looks = [_look(level) for level in reversed(levels[: self._levels])]
            looks += calls if self._declares else [_look(call.queue) for call in calls]
            held = {reply.queue: reply.message_count for reply in self._replies(looks, deadline)}
        waiting = {queue: held.get(place.name, 0) for queue, place in places.items()}
        delayed = sum(held.get(name, 0) for name in (*levels, *dues))
        return Counts(waiting=waiting, delayed=delayed, dead=held.get(topology.dead, 0))

    def _place(self, queue: str) -> Destination:
        """Return where the engine has a queue, and how it is declared."""
        return self._encoder.native(make_probe(queue, now=0.0, life_s=0.0)).destination

    def _find_levels(self, deadline: Deadline) -> None:
        """Note which levels are there, beside those that are known to be: they are made in their order.

        They are found by messages, for the server logs an error of each queue that is looked for in vain.
        """
        half = deadline.within(deadline.left_s / 2)

        def find(is_there: Callable[[int], object]) -> None:
            level = self._levels
            while level < LEVELS and is_there(level):
                level += 1
            self._levels = level

        try:
            if self._levels < LEVELS:
                trace = self._encoder.trace
                self._publisher.use(lambda channel: find(lambda level: channel.finds(trace(level), half)), half)
        except ClientError:  # the server takes no messages at the moment, or none from here
            if deadline.passed:
                raise
            find(lambda level: self._replies([_look(self._topology.level(level))], deadline))

    def _replies(self, calls: Sequence[Any], deadline: Deadline) -> list[Any]:
        """Return the replies to calls that declare queues or look at them, but for those of which there is none.

        One that can't be declared as it was to be is looked at. The server closes a channel after each refusal.
        """

        def ask(channel: Channel) -> list[Any]:
            try:
                return channel.call_all(calls, deadline)
            except ClientError as exc:
                if not exc.code or (calls[len(channel.replies)].passive and exc.code != NOT_FOUND):
                    raise
                return channel.replies

        replies: list[Any] = []
        while calls:
            answered = self._looker.use(ask, deadline)
            replies += answered
            refused, rest = calls[len(answered) : len(answered) + 1], calls[len(answered) + 1 :]
            calls = [*(_look(each.queue) for each in refused if not each.passive), *rest]
        return replies

    def dead_letters(self, ids: Collection[str] | None = None) -> list[DeadLetter]:
        with closing(self._letters(None if ids is None else TOGETHER)) as letters:
            if ids is None:
                return list(letters)
            found, missing = list[DeadLetter](), set(ids)
            while missing and (letter := next(letters, None)) is not None:
                found += [letter] if letter.id in ids else []
                missing.discard(letter.id)
            return found

    def dead_letters_from(self, place: Place | None, *, most: int | None) -> Generator[DeadLetter]:
        """Yield dead letters in the order in which they were buried, of which all before are read, too."""
        found = False
        with closing(self._letters(most)) as letters:
            for letter in once(letters):
                if found := found or place in (None, place_of(letter)):
                    yield letter
        if place is not None and not found:
            with closing(self._letters(most)) as letters:
                yield from (letter for letter in once(letters) if place_of(letter) >= place)

    def _letters(self, most: int | None) -> Generator[DeadLetter]:
        """Yield the dead letters from the front of their queue, where they are again once this is closed."""
        topology, deadline = self._topology, Deadline(self._settings.send_timeout_s)
        read = reading(self._hosts, topology.dead, topology.kind, deadline, declares=self._declares, most=most)
        with _told(), read as (_, deliveries):
            for each in deliveries:
                yield letter_of(each.body)

    def take_dead(self, decide: Decide, *, ids: Collection[str] | None = None, timeout_s: float) -> list[str]:
        """Take dead letters out, up to 100 in a transaction, which also parks what is replayed."""
        with _told():
            declares = self._declares
            return take_out(self._hosts, self._encoder, decide, ids=ids, timeout_s=timeout_s, declares=declares)

    def ping(self, *, timeout_s: float) -> None:
        self._calls([spec.Basic.Qos()], timeout_s)

    def ask(self, probes: Sequence[Message], *, timeout_s: float) -> None:
        """Publish probes; RabbitMQ drops them as they expire."""
        self._deliver((self._encoder.native(probe, life_s=timeout_s) for probe in probes), Deadline(timeout_s))

    def withdraw(self, probes: Sequence[Message], signs: Sequence[str], *, timeout_s: float) -> None:
        """Remove these signs; RabbitMQ drops the probes by itself."""
        self._calls([spec.Queue.Delete(queue=self._topology.sign(name)) for name in signs], timeout_s)

    def leave_signs(self, names: Sequence[str], *, life_s: float, timeout_s: float) -> None:
        self._deliver((self._encoder.sign(name, life_s=life_s) for name in names), Deadline(timeout_s))

    def see_signs(self, names: Sequence[str], *, timeout_s: float) -> Collection[str]:
        replies = self._calls([sign_queue(self._topology.sign(name)) for name in names], timeout_s)
        return {name for name, reply in zip(names, replies, strict=True) if reply.message_count}

    # Whether the server is fit for messages

    def examine(self, queues: Sequence[str], *, management: str | None, timeout_s: float) -> Iterable[Remark]:
        from taskbridge.brokers.rabbitmq.examination import policies_on, refusals  # here, for only a command needs it

        places = [self._place(queue) for queue in queues]
        wanted = {call.queue: call.arguments for each in places for call in each.calls()}
        with _told():
            for each in (*places, self._encoder.due):
                yield from refusals(partial(self._declare, each, Deadline(timeout_s)))
            yield from policies_on(wanted, self._encoder, self._hosts.last, management=management, timeout_s=timeout_s)

    def forget(self, queues: Sequence[str], *, timeout_s: float) -> None:
        """Remove these queues, and what this engine's bridges have parked and is due."""
        names = [self._topology.due(self._wire.engine), *(name for each in queues for name in self._wire.places(each))]
        self._calls([spec.Queue.Delete(queue=name) for name in names], timeout_s)

    def _calls(self, calls: Sequence[Any], timeout_s: float) -> list[Any]:
        deadline = Deadline(timeout_s)
        with _told():
            return self._looker.use(lambda channel: channel.call_all(calls, deadline), deadline)

    def close(self) -> None:
        self._publisher.close()
        self._looker.close()


def _look(queue: str) -> Any:
    return spec.Queue.Declare(queue=queue, passive=True)


@contextmanager
def _told() -> Generator[None]:
    """Raise what the block raises of the client as `BrokerUnavailable`."""
    try:
        yield
    except ClientError as exc:
        raise BrokerUnavailable(str(exc)) from exc
