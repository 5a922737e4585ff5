"""A queue of messages in memory that keeps to priorities; it needs nothing of Dramatiq's."""

from __future__ import annotations

import heapq
import itertools
from queue import Queue
from typing import Any, Final

from taskbridge.message import PRIORITIES

_NORMAL: Final = PRIORITIES.index("normal")


class LeveledQueue(Queue[Any]):
    """A queue of message bodies, which gives the highest priority first, and of one priority the oldest.

    What is put is bytes, as Dramatiq puts them, or a pair of a priority (0 is the lowest) and bytes. What is got is a
    place, the body, and `put_back` takes both.
    """

    def _init(self, maxsize: int) -> None:
        self._heap: list[tuple[int, int, bytes]] = []
        self._numbers = itertools.count()

    def _qsize(self) -> int:
        return len(self._heap)

    def _put(self, item: Any) -> None:
        match item:
            case (int() as rank, int() as number, body):
                heapq.heappush(self._heap, (rank, number, body))
            case (int() as priority, body):
                heapq.heappush(self._heap, (-priority, next(self._numbers), body))
            case body:
                heapq.heappush(self._heap, (-_NORMAL, next(self._numbers), body))

    def _get(self) -> tuple[int, int, bytes]:
        return heapq.heappop(self._heap)

    def put_back(self, place: tuple[int, int, bytes]) -> None:
        """Put a message where it was."""
        self.put(place)
        self.task_done()  # it is counted again by put()

    def wait(self, timeout_s: float) -> None:
        """Return when there is something to get, or after a while."""
        with self.not_empty:
            self.not_empty.wait_for(self._qsize, timeout_s)
