"""What a kind of store does by itself. `Marks`, `Records` and `Ticks` are written once on top of it.

A backend keeps two things for a bridge's namespace: rows, which are the records of messages, and small texts by key:
marks, living workers and schedules. It decides nothing: it reads, and it replaces what is still as it was read, in one
step. So whoever writes reads, decides by a pure function, and tries again if somebody else has been quicker.

Threads share a backend; a forked process makes its own connections. Unless it says otherwise, a call raises
`BrokerUnavailable` if it isn't done within `timeout_s`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from taskbridge.brokers.base import RedisCommand
from taskbridge.stores.states import Row


@dataclass(frozen=True, slots=True)
class Write:
    """A row that is to replace another one.

    Attributes:
        id: The message's.
        seen: The version of the row that was decided about; 0 is also where there is none.
        row: The new one; None is to remove it.
        kept_s: For how many seconds it is kept; None is for ever.
        tells: Whether whoever watches the message is woken.
        cancels: The life that this cancels (`Message.life`); empty if none.
        cancellation_kept_s: For how many seconds `cancelled_since` tells of that; None is for ever.
    """

    id: str
    seen: int
    row: Row | None
    kept_s: float | None = None
    tells: bool = False
    cancels: str = ""
    cancellation_kept_s: float | None = None


class Backend(ABC):
    """The rows and the texts of a bridge's namespace.

    Attributes:
        is_shared: Whether other processes see what is kept, and it outlives this one.
    """

    is_shared: ClassVar[bool] = True

    # Rows

    @abstractmethod
    def create(self, rows: Sequence[tuple[str, Row, float | None]], *, timeout_s: float) -> None:
        """Keep rows by message id, each for so many seconds (None: for ever), unless there is one."""

    def creating(self, message_id: str, row: Row, kept_s: float | None) -> RedisCommand | None:
        """Return one command that does what `create` does, if this is Redis.

        A Redis broker with the same database sends it along with the message, in one transaction.
        """
        return None

    @abstractmethod
    def read(self, message_id: str, *, timeout_s: float) -> Row | None:
        """Return a row; None if there is none, or its time is over."""

    @abstractmethod
    def write(self, writes: Sequence[Write], *, timeout_s: float) -> list[bool]:
        """Replace rows, each if it still has the version that was seen, and return of each whether it had.

        A write that cancels is done in one step with telling of it. A write counts even if this process, or the store's
        server if it keeps anything then, ends right after this returns.
        """

    @abstractmethod
    def cancelled_since(self, cursor: str, *, most: int, timeout_s: float) -> tuple[str, Collection[str]]:
        """Return the first lives that were cancelled after a cursor, and the next cursor; see `Records`."""

    @abstractmethod
    def watch(self, message_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` after each write that tells of a message; see `Records.watch`."""

    # Texts, without line breaks

    @abstractmethod
    def get(self, keys: Sequence[str], *, timeout_s: float) -> list[str | None]:
        """Return the text of each key; None where there is none, or its time is over by the store's clock."""

    @abstractmethod
    def put(self, key: str, text: str, *, kept_s: float, timeout_s: float) -> None:
        """Keep a text for so many seconds."""

    @abstractmethod
    def put_soon(self, key: str, text: str, *, kept_s: float) -> None:
        """Keep a text, waiting for little or nothing, and raising nothing; it outlives this process's end."""

    @abstractmethod
    def add(self, key: str, text: str, *, kept_s: float, timeout_s: float) -> str | None:
        """Keep a text unless there is one; return that one, or None."""

    @abstractmethod
    def swap(self, key: str, seen: str | None, text: str, *, kept_s: float | None, timeout_s: float) -> bool:
        """Replace a text if it still is what was seen (None: there was none); return whether it was."""

    @abstractmethod
    def remove(self, keys: Collection[str], *, timeout_s: float) -> None:
        """Remove texts; returns when they are gone."""

    # All

    def purge(self, what: Literal["rows", "texts"], *, timeout_s: float) -> bool:
        """Remove some of those whose time is over, if the store doesn't by itself; return whether there may be more."""
        return False

    @abstractmethod
    def ping(self, *, timeout_s: float) -> None:
        """Return if the store answers and can be used; `StoreNotReady` if it was not made ready."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections; the next call makes new ones."""


class BackendWithTables(Backend):
    """A backend that has to be made ready; see `StoreWithTables`."""

    @abstractmethod
    def init(self, *, timeout_s: float) -> tuple[int, int]:
        """Make it ready, and return the versions of its tables before and after."""

    @abstractmethod
    def clear(self, *, timeout_s: float) -> None:
        """Remove all that the namespace has stored."""
