"""After commit: what an application says of its transactions, so that a send can be a part of one.

The library knows no database of an application. `taskbridge.django` gives the default bridge what knows Django's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from taskbridge.outbox import ApplicationOutbox

T = TypeVar("T")

OUTBOX: Final = ("outbox",)
"""The `commit` of what is put in the application's outbox, as `checked_commit` returns it."""


class Transactions(Protocol):
    """What knows an application's transactions; it is set as `Bridge.transactions`. Threads share it."""

    @property
    def outbox(self) -> ApplicationOutbox:
        """The application's outbox."""
        ...

    def open_on(self, databases: Sequence[str]) -> Sequence[str]:
        """Return those databases on which this thread has an open transaction; raises `SettingsError` for a wrong name.

        Nothing is asked of a database.
        """
        ...

    def hold(self, database: str, held: Sequence[T], publish: Callable[[Sequence[T]], None]) -> None:
        """Call `publish`, when this thread's transaction on a database is committed, and not if it is rolled back.

        It is given what is held, and as much as possible of what is held by further calls with the same `publish`; of
        that, nothing that a savepoint rolls back. What it raises is raised to who commits.
        """
        ...

    async def aside(self, act: Callable[[], T]) -> T:
        """Return what an act returns, done in the thread where the caller's transactions are."""
        ...


def checked_commit(value: Any) -> tuple[str, ...] | None:
    """Return what `commit` says: names of databases, `OUTBOX`, or None for a send at once.

    Raises `ValueError` if it is neither a name nor several, or names the outbox beside databases.
    """
    if value is None:
        return None
    is_one = isinstance(value, str) or not hasattr(value, "__iter__")
    names = (value,) if is_one else tuple(cast("Iterable[Any]", value))
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"commit names a database, several, or 'outbox', not {value!r}")
    if len(names) > 1 and OUTBOX[0] in names:
        raise ValueError(f"commit is 'outbox' alone, or names databases, not {value!r}")
    return tuple(dict.fromkeys(names))
