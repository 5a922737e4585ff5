"""Tagged JSON: what goes into a message comes out equal and of the same type (rule S4).

Plain JSON values stand for themselves. Every other value is an object with the key `$`, which names its type, and
`v`, which holds its value. A dict that JSON can't hold as it is (keys that aren't strings, or keys that would be
mistaken for a tag, ours or kombu's) is written as a tagged list of pairs.

A value of a subclass of `str`, `int`, `float`, `list` or `dict`, such as a member of a `str` enum, is written as the
plain value that it is. Values of other classes are `Typed` by `hints`, which knows what a task's type hints name.

JSON is the standard library's, which takes a few hundredths of a send or a run with small arguments. Faster ones take a
tenth of its time (`python -m benchmarks.json_libraries`); but orjson makes floats of long ints, and both it and msgspec
refuse halves of surrogate pairs.

A value may be nested `MOST_DEPTH` levels deep, the same for whoever sends and reads, whatever the interpreter's
recursion limit and however deep the stack is.
"""

from __future__ import annotations

import json
import json.encoder
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial, wraps
from json.encoder import encode_basestring_ascii
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeGuard, TypeVar, cast

from taskbridge.background import in_time
from taskbridge.exceptions import DecodeError, EncodeError

MOST_DEPTH: Final = 100
"""How many containers may be inside one another, in one argument or result; a scalar has depth 0."""

_TOO_DEEP: Final = f"nested more than {MOST_DEPTH} levels deep"

MOST_JSON_DEPTH: Final = 3 * MOST_DEPTH + 1
"""How deep that can be as JSON: a dict whose keys are no strings is three containers, and arguments are in one more."""

_MOST_ALIKE: Final = 100
"""How many members of a set may have the same hash: a new one is compared with each, and numbers of one hash abound."""

TAG = "$"

TAGGED: Final = '{"$":"'
"""What is in the JSON of values if one of them is tagged."""

TYPED: Final = '{"$":"typed"'
"""What is in the JSON of values if one of them is `Typed`, and in no other."""

RESULTS: Final = '{"$":"results"'
"""What is in the JSON of values if one of them is the results of a group, and in no other: it is read as `Typed`."""

OF_FLOWS: Final = RESULTS, '{"$":"flow end"'
"""What is in the JSON of values that releases before flows don't know, and in no other."""

RESULTS_TYPE: Final = "taskbridge.Results"

# kombu's JSON decoder turns {"__type__": ..., "__value__": ...} into an object (kombu/utils/json.py, object_hook).
_KOMBU_KEY = "__type__"

if TYPE_CHECKING:
    from uuid import UUID

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Typed:
    """A value of a class that a type hint names, as it travels: the class's name there, and what the value is made of.

    Two are never equal, so that what is to be members of a set stays apart until it is made.
    """

    type: str
    value: Any

    def __repr__(self) -> str:
        return f"{self.type}({self.value!r})"


def _made_in_c(encoder: json.JSONEncoder) -> Callable[[object], str]:
    """Return what an encoder's `encode` does, without the half of its time that it takes to prepare each call."""
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # not CPython
        return encoder.encode
    parts = make(None, encoder.default, encode_basestring_ascii, None, ":", ",", False, False, False)

    def encode(plain: object) -> str:
        return encode_basestring_ascii(plain) if isinstance(plain, str) else "".join(parts(plain, 0))

    return encode


to_json: Final = _made_in_c(json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")))
"""Returns compact ASCII JSON of data that is plain already."""

_decoder: Any = json.JSONDecoder()  # its method is not in typeshed
_scan: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once


def from_json(text: str | bytes) -> Any:
    """Return what `json.loads` returns, in half the time for short ASCII text without spaces around it.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    if isinstance(text, bytes):
        if not text.isascii():
            return json.loads(text)
        text = text.decode("ascii")
    try:
        value, end = _scan(text, 0)
    except StopIteration:  # there is no value
        return json.loads(text)
    return value if end == len(text) else json.loads(text)


def rewritten(plain: object) -> str:
    """Return compact ASCII JSON of data that was found on the wire, decoded from JSON.

    Raises:
        DecodeError: No message of ours holds it: it is too deep, or has numbers that aren't finite.
    """
    try:
        text = to_json(plain)
    except RecursionError:
        raise DecodeError(_TOO_DEEP) from None
    except ValueError as exc:
        raise DecodeError(str(exc)) from exc
    refuse_depth(text, plain)
    return text


def refuse_depth(text: str, plain: object) -> None:
    """Raise `DecodeError` if JSON is nested deeper than any message's arguments are.

    Args:
        text: The JSON; few brackets need no second look.
        plain: What it holds.
    """
    if text.count("[") + text.count("{") <= MOST_JSON_DEPTH:
        return
    level, depth = [plain], 0
    while level:
        depth += 1
        if depth > MOST_JSON_DEPTH + 1:  # the last level may be scalars
            raise DecodeError(_TOO_DEEP)
        inside = (each.values() if is_dict(each) else each if is_list(each) else () for each in level)
        level = [item for items in inside for item in items]


def with_stack(act: Callable[P, T]) -> Callable[P, T]:
    """Return a function that acts once more, in a thread whose stack is empty, if the caller's was deep already."""

    @wraps(act)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return act(*args, **kwargs)
        except RecursionError:
            return in_time("codec", partial(act, *args, **kwargs), lambda _: None, left_s=lambda: inf)

    return call


_from_json = with_stack(from_json)


def parsed(text: str | bytes) -> Any:
    """Return what JSON holds.

    Raises:
        DecodeError: It is not JSON, or nested too deeply.
    """
    try:
        return _from_json(text)
    except RecursionError:
        raise DecodeError(_TOO_DEEP) from None
    except ValueError as exc:
        raise DecodeError(f"not JSON: {exc}") from exc


@with_stack
def dumps(value: object, path: str) -> str:
    """Return a value as tagged JSON, in ASCII.

    Args:
        value: What to encode.
        path: How errors name the value, such as `kwargs["when"]`.

    Raises:
        EncodeError: The value, or one inside it, is of a type the codec does not know; or it is nested too deeply.
    """
    try:
        return to_json(_plain(value, MOST_DEPTH))
    except _UnknownTypeError:
        raise _located(value, path) from None
    except TooDeepError:
        raise EncodeError(path, f"{_TOO_DEEP}, or contains itself") from None
    except ValueError as exc:
        raise EncodeError(path, str(exc)) from exc  # an int of more digits than Python converts


def dumps_array(values: Sequence[object], path: str) -> str:
    """Return a JSON array of values in the codec's form, which `loads_array` reads.

    Raises:
        EncodeError: As for `dumps`, of one of the values.
    """
    try:
        return to_json([value if type(value) in _PLAIN else _plain(value, MOST_DEPTH) for value in values])
    except (_UnknownTypeError, TooDeepError, RecursionError, ValueError):  # one by one, to name the one
        return f"[{','.join(dumps(value, f'{path}[{index}]') for index, value in enumerate(values))}]"


def dumps_object(values: Mapping[str, object], path: str) -> str:
    """Return a JSON object of values in the codec's form; its own keys, parameter names, are never tagged."""
    pairs = (f"{to_json(key)}:{dumps(item, f'{path}[{quoted(key)}]')}" for key, item in values.items())
    return f"{{{','.join(pairs)}}}"


def loads(text: str | bytes) -> Any:
    """Return the value that `dumps` encoded.

    Raises:
        DecodeError: It is not JSON or nested too deeply, or has a tag that is not known or does not fit its value.
    """
    return items_of([parsed(text)])[0]


def loads_array(text: str | bytes) -> list[Any]:
    """Return the list that `dumps_array` encoded; raises `DecodeError` as `loads` does."""
    plain = parsed(text)
    if not is_list(plain):
        raise DecodeError(f"not an array but a JSON {type(plain).__name__}")
    return items_of(plain)


def loads_object(text: str | bytes) -> dict[str, Any]:
    """Return the values that `dumps_object` encoded; raises `DecodeError` as `loads` does."""
    plain = parsed(text)
    if not is_dict(plain):
        raise DecodeError(f"not an object but a JSON {type(plain).__name__}")
    return values_of(plain)


@with_stack
def items_of(plain: Iterable[Any]) -> list[Any]:
    """Return the values that were made plain; raises `DecodeError` as `loads` does."""
    return [item if type(item) in SCALARS else _valued(item, MOST_DEPTH) for item in plain]


@with_stack
def values_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that were made plain, by their names, which are never tagged; raises as `loads` does."""
    return {key: _valued(item, MOST_DEPTH) for key, item in plain.items()}


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Return whether a value is a list, of no subclass."""
    return type(value) is list


def is_dict(value: Any) -> TypeGuard[dict[Any, Any]]:
    """Return whether a value is a dict, of no subclass."""
    return type(value) is dict


def _valued(plain: Any, left: int) -> Any:
    """Return the value that was made plain, which may be so many levels deep."""
    kind = cast("Any", type(plain))
    if kind is list:
        return _items_of(plain, left)
    if kind is not dict:
        return plain
    if TAG not in plain:
        left = one_less(left)
        return {key: item if type(item) in SCALARS else _valued(item, left) for key, item in plain.items()}
    decode = _DECODERS.get(plain[TAG]) if isinstance(plain[TAG], str) else None
    if decode is None:
        raise DecodeError(f"unknown tag {plain[TAG]!r}")
    try:
        return decode(plain, left)
    except (DecodeError, RecursionError):
        raise
    except Exception as exc:  # what it raises depends on what somebody has written there
        raise DecodeError(f"tag {plain[TAG]!r}: {exc}") from exc


def _items_of(plain: list[Any], left: int) -> list[Any]:
    left = one_less(left)
    return [item if type(item) in SCALARS else _valued(item, left) for item in plain]


def one_less(left: int) -> int:
    """Return how many levels deep what is in a container may be; raise `TooDeepError` if it may not be there."""
    if not left:
        raise TooDeepError
    return left - 1


def unlike(members: Collection[Any]) -> Collection[Any]:
    """Return what are to be members of a set, or keys of a dict, if it doesn't take long to make it; else `ValueError`.

    The hash of each multiple of 2**61 - 1 is 0, say.
    """
    if len(members) > _MOST_ALIKE and max(Counter(map(hash, members)).values()) > _MOST_ALIKE:
        raise ValueError(f"more than {_MOST_ALIKE} members of a set, or keys of a dict, have the same hash")
    return members


class _UnknownTypeError(Exception):
    """A value of a type that the codec does not know; where it stands is looked up only then."""


class TooDeepError(DecodeError):
    """A value that is nested too deeply, be it read or written."""

    def __init__(self) -> None:
        super().__init__(_TOO_DEEP)


def _plain(value: Any, left: int) -> Any:
    """Return a value, which may be so many levels deep, as data that JSON holds: what isn't plain becomes tagged."""
    kind = cast("Any", type(value))
    if kind in _PLAIN:
        return value
    if kind in CONTAINERS:
        if not left:
            raise TooDeepError
        return _plain_container(kind, value, left - 1)
    if kind is float:
        return value if isfinite(value) else {TAG: "float", "v": repr(value)}
    if kind in _TAGS:
        return {TAG: kind.__name__, **_TAGS[kind][0](value)}
    if kind is Typed:
        return {TAG: "typed", "type": value.type, "v": _plain(value.value, one_less(left))}
    if kind.__name__ == "Results" and kind.__module__ == "taskbridge.flows.results":  # few processes import it
        return {TAG: "results", "v": list(value.parts)}
    if kind.__name__ == "FlowEnd" and kind.__module__ == "taskbridge.flows.states":
        return {TAG: "flow end", "v": cast("dict[str, Any]", vars(value))}
    if kind.__module__ == "uuid" and kind.__name__ == "UUID":  # not imported for this, which takes 2 ms
        return {TAG: "UUID", "v": value.hex}
    if (plain := plain_copy(value)) is not value:
        return _plain(plain, left)
    raise _UnknownTypeError


def plain_copy(value: Any) -> Any:
    """Return the plain value that a value of a subclass is, whatever methods that has; any other value itself."""
    kind = cast("Any", type(value))
    for base, copy in _BASES.items():
        if kind is not base and issubclass(kind, base):
            return copy(value)
    return value


def _plain_container(kind: Any, value: Any, left: int) -> Any:
    if kind is dict:
        if all(type(key) is str for key in value) and TAG not in value and _KOMBU_KEY not in value:
            return {key: item if type(item) in _PLAIN else _plain(item, left) for key, item in value.items()}
        return {TAG: "dict", "v": [[_plain(key, left), _plain(value[key], left)] for key in unlike(value)]}
    members = value if kind in (list, tuple) else unlike(value)
    items = [item if type(item) in _PLAIN else _plain(item, left) for item in members]
    return items if kind is list else {TAG: kind.__name__, "v": items}


def _located(value: Any, path: str) -> EncodeError:
    """Return the error for the first value inside this one that can't be encoded."""
    for child, child_path in _children(value, path):
        try:
            _plain(child, MOST_DEPTH)
        except _UnknownTypeError:
            return _located(child, child_path)
    from taskbridge.remedies import for_value  # here, for only errors need it

    kind = cast("Any", type(value))
    return EncodeError(path, f"{kind.__module__}.{kind.__qualname__} can't be put in a message: {for_value(value)}")


def _children(value: Any, path: str) -> Iterator[tuple[Any, str]]:
    value = plain_copy(value)
    if type(value) is Typed:
        parts = value.value
        yield from ((item, f"{path}.{name}") for name, item in parts.items()) if is_dict(parts) else ((parts, path),)
    elif is_dict(value):
        for key, item in value.items():
            yield key, f"{path} key {key!r}"
            yield item, f"{path}[{quoted(key)}]"
    elif type(value) in CONTAINERS:
        for index, item in enumerate(value):
            yield item, f"{path}[{index}]"


def quoted(key: object) -> str:
    """Return a key as paths tell it."""
    return f'"{key}"' if isinstance(key, str) else repr(key)


def _uuid_of(digits: str) -> UUID:
    from uuid import UUID  # here, as few messages hold one

    return UUID(hex=digits)


def _plain_moment(value: datetime | time) -> dict[str, Any]:
    """Return a moment as isoformat() writes it, and what that leaves out: the zone's name and the fold."""
    extra: dict[str, Any] = {"fold": 1} if value.fold else {}
    key = getattr(value.tzinfo, "key", None)
    if not isinstance(key, str):
        return {"v": value.isoformat(), **extra}
    return {"v": value.replace(tzinfo=None).isoformat(), **extra, "zone": key}


def _moment_of(kind: type[datetime] | type[time], plain: Mapping[str, Any], _: int) -> datetime | time:
    value = kind.fromisoformat(plain["v"]).replace(fold=plain.get("fold", 0))
    if "zone" not in plain:
        return value
    from zoneinfo import ZoneInfo  # here, for few messages carry a zone and the import takes 5 ms

    return value.replace(tzinfo=ZoneInfo(plain["zone"]))


def _typed_of(name: Any, value: Any) -> Typed:
    if not isinstance(name, str):
        raise ValueError(f"its type is {name!r}")
    return Typed(name, value)


def _dict_of(pairs: list[Any], left: int) -> dict[Any, Any]:
    keys = unlike([_valued(key, left) for key, _ in pairs])
    return {key: _valued(item, left) for key, (_, item) in zip(keys, pairs, strict=True)}


_PLAIN: Final = frozenset((str, int, bool, type(None)))
"""What stands for itself in JSON."""

SCALARS: Final = _PLAIN | {float}
"""What JSON's scalars are read as."""

CONTAINERS: Final = frozenset((list, dict, tuple, set, frozenset))

_BASES: Final[Mapping[type, Callable[[Any], Any]]] = {
    str: str.__str__,
    int: int.__index__,
    float: float.__float__,
    list: cast("Any", list).copy,
    dict: cast("Any", dict).copy,
}
"""What a subclass's values travel as, and what returns that, whatever the subclass makes of its methods."""

_Decoder = Callable[[Mapping[str, Any], int], Any]
"""Makes a value of what is tagged, which may be so many levels deep."""

_TAGS: Final[Mapping[type, tuple[Callable[[Any], dict[str, Any]], _Decoder]]] = {
    datetime: (_plain_moment, partial(_moment_of, datetime)),
    date: (lambda value: {"v": value.isoformat()}, lambda plain, _: date.fromisoformat(plain["v"])),
    time: (_plain_moment, partial(_moment_of, time)),
    timedelta: (
        lambda value: {"v": [value.days, value.seconds, value.microseconds]},
        lambda plain, _: timedelta(*plain["v"]),
    ),
    Decimal: (lambda value: {"v": str(value)}, lambda plain, _: Decimal(plain["v"])),
    bytes: (
        lambda value: {"v": b64encode(value).decode("ascii")},
        lambda plain, _: b64decode(plain["v"], validate=True),
    ),
}
"""By type, whose name is the tag: what makes a value plain, beside the tag, and what makes a value of that again."""


def _flow_end(fields: Any) -> Any:
    from taskbridge.flows.states import FlowEnd  # here, for few tasks get one

    return FlowEnd(**{name: str(value) for name, value in fields.items() if name in FlowEnd.__dataclass_fields__})


_DECODERS: Final[Mapping[str, _Decoder]] = {
    **{kind.__name__: make for kind, (_, make) in _TAGS.items()},
    "float": lambda plain, _: float(plain["v"]),
    "UUID": lambda plain, _: _uuid_of(plain["v"]),
    "tuple": lambda plain, left: tuple(_items_of(plain["v"], left)),
    "set": lambda plain, left: set(unlike(_items_of(plain["v"], left))),
    "frozenset": lambda plain, left: frozenset(unlike(_items_of(plain["v"], left))),
    "dict": lambda plain, left: _dict_of(plain["v"], one_less(left)),
    "typed": lambda plain, left: _typed_of(plain["type"], _valued(plain["v"], one_less(left))),
    "flow end": lambda plain, left: _flow_end(_valued(plain["v"], one_less(left))),
    "results": lambda plain, left: Typed(RESULTS_TYPE, _valued(plain["v"], one_less(left))),
}
"""By tag."""
