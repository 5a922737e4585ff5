"""Puts on a queue what no healthy sender would: an engine's own message, with its text rewritten on the way out."""

from __future__ import annotations

import base64
import os
import pickle
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final, cast

from taskbridge import Bridge

Rewrite = Callable[[str], str]
"""Returns what is written instead of a text; it is asked for every text in a message, keys of mappings excepted."""

GARBAGE: Final = "}{ this is no message"

BINARY: Final = b"\xff\xfe\x00\x80{"

_BINARY_TEXT: Final = BINARY.decode("latin-1")

HUGE_BYTES: Final = 3_000_000

_IN_BODIES: Final = ('"body"', '"queue_name"', '"chain"', '"args"')

_FORM: Final = re.compile(r'(\\*"form\\*": ?)1\b')
_BODY: Final = re.compile(r'("body": ?")[^"]*(")')
_OPTIONS: Final = re.compile(r'"options":{')
_ETA: Final = re.compile(r'("eta": ?)null')
_JSON_TYPE: Final = "application/json"
_PICKLE_TYPE: Final = "application/x-python-serialize"


def newer_form(text: str) -> str:
    """Write a message's form as one that no release knows yet."""
    return _FORM.sub(r"\g<1>999999", text)


def garbage(text: str) -> str:
    """Write something else in place of every JSON object or array."""
    return GARBAGE if text.startswith(("{", "[")) else text


def binary(text: str) -> str:
    """Write bytes that are no text in place of every JSON object or array."""
    return _BINARY_TEXT if text.startswith(("{", "[")) else text


def huge(text: str) -> str:
    """Write something very long, which begins like JSON and never ends, in place of the body."""
    is_body = text.startswith(("{", "[")) and any(word in text for word in _IN_BODIES)  # headers can't be long
    return '{"a": "' + "x" * HUGE_BYTES if is_body else text


def no_form(text: str) -> str:
    """Write a message's form as one that never was."""
    return _FORM.sub(r"\g<1>0", text)


def odd_eta(literal: str) -> Rewrite:
    """Return a rewrite that says in a message of either engine when it is due, by some JSON that is no time."""
    return lambda text: _OPTIONS.sub(rf'\g<0>"eta":{literal},', _ETA.sub(rf"\g<1>{literal}", text))


def pickled(path: str) -> Rewrite:
    """Return a rewrite that puts a pickle in place of the arguments, one that makes a folder when it is loaded."""
    data = pickle.dumps(_MakesFolder(path))

    def rewrite(text: str) -> str:
        encoded = base64.b64encode(data).decode()
        if _JSON_TYPE in text and _BODY.search(text):
            return _BODY.sub(rf"\g<1>{encoded}\g<2>", text).replace(_JSON_TYPE, _PICKLE_TYPE)
        if text == _JSON_TYPE:
            return _PICKLE_TYPE
        return data.decode("latin-1") if text.startswith(("{", "[")) else text

    return rewrite


class _MakesFolder:
    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._path,)


@contextmanager
def rewriting(
    bridge: Bridge, rewrite: Rewrite, change: Callable[[dict[str, Any]], object] = lambda _: None
) -> Generator[None]:
    """Rewrite what the bridge sends, and what its workers in this process send, while the block runs."""
    wire: Any = bridge.wire
    encode = wire.encode
    wire.encode = lambda message: rewritten(encode(message), rewrite, change)  # pyright: ignore[reportUnknownLambdaType]
    try:
        yield
    finally:
        wire.encode = encode


def rewritten(native: Any, rewrite: Rewrite, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Any:
    """Return a native message of any make, with every text in it rewritten and every mapping changed."""
    if isinstance(native, str):
        text = rewrite(native)
        return BINARY if text == _BINARY_TEXT else text  # no text could be these bytes
    if isinstance(native, bytes):  # latin-1, for it keeps all bytes
        return rewrite(native.decode("latin-1")).encode("latin-1")
    if isinstance(native, (list, tuple)):
        items = [rewritten(item, rewrite, change) for item in cast("list[Any]", native)]
        return items if isinstance(native, list) else tuple(items)
    if isinstance(native, Mapping):
        part: dict[str, Any] = {key: rewritten(item, rewrite, change) for key, item in native.items()}  # pyright: ignore[reportUnknownVariableType]
        change(part)
        return part
    if is_dataclass(native) and not isinstance(native, type):
        names = [field.name for field in fields(native) if field.init]
        return replace(native, **{name: rewritten(getattr(native, name), rewrite, change) for name in names})
    return native
