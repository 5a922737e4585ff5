"""The attempts that a process has in hand, or has ended lately: all that tells of a second delivery without a store.

RabbitMQ delivers what was held on a lost connection again, though its task goes on here, or its verdict waits until
RabbitMQ takes what it needs, or it has ended since (rule A7).
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Final, Generic, TypeVar

from taskbridge.message import Message

HolderT = TypeVar("HolderT")

RUNNING: Final = "running"
ENDED: Final = "ended"

_MOST_REMEMBERED: Final = 10_000
"""How many attempts are remembered as ended."""


class Attempts(Generic[HolderT]):
    """What this process knows of attempts. Threads share it."""

    def __init__(self) -> None:
        self._holders: dict[str, HolderT] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()  # the oldest first

    def begins(self, message: Message, holder: HolderT) -> None:
        """Note that an attempt is in hand here, and what has it."""
        self._holders[message.attempt_key] = holder

    def ends(self, message: Message, *, has_ended: bool) -> None:
        """Note that an attempt is in hand no more.

        Args:
            message: Its message.
            has_ended: Whether its verdict was carried out; else it has not happened.
        """
        key = message.attempt_key
        if has_ended:
            self._ended[key] = None
            if len(self._ended) > _MOST_REMEMBERED:
                with suppress(KeyError):  # another thread has dropped it
                    self._ended.popitem(last=False)
        self._holders.pop(key, None)  # last, so that it is known all the time

    def holders(self) -> list[HolderT]:
        """Return what has attempts in hand."""
        return list(self._holders.values())

    def holder_of(self, message: Message) -> HolderT | None:
        """Return what has an attempt in hand."""
        return self._holders.get(message.attempt_key)

    def state_of(self, message: Message) -> str | None:
        """Return what is known of an attempt: `running`, `ended`, or None for nothing."""
        if message.attempt_key in self._holders:
            return RUNNING
        return ENDED if message.attempt_key in self._ended else None
