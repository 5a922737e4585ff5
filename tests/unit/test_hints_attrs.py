"""Rule S4 for the classes of attrs: private fields, converters, fields that are not given."""

from __future__ import annotations

import importlib
from typing import Any, cast

import pytest

from taskbridge import Bridge, EncodeError

attrs: Any = importlib.import_module("attrs")

Line: Any = attrs.make_class(
    "Line", {"name": attrs.field(type=str), "_count": attrs.field(type=int, default=1)}, frozen=True
)
Order = attrs.make_class(
    "Order",
    {"lines": attrs.field(converter=tuple), "total": attrs.field(init=False, default=0)},
)
Order.__annotations__ = {"lines": list[Line], "total": int}
Growing = attrs.make_class("Growing", {"text": attrs.field(converter=lambda text: f"{text}!")})


def sent(hint: Any, value: Any) -> Any:
    bridge = Bridge("inline://?threads=0", store="memory://")

    def task(value: Any) -> Any:
        return value

    cast("Any", task).__annotations__ = {"value": hint, "return": hint}
    return bridge.task(name="shop.keep")(task).send(value).result()


def test_a_class_of_attrs_comes_back_equal_and_of_its_class() -> None:
    order = Order([Line("a", count=3), Line("b")])
    order.total = 7

    came = sent(Order | None, order)

    assert came == order
    assert type(came) is Order
    assert came.lines == (Line("a", count=3), Line("b"))


def test_a_value_that_its_own_converter_changes_is_refused() -> None:
    with pytest.raises(EncodeError, match="not equal any more"):
        sent(Growing, Growing("a"))
