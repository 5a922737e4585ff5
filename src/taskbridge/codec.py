"""Tagged JSON: what goes into a message comes out equal and of the same type (rule S4).

Plain JSON values stand for themselves. Every other value is an object with the key `$`, which names its type, and
`v`, which holds its value. A dict that JSON can't hold as it is (keys that aren't strings, or keys that would be
mistaken for a tag, ours or kombu's) is written as a tagged list of pairs.
"""

from __future__ import annotations

import json
import json.encoder
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from json.encoder import encode_basestring_ascii
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, cast

from taskbridge.exceptions import DecodeError, EncodeError

TAG = "$"

# kombu's JSON decoder turns {"__type__": ..., "__value__": ...} into an object (kombu/utils/json.py, object_hook).
_KOMBU_KEY = "__type__"

if TYPE_CHECKING:
    from uuid import UUID

_Moment = TypeVar("_Moment", datetime, time)

_encoder = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _made_in_c(encoder: json.JSONEncoder) -> Callable[[object], str]:
    """Return what an encoder's `encode` does, without the half of its time that it takes to prepare each call."""
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # not CPython
        return encoder.encode
    parts = make(None, encoder.default, encode_basestring_ascii, None, ":", ",", False, False, False)

    def encode(plain: object) -> str:
        return encode_basestring_ascii(plain) if isinstance(plain, str) else "".join(parts(plain, 0))

    return encode


_dumps = _made_in_c(_encoder)

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


def to_json(plain: object) -> str:
    """Return compact ASCII JSON of data that is plain already."""
    return _dumps(plain)


def dumps(value: object, path: str) -> str:
    """Return a value as tagged JSON, in ASCII.

    Args:
        value: What to encode.
        path: How errors name the value, such as `args`.

    Raises:
        EncodeError: The value, or one inside it, is of a type the codec does not know.
    """
    try:
        return _dumps(_plain(value))
    except _UnknownTypeError:
        raise _located(value, path) from None
    except RecursionError:
        raise EncodeError(path, "nested too deeply, or contains itself") from None
    except ValueError as exc:
        raise EncodeError(path, str(exc)) from exc  # an int of more digits than Python converts


def dumps_object(values: Mapping[str, object], path: str) -> str:
    """Return a JSON object of values in the codec's form; its own keys, parameter names, are never tagged."""
    if not values:
        return "{}"
    return (
        "{" + ",".join(f"{_dumps(key)}:{dumps(item, f'{path}[{_quoted(key)}]')}" for key, item in values.items()) + "}"
    )


def loads_object(text: str | bytes) -> dict[str, Any]:
    """Return the values that `dumps_object` encoded.

    Raises:
        DecodeError: As for `loads`, or it is not an object.
    """
    plain = _parse(text)
    if not _is_dict(plain):
        raise DecodeError(f"not an object but a JSON {type(plain).__name__}")
    return values_of(plain)


def loads_array(text: str | bytes) -> list[Any]:
    """Return the list that `dumps` encoded.

    Raises:
        DecodeError: As for `loads`, or it is not an array.
    """
    plain = _parse(text)
    if not _is_list(plain):
        raise DecodeError(f"not an array but a JSON {type(plain).__name__}")
    return items_of(plain)


def items_of(plain: Iterable[Any]) -> list[Any]:
    """Return the values that were made plain.

    Raises:
        DecodeError: As for `from_plain`.
    """
    return [from_plain(item) for item in plain]


def values_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that were made plain, by their names, which are never tagged.

    Raises:
        DecodeError: As for `from_plain`.
    """
    return {key: from_plain(item) for key, item in plain.items()} if plain else {}


def loads(text: str | bytes) -> Any:
    """Return the value that `dumps` encoded.

    Raises:
        DecodeError: The text is not JSON, or has a tag that is not known.
    """
    return from_plain(_parse(text))


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return type(value) is list


def _is_dict(value: Any) -> TypeGuard[dict[Any, Any]]:
    return type(value) is dict


def _parse(text: str | bytes) -> Any:
    try:
        return from_json(text)
    except RecursionError:
        raise DecodeError("nested too deeply") from None
    except ValueError as exc:
        raise DecodeError(f"not JSON: {exc}") from exc


def from_plain(plain: Any) -> Any:
    """Return the value that was made plain.

    Raises:
        DecodeError: A tag is not known, or its value is not of its type.
    """
    kind = cast("Any", type(plain))
    if kind is list:
        return [from_plain(item) for item in plain]
    if kind is not dict:
        return plain
    if TAG not in plain:
        return {key: from_plain(item) for key, item in plain.items()}
    decode = _DECODERS.get(plain[TAG]) if isinstance(plain[TAG], str) else None
    if decode is None:
        raise DecodeError(f"unknown tag {plain[TAG]!r}")
    try:
        return decode(plain)
    except (KeyError, TypeError, ValueError, ArithmeticError, LookupError) as exc:
        raise DecodeError(f"tag {plain[TAG]!r}: {exc}") from exc


class _UnknownTypeError(Exception):
    """A value of a type that the codec does not know; where it stands is looked up only then."""


def _plain(value: Any) -> Any:
    """Return a value as data that JSON holds: what isn't plain becomes tagged."""
    kind = cast("Any", type(value))
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is list:
        return [_plain(item) for item in value]
    if kind is dict:
        if all(type(key) is str for key in value) and TAG not in value and _KOMBU_KEY not in value:
            return {key: _plain(item) for key, item in value.items()}
        return {TAG: "dict", "v": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if kind is float:
        return value if isfinite(value) else {TAG: "float", "v": repr(value)}
    if kind is tuple or kind is set or kind is frozenset:
        return {TAG: kind.__name__, "v": [_plain(item) for item in value]}
    encode = _ENCODERS.get(kind) or (_encode_uuid if _is_uuid(kind) else None)
    if encode is None:
        raise _UnknownTypeError
    return {TAG: kind.__name__, **encode(value)}


def _located(value: Any, path: str) -> EncodeError:
    """Return the error for the first value inside this one that can't be encoded."""
    for child, child_path in _children(value, path):
        try:
            _plain(child)
        except _UnknownTypeError:
            return _located(child, child_path)
    kind = cast("Any", type(value))
    return EncodeError(path, f"{kind.__module__}.{kind.__qualname__} can't be put in a message")


def _children(value: Any, path: str) -> Iterator[tuple[Any, str]]:
    if _is_dict(value):
        for key, item in value.items():
            yield key, f"{path} key {key!r}"
            yield item, f"{path}[{_quoted(key)}]"
    elif type(value) in (list, tuple, set, frozenset):
        for index, item in enumerate(value):
            yield item, f"{path}[{index}]"


def _quoted(key: object) -> str:
    return f'"{key}"' if isinstance(key, str) else repr(key)


def _is_uuid(kind: type) -> bool:
    """Return whether a type is `uuid.UUID`; without importing it, for who has a UUID has imported it."""
    module = sys.modules.get("uuid")
    return module is not None and kind is module.UUID


def _encode_uuid(value: UUID) -> dict[str, Any]:
    return {"v": value.hex}


def _decode_uuid(digits: str) -> UUID:
    from uuid import UUID  # here, for it takes 2 ms to import

    return UUID(hex=digits)


def _zone(moment: datetime | time) -> dict[str, Any]:
    """Return what isoformat() leaves out: the zone's name and the fold."""
    extra: dict[str, Any] = {"fold": 1} if moment.fold else {}
    key = getattr(moment.tzinfo, "key", None)
    if isinstance(key, str):
        extra["zone"] = key
    return extra


def _encode_moment(value: datetime | time) -> dict[str, Any]:
    zone = _zone(value)
    plain = value.replace(tzinfo=None) if "zone" in zone else value
    return {"v": plain.isoformat(), **zone}


def _tzinfo(plain: Mapping[str, Any], parsed: tzinfo | None) -> tzinfo | None:
    if "zone" not in plain:
        return parsed
    from zoneinfo import ZoneInfo  # here, for few messages carry a zone and the import takes 5 ms

    return ZoneInfo(plain["zone"])


def _decode_moment(plain: Mapping[str, Any], kind: type[_Moment]) -> _Moment:
    value = kind.fromisoformat(plain["v"])
    return value.replace(tzinfo=_tzinfo(plain, value.tzinfo), fold=plain.get("fold", 0))


_ENCODERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    datetime: _encode_moment,
    date: lambda value: {"v": value.isoformat()},
    time: _encode_moment,
    timedelta: lambda value: {"v": [value.days, value.seconds, value.microseconds]},
    Decimal: lambda value: {"v": str(value)},
    bytes: lambda value: {"v": b64encode(value).decode("ascii")},
}

_DECODERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "float": lambda plain: float(plain["v"]),
    "dict": lambda plain: {from_plain(key): from_plain(item) for key, item in plain["v"]},
    "tuple": lambda plain: tuple(from_plain(item) for item in plain["v"]),
    "set": lambda plain: {from_plain(item) for item in plain["v"]},
    "frozenset": lambda plain: frozenset(from_plain(item) for item in plain["v"]),
    "datetime": lambda plain: _decode_moment(plain, datetime),
    "date": lambda plain: date.fromisoformat(plain["v"]),
    "time": lambda plain: _decode_moment(plain, time),
    "timedelta": lambda plain: timedelta(*plain["v"]),
    "Decimal": lambda plain: Decimal(plain["v"]),
    "UUID": lambda plain: _decode_uuid(plain["v"]),
    "bytes": lambda plain: b64decode(plain["v"], validate=True),
}
