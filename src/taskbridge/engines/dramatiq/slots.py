"""The free threads of a worker process, shared by the consumers of its queues (rule A6).

Dramatiq lets each queue's consumer prefetch for itself, so that a process holds messages of one queue while all its
threads run those of another. Here a consumer takes a message only for a thread that is free; who waits longest is next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic

from taskbridge import locks


class Ticket:
    """A consumer's place in the line for a slot; `granted` once it has one."""

    __slots__ = ("granted", "wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake: Callable[[], None] = wake
        self.granted: bool = False


class Slots:
    """As many slots as threads. Each is free, or held for a message from before it is taken until it is done with."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._changed_at = monotonic()
        self._line: deque[Ticket] = deque()
        self._lock = locks.Lock()

    def ticket(self, wake: Callable[[], None]) -> Ticket:
        """Return a place in the line for one slot, which is granted at once if one is free.

        Args:
            wake: Called, in another thread, when the slot is granted later.
        """
        ticket = Ticket(wake)
        with self._lock:
            if self._free > 0:
                self._free -= 1
                self._changed_at = monotonic()
                ticket.granted = True
            else:
                self._line.append(ticket)
        return ticket

    def take(self, most: int) -> int:
        """Take up to so many free slots at once, and return how many."""
        with self._lock:
            taken = max(0, min(most, self._free))
            self._free -= taken
            self._changed_at = monotonic()
            return taken

    def keep(self, own: Ticket | None) -> bool:
        """Return whether a slot may go on to the next message of its queue: no other queue's consumer waits for one.

        Args:
            own: The ticket of the queue's own consumer.
        """
        with self._lock:
            self._changed_at = monotonic()
            return all(ticket is own for ticket in self._line)

    def full_for_s(self) -> float:
        """Return for how long all slots have been held, and always for the same messages; 0 if one is free."""
        with self._lock:
            return 0.0 if self._free > 0 else monotonic() - self._changed_at

    def give_up(self, ticket: Ticket) -> None:
        """Take a ticket out of the line; if it has its slot, free that."""
        with self._lock:
            granted, ticket.granted = ticket.granted, False
            if not granted:
                self._line.remove(ticket)
        if granted:
            self.release()

    def release(self, count: int = 1) -> None:
        """Free slots; who waits longest gets them."""
        granted: list[Ticket] = []
        with self._lock:
            self._changed_at = monotonic()
            while self._line and len(granted) < count:
                ticket = self._line.popleft()
                ticket.granted = True
                granted.append(ticket)
            self._free += count - len(granted)
        for ticket in granted:
            ticket.wake()
