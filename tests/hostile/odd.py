"""Odd values, as the text that may stand in a message's JSON; and JSON in which one stands somewhere.

Some are no JSON, some are JSON only to Python (NaN), some are valid for some fields. `None` leaves a field out.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

_PRIME: Final = 2**61 - 1
"""Whose multiples all have the same hash."""


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    """Return JSON of so many levels."""
    return f"{opening * depth}1{closing * depth}".encode()


def tagged(tag: str, value: object, **more: object) -> bytes:
    """Return a tagged value in the codec's form."""
    return json.dumps({"$": tag, "v": value, **more}).encode()


VALUES: Final[Mapping[str, bytes | None]] = {
    "left out": None,
    "null": b"null",
    "true": b"true",
    "0": b"0",
    "-1": b"-1",
    "1.5": b"1.5",
    "2**63": b"%d" % 2**63,
    "10**400": b"%d" % 10**400,
    "-10**400": b"-%d" % 10**400,
    "5000 digits": b"9" * 5000,
    "1e308": b"1e308",
    "1e999": b"1e999",
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "-Infinity": b"-Infinity",
    "empty text": b'""',
    "text": b'"x"',
    "a number as text": b'"5"',
    "a time": b'"9999-12-31T23:59:59Z"',
    "a time out of range": b'"0001-01-01T00:00:00+14:00"',
    "half a surrogate pair": b'"\\ud800"',
    "NUL": b'"a\\u0000b"',
    "control characters": b'"\\u001b]0;x\\u0007\\r\\n2026-01-01 00:00:00 ERROR forged\\u009b"',
    "raw control characters": b'"\x1b[2J\r\n"',
    "other letters": '"ü中\U0001f600"'.encode(),
    "no UTF-8": b'"\xff\xfe\x80"',
    "a format": b'"%s %(a)s %d {0} {} {a.b}"',
    "10 kB": b'"%s"' % (b"x" * 10_000),
    "a path": b'"../../../../../etc/passwd"',
    "something to import": b'"tests.hostile.canary:sing"',
    "a module": b'"tests.hostile.canary"',
    "a task of the engine's": b'"celery.backend_cleanup"',
    "the type of pickles": b'"application/x-python-serialize"',
    "a slow encoding": b'"punycode"',
    "empty list": b"[]",
    "list": b'[null, "a", [1]]',
    "long list": b"[%s0]" % (b"0," * 3000),
    "empty object": b"{}",
    "object": b'{"a": 1, "b": {"c": [null]}}',
    "a key twice": b'{"a": 1, "a": {}}',
    "100 lists": nested(100),
    "485 lists": nested(485),
    "100,000 lists": nested(100_000),
    "100,000 objects": nested(100_000, '{"a":', "}"),
    "a type of kombu's": b'{"__type__": "datetime", "__value__": "x"}',
    "another type of kombu's": b'{"__type__": "uuid", "__value__": 5}',
    "an odd set": tagged("set", [[1]]),
    "an odd UUID": tagged("UUID", 5),
    "an odd zone": tagged("datetime", "2026-01-01T00:00:00", zone="x" * 300),
    "a folder of zones": tagged("datetime", "2026-01-01T00:00:00", zone="America"),
    "a slow set": tagged("set", [number * _PRIME for number in range(1, 4000)]),
    "half JSON": b'{"a": [1, ',
    "nothing": b"",
}
"""Odd values by name."""

FEW: Final = ("null", "true", "0", "Infinity", "text", "list", "object", "100,000 lists")
"""Those that fields are tried with which no healthy message has."""

Path = tuple[Any, ...]
"""The way to a place in JSON: keys and indexes, and `JSON_TEXT` or `BASE64` into what a text holds."""

JSON_TEXT: Final = "<JSON in text>"
BASE64: Final = "<JSON in base64>"
_INSIDE: Final = (JSON_TEXT, BASE64)


def fields(plain: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the way to each value in a value, itself first, into texts that hold JSON too."""
    yield path
    if isinstance(plain, dict):
        steps = list(plain.items())
    elif isinstance(plain, list):
        steps = list(enumerate(plain))
    else:
        inside = _inside(plain)
        steps = [] if inside is None else [inside]
    for step, value in steps:
        yield from fields(value, (*path, step))


def objects(plain: Any) -> Iterator[Path]:
    """Yield the way to each object in a value."""
    for path in fields(plain):
        if isinstance(at(plain, path), dict):
            yield path


def at(plain: Any, path: Path) -> Any:
    """Return what stands somewhere."""
    for step in path:
        inside = _inside(plain) if step in _INSIDE else None
        plain = plain[step] if inside is None else inside[1]
    return plain


def _inside(text: Any) -> tuple[str, Any] | None:
    """Return the JSON list or object that a text holds, and how; None if it holds none."""
    if not isinstance(text, str):
        return None
    decodings: Sequence[tuple[str, Callable[[str], Any]]] = (
        (JSON_TEXT, json.loads),
        (BASE64, lambda found: json.loads(b64decode(found, validate=True))),
    )
    for kind, decode in decodings:
        try:
            value = decode(text)
        except ValueError:
            continue
        if isinstance(value, (dict, list)):
            return kind, value
    return None


def changed(plain: Any, path: Path, odd: bytes | None) -> bytes:
    """Return the JSON of a value in which something else stands in one place, or nothing."""
    if not path:
        return b"" if odd is None else odd
    step, rest = path[0], path[1:]
    if step in _INSIDE:
        inner = changed(at(plain, (step,)), rest, odd)
        text = b64encode(inner).decode() if step == BASE64 else inner.decode(errors="surrogateescape")
        return json.dumps(text).encode()
    if isinstance(plain, list):
        items = [changed(value, rest, odd) if index == step else _dumps(value) for index, value in enumerate(plain)]
        return b"[%s]" % b", ".join(item for item in items if item)
    pairs = {name: _dumps(value) for name, value in plain.items()}
    if not rest and odd is None:
        pairs.pop(step, None)
    else:
        pairs[step] = changed(plain.get(step), rest, odd)
    return b"{%s}" % b", ".join(b"%s: %s" % (_dumps(name), value) for name, value in pairs.items())


def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode()
