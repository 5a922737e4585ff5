"""The table of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.guarantees.outcome import Outcome
from benchmarks.guarantees.trial import Trial
from taskbridge import TaskBridgeError
from taskbridge.exceptions import nearest

ServerKind = Literal["plain", "own", "impatient"]
"""`own` is one that no other cell uses at the time; `impatient` is a RabbitMQ with a consumer timeout of 5 s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Issue:
    """Where upstream's own users or maintainers describe what was measured.

    Attributes:
        engine: Which engine it is about.
        place: Repository and number, such as `celery/kombu#337`.
        says: What it says, in a few words.
    """

    engine: str
    place: str
    says: str

    @property
    def url(self) -> str:
        """Where it is."""
        repository, _, number = self.place.partition("#")
        return f"https://github.com/{repository}/issues/{number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Something that may go wrong.

    Attributes:
        name: The function's, with hyphens.
        words: It, in a user's words.
        how: How it is measured.
        kept: When the guarantee counts as kept.
        run: Measures a cell.
        lease_s: The setup's; see there.
        attempts: The setup's.
        defaults: The setup's.
        server: Which server it needs.
        groups: The setup's.
        issues: What upstream says.
    """

    name: str
    words: str
    how: str
    kept: str
    run: Callable[[Trial], Outcome]
    lease_s: float | None
    attempts: int
    defaults: bool
    server: ServerKind
    groups: bool
    issues: tuple[Issue, ...]


_rows: Final[dict[str, Row]] = {}

ROWS: Final[Mapping[str, Row]] = _rows
"""Every row by name; `benchmarks.guarantees.rows` fills it."""


class UnknownRow(TaskBridgeError, LookupError):
    """A row was asked for that there isn't."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no row {name!r}{nearest(name, ROWS)} (docs/guarantees.md names them all)")
        self.name = name


def row_of(name: str) -> Row:
    """Return the row of a name.

    Raises:
        UnknownRow: There is none.
    """
    if name not in ROWS:
        raise UnknownRow(name)
    return ROWS[name]


def row(
    words: str,
    *,
    kept: str,
    lease_s: float | None = None,
    attempts: int = 5,
    defaults: bool = False,
    server: ServerKind = "plain",
    groups: bool = False,
    issues: tuple[Issue, ...] = (),
) -> Callable[[Callable[[Trial], Outcome]], Callable[[Trial], Outcome]]:
    """Return a decorator that adds a function to the table; its docstring says how it measures."""

    def add(run: Callable[[Trial], Outcome]) -> Callable[[Trial], Outcome]:
        add_row(
            run.__name__.replace("_", "-"),
            words,
            run,
            kept=kept,
            lease_s=lease_s,
            attempts=attempts,
            defaults=defaults,
            server=server,
            groups=groups,
            issues=issues,
        )
        return run

    return add


def add_row(
    name: str,
    words: str,
    run: Callable[[Trial], Outcome],
    *,
    kept: str,
    lease_s: float | None = None,
    attempts: int = 5,
    defaults: bool = False,
    server: ServerKind = "plain",
    groups: bool = False,
    issues: tuple[Issue, ...] = (),
) -> None:
    """Add a row that measures as another does, but with other settings."""
    how = " ".join((run.__doc__ or "").split())
    if name in _rows:
        raise ValueError(f"there is a row {name!r} already")
    _rows[name] = Row(
        name=name,
        words=words,
        how=how,
        kept=kept,
        run=run,
        lease_s=lease_s,
        attempts=attempts,
        defaults=defaults,
        server=server,
        groups=groups,
        issues=issues,
    )
