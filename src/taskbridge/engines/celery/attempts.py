"""What this worker has done lately, so that it does not do it again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from taskbridge import locks
from taskbridge.message import Message

_REMEMBERED: Final = 10_000

RUNNING: Final = "running"
ENDED: Final = "ended"


class Attempts:
    """The attempts that this worker runs, and those that it ended lately.

    Each is known with how often it had been put off when it was last seen. Without a store, a message that may have
    been started elsewhere is sent once more before it is run, counted in `Message.redelivered`: that is another one.
    """

    def __init__(self) -> None:
        self._lock = locks.Lock()
        self._running: dict[tuple[str, int], int] = {}
        self._ended: OrderedDict[tuple[str, int], int] = OrderedDict()

    def begin(self, message: Message) -> None:
        """Note that an attempt is handed to the pool."""
        key = message.life, message.attempt
        with self._lock:
            self._running[key] = message.redelivered
            self._ended.pop(key, None)  # a dead letter that was replayed

    def comes_again(self, message: Message) -> None:
        """Note that another message of a running attempt is on its way, put off as often as this one."""
        key = message.life, message.attempt
        with self._lock:
            if key in self._running:
                self._running[key] = max(self._running[key], message.redelivered)

    def end(self, message: Message) -> None:
        """Note that an attempt's verdict has been carried out."""
        key = message.life, message.attempt
        with self._lock:
            self._ended[key] = self._running.pop(key, message.redelivered)
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)

    def forget(self, message: Message) -> None:
        """Note that an attempt was given back."""
        with self._lock:
            self._running.pop((message.life, message.attempt), None)

    def state_of(self, message: Message) -> str | None:
        """Return what is known of an attempt: `running`, `ended`, or None for nothing."""
        key = message.life, message.attempt
        with self._lock:
            if key in self._running:
                return RUNNING
            return ENDED if message.redelivered <= self._ended.get(key, -1) else None
