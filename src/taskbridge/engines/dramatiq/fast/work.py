"""What a worker's threads take their messages from, in the place of Dramatiq's own queue.

Dramatiq's is a `PriorityQueue`: a lock and a condition in Python, and each message wakes a thread of its own, which
then finds the interpreter's lock taken. Here one thread is woken at a time: it takes what is there, and wakes the next
if more is left. So quick tasks are run by few threads one after the other, and long ones by as many as there are. What
a thread has to ask the broker for is asked once for several messages (`later`).

No order of priorities is kept, for nothing waits in here but for a thread that is free, and has yet to wake up.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from queue import Empty
from time import monotonic, sleep
from typing import Any, Final

from dramatiq import MessageProxy

from taskbridge import locks

_LOOK_S: Final = 0.01


class Item:
    """A message that is to be run, as Dramatiq's threads expect it."""

    __slots__ = ("message",)

    def __init__(self, message: MessageProxy) -> None:
        self.message: MessageProxy = message

    def __iter__(self) -> Iterator[Any]:
        """Yield a priority and the message: in Dramatiq 2.0, items are pairs of these (dramatiq/worker.py)."""
        yield 0
        yield self.message

    def opened(self) -> MessageProxy:
        """Return the message."""
        return self.message


class WorkQueue:
    """As much of `queue.Queue` as Dramatiq's worker uses (dramatiq/worker.py)."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._idle: list[Any] = []  # a lock for each thread that waits; who waits longest is woken last
        self._is_waking = False
        self._behind = Counter[Callable[[int], Collection[Any]]]()
        self._local = locks.Local()
        self._counting = locks.Lock()
        self._asking = locks.Lock()
        self.unfinished_tasks: int = 0  # how many messages were put in that are not done with yet

    def put(self, item: Any) -> None:
        """Put something in: what has a method `opened`, or what Dramatiq puts into its own queue."""
        with self._counting:
            self.unfinished_tasks += 1
        if not hasattr(item, "opened"):
            item = Item(item[-1] if isinstance(item, tuple) else item.message)
        self._items.append(item)
        if not self._is_waking:
            self._wake()

    def later(self, act: Callable[[int], Collection[Any]]) -> None:
        """Put in what `act` returns, before the last of what is here is begun with; at once if nothing is here.

        It is told how many calls of this it stands for. The thread that calls this is about to take the next message:
        no other one is woken for that.
        """
        with self._counting:
            self._behind[act] += 1
        if not self._items:
            self._catch_up(own=1)

    def _catch_up(self, *, own: int) -> None:
        """Do what was left for later, or leave it to the thread that is at it; `own` items are for this thread."""
        while self._behind and self._asking.acquire(blocking=False):
            try:
                with self._counting:
                    act, calls = self._behind.popitem() if self._behind else (None, 0)
                found = () if act is None else act(calls)
                with self._counting:
                    self.unfinished_tasks += len(found)
                self._items.extend(found)
            finally:
                self._asking.release()
        if len(self._items) > own and not self._is_waking:
            self._wake()

    def get(self, block: bool = True, timeout: float | None = None) -> Item:
        """Return the next message, which this thread opens; raises `Empty` if there is none in so many seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            try:
                item = self._items.popleft()
            except IndexError:
                if not block or not self._wait(deadline):
                    raise Empty from None
                continue
            if self._behind and not self._items:
                self._catch_up(own=0)
            message = item.opened()
            if message is not None:
                return Item(message)
            self.task_done()

    def get_nowait(self) -> Item:
        """Return the next message; as `get`."""
        return self.get(block=False)

    def _wait(self, deadline: float | None) -> bool:
        """Return when there may be something; whether that was in time."""
        waker = getattr(self._local, "waker", None)
        if waker is None:
            waker = self._local.waker = locks.Lock()
            waker.acquire()
        self._idle.append(waker)
        if not self._items:  # else put in just before
            left_s = -1.0 if deadline is None else max(0.0, deadline - monotonic())
            is_woken = waker.acquire(timeout=left_s)
            if not is_woken and self._withdraw(waker):
                return False
        elif self._withdraw(waker):
            return True
        self._is_waking = False  # first: what is put in from here on wakes another thread
        if len(self._items) > 1:
            self._wake()
        return True

    def _withdraw(self, waker: Any) -> bool:
        """Wait no longer; return False if this thread is just being woken."""
        try:
            self._idle.remove(waker)
        except ValueError:
            waker.acquire()
            return False
        return True

    def _wake(self) -> None:
        try:
            waker = self._idle.pop()
        except IndexError:
            return
        self._is_waking = True
        waker.release()

    def task_done(self) -> None:
        """Count a message as done with."""
        with self._counting:
            self.unfinished_tasks -= 1

    def join(self) -> None:
        """Wait until all that was put in is done with."""
        while self.unfinished_tasks > 0:
            sleep(_LOOK_S)
