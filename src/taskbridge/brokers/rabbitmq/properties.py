"""Basic properties as bytes: the same as pika's, in 10 us instead of 25 for a message of Celery's."""

from __future__ import annotations

from collections.abc import Mapping
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


def encoded(properties: Mapping[str, Any]) -> bytes:
    """Return properties, by pika's names, as they stand in a header frame; None is left out.

    Raises:
        ValueError: There is no such property, or its value is none that it can have.
    """
    unknown = properties.keys() - _BITS.keys()
    if unknown:
        raise ValueError(f"there is no property {sorted(unknown)[0]!r}")
    flags = 0
    pieces = [b""]
    for name, bit in _BITS.items():
        value = properties.get(name)
        if value is None:
            continue
        flags |= bit
        if name == "headers":
            pieces.append(_table(value))
        elif name == "timestamp":
            pieces.append(_TIMESTAMP.pack(value))
        elif isinstance(value, str):
            pieces.append(_short_string(value))
        else:
            pieces.append(bytes((value,)))
    pieces[0] = _FLAGS.pack(flags)
    return b"".join(pieces)


def _short_string(text: str) -> bytes:
    raw = text.encode()
    if len(raw) > LONGEST_SHORT_STRING:
        raise ValueError(f"a property has at most {LONGEST_SHORT_STRING} bytes, not {len(raw)}")
    return bytes((len(raw),)) + raw


_name = lru_cache(maxsize=1024)(_short_string)


def _table(table: Mapping[str, Any]) -> bytes:
    pieces: list[bytes] = []
    for name, value in table.items():
        pieces.append(_name(name))
        _add(value, pieces)
    raw = b"".join(pieces)
    return _SIZE.pack(len(raw)) + raw


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
