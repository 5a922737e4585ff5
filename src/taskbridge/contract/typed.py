"""Classes that the type hints of the contract's tasks name, and values of them."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from datetime import date
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath
from typing import Any, Final, Generic, NamedTuple, TypedDict, TypeVar, cast

T = TypeVar("T")


class Colour(Enum):
    """An enum whose values are of several types."""

    RED = 1
    BLUE = ("b", date(2024, 2, 29))


class Size(str, Enum):
    """An enum of text: by its hint a member, without one its text."""

    SMALL = "small"


class Level(IntEnum):
    """The same of numbers."""

    HIGH = 3


class Key(str):
    """Text of a class of its own."""

    __slots__ = ()


class Place(NamedTuple):
    """A named tuple."""

    x: int
    y: float


class Options(TypedDict, total=False):
    """A dict whose values have hints."""

    colours: list[Colour]


@dataclass(frozen=True, order=True)
class Line:
    """What an order holds."""

    name: str
    price: Decimal


@dataclass
class Order(Generic[T]):
    """What holds others, with a field that is not given, and one that may name its own class."""

    id: T
    lines: tuple[Line, ...] = ()
    place: Place | None = None
    before: Order[int] | None = None
    options: Options = field(default_factory=Options)
    total: Decimal = field(init=False, default=Decimal(0))


@dataclass
class LargeOrder(Order[int]):
    """A subclass that no hint names."""

    discount: int = 0


@dataclass
class Doubled:
    """What doubles each time that it is made."""

    amount: int

    def __post_init__(self) -> None:
        self.amount *= 2


def parcel(*fields: str) -> Any:
    """Return a class `Parcel` with these fields, as a release of an application has it."""
    return make_dataclass("Parcel", fields)


Anything = Order[Any] | Line | Colour | Size | Key | Place | Path | PurePosixPath | Options | None
Nested = Anything | dict[Any, Anything] | list[Anything] | tuple[Anything, ...] | set[Line | Colour] | int | str


def _order() -> Order[int]:
    made = Order(5, (Line("\u00fc", Decimal("1.10")), Line("b", Decimal(2))), Place(1, 2.5), Order(4))
    made.total = Decimal("3.10")
    made.options = {"colours": [Colour.RED, Colour.BLUE]}
    return made


VALUES: Final[tuple[Any, ...]] = (
    _order(),
    Order("text"),
    Colour.RED,
    Colour.BLUE,
    Size.SMALL,
    Key("k"),
    Place(0, -0.0),
    Path("a/../b"),
    PurePosixPath("/c"),
    None,
    [_order(), None, Line("x", Decimal("NaN"))],
    {"a": Colour.RED, 1: [_order()], Size.SMALL: (Path("x"), {"deep": Place(1, 1.0)})},
    {Line("x", Decimal(1)), Colour.RED},
    {"colours": [Colour.BLUE]},
    {"$": "typed", "type": "Order", "v": {"id": 1}},
    1,
    "small",
)
"""What arrives as it was sent where the hint is `Nested`."""

PLAIN: Final[tuple[tuple[Any, Any], ...]] = (
    (Size.SMALL, "small"),
    (Level.HIGH, 3),
    (Key("k"), "k"),
    (cast("Any", type("Rows", (list,), {}))([1, Key("x")]), [1, "x"]),
    ({"a": cast("Any", type("Map", (dict,), {}))({Size.SMALL: Level.HIGH})}, {"a": {"small": 3}}),
    (cast("Any", type("Ratio", (float,), {}))(1.5), 1.5),
)
"""Values of subclasses, and what they arrive as where no hint names their classes."""
