"""Reads messages as they come from Celery's queues: the other way round from `wire`.

What can't be read of a body stops nothing else (rule I3).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import import_module
from typing import Any, Final, NamedTuple, cast

from taskbridge import codec
from taskbridge.engines.base import Host
from taskbridge.engines.celery.stock import KombuMessage, get_decoder
from taskbridge.engines.celery.wire import CANVAS, CANVAS_HEADERS, EMBEDDED, META, NOTHING_EMBEDDED, own_queue
from taskbridge.exceptions import CodecError, DecodeError
from taskbridge.message import Message, checked, loads_meta


class Parts(NamedTuple):
    """A Celery message, taken apart."""

    headers: dict[str, Any]  # Celery's
    args: Sequence[Any]  # the positional arguments, as Celery decoded them
    kwargs: Mapping[str, Any]  # the keyword arguments
    embed: Mapping[str, Any]  # callbacks, chain and chord
    # The arguments as they came, JSON, positional and keyword; None if they have to be written anew.
    texts: tuple[str, str] | None = None


_END: Final = f", {NOTHING_EMBEDDED}]".encode()
_TYPED: Final = b"__type__"  # what kombu's own JSON marks values with; in taskbridge's there is none


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_scanner: Final = json.JSONDecoder(parse_constant=_refuse_constant)
_EMBED: Final[Mapping[str, Any]] = dict.fromkeys(EMBEDDED)


def arguments_in(body: bytes) -> tuple[list[Any], dict[str, Any], tuple[str, str]] | None:
    """Return the arguments in a body as taskbridge writes it, with nothing embedded, and the arguments' own JSON.

    Returns None if it is written otherwise, or can't be read.
    """
    if not body.endswith(_END) or _TYPED in body:
        return None
    try:
        text = body.decode("ascii")
        args, end_of_args = _scanner.raw_decode(text, 1)
        kwargs, end = _scanner.raw_decode(text, end_of_args + 2)
    except (ValueError, RecursionError):
        return None
    is_ours = (
        text[0] == "["
        and text[end_of_args : end_of_args + 2] == ", "
        and len(text) - end == len(_END)
        and type(args) is list
        and type(kwargs) is dict
    )
    return (args, kwargs, (text[1:end_of_args], text[end_of_args + 2 : end])) if is_ours else None


def taken_apart(message: Any) -> Parts:
    """Return a message of kombu's taken apart; raises `DecodeError` if it is no Celery message."""
    headers, embed, texts = message.headers, _EMBED, None
    try:
        if META in headers and message.content_type == "application/json":
            body = message.body
            found = arguments_in(body.encode() if isinstance(body, str) else bytes(body))
            if found is not None:
                args, kwargs, texts = found
                return parts_of(headers, args, kwargs, embed, texts=texts)
        payload = message.payload
        if isinstance(payload, (list, tuple)):
            args, kwargs, embed = payload
        else:  # protocol 1 has the headers in its body
            headers = {**payload, **headers}
            args, kwargs = payload.get("args"), payload.get("kwargs")
            embed = {name: payload.get(name) for name in EMBEDDED}
    except CodecError:
        raise
    except Exception as exc:  # disallowed content, an unknown encoding, bytes that are none of it
        raise DecodeError(f"not a Celery message: {type(exc).__name__}: {exc}") from exc
    return parts_of(headers, args, kwargs, embed)


LONGEST_LIMIT_S: Final = 10 * 366 * 86_400.0  # the largest time limit of a plain client's that counts as one

DEEPEST: Final = codec.MOST_JSON_DEPTH
"""How deep headers and arguments may be nested; at 485 what pickles them for a child ends with a RecursionError."""

_MOST_SHOWN: Final = 255  # characters of the name that a message is shown by

_AROUND: Final = 8  # what Celery puts around an argument: the list of them, a task linked to another, a chain, a chord
_HOLDERS: Final = frozenset((list, dict, tuple))
_LIMITS: Final = ("hard", "soft")


def parts_of(
    headers: object, args: object, kwargs: object, embed: object, *, texts: tuple[str, str] | None = None
) -> Parts:
    """Return a message taken apart, whoever wrote it (rules I1 and I3).

    Raises `DecodeError` if a part of it is not of its kind, too deep, or not a number in range.
    """
    if not isinstance(headers, dict):
        raise DecodeError(f"not a Celery message: its headers are a {type(headers).__name__}")
    found = cast("dict[str, Any]", headers)
    if not isinstance(found.get("task"), str) or not isinstance(found.get("id"), str):
        raise DecodeError("not a Celery message: it has no task, or no id")
    args, kwargs, embed = args or (), kwargs or {}, embed or {}
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, dict):
        raise DecodeError("not a Celery message: its arguments are no list and no object")
    if not isinstance(embed, dict):
        raise DecodeError("not a Celery message: what is linked to its task is no object")
    if embed.keys() != _EMBED.keys():  # Celery would have other names stand in the place of what the request says
        embed = {name: embed.get(name) for name in EMBEDDED}
    chain: object = cast("dict[str, object]", embed).get("chain")
    if chain and not (isinstance(chain, list) and all(isinstance(each, dict) for each in cast("list[object]", chain))):
        raise DecodeError("not a Celery message: its chain is no list of tasks")
    shown = found.get("shadow") or ""
    if not isinstance(shown, str):
        raise DecodeError("not a Celery message: the name that it is shown by is no text")
    if len(shown) > _MOST_SHOWN:  # Celery logs it with each message, in full
        found = {**found, "shadow": shown[:_MOST_SHOWN]}
    limits = found.get("timelimit")
    if limits and not _are_limits(limits):
        raise DecodeError("not a Celery message: its time limits are no numbers of seconds")
    if _is_too_deep([args, kwargs, embed, *found.values()]):
        raise DecodeError(f"not a Celery message: it is nested deeper than {DEEPEST}")
    return Parts(
        found, cast("Sequence[Any]", args), cast("dict[str, Any]", kwargs), cast("dict[str, Any]", embed), texts
    )


def _are_limits(limits: object) -> bool:
    if not isinstance(limits, (list, tuple)):
        return False
    numbers = cast("Sequence[object]", limits)
    return len(numbers) == len(_LIMITS) and all(
        number is None or (isinstance(number, (int, float)) and 0 <= number <= LONGEST_LIMIT_S) for number in numbers
    )


def _is_too_deep(values: list[object]) -> bool:
    """Return whether values are nested deeper than `DEEPEST`; level by level, for a call a level has limits itself."""
    level = values
    for _ in range(DEEPEST + _AROUND):
        holders = [value for value in level if type(value) in _HOLDERS]
        if not holders:
            return False
        level = []
        for holder in holders:
            level += holder.values() if isinstance(holder, dict) else cast("Sequence[object]", holder)
    return True


def read(parts: Parts, delivery: Mapping[str, Any] | None, host: Host) -> Message:
    """Return what a Celery message says, whoever wrote it; a plain client's has default options.

    Raises `NewerFormError` if a newer release wrote it, and `DecodeError` if it can't be read.
    """
    headers, meta = parts.headers, parts.headers.get(META)
    try:
        if meta is None:
            return checked(_read_plain(parts, delivery, host))
        if not isinstance(meta, str):
            raise DecodeError(f"not a message: its header {META!r} is a {type(meta).__name__}")
        args, kwargs = list(parts.args), dict(parts.kwargs)
        return checked(
            loads_meta(meta, id=headers["id"], task=headers["task"], args=args, kwargs=kwargs, texts=parts.texts)
        )
    except CodecError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as exc:  # NaN, say, which Python reads in JSON
        raise DecodeError(f"not a message: {exc!r}") from exc


def _read_plain(parts: Parts, delivery: Mapping[str, Any] | None, host: Host) -> Message:
    """Return the message of a plain client; its arguments are plain values, not tagged."""
    task, canvas = parts.headers["task"], _canvas(parts)
    return Message(
        id=parts.headers["id"],
        task=task,
        queue=own_queue(host.settings.namespace, (delivery or {}).get("routing_key")) or host.queue_of(task),
        args_json=codec.dumps_array(parts.args, "args"),
        kwargs_json=codec.dumps_object(parts.kwargs, "kwargs"),
        enqueued_at=host.now(),  # for Celery's messages don't tell
        expires_at=instant(parts.headers.get("expires")),
        headers={} if canvas is None else {CANVAS: canvas},
    )


def _canvas(parts: Parts) -> str | None:
    """Return what else is to run after a plain client's task, as text; None if nothing is."""
    embed = {name: value for name, value in parts.embed.items() if value}
    if not embed and not parts.headers.get("group"):
        return None
    kept = {name: parts.headers.get(name) for name in CANVAS_HEADERS}
    return codec.dumps_object({"embed": embed, **kept}, "canvas")


def instant(value: object) -> float | None:
    """Return Celery's `eta` or `expires` in seconds since the epoch, None if there is none; raises `DecodeError`."""
    if value is None:
        return None
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(_iso(cast("str", value)))
    except (TypeError, ValueError, AttributeError) as exc:
        raise DecodeError(f"not a time: {value!r}") from exc
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)).timestamp()


def _iso(text: str) -> str:
    return f"{text[:-1]}+00:00" if text.endswith("Z") else text  # which Python 3.10 does not read


_DECOMPRESSORS: Final = {
    "zlib": "decompressobj",
    "bz2": "BZ2Decompressor",
    "lzma": "LZMADecompressor",
    "zstd": "ZstdDecompressor",
}
"""By module, what decompresses with a limit; brotli's has none."""


def decompressed(body: str | bytes, kind: object, most_bytes: int) -> bytes:
    """Return a body that a client has compressed, of so many bytes at most (rule I3); raise `DecodeError` otherwise."""
    try:
        module = import_module(get_decoder(kind).__module__)
        decompressor = getattr(module, _DECOMPRESSORS[module.__name__.rpartition(".")[2]])()
        found: bytes = decompressor.decompress(body.encode() if isinstance(body, str) else body, most_bytes + 1)
    except Exception as exc:  # what it raises depends on what somebody has written there
        raise DecodeError(f"it can't be decompressed, with a limit, as {kind!r}: {exc!r}") from exc
    if len(found) > most_bytes or not decompressor.eof:
        raise DecodeError(f"decompressed, it has more bytes than max_message_bytes = {most_bytes}, or is cut off")
    return found


class BoundedMessage(KombuMessage):
    """A message whose body is decompressed up to a limit, and decoded as UTF-8 if at all; kombu has no limit (rule I3).

    Some encodings, such as punycode, take a time that grows with the square of the size.
    """

    def __init__(
        self, body: Any = None, channel: Any = None, headers: Any = None, content_encoding: Any = None, **options: Any
    ) -> None:
        encoding = "binary" if content_encoding == "binary" else "utf-8"
        kind = headers.get("compression") if isinstance(headers, dict) else None
        if kind:
            headers = {**headers, "compression": None}
            try:
                settings = channel.connection.client.transport.engine.settings
                body = decompressed(body, kind, settings.max_message_bytes)
            except DecodeError:
                self.errors: list[Any] = [sys.exc_info()]  # of which kombu tells the consumer
        super().__init__(body=body, channel=channel, headers=headers, content_encoding=encoding, **options)
