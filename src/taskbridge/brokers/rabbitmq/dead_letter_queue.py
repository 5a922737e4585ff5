"""Looks at all dead letters, and takes some out in transactions."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from pika import spec

from taskbridge.brokers.base import Decide
from taskbridge.brokers.rabbitmq.channel import Channel, Outcome, Session
from taskbridge.brokers.rabbitmq.connection import ClientError, TimedOutError
from taskbridge.brokers.rabbitmq.deadline import Deadline
from taskbridge.brokers.rabbitmq.frames import Delivery
from taskbridge.brokers.rabbitmq.publication import EncodedPublication, Encoder
from taskbridge.brokers.rabbitmq.topology import existing_queue
from taskbridge.exceptions import DecodeError
from taskbridge.message import DeadLetter, loads_letter

TOGETHER: Final = 100
"""How many letters a transaction takes out at most."""

_ACCESS_REFUSED: Final = 403
_PAUSE_S: Final = 0.05

_log = logging.getLogger("taskbridge.rabbitmq")


def browse(session: Session, queue: str, deadline: Deadline) -> list[bytes]:
    """Return the bodies of all messages of a queue, the first first.

    All messages are delivered, and return to their places when the channel is closed. Meanwhile nobody else may consume
    the queue: of two readers each would see a part.
    """
    with _reading(session, queue, deadline) as (_, deliveries):
        return [delivery.body for delivery in deliveries]


class _Removal(NamedTuple):
    """Deliveries that are taken out together, by their tags, and the message that is published instead of them."""

    tags: Sequence[int]
    publication: EncodedPublication | None


def take_out(
    session: Session, encoder: Encoder, decide: Decide, *, ids: Collection[str] | None, timeout_s: float
) -> list[str]:
    """Take dead letters out, up to 100 in a transaction, which also publishes what is replayed as due now.

    A transaction ends with one `tx.commit`, which the server's channel carries out in one step: a client that dies
    before it has changed nothing. The server publishes before it acknowledges, so if it is killed at that instant it
    may keep both, and never loses both. `timeout_s` is the time for reading, and for each transaction.

    Returns:
        The ids of those that were taken out.
    """
    removals: list[tuple[str, _Removal]] = []
    taken: list[str] = []
    try:
        session.declare(encoder.due, Deadline(timeout_s))
        with _reading(session, encoder.topology.dead, Deadline(timeout_s), spec.Tx.Select()) as (channel, deliveries):
            removals += _removals(deliveries, encoder, decide, ids).items()
            while part := dict(removals[len(taken) : len(taken) + TOGETHER]):
                _commit(session, channel, list(part.values()), Deadline(timeout_s))
                taken += part
    except ClientError as exc:
        if not removals:
            raise
        problem = f"{exc}; of {len(removals)} dead letters {len(taken)} were taken out before"
        session.lose(problem)  # with it, all that its channel holds goes back to the queue
        raise ClientError(problem, maybe_done=True) from exc  # a transaction is never repeated
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
            chosen[letter.id] = None if message is None else encoder.parked(message.dumps().encode(), 0.0, message.id)
    return {letter_id: _Removal(tags[letter_id], publication) for letter_id, publication in chosen.items()}


def _commit(session: Session, channel: Channel, part: Sequence[_Removal], deadline: Deadline) -> None:
    session.wait_unblocked(deadline)
    publications = [removal.publication for removal in part if removal.publication is not None]
    returned = channel.commit(publications, [tag for removal in part for tag in removal.tags], deadline)
    if returned:  # the queue was deleted a moment ago
        outcome = Outcome()
        session.publish(dict(enumerate(returned)), outcome, deadline)
        if outcome.problem is not None:
            raise ClientError(outcome.problem)


def letter_of(body: bytes) -> DeadLetter:
    """Return a dead letter; one that this release can't read has the reason `undecodable`, and its text as `raw`."""
    try:
        return loads_letter(body)
    except DecodeError as exc:
        _log.warning("a dead letter can't be read: %s", exc)
        # Not now, for the id is made of the time too, and must be the same each time.
        return DeadLetter(message=None, reason="undecodable", raw=body, died_at=0.0)


@contextmanager
def _reading(
    session: Session, queue: str, deadline: Deadline, *modes: Any
) -> Generator[tuple[Channel, Iterator[Delivery]]]:
    """Read the queue exclusively during the block; afterwards unacknowledged messages return to it."""
    state = session.look([queue], deadline).get(queue)
    if state is None or state.message_count == state.consumer_count == 0:  # a consumer may hold some
        yield session.channel(deadline), iter(())
        return
    channel = _only_reader(session, queue, deadline, *modes)
    try:
        yield channel, _all(channel, queue, deadline.timeout_s)
    finally:
        if channel.closed is None:
            channel.close(Deadline(deadline.timeout_s))
        else:
            channel.abandon()  # it may still be open on the server


def _only_reader(session: Session, queue: str, deadline: Deadline, *modes: Any) -> Channel:
    refused = False
    while not (refused and deadline.passed):
        try:
            channel = Channel(session)
            channel.open(deadline, *modes, spec.Basic.Consume(queue=queue, exclusive=True))
            return channel
        except TimedOutError:
            if not refused:
                raise
        except ClientError as exc:
            if exc.code != _ACCESS_REFUSED:
                raise
            refused = True
            time.sleep(_PAUSE_S)
    raise TimedOutError(f"others are reading queue {queue!r} all the time")


def _all(channel: Channel, queue: str, timeout_s: float) -> Iterator[Delivery]:
    while True:
        left = wait_for_deliveries(channel, queue, Deadline(timeout_s))  # for each: a long queue takes its time
        while channel.deliveries:
            yield channel.deliveries.popleft()
        if left == 0:
            return
        time.sleep(_PAUSE_S)


def wait_for_deliveries(channel: Channel, queue: str, deadline: Deadline) -> int:
    """Return once what a queue can deliver to this channel is here, and how many messages it held then."""
    left: int = channel.call(existing_queue(queue), deadline).message_count
    # That reply may overtake what the queue has delivered, for its channel waits for the queue's answer before it goes
    # on; the next one can't.
    channel.call(existing_queue(queue), deadline)
    return left
