"""A queue of messages in memory that keeps to priorities, and notes what was taken; it needs nothing of Dramatiq's."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from queue import PriorityQueue
from typing import Any, Final, NamedTuple

from taskbridge.message import PRIORITIES

_NORMAL: Final = PRIORITIES.index("normal")


class Place(NamedTuple):
    """A message: the lower its first number the earlier it is taken; the second one counts the messages."""

    order: int
    number: int
    text: bytes


class LeveledQueue(PriorityQueue[Any]):
    """A queue of message bodies. `put` takes a place, or bytes of normal priority, as `StubBroker` puts them.

    What ends or goes back that has gone back before is let be: its thread was given up meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dead: list[Any] = []  # the messages that failed
        self._numbers = itertools.count()
        self._taken: set[Place] = set()

    def _put(self, item: Any) -> None:
        super()._put(Place(-_NORMAL, next(self._numbers), item) if isinstance(item, bytes) else item)

    def get(self, block: bool = True, timeout: float | None = None) -> bytes:
        """Return the next message's bytes, as the queues of a `StubBroker` do in tests."""
        place: Place = super().get(block, timeout)
        return place.text

    def add(self, rank: int, body: bytes) -> None:
        """Put a message in; of rank 0 are those of the lowest priority."""
        self.put(Place(-rank, next(self._numbers), body))

    def take(self, most: int) -> list[Place]:
        """Take up to so many messages."""
        with self.mutex:
            taken: list[Place] = [self._get() for _ in range(min(most, self._qsize()))]
            self._taken.update(taken)
        return taken

    def wait(self, timeout_s: float) -> None:
        """Return when there is something to take, or after a while."""
        with self.not_empty:
            self.not_empty.wait_for(self._qsize, timeout_s)

    def end(self, place: Place) -> None:
        """Be done with a message that was taken."""
        if self._let_go(place):
            self.task_done()

    def fail(self, message: Any) -> None:
        """Keep a message that was taken among the dead ones."""
        if self._let_go(message.place):
            self.dead.append(message)
            self.task_done()

    def give_back(self, places: Iterable[Place]) -> None:
        """Put messages that were taken where they were."""
        for place in places:
            if self._let_go(place):
                self.put(place)
                self.task_done()  # it is counted again by put()

    def taken(self) -> list[Place]:
        """Return what was taken and is not done with."""
        with self.mutex:
            return list(self._taken)

    def _let_go(self, place: Place) -> bool:
        with self.mutex:
            was_taken = place in self._taken
            self._taken.discard(place)
        return was_taken
