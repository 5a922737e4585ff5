"""Rule S4: a parameter whose hint names a class gets a value of that class; a name in a message is never imported."""

from __future__ import annotations

import inspect
import json
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import InitVar, dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, auto
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, NewType, Protocol, TypedDict, TypeVar

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr

from taskbridge import Bridge, DecodeError, EncodeError, Message, codec
from taskbridge.codec import Typed
from taskbridge.declaration import Declaration, declare
from taskbridge.exceptions import NewerFormError
from taskbridge.hints import form_of, unresolved
from taskbridge.message import loads
from taskbridge.results import outcome_of
from taskbridge.stores.states import Status
from taskbridge.tasks import Call, SendOptions

if TYPE_CHECKING:
    from fractions import Fraction

T = TypeVar("T")

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""What is proven is what comes back, however long a machine takes for an example."""


class Colour(Enum):
    RED = 1
    BLUE = (2, "b")


class Right(Flag):
    READ = auto()
    WRITE = auto()


class Level(IntEnum):
    LOW = 1


@dataclass(frozen=True)
class Line:
    name: str
    price: Decimal = Decimal(1)


@dataclass(kw_only=True, slots=True)
class Order(Generic[T]):
    id: T
    lines: list[Line] = field(default_factory=list)
    colour: Colour | None = None
    parent: Order[T] | None = None


class Point(NamedTuple):
    x: int
    where: Path | None = None


class Settings(TypedDict, total=False):
    colour: Colour


class Key(str):
    __slots__ = ()


class Rows(list[Line]):
    pass


class Model(BaseModel):
    name: str = Field(alias="theName")
    since: date
    path: Path
    lines: list[Line] = []


class Page(BaseModel, Generic[T]):
    items: list[T]


@pydantic.dataclasses.dataclass
class Checked:
    amount: int
    colour: Colour = Colour.RED


Id = NewType("Id", Key)


def declared(*hints: Any, returns: Any = None) -> Declaration:
    """Return the declaration of a task whose parameters have these hints."""

    names = [f"p{index}" for index in range(len(hints))]
    scope = dict(globals())
    exec(f"def function({', '.join(names)}): ...", scope)
    made = scope["function"]
    made.__annotations__ = dict(zip(names, hints, strict=True)) | {"return": returns}
    return declare(made, name="shop.pay")


def message(declaration: Declaration, *args: Any, **kwargs: Any) -> Message:
    call: Call[Any] = Call(declaration=declaration, args=args, kwargs=kwargs, options=SendOptions())
    args_json, kwargs_json, form = call.encoded()
    return Message(
        id="i", task="shop.pay", queue="q", args_json=args_json, kwargs_json=kwargs_json, form=form, enqueued_at=0.0
    )


def decoded(declaration: Declaration, came: Message) -> tuple[list[Any], dict[str, Any]]:
    return declaration.fitted(*came.arguments(), came.form)


def shown(value: Any) -> str | list[str]:
    """Show a value, the items of a set in the same order wherever they are equal."""
    return sorted(map(repr, value)) if isinstance(value, Set) else repr(value)


def there_and_back(hint: Any, value: Any) -> Any:
    declaration = declared(hint)
    [came], _ = decoded(declaration, message(declaration, value))
    return came


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Colour, Colour.BLUE),
        (Right, Right.READ | Right.WRITE),
        (Level, Level.LOW),
        (Line, Line("a", Decimal("1.10"))),
        (Order[int], Order(id=1, lines=[Line("a")], colour=Colour.RED, parent=Order(id=2))),
        (list[Line], [Line("a"), Line("b")]),
        (dict[Colour, tuple[Line, ...]], {Colour.RED: (Line("a"),)}),
        (set[Line], {Line("a"), Line("b")}),
        (frozenset[Colour], frozenset({Colour.RED})),
        (Line | None, None),
        (Line | None, Line("a")),
        (Line | Order[int] | str, [Order(id=1), "x", Line("a")]),
        (Mapping[str, Sequence[Line]], {"x": [Line("a")]}),
        (Point, Point(1, Path("/x"))),
        (Point, Point(1)),
        (Settings, {"colour": Colour.RED}),
        (Path, Path("a/b")),
        (PurePosixPath, PurePosixPath("/c")),
        (PurePath, PurePath("d")),
        (Key, Key("k")),
        (Id, Key("k")),
        (Rows, Rows([Line("a")])),
        (OrderedDict[str, Line], OrderedDict(a=Line("a"))),
        (Counter[str], Counter("abba")),
        (Annotated[Line, "a note"], Line("a")),
        (Literal[Colour.RED], Colour.RED),
        (Callable[[Line], Colour], [Line("a"), Colour.RED]),
        ("list[Line] | None", [Line("a")]),
        (Model, Model(theName="n", since=date(2024, 2, 29), path=Path("/x"), lines=[Line("a")])),
        (list[Model | Line], [Model(theName="n", since=date(2024, 2, 29), path=Path("/x")), Line("a")]),
        (Page[Line], Page[Line](items=[Line("a")])),
        (Checked, Checked(5, Colour.BLUE)),
    ],
)
def test_what_a_hint_names_comes_back_equal_and_of_its_class(hint: Any, value: Any) -> None:
    came = there_and_back(hint, value)

    assert type(came) is type(value)
    assert came == value
    assert shown(came) == shown(value)


@UNHURRIED
@given(st.recursive(st.builds(Order, id=st.integers()), lambda inner: st.builds(Order, id=inner), max_leaves=8))
def test_orders_of_any_depth_come_back(value: Order[Any]) -> None:
    assert there_and_back(Order[Any], value) == value


@pytest.mark.parametrize("hint", [Any, object, None, "Any", int, "list[int]", Protocol, Sequence[int], T, "T"], ids=str)
def test_hints_that_name_no_class_cost_nothing(hint: Any) -> None:
    declaration = declared(hint)

    assert declaration.hints is None
    assert message(declaration, [1]).form == 1


@dataclass
class Doubles:
    amount: int

    def __post_init__(self) -> None:
        self.amount *= 2


@dataclass
class Cents:
    amount: int

    def __init__(self, amount: int) -> None:
        self.amount = amount * 100


class Rounds(type):
    def __call__(cls, amount: float) -> Any:
        return super().__call__(amount=int(amount) + 1)


@dataclass
class Rounded(metaclass=Rounds):
    amount: int


@dataclass
class Lowered:
    name: str

    def __setattr__(self, name: str, value: str) -> None:
        object.__setattr__(self, name, f"{value}!")


@dataclass
class Needs:
    amount: InitVar[int]


class Rising:
    """Sets a field to more than it is given."""

    def __get__(self, owner: Any, of: Any = None) -> Any:
        return 0 if owner is None else owner.kept

    def __set__(self, owner: Any, value: int) -> None:
        owner.kept = value + 1


@dataclass
class Risen:
    amount: Any = Rising()


@dataclass
class Made:
    amount: int

    def __new__(cls, *args: Any, **kwargs: Any) -> Made:
        return super().__new__(cls)


@dataclass(frozen=True)
class Alike:
    number: int

    def __hash__(self) -> int:
        return 1


@dataclass(frozen=True)
class Odd:
    number: int = 0

    def __hash__(self) -> int:
        raise SystemExit("no hash")


class Hidden(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    password: SecretStr | None = None
    rate: float = 0.0
    _seen: int = PrivateAttr(0)


def seen() -> Hidden:
    model = Hidden()
    model._seen = 1
    return model


@pytest.mark.parametrize(
    ("hint", "value", "path", "text"),
    [
        (Line, Order(id=1), "args[0]", "with Order"),
        (Any, Line("a"), "args[0]", "with Line"),
        (list[Line], [Line("a"), {"x": object()}], 'args[0][1]["x"]', "pass what it is made of"),
        (Order[Any], Order(id=[object()]), "args[0].id[0]", "pass what it is made of"),
        (Doubles, Doubles(1), "args[0]", "not equal any more"),
        (Cents, Cents(1), "args[0]", "not equal any more"),
        (Rounded, Rounded(1), "args[0]", "not equal any more"),
        (Lowered, Lowered("x"), "args[0]", "not equal any more"),
        (set[Alike], {Alike(each) for each in range(101)}, "args[0]", "more than 100"),
        (Needs, Needs(1), "args[0]", "amount"),
        (Risen, Risen(1), "args[0]", "not equal any more"),
        (Hidden, Hidden(password=SecretStr("x")), "args[0]", "not equal any more"),
        (Hidden, Hidden(rate=float("nan")), "args[0]", "again"),
        (Hidden, seen(), "args[0]", "not equal any more"),
        (dict[str, Any], {"x": Path("a")}, 'args[0]["x"]', "with Path"),
        (defaultdict[str, int], defaultdict(int), "args[0]", "again"),
    ],
)
def test_what_would_change_or_is_not_named_is_refused(hint: Any, value: Any, path: str, text: str) -> None:
    with pytest.raises(EncodeError, match=text) as caught:
        message(declared(hint), value)

    assert caught.value.path == path


class LowerLine(Line):
    def __init__(self, name: str, price: Decimal) -> None:
        super().__init__(name.lower(), price)


class Found(Enum):
    ONE = 1

    @classmethod
    def _missing_(cls, value: object) -> Found:
        return cls.ONE


@pytest.mark.parametrize("cls", [Colour, Level, Line, Order])
def test_a_plain_class_is_not_made_again_by_whoever_sends_its_values(cls: Any) -> None:
    form = form_of(cls)
    assert form is not None
    assert form.is_sure is (issubclass(cls, Enum) or sys.version_info >= (3, 11))


@pytest.mark.parametrize(
    "cls",
    [Right, Found, Point, Key, Path, Model, Checked, Doubles, Cents, Rounded, Lowered, Needs, Risen, Made, LowerLine],
)
def test_a_class_with_code_of_its_own_is_made_again_by_whoever_sends_its_values(cls: Any) -> None:
    form = form_of(cls)
    assert form is not None
    assert not form.is_sure


def test_a_value_that_contains_itself_is_refused() -> None:
    order = Order(id=1)
    order.parent = order

    with pytest.raises(EncodeError, match="contains itself"):
        message(declared(Order[int]), order)


def chain(length: int) -> Order[int]:
    order = Order(id=0)
    for each in range(1, length):
        order = Order(id=each, parent=order)
    return order


@pytest.mark.parametrize("length", [1, 30])
def test_a_deep_stack_changes_nothing(length: int) -> None:
    declaration, value = declared(Order[int]), chain(length)
    came = message(declaration, value)

    def at_depth(left: int) -> Any:
        return at_depth(left - 1) if left else (message(declaration, value), decoded(declaration, came))

    free = sys.getrecursionlimit() - len(inspect.stack())
    for depth in range(free - 150, free - 60, 10):
        assert at_depth(depth) == (came, ([value], {}))


@dataclass
class Endless:
    number: int

    def __post_init__(self) -> None:
        type(self)(self.number + 1)


def test_a_class_that_makes_itself_without_end_is_refused() -> None:
    value = object.__new__(Endless)
    value.number = 1

    with pytest.raises(EncodeError, match="nested"):
        message(declared(Endless), value)
    text = codec.dumps_array([Typed("Endless", {"number": 1})], "args")
    came = Message(id="i", task="t", queue="q", args_json=text, kwargs_json="{}", form=2, enqueued_at=0.0)
    with pytest.raises(TypeError, match=r"args\[0\]: .*recursion"):
        decoded(declared(Endless), came)


def test_each_parameter_has_its_own_classes() -> None:
    def function(first: Line, /, second: int = 0, *more: Colour, key: Path | None = None, **others: Point) -> None: ...

    function.__annotations__ = {"first": Line, "more": Colour, "key": Path, "others": Point}
    declaration = declare(function, name="shop.pay")
    args, kwargs = (Line("a"), 1, Colour.RED), {"key": Path("x"), "first": Point(1)}

    assert decoded(declaration, message(declaration, *args, **kwargs)) == (list(args), kwargs)
    for wrong in ((Colour.RED,), (Line("a"), Line("a")), (Line("a"), 1, Line("a"))):
        with pytest.raises(EncodeError):
            message(declaration, *wrong)
    with pytest.raises(EncodeError, match="annotate"):
        message(declaration, Line("a"), other=Line("a"))


def test_two_classes_of_one_name_are_told_apart() -> None:
    here = type("Line", (str,), {"__module__": "here"})
    declaration = declared(list[here | Line])  # type: ignore[valid-type]

    [came], _ = decoded(declaration, message(declaration, [here("x"), Line("x")]))

    assert [type(each) for each in came] == [here, Line]


@pytest.mark.parametrize(
    ("hint", "value", "text"),
    [
        (Line, Typed("Order", {}), r"args\[0\]: it is of class 'Order', and the type hint names Line"),
        (Any, Typed("Line", {}), "names no class"),
        (Line, Typed("Line", {"nmae": "x"}), "no field 'nmae'"),
        (Line, Typed("Line", {}), "name"),
        (Line, Typed("Line", [1]), "list"),
        (list[Order[int]], [1, Typed("Order", {"id": 1, "parent": Typed("Order", {})})], r"args\[0\]\[1\]\.parent: "),
        (dict[str, Colour], {"x": Typed("Colour", 7)}, r'args\[0\]\["x"\]: it is no .*Colour: 7'),
        (Model, Typed("Model", {"name": 5}), "since"),
        (Path, Typed("Path", 5), "Path"),
        (set[Rows], {Typed("Rows", [])}, "unhashable"),
        pytest.param(
            set[Alike],
            {Typed("Alike", {"number": each}) for each in range(101)},  # in no order that is the same everywhere
            r"args\[0\]: more than 100 members",
            id="alike",
        ),
        (list[Odd], [{Typed("Odd", {})}], r"args\[0\]: no hash"),
        (dict[Odd, int], {Typed("Odd", {}): 1}, r"args\[0\]: no hash"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_told_with_its_place(hint: Any, value: Any, text: str) -> None:
    text_of = codec.dumps_array([value], "args")
    came = Message(id="i", task="t", queue="q", args_json=text_of, kwargs_json="{}", form=2, enqueued_at=0.0)

    with pytest.raises(TypeError, match=text):
        decoded(declared(hint), came)


@pytest.mark.parametrize(
    "tag",
    [
        {"$": "typed"},
        {"$": "typed", "type": "Line"},
        {"$": "typed", "type": 5, "v": 1},
        {"$": "typed", "type": ["Line"], "v": {"$": "typed"}},
    ],
    ids=str,
)
def test_an_odd_tag_is_refused(tag: Any) -> None:
    with pytest.raises(DecodeError):
        codec.loads(json.dumps(tag))


def test_a_message_of_a_value_of_a_class_has_a_form_of_its_own() -> None:
    declaration = declared(Line | str)

    assert message(declaration, Line("a")).form == 2
    assert message(declaration, "a").form == 1
    assert message(declaration, {"$": "typed"}).form == 1
    sent = message(declaration, Line("a"))
    assert loads(sent.next_attempt(ValueError()).dumps()).form == 2
    assert '{"form":2,' in sent.dumps_meta()


def test_a_release_before_lets_such_a_message_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    text = message(declared(Line), Line("a")).dumps()
    monkeypatch.setattr("taskbridge.message.FORM", 1)

    with pytest.raises(NewerFormError):
        loads(text)


def later(value: Fraction, other: list[Line], third: Unknown | Line) -> Missing: ...  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore


def test_a_hint_that_is_not_there_yet_keeps_nobody_from_declaring() -> None:
    hint = "Late" if sys.version_info >= (3, 14) else "'Late'"  # from 3.14 on annotations are evaluated when asked for
    scope: dict[str, Any] = {"__name__": "shop"}
    exec(f"def pay(late: {hint}): ...", scope)
    declaration = declare(scope["pay"], name="shop.pay")
    exec("class Late(str): ...", scope)

    assert declaration.hints is not None


@dataclass
class Holds:
    line: Line
    value: Fraction | None = None


def test_a_hint_that_cannot_be_resolved_counts_as_none_and_is_told() -> None:
    declaration = declare(later, name="shop.later")

    problems = unresolved(declaration)

    assert [problem.partition(": ")[2].partition(" can't")[0] for problem in problems] == [
        "the hint 'Fraction' of 'value'",
        "the hint 'Unknown | Line' of 'third'",
        "the hint 'Missing' of 'return'",
    ]
    assert message(declaration, 1, [Line("a")], 2).form == 2
    with pytest.raises(EncodeError):
        message(declaration, 1, [], Line("a"))
    [problem] = unresolved(declared(Holds))
    assert "Holds" in problem
    assert there_and_back(Holds, Holds(Line("a"))) == Holds(Line("a"))


def test_a_class_defined_after_a_schedule_was_is_found_when_something_is_sent() -> None:
    scope: dict[str, Any] = {"bridge": (bridge := Bridge("inline://?threads=0")), "__name__": "shop"}
    exec(
        "from __future__ import annotations\n"
        "@bridge.task\n"
        "def pay(line: Late | int): ...\n"
        "bridge.periodic(pay.call(1), every=60)\n"
        "class Late(str): ...\n",
        scope,
    )

    scope["pay"].send(scope["Late"]("x"))
    assert bridge.run_until_idle() == 1


def test_a_result_is_made_by_the_hint_of_what_the_task_returns() -> None:
    bridge = Bridge("inline://?threads=0", store="memory://")

    @bridge.task(name="shop.find")
    def find(number: int) -> Any:
        return [Line("a")] if number else Order(id=1)

    find.declaration.function.__annotations__["return"] = list[Line]
    bridge = Bridge("inline://?threads=0", store="memory://")
    task = bridge.task(name="shop.find")(find.declaration.function)

    assert task.send(1).result() == [Line("a")]
    refused = task.send(0)
    bridge.run_until_idle()
    assert "Order" in refused.status().reason


def test_a_result_whose_task_is_not_declared_here_is_not_made() -> None:
    record = Status(
        id="i",
        task="shop.find",
        queue="q",
        state="done",
        enqueued_at=datetime.now(timezone.utc),
        result_json='{"$":"typed","type":"Line","v":{"name":"a"}}',
    )

    with pytest.raises(DecodeError, match="import the module that declares it"):
        outcome_of(record, None)
    with pytest.raises(DecodeError, match="names no class"):
        outcome_of(record, declared(int))
