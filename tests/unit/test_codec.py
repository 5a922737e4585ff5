"""Rule S4: what went in comes out, equal and of the same type."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from time import thread_time
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskbridge import DecodeError, EncodeError, codec
from taskbridge.codec import Typed

ROME = ZoneInfo("Europe/Rome")

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""What is proven is what comes back, however long a machine takes for an example."""


class Colour(IntEnum):
    RED = 1


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes()
    | st.datetimes(timezones=st.just(timezone.utc) | st.just(timezone(timedelta(hours=-3, minutes=-30))))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
)
KEYS = st.text() | st.integers() | st.none() | st.dates() | st.uuids() | st.binary() | st.tuples(st.integers())
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(KEYS, max_size=4)
        | st.frozensets(KEYS, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal and of the same types throughout; NaN is equal to NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, (list, tuple)):
        return bool(len(one) == len(other) and all(map(same, one, other)))
    if isinstance(one, dict):
        return bool(len(one) == len(other) and all(map(same, one.items(), other.items())))
    if isinstance(one, (datetime, time)):
        return bool(one == other) and one.tzinfo == other.tzinfo and one.fold == other.fold
    return bool(one == other)


@UNHURRIED
@given(VALUES)
def test_what_goes_in_comes_out_equal_and_of_the_same_type(value: object) -> None:
    text = codec.dumps(value, "x")

    assert text.isascii()
    assert same(codec.loads(text), value)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        -0.0,
        10**400,
        "\ud800",
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ROME),
        time(2, 30, tzinfo=ROME),
        Decimal("NaN"),
        Decimal("1.10"),
        {"$": "datetime", "v": "no date"},
        {"__type__": "datetime", "__value__": "kombu's own tag"},
        {1: "int", "1": "text"},
        {(1, date(2026, 1, 1)): UUID(int=5)},
        {True: 1},
        {None: 1},
    ],
    ids=repr,
)
def test_odd_values_survive(value: object) -> None:
    came = codec.loads(codec.dumps(value, "x"))

    assert type(came) is type(value)
    assert repr(came) == repr(value)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "x"),
        ([1, {"when": object()}], 'x[1]["when"]'),
        ({"a": (1, {2: b"", 3: [object()]})}, 'x["a"][1][3][0]'),
        ({frozenset([Ellipsis]): 1}, "x key frozenset({Ellipsis})[0]"),
        (OrderedDict(a=[object()]), 'x["a"][0]'),
        ([bytearray(b"")], "x[0]"),
        (Typed("Line", {"name": object()}), "x.name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "value",
)
def test_what_the_codec_does_not_know_is_refused_with_its_path(value: object, path: str) -> None:
    with pytest.raises(EncodeError) as caught:
        codec.dumps(value, "x")

    assert caught.value.path == path


class Text(str):
    def __str__(self) -> str:
        return "another text"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Colour.RED, 1),
        (Text("x"), "x"),
        (OrderedDict(a=[Colour.RED]), {"a": [1]}),
        ({Text("x"): Text("y")}, {"x": "y"}),
        ({Colour.RED}, {1}),
        (Counter("aba"), {"a": 2, "b": 1}),
        (type("Rows", (list,), {})([Text("x")]), ["x"]),
        (type("Ratio", (float,), {})(float("inf")), float("inf")),
    ],
    ids=repr,
)
def test_a_value_of_a_subclass_is_the_plain_value_that_it_is(value: object, plain: object) -> None:
    assert same(codec.loads(codec.dumps(value, "x")), plain)


def test_a_value_of_a_class_is_told_from_a_dict_that_looks_like_one() -> None:
    looks = {"$": "typed", "type": "Line", "v": 1}
    text = codec.dumps([Typed("Line", {"name": "a"}), looks], "x")

    [typed, came] = codec.loads(text)

    assert (typed.type, typed.value, repr(typed)) == ("Line", {"name": "a"}, "Line({'name': 'a'})")
    assert came == looks
    assert codec.TYPED in text
    assert codec.TYPED not in codec.dumps([looks, codec.TYPED], "x")


def test_a_value_that_contains_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)

    with pytest.raises(EncodeError, match="contains itself"):
        codec.dumps(endless, "x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"$":"pickle","v":"gASV"}',
        '{"$":["datetime"]}',
        '{"$":"datetime"}',
        '{"$":"datetime","v":5}',
        '{"$":"datetime","v":"2026-01-01T00:00:00","zone":"No/Where"}',
        '{"$":"UUID","v":"x"}',
        '{"$":"Decimal","v":"x"}',
        '{"$":"bytes","v":"*"}',
        '{"$":"set","v":[[1]]}',
        '{"$":"dict","v":[1]}',
        '{"$":"timedelta","v":[99999999999]}',
        '{"$":"timedelta","v":[1e999]}',
        '{"$":"UUID","v":5}',
        '{"$":"Decimal","v":{}}',
        '{"$":"bytes","v":5}',
        '{"$":"float","v":[]}',
        '{"$":"date","v":null}',
        '{"$":"tuple","v":5}',
        '{"$":"dict","v":[[[],1]]}',
        '{"$":"datetime","v":"2026-01-01","zone":"America"}',
        '{"$":"time","v":"10:00","zone":"' + "x" * 300 + '"}',
        '{"$":"datetime","v":"2026-01-01","fold":7}',
        '{"$":"datetime","v":"' + "x" * 100_000 + '"}',
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_tagged_json_is_refused_when_it_comes_in(text: str) -> None:
    with pytest.raises(DecodeError) as caught:
        codec.loads(text)
    assert len(str(caught.value)) <= 500


ALIKE = [number * (2**61 - 1) for number in range(1, 10_000)]
"""Numbers of one hash: a set of them takes seconds to be made."""


@pytest.mark.parametrize(
    "plain",
    [
        {"$": "set", "v": ALIKE},
        {"$": "frozenset", "v": [{"$": "tuple", "v": [number]} for number in ALIKE]},
        {"$": "dict", "v": [[number, 1] for number in ALIKE]},
        {"$": "set", "v": [{"$": "Decimal", "v": str(number)} for number in ALIKE]},
        {"$": "set", "v": [{"$": "UUID", "v": f"{number:032x}"} for number in ALIKE]},
    ],
    ids=["set", "tuples", "dict", "decimals", "UUIDs"],
)
def test_a_set_whose_members_have_one_hash_is_refused_at_once(plain: object) -> None:
    text = json.dumps(plain)
    begun = thread_time()

    with pytest.raises(DecodeError, match="the same hash"):
        codec.loads(text)

    assert thread_time() - begun < 1


@pytest.mark.parametrize("make", [set, frozenset, dict.fromkeys])
def test_such_a_set_is_refused_where_it_is_sent(make: Any) -> None:
    with pytest.raises(EncodeError, match="the same hash") as caught:
        codec.dumps_array([1, [make(ALIKE[:101])]], "args")
    assert caught.value.path == "args[1]"

    assert codec.loads(codec.dumps(make(ALIKE[:100]), "x")) == make(ALIKE[:100])


def test_plain_values_are_plain_json_that_any_client_reads() -> None:
    value = {"a": [1, 2.5, "x", None, True]}

    assert json.loads(codec.dumps(value, "x")) == value


@pytest.mark.parametrize(
    "text", ["1", ' {"a": [1, null]} ', b'{"a": "\xc3\xa4"}', "[NaN]", '"\u00e4"', '{"a": 1}'.encode("utf-16")]
)
def test_json_is_read_as_pythons_own_reader_reads_it(text: str | bytes) -> None:
    assert repr(codec.from_json(text)) == repr(json.loads(text))


@pytest.mark.parametrize("text", ["", " ", "{", "[1] [2]", b"\xff", "\ufeff1", "[" * 100_000])
def test_what_pythons_own_reader_refuses_is_refused(text: str | bytes) -> None:
    with pytest.raises((ValueError, RecursionError)) as own:
        json.loads(text)
    with pytest.raises(own.type):
        codec.from_json(text)
