"""After commit: what an application says of its transactions, so that a send can be a part of one.

The library knows no database of an application. `taskbridge.django` gives the default bridge what knows Django's, and
`taskbridge.integrations.sqlalchemy` makes what knows a session's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, cast

if TYPE_CHECKING:
    from types import EllipsisType

    from taskbridge.outbox import ApplicationOutbox

T = TypeVar("T")

OUTBOX: Final = ("outbox",)
"""The `commit` of what is put in the application's outbox, as `checked_commit` returns it."""


class Sends(Protocol):
    """What makes sends a part of transactions."""

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

    def put(self, texts: Sequence[str], then: Callable[[], object] | None) -> None:
        """Put entries into the outbox, in the transaction that is open; call `then` when they are committed."""
        ...

    async def aside(self, act: Callable[[], T]) -> T:
        """Return what an act returns, done where it can use the caller's transactions, and blocks no event loop."""
        ...


class Transactions(Sends, Protocol):
    """What knows an application's transactions; it is set as `Bridge.transactions`. Threads share it."""

    @property
    def outbox(self) -> ApplicationOutbox:
        """The application's outbox, for workers."""
        ...


@dataclass(frozen=True, slots=True)
class Commit:
    """A `commit` that itself says whose transaction it means, such as that of a session.

    Attributes:
        names: `OUTBOX`, or the transactions to wait for.
        sends: What makes sends a part of them; equal ones are of the same transactions.
    """

    names: tuple[str, ...]
    sends: Sends


Committing: TypeAlias = "tuple[str, ...] | Commit | EllipsisType | None"
"""What `commit` is once it is checked; `...` leaves it to the settings, and None sends at once."""


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
