"""Looks at all messages of a queue, and leaves them where they are or takes some out in transactions."""

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
from taskbridge.brokers.rabbitmq.publication import Parcel
from taskbridge.brokers.rabbitmq.publishing import look, publish
from taskbridge.brokers.rabbitmq.topology import existing_queue

TOGETHER: Final = 100
"""How many messages a transaction takes out at most."""

_ACCESS_REFUSED: Final = 403
_PAUSE_S: Final = 0.05


def browse(connection: Connection, queue: str, deadline: Deadline) -> list[bytes]:
    """Return the bodies of all messages of a queue, the first first.

    The queue delivers them all, and takes them back, each to its place, when the channel is closed. Meanwhile nobody
    else may consume the queue: two readers at once would each see a part.
    """
    if not _may_hold(connection, queue, deadline):
        return []
    with _reading(connection, queue, deadline) as channel:
        return [delivery.body for delivery in _all(channel, queue, deadline.timeout_s)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """What is taken out of a queue together: deliveries, by their tags, and what is published in their stead."""

    tags: Sequence[int]
    parcel: Parcel | None


def take_out(
    connection: Connection,
    queue: str,
    choose: Callable[[Iterator[Delivery]], Sequence[Removal]],
    done: Callable[[int], None],
    timeout_s: float,
) -> None:
    """Take messages out of a queue, and publish others in their stead, up to 100 in a transaction.

    A transaction ends with one `tx.commit`, which the server's channel carries out in one go: a client that is gone
    before has changed nothing. It publishes before it acknowledges, so a server that is killed at that very instant
    may keep both, and never loses both.

    Args:
        connection: To be closed afterwards.
        queue: What is read; meanwhile nobody else may.
        choose: Is given all messages, and returns what is to be taken out.
        done: Is told how many of these have been taken out so far, after each transaction.
        timeout_s: For reading, and then for each transaction.
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
    parcels = [removal.parcel for removal in part if removal.parcel is not None]
    returned = channel.commit(parcels, [tag for removal in part for tag in removal.tags], deadline)
    if returned:  # somebody deleted the queue a moment ago
        outcome = Outcome()
        publish(connection, returned, outcome, deadline)
        if outcome.problem is not None:
            raise TimedOutError(outcome.problem)


def _may_hold(connection: Connection, queue: str, deadline: Deadline) -> bool:
    """Return whether the queue holds something, or somebody reads it, who would have it in hand."""
    state = look(connection, [queue], deadline).get(queue)
    return state is not None and (state.messages > 0 or state.consumers > 0)


@contextmanager
def _reading(connection: Connection, queue: str, deadline: Deadline, *modes: Any) -> Generator[Channel]:
    """Read the queue during the block, and nobody else; at its end what is not acknowledged goes back."""
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
