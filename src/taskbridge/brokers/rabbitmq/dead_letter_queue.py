"""Looks at all messages of a queue, and takes some out in transactions."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pika import spec

from taskbridge.brokers.rabbitmq.channel import Channel, ChannelClosedError, Delivery, Outcome
from taskbridge.brokers.rabbitmq.connection import Connection
from taskbridge.brokers.rabbitmq.deadline import Deadline, TimedOutError
from taskbridge.brokers.rabbitmq.publication import EncodedPublication
from taskbridge.brokers.rabbitmq.publishing import look, publish
from taskbridge.brokers.rabbitmq.topology import existing_queue

TOGETHER: Final = 100
"""How many messages a transaction takes out at most."""

_ACCESS_REFUSED: Final = 403
_PAUSE_S: Final = 0.05


def browse(connection: Connection, queue: str, deadline: Deadline) -> list[bytes]:
    """Return the bodies of all messages of a queue, the first first.

    All messages are delivered, and return to their places when the channel is closed. Meanwhile nobody else may consume
    the queue: of two readers each would see a part.
    """
    if not _may_hold(connection, queue, deadline):
        return []
    with _reading(connection, queue, deadline) as channel:
        return [delivery.body for delivery in _all(channel, queue, deadline.timeout_s)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """Deliveries that are taken out together, by their tags, and the message that is published instead of them."""

    tags: Sequence[int]
    publication: EncodedPublication | None


def take_out(
    connection: Connection,
    queue: str,
    choose: Callable[[Iterator[Delivery]], Sequence[Removal]],
    done: Callable[[int], None],
    timeout_s: float,
) -> None:
    """Take messages out of a queue, and publish others instead of them, up to 100 in a transaction.

    A transaction ends with one `tx.commit`, which the server's channel carries out in one step: a client that dies
    before it has changed nothing. The server publishes before it acknowledges, so if it is killed at that instant it
    may keep both, and never loses both.

    Args:
        connection: The caller closes it afterwards.
        queue: The queue; nobody else can read it meanwhile.
        choose: Called with all messages; returns what to take out.
        done: Called after each transaction with the number of removals so far.
        timeout_s: The time for reading, and for each transaction.
    """
    deadline = Deadline(timeout_s)
    if not _may_hold(connection, queue, deadline):
        return
    with _reading(connection, queue, deadline, spec.Tx.Select()) as channel:
        removals = choose(_all(channel, queue, timeout_s))
        for start in range(0, len(removals), TOGETHER):
            part = removals[start : start + TOGETHER]
            _commit(connection, channel, part, Deadline(timeout_s))
            done(start + len(part))


def _commit(connection: Connection, channel: Channel, part: Sequence[Removal], deadline: Deadline) -> None:
    connection.wait_unblocked(deadline)
    publications = [removal.publication for removal in part if removal.publication is not None]
    returned = channel.commit(publications, [tag for removal in part for tag in removal.tags], deadline)
    if returned:  # the queue was deleted a moment ago
        outcome = Outcome()
        publish(connection, returned, outcome, deadline)
        if outcome.problem is not None:
            raise TimedOutError(outcome.problem)


def _may_hold(connection: Connection, queue: str, deadline: Deadline) -> bool:
    """Return whether the queue holds messages, or has a consumer that may hold them."""
    state = look(connection, [queue], deadline).get(queue)
    return state is not None and (state.messages > 0 or state.consumers > 0)


@contextmanager
def _reading(connection: Connection, queue: str, deadline: Deadline, *modes: Any) -> Generator[Channel]:
    """Read the queue exclusively during the block; afterwards unacknowledged messages return to it."""
    channel = _only_reader(connection, queue, deadline, *modes)
    try:
        yield channel
    finally:
        channel.close(Deadline(deadline.timeout_s))


def _only_reader(connection: Connection, queue: str, deadline: Deadline, *modes: Any) -> Channel:
    refused = False
    while not (refused and deadline.passed):
        try:
            channel = Channel(connection)
            channel.open(deadline, *modes)
            channel.consume(queue, prefetch=0, exclusive=True, deadline=deadline)
            return channel
        except ChannelClosedError as exc:
            if exc.code != _ACCESS_REFUSED:
                raise
            refused = True
            time.sleep(_PAUSE_S)
        except TimedOutError:
            if not refused:
                raise
    raise TimedOutError(f"others are reading queue {queue!r} all the time")


def _all(channel: Channel, queue: str, timeout_s: float) -> Iterator[Delivery]:
    while True:
        deadline = Deadline(timeout_s)  # for each answer: a long queue takes its time
        left: int = channel.call(existing_queue(queue), deadline).message_count
        # That reply may overtake what the queue has delivered, for its channel waits for the queue's answer before it
        # goes on; the next one can't.
        channel.call(existing_queue(queue), deadline)
        while channel.deliveries:
            yield channel.deliveries.popleft()
        if left == 0:
            return
        time.sleep(_PAUSE_S)
