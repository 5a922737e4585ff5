"""The columns: an engine on a broker, alone or under taskbridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.guarantees.applications.setup import Kind
from taskbridge import TaskBridgeError


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """An engine on a broker.

    Attributes:
        engine: `celery` or `dramatiq`.
        broker: `redis` or `amqp`.
        raw: Whether the engine runs alone.
    """

    engine: str
    broker: str
    raw: bool

    @property
    def name(self) -> str:
        """The name, such as `celery+redis:raw`."""
        return f"{self.engine}+{self.broker}:{'raw' if self.raw else 'taskbridge'}"

    @property
    def title(self) -> str:
        """The name in words."""
        return f"{self.engine.capitalize()} on {'Redis' if self.broker == 'redis' else 'RabbitMQ'}"

    @property
    def kind(self) -> Kind:
        """The application that runs in it."""
        if not self.raw:
            return "bridged"
        return "raw_celery" if self.engine == "celery" else "raw_dramatiq"

    @property
    def other_engine(self) -> Column:
        """The column of the other engine, otherwise the same."""
        other = "dramatiq" if self.engine == "celery" else "celery"
        return Column(engine=other, broker=self.broker, raw=self.raw)


COLUMNS: Final = tuple(
    Column(engine=engine, broker=broker, raw=raw)
    for raw in (True, False)
    for engine in ("celery", "dramatiq")
    for broker in ("redis", "amqp")
)


class UnknownColumn(TaskBridgeError, LookupError):
    """A column was asked for that there isn't."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no column {name!r} (there are {', '.join(column.name for column in COLUMNS)})")
        self.name = name


def column_of(name: str) -> Column:
    """Return the column of a name.

    Raises:
        UnknownColumn: There is none.
    """
    for column in COLUMNS:
        if column.name == name:
            return column
    raise UnknownColumn(name)
