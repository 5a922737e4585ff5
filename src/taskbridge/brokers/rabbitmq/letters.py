"""Looks at all messages of a queue, and leaves them where they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import Empty
from typing import Final

from taskbridge.brokers.rabbitmq.channel import Channel, ChannelClosedError, Deliveries
from taskbridge.brokers.rabbitmq.session import Session
from taskbridge.brokers.rabbitmq.topology import existing_queue
from taskbridge.brokers.rabbitmq.waiting import Deadline, TimedOutError

_ACCESS_REFUSED: Final = 403
_PAUSE_S: Final = 0.05


def browse(session: Session, queue: str, deadline: Deadline) -> list[bytes]:
    """Return the bodies of all messages of a queue, the first first.

    The queue delivers them all, and takes them back, each to its place, when the channel is closed. Meanwhile nobody
    else may consume the queue: two readers at once would each see a part.
    """
    while True:
        state = session.look([queue], deadline).get(queue)
        if state is None or (state.messages == 0 and state.consumers == 0):
            return []
        try:
            with session.channel(deadline) as channel:
                return _all(channel, queue, deadline)
        except ChannelClosedError as exc:
            if exc.code != _ACCESS_REFUSED:
                raise
        if deadline.passed:
            raise TimedOutError(f"others are reading queue {queue!r} all the time")
        time.sleep(_PAUSE_S)


def _all(channel: Channel, queue: str, deadline: Deadline) -> list[bytes]:
    deliveries = channel.consume(queue, prefetch=0, exclusive=True, deadline=deadline)
    bodies: list[bytes] = []
    while True:
        left: int = channel.call(existing_queue(queue), deadline).message_count
        # That reply may overtake what the queue has delivered, for its channel waits for the queue's answer before it
        # goes on; the next one can't.
        channel.call(existing_queue(queue), deadline)
        bodies += _arrived(channel, deliveries)
        if left == 0:
            return bodies
        time.sleep(_PAUSE_S)


def _arrived(channel: Channel, deliveries: Deliveries) -> Iterator[bytes]:
    while True:
        try:
            delivery = deliveries.get_nowait()
        except Empty:
            return
        if delivery is None:
            channel.check()
            return
        yield delivery.body
