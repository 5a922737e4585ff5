"""Who in this process waits for which record."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from taskbridge import locks

_log = logging.getLogger("taskbridge.store")

Wake = Callable[[], None]


class Watches:
    """A table of wakes by message id. Threads share it."""

    def __init__(self) -> None:
        self._lock = locks.Lock()
        self._wakes: dict[str, dict[object, Wake]] = {}

    def add(self, message_id: str, wake: Wake, *, gone: Callable[[str], None] | None = None) -> tuple[Wake, bool]:
        """Add a wake, and return what removes it, and whether it is the message's first.

        Args:
            message_id: What is waited for.
            wake: What to call.
            gone: Is called when the message's last wake was removed.
        """
        key = object()
        with self._lock:
            wakes = self._wakes.setdefault(message_id, {})
            is_first = not wakes
            wakes[key] = wake

        def stop() -> None:
            with self._lock:
                wakes = self._wakes.get(message_id, {})
                if wakes.pop(key, None) is None or wakes:
                    return
                del self._wakes[message_id]
            if gone is not None:
                gone(message_id)

        return stop, is_first

    def ids(self) -> Collection[str]:
        """Return the ids that are waited for."""
        with self._lock:
            return tuple(self._wakes)

    def has(self, message_id: str) -> bool:
        """Return whether anybody waits for a message."""
        with self._lock:
            return message_id in self._wakes

    def wake(self, message_id: str) -> None:
        """Wake who waits for a message."""
        with self._lock:
            wakes = tuple(self._wakes.get(message_id, {}).values())
        for wake in wakes:
            try:
                wake()
            except Exception:
                _log.exception("a wake for message %s failed", message_id)

    def wake_all(self) -> None:
        """Wake everybody."""
        for message_id in self.ids():
            self.wake(message_id)
