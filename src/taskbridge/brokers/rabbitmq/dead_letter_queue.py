"""Looks at dead letters from the front of their queue, and takes some out in transactions."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from typing import Any, Final

from pika import spec

from taskbridge.brokers.base import Decide, typed
from taskbridge.brokers.rabbitmq.channel import NOT_FOUND, Channel, channel_of_its_own
from taskbridge.brokers.rabbitmq.connection import ClientError, Deadline, TimedOutError
from taskbridge.brokers.rabbitmq.frames import Delivery
from taskbridge.brokers.rabbitmq.hosts import Hosts
from taskbridge.brokers.rabbitmq.publication import Destination, EncodedPublication, Encoder
from taskbridge.exceptions import BrokerUnavailable, DecodeError
from taskbridge.logs import logger
from taskbridge.message import DeadLetter, loads_letter
from taskbridge.routing import QueueType

TOGETHER: Final = 100  # how many letters a transaction takes out at most
_TAKEN: Final = (403, 405)  # AMQP's reply codes: another one consumes the queue exclusively, or has the exclusive queue
_OF_ANOTHER_TYPE: Final = 406  # the same: the queue is not as it was to be declared
_PAUSE_S: Final = 0.05

_MOST_UNACKNOWLEDGED: Final = 65_535
"""How many deliveries a consumer can have at most; without a limit, it would be 2,000 on a quorum queue."""

_log = logger("taskbridge.rabbitmq")


_Removal = tuple[Sequence[int], EncodedPublication | None]
"""Deliveries that are taken out together, by their tags, and the message that is published instead of them."""


def take_out(
    hosts: Hosts, encoder: Encoder, decide: Decide, *, ids: Collection[str] | None, timeout_s: float, declares: bool
) -> list[str]:
    """Take dead letters out, up to 100 in a transaction, which also parks what is replayed; see `Broker.take_dead`.

    A transaction ends with one `tx.commit`, which the server's channel carries out in one step: a client that dies
    before it has changed nothing. The server publishes before it acknowledges, so if it is killed at that instant it
    may keep both, and never loses both. `declares` is as in `reading`.
    """
    topology, deadline = encoder.topology, Deadline(timeout_s)
    removals: list[tuple[str, _Removal]] = []
    taken: list[str] = []
    try:
        letters = reading(hosts, topology.dead, topology.kind, deadline, spec.Tx.Select(), declares=declares)
        with letters as (channel, deliveries):
            removals += _removals(deliveries, encoder, decide, ids).items()
            while part := dict(removals[len(taken) : len(taken) + TOGETHER]):
                _commit(channel, encoder, list(part.values()), Deadline(timeout_s))
                taken += part
    except ClientError as exc:
        if not removals:
            raise
        problem = f"{exc}; of {len(removals)} dead letters {len(taken)} were taken out before"
        raise BrokerUnavailable(problem, maybe_taken=True) from exc
    return taken


def _removals(
    deliveries: Iterator[Delivery], encoder: Encoder, decide: Decide, ids: Collection[str] | None
) -> Mapping[str, _Removal]:
    """Return by id what is to be taken out: all copies of a letter at once, and one message in their stead."""
    tags: dict[str, list[int]] = {}
    chosen: dict[str, EncodedPublication | None] = {}
    for delivery in deliveries:
        letter = letter_of(delivery.body)
        tags.setdefault(letter.id, []).append(delivery.tag)
        fate = decide(letter) if ids is None or letter.id in ids else None
        if fate is not None:
            message = fate.message
            parked = None if message is None else encoder.parked(message.dumps().encode(), fate.delay_s, message.id)
            chosen[letter.id] = parked
    return {letter_id: (tags[letter_id], publication) for letter_id, publication in chosen.items()}


def _commit(channel: Channel, encoder: Encoder, part: Sequence[_Removal], deadline: Deadline) -> None:
    publications = [publication for _, publication in part if publication is not None]
    tags = [tag for tags, _ in part for tag in tags]
    _declare(channel, [encoder.due, *(each.destination for each in publications)], deadline)
    while returned := channel.commit(publications, tags, deadline):  # the queue was deleted a moment ago
        publications, tags = returned, []
        _declare(channel, [each.destination for each in returned], deadline, anew=True)


def _declare(channel: Channel, some: Iterable[Destination], deadline: Deadline, *, anew: bool = False) -> None:
    for each in {destination.name: destination for destination in some}.values():
        channel.declare(each, deadline, anew=anew)


def letter_of(body: bytes) -> DeadLetter:
    """Return a dead letter; one that this release can't read has the reason `undecodable`, and its text as `raw`."""
    try:
        return loads_letter(body)
    except DecodeError as exc:
        _log.warning("a dead letter can't be read: %s", exc)
        # Not now, for the id is made of the time too, and must be the same each time.
        return DeadLetter(message=None, reason="undecodable", raw=body, died_at=0.0)


@contextmanager
def reading(
    hosts: Hosts,
    queue: str,
    kind: QueueType,
    deadline: Deadline,
    *modes: Any,
    declares: bool = False,
    most: int | None = None,
) -> Generator[tuple[Channel, Iterator[Delivery]]]:
    """Read a queue of a type during the block; then unacknowledged messages return to their places.

    Meanwhile nobody else may consume the queue: of two readers each would see a part. `declares` is whether it is
    declared before, for the server logs an error of a missing one. `most` is how many messages are sent at first, and
    as many again as there were whenever they are used up; None is all.
    """
    # A quorum queue doesn't mind other consumers (rabbit_quorum_queue:consume), and earlier releases make no lock.
    lock = spec.Queue.Declare(queue=f"{queue}.reader", exclusive=True, arguments=typed("classic"))
    declare: list[Any] = [spec.Queue.Declare(queue=queue, durable=True, arguments=typed(kind))] if declares else []
    most = _MOST_UNACKNOWLEDGED if most is None else min(most, _MOST_UNACKNOWLEDGED)
    consume = [*modes, lock, *_consumer(queue, 0, most)]
    others: TimedOutError | None = None
    # The next reader waits for the lock, and not for what returns: without an answer, that may come after the lock.
    with channel_of_its_own(hosts, deadline, leave_s=deadline.timeout_s) as first:
        channel = first
        while True:
            try:
                channel.call_all([*declare, *consume], deadline)
                deliveries = _in_place(_all(channel, queue, most, deadline.timeout_s))
                break
            except ClientError as exc:
                if exc.code == NOT_FOUND:
                    deliveries = _in_place(iter(()))
                    break
                if others is not None and isinstance(exc, TimedOutError):
                    raise others from exc
                if exc.code == _OF_ANOTHER_TYPE and declare:
                    declare = []  # it is read all the same
                elif exc.code in _TAKEN:
                    others = TimedOutError(f"others are reading queue {queue!r} all the time")
                else:
                    raise
            time.sleep(_PAUSE_S)
            channel = Channel(first.connection)
        with closing(deliveries):
            yield channel, deliveries


def _in_place(deliveries: Iterator[Delivery]) -> Generator[Delivery]:
    """Yield deliveries, and see to it that they return to their places.

    A quorum queue delivers first what was returned to it, and puts what is returned behind all of that
    (rabbit_fifo:return_one). So all that was returned before must be taken before any of it is returned again.
    """
    first = next(deliveries, None)
    try:
        yield from chain([first] if first else (), deliveries)  # which doesn't close them
    finally:
        if first and _was_returned(first):
            for _ in deliveries:
                pass


def _was_returned(delivery: Delivery) -> bool:
    """Return whether a quorum queue says that a message was returned to it; a classic queue says nothing."""
    return delivery.times is not None and delivery.times() is not None


def _all(channel: Channel, queue: str, most: int, timeout_s: float) -> Iterator[Delivery]:
    """Yield what comes until nothing is left; a consumer that has all that it may have is followed by another one."""
    deadline, consumers, last = Deadline(timeout_s), 1, Delivery(0, b"")
    while True:
        for last in channel.arriving(queue, lambda: Deadline(timeout_s)):  # for each: a long queue takes its time
            yield last
            deadline = Deadline(timeout_s)
        if (left := channel.replies[0].message_count) == 0:
            return
        if last.tag == most:
            more = _MOST_UNACKNOWLEDGED if _was_returned(last) else min(most, _MOST_UNACKNOWLEDGED)
            cancel = spec.Basic.Cancel(_tag(consumers - 1))
            channel.call_all([cancel, *_consumer(queue, consumers, more)], Deadline(timeout_s))
            consumers, most = consumers + 1, most + more
        elif deadline.passed:
            raise TimedOutError(f"RabbitMQ holds {left} messages of queue {queue!r} back")
        else:
            time.sleep(_PAUSE_S)


def _consumer(queue: str, number: int, most: int) -> list[Any]:
    """Return the calls that make a consumer, to which at most so many messages are delivered.

    A quorum queue gives back what consumers had in the order of their tags (rabbit_fifo:handle_down; that holds for 32
    of them, which have a million messages), or since RabbitMQ 4 in the order in which they were made.
    """
    consume = spec.Basic.Consume(queue=queue, consumer_tag=_tag(number), exclusive=True)
    return [spec.Basic.Qos(prefetch_count=most), consume]


def _tag(number: int) -> str:
    return f"reader.{number:02}"
