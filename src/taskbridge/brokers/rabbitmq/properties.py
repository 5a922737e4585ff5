"""Basic properties as bytes: the same as pika's, of which those are kept that many publications have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from struct import Struct
from typing import Any, Final

from pika import data

# In the order in which they are written; each has a bit of the flags in front.
_BITS: Final = {
    "content_type": 1 << 15,
    "content_encoding": 1 << 14,
    "headers": 1 << 13,
    "delivery_mode": 1 << 12,
    "priority": 1 << 11,
    "correlation_id": 1 << 10,
    "reply_to": 1 << 9,
    "expiration": 1 << 8,
    "message_id": 1 << 7,
    "timestamp": 1 << 6,
    "type": 1 << 5,
    "user_id": 1 << 4,
    "app_id": 1 << 3,
    "cluster_id": 1 << 2,
}

LONGEST_SHORT_STRING: Final = 255
"""How many bytes a property's text may have, but for the headers."""

_FLAGS: Final = Struct(">H")
_SIZE: Final = Struct(">I")
_TAGGED_SIZE: Final = Struct(">cI")
_TAGGED_INT: Final = Struct(">ci")
_INT: Final = range(-(1 << 31), 1 << 31)
_TIMESTAMP: Final = Struct(">Q")


class Template:
    """Properties by pika's names, some of which are in bytes already.

    Args:
        common: Those that all publications have; of the headers, those that all have. None is left out.
        own: The names of those that each has for itself; `headers` come after the common ones.

    Raises:
        ValueError: There is no such property, or its value is none that it can have.
    """

    __slots__ = ("_end", "_headers", "_parts")

    def __init__(self, common: Mapping[str, Any], own: Iterable[str]) -> None:
        given = {name: value for name, value in common.items() if value is not None}
        names = {*given, *own}
        unknown = names - _BITS.keys()
        if unknown:
            raise ValueError(f"there is no property {sorted(unknown)[0]!r}")
        self._headers = b"".join(_entries(given.get("headers", {})))
        pieces = [_FLAGS.pack(sum(_BITS[name] for name in names))]
        self._parts: list[tuple[bytes, str]] = []  # bytes as they are, and the name of what comes after them
        for name in _BITS:
            if name in own:
                self._parts.append((b"".join(pieces), name))
                pieces = []
            elif name in given:
                pieces.append(_value(name, given[name], b""))
        self._end = b"".join(pieces)

    def fill(self, own: Mapping[str, Any]) -> bytes:
        """Return all properties as they stand in a header frame.

        Raises:
            ValueError: One has a value that it can't have.
        """
        pieces: list[bytes] = []
        for before, name in self._parts:
            pieces += (before, _value(name, own[name], self._headers))
        pieces.append(self._end)
        return b"".join(pieces)


def encoded(properties: Mapping[str, Any]) -> bytes:
    """Return properties, by pika's names, as they stand in a header frame; None is left out.

    Raises:
        ValueError: There is no such property, or its value is none that it can have.
    """
    return _template(tuple(name for name, value in properties.items() if value is not None)).fill(properties)


@lru_cache(maxsize=256)
def _template(names: tuple[str, ...]) -> Template:
    return Template({}, names)


def _value(name: str, value: Any, common_headers: bytes) -> bytes:
    if name == "headers":
        raw = b"".join([common_headers, *_entries(value)])
        return _SIZE.pack(len(raw)) + raw
    if name == "timestamp":
        return _TIMESTAMP.pack(value)
    return _short_string(value) if isinstance(value, str) else bytes((value,))


def _short_string(text: str) -> bytes:
    raw = text.encode()
    if len(raw) > LONGEST_SHORT_STRING:
        raise ValueError(f"a property has at most {LONGEST_SHORT_STRING} bytes, not {len(raw)}")
    return bytes((len(raw),)) + raw


_name = lru_cache(maxsize=1024)(_short_string)


@lru_cache(maxsize=1024)
def _name_of_text(name: str) -> bytes:
    """Return what stands before a text of this name, but for its size."""
    return _name(name) + b"S"


def _entries(table: Mapping[str, Any]) -> list[bytes]:
    """Return what is in a table, without its size, in pieces."""
    pieces: list[bytes] = []
    for name, value in table.items():
        if type(value) is str:  # most are, and this is half of their time
            raw = value.encode()
            pieces += (_name_of_text(name), _SIZE.pack(len(raw)), raw)
        else:
            pieces.append(_name(name))
            _add(value, pieces)
    return pieces


def _add(value: Any, pieces: list[bytes]) -> None:
    kind = type(value)
    if kind is str:
        raw = value.encode()
        pieces += (_TAGGED_SIZE.pack(b"S", len(raw)), raw)
    elif value is None:
        pieces.append(b"V")
    elif kind is int and value in _INT:
        pieces.append(_TAGGED_INT.pack(b"I", value))
    elif kind is list:
        items: list[bytes] = []
        for item in value:
            _add(item, items)
        raw = b"".join(items)
        pieces += (_TAGGED_SIZE.pack(b"A", len(raw)), raw)
    else:
        rare: list[bytes] = []
        data.encode_value(rare, value)
        pieces += rare
