"""The queues in memory as Celery's channels use them; each bridge has its own."""

from __future__ import annotations

import secrets
from collections import defaultdict, deque
from collections.abc import Sequence
from queue import Empty
from typing import Any, Final

from taskbridge.engines.celery import items, wire
from taskbridge.engines.celery.transport import Binding, Taken

_NORMAL: Final = wire.RANKS["normal"]


class MemoryQueues:
    """The queues of one bridge.

    Args:
        waiting: What waits in them.
    """

    def __init__(self, waiting: wire.MemoryWire) -> None:
        self._waiting = waiting
        self._taken: dict[str, tuple[str, bytes]] = {}
        self._bindings: defaultdict[str, list[Binding]] = defaultdict(list)

    def check(self) -> None:
        """Do nothing."""

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Give back what is still held: by tasks that were abandoned."""
        for tag in list(self._taken):
            self.give_back(tag)

    @property
    def changes(self) -> int:
        """A number that changes when there may be something new to take."""
        return self._waiting.changes

    def take(self, queues: Sequence[str], most: int) -> list[Taken]:
        """Take at most so many messages, of the queues in turn."""
        taken: list[Taken] = []
        left = deque(queues)
        while left and len(taken) < most:
            queue = left.popleft()
            try:
                item = self._waiting.take(queue)
            except Empty:
                continue
            taken.append(Taken(secrets.token_hex(8), queue, item))
            self._taken[taken[-1].tag] = queue, item
            left.append(queue)
        return taken

    def is_empty(self, queues: Sequence[str]) -> bool:
        """Return whether these are empty, which was just seen."""
        return True

    def wait(self, changes: int, timeout_s: float) -> bool:
        """Wait until `changes` is another number; return whether it is."""
        return self._waiting.wait(changes, timeout_s)

    def end(self, tag: str) -> None:
        """Acknowledge a message; the slot that gets free lets the next one be taken at once."""
        self._taken.pop(tag, None)
        self._waiting.wake()

    def give_back(self, tag: str) -> None:
        """Return a message to its queue, as the first of its priority."""
        queue, item = self._taken.pop(tag, (None, b""))
        if queue is not None:
            payload = items.parse(item, tag=tag, queue=queue)
            priority = payload["properties"].get("priority")
            self._waiting.put(queue, _rank(priority), items.redelivered(payload), first=True)

    def end_turn(self) -> None:
        """Do nothing: there is no event loop."""

    def put(self, queue: str, priority: object, item: bytes) -> None:
        """Put a message in a queue."""
        self._waiting.put(queue, _rank(priority), item)

    def size(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        return self._waiting.size(queue)

    def purge(self, queue: str) -> int:
        """Drop what waits in a queue, and return how much it was."""
        return self._waiting.purge(queue)

    def bind(self, exchange: str, binding: Binding) -> None:
        """Bind a queue to an exchange."""
        self._bindings[exchange].append(binding)

    def unbind(self, exchange: str, binding: Binding) -> None:
        """Unbind a queue."""
        self._bindings[exchange] = [each for each in self._bindings[exchange] if each != binding]

    def bindings(self, exchange: str) -> list[Binding]:
        """Return what is bound to an exchange."""
        return self._bindings[exchange]

    def publish(self, exchange: str, routing_key: str, item: bytes) -> None:
        """Do nothing: remote control is off, and nobody listens."""

    def listen(self, exchange: str, routing_key: str, heard: deque[Any], queue: str) -> None:
        """Do nothing."""

    def stop_listening(self, heard: deque[Any], queue: str) -> None:
        """Do nothing."""


def _rank(priority: object) -> int:
    return max(0, min(wire.MAX_PRIORITY, priority)) if isinstance(priority, int) else _NORMAL
