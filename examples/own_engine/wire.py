"""The engine's words for a message, and its queues."""

import heapq
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from taskbridge import Message, UnsupportedError
from taskbridge.message import PRIORITIES
from taskbridge.settings import Settings

_numbers = count()


@dataclass(frozen=True, order=True)
class Native:
    """What waits in a queue: the higher the priority and the lower the number, the earlier it is served."""

    rank: int
    number: int
    queue: str = field(compare=False)
    data: bytes = field(compare=False)  # never the objects themselves: nothing is to be shared by accident
    since: float | None = field(compare=False, default=None)  # when it was first put off, if it was


class ThreadsWire:
    """A `MemoryWire`: the memory broker leaves to it what waits."""

    engine = "threads"

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._queues: dict[str, list[Native]] = {}
        self._put_off: Counter[str] = Counter()
        self._served: Counter[str] = Counter()  # when each queue was served, by `_numbers`

    def encode(self, message: Message) -> Native:
        return Native(-PRIORITIES.index(message.priority), next(_numbers), message.queue, message.dumps().encode())

    def deliver(self, native: Native) -> None:
        with self.changed:
            heapq.heappush(self._queues.setdefault(native.queue, []), native)
            self.changed.notify_all()

    def take(self, queues: Sequence[str], stop: threading.Event, is_paused: Callable[[str], bool]) -> Native | None:
        """Wait for a message in one of these queues, which are served in turn (P2); None once `stop` is set.

        From a paused queue nothing is taken (Z2).
        """
        with self.changed:
            while not stop.is_set():
                waiting = [name for name in queues if self._queues.get(name) and not is_paused(name)]
                if waiting:
                    name = min(waiting, key=self._served.__getitem__)
                    self._served[name] = next(_numbers)
                    return heapq.heappop(self._queues[name])
                self.changed.wait()
        return None

    def deliver_later(self, native: Native, wait_s: float) -> None:
        """Put a message in its queue after a while; it counts as waiting all the time."""

        def deliver() -> None:
            with self.changed:
                self._put_off[native.queue] -= 1
                self.deliver(native)

        with self.changed:
            self._put_off[native.queue] += 1
        timer = threading.Timer(wait_s, deliver)
        timer.daemon = True
        timer.start()

    def look_again(self) -> None:
        """Have those who wait for a message look again: what is paused has changed."""
        with self.changed:
            self.changed.notify_all()

    def places(self, queue: str) -> Sequence[str]:
        return (queue,)

    def waiting(self, queue: str) -> int:
        with self.changed:
            return len(self._queues.get(queue, ())) + self._put_off[queue]


def make_wire(kind: str, settings: Settings) -> ThreadsWire:
    """Return a wire for a kind of broker; called where messages are sent, so it imports no engine."""
    if kind != "memory":
        raise UnsupportedError("Q3", f"threads+{kind}", "use threads+memory://")
    return ThreadsWire()
