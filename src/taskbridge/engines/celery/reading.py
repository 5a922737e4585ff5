"""Reads messages as they come from Celery's queues: the other way round from `wire`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final, Protocol, cast

from taskbridge import codec
from taskbridge.engines.celery.wire import CANVAS, CANVAS_HEADERS, META, own_queue
from taskbridge.exceptions import CodecError, DecodeError
from taskbridge.message import Message, checked, loads_meta

EXPIRES: Final = "taskbridge-expires"
"""The header to which a plain client's `expires` is moved, so that Celery's own rule for it does not apply."""


class Fields(Protocol):
    """The headers of a message, or Celery's request in a task, which has them, too."""

    def get(self, name: str, default: Any = None, /) -> Any:
        """Return one of them."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Native:
    """A Celery message, taken apart.

    Attributes:
        headers: Celery's.
        args: The positional arguments, as Celery decoded them.
        kwargs: The keyword arguments.
        embed: Callbacks, chain and chord.
        queue: taskbridge's name of the queue it came from; None if that is none of ours.
        texts: The arguments as they came, JSON, positional and keyword; None if they have to be written anew.
    """

    headers: Fields
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    embed: Mapping[str, Any]
    queue: str | None
    texts: tuple[str, str] | None = None


LONGEST_LIMIT_S: Final = 10 * 366 * 86_400.0
"""The largest time limit of a plain client's that counts as one."""

DEEPEST: Final = codec.MOST_JSON_DEPTH
"""How deep headers and arguments may be nested; at 485 what pickles them for a child ends with a RecursionError."""

_AROUND: Final = 8
"""What Celery puts around an argument: the list of them, a task linked to another, a chain, a chord."""

_HOLDERS: Final = frozenset((list, dict, tuple))
_LIMITS: Final = ("hard", "soft")


def check(headers: object, args: object, kwargs: object, embed: object) -> None:
    """Refuse what is no Celery message, whoever wrote it (rules I1 and I3).

    Raises:
        DecodeError: One of them is not of its kind, too deep, or not a number in range.
    """
    if not isinstance(headers, Mapping):
        raise DecodeError(f"not a Celery message: its headers are a {type(headers).__name__}")
    found = cast("Mapping[str, object]", headers)
    if not isinstance(found.get("task"), str) or not isinstance(found.get("id"), str):
        raise DecodeError("not a Celery message: it has no task, or no id")
    if not isinstance(args or [], (list, tuple)) or not isinstance(kwargs or {}, dict):
        raise DecodeError("not a Celery message: its arguments are no list and no object")
    if not isinstance(embed or {}, dict):
        raise DecodeError("not a Celery message: what is linked to its task is no object")
    if not isinstance(found.get("shadow") or "", str):
        raise DecodeError("not a Celery message: the name that it is shown by is no text")
    if not _are_limits(found.get("timelimit")):
        raise DecodeError("not a Celery message: its time limits are no numbers of seconds")
    if _is_too_deep([args, kwargs, embed, *found.values()]):
        raise DecodeError(f"not a Celery message: it is nested deeper than {DEEPEST}")


def _are_limits(limits: object) -> bool:
    if not limits:
        return True
    if not isinstance(limits, (list, tuple)):
        return False
    numbers = cast("Sequence[object]", limits)
    return len(numbers) == len(_LIMITS) and all(number is None or _is_limit(number) for number in numbers)


def _is_limit(number: object) -> bool:
    return isinstance(number, (int, float)) and 0 <= number <= LONGEST_LIMIT_S


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


def native(
    headers: dict[str, Any],
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    embed: Mapping[str, Any] | None,
    *,
    message: Any,
    namespace: str,
    texts: tuple[str, str] | None = None,
) -> Native:
    """Return the parts of kombu's message as the worker's consumer has taken it apart and checked it.

    A plain client's expiry is moved out of Celery's sight, for the rule for it is taskbridge's own (X1).
    """
    if headers.get("expires") is not None:
        headers[EXPIRES] = headers["expires"]
        headers["expires"] = None
    routing_key = (message.delivery_info or {}).get("routing_key")
    queue = own_queue(namespace, routing_key) if isinstance(routing_key, str) else None
    return Native(headers=headers, args=args or (), kwargs=kwargs or {}, embed=embed or {}, queue=queue, texts=texts)


def read(native: Native, *, default_queue: str, now: float) -> Message:
    """Return what a Celery message says.

    Args:
        native: The message.
        default_queue: For a plain client's message that came from no queue of ours.
        now: When a plain client's message counts as enqueued, for Celery's messages don't tell.

    Raises:
        NewerFormError: A newer release wrote it.
        DecodeError: It can't be read.
    """
    meta = native.headers.get(META)
    try:
        if meta is None:
            return checked(_read_plain(native, default_queue, now))
        if not isinstance(meta, str):
            raise DecodeError(f"not a message: its header {META!r} is a {type(meta).__name__}")
        message = loads_meta(
            meta,
            id=native.headers.get("id"),
            task=native.headers.get("task"),
            args=list(native.args),
            kwargs=dict(native.kwargs),
            texts=native.texts,
        )
        return checked(message)
    except CodecError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as exc:  # NaN, say, which Python reads in JSON
        raise DecodeError(f"not a message: {exc!r}") from exc


def _read_plain(native: Native, default_queue: str, now: float) -> Message:
    """Return the message of a plain client, with default options; its arguments are plain values, not tagged."""
    canvas = _canvas(native)
    return Message(
        id=native.headers.get("id"),
        task=native.headers.get("task"),
        queue=default_queue if native.queue is None else native.queue,
        args_json=codec.dumps_array(native.args, "args"),
        kwargs_json=codec.dumps_object(native.kwargs, "kwargs"),
        enqueued_at=now,
        expires_at=instant(native.headers.get(EXPIRES)),
        headers={} if canvas is None else {CANVAS: canvas},
    )


def _canvas(native: Native) -> str | None:
    """Return what else is to run after a plain client's task, as text; None if nothing is."""
    embed = {name: value for name, value in native.embed.items() if value}
    if not embed and not native.headers.get("group"):
        return None
    kept = {name: native.headers.get(name) for name in CANVAS_HEADERS}
    return codec.dumps_object({"embed": embed, **kept}, "canvas")


def instant(value: object) -> float | None:
    """Return Celery's `eta` or `expires` in seconds since the epoch; None if there is none.

    Raises:
        DecodeError: It is no time.
    """
    if value is None:
        return None
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(_iso(cast("str", value)))
    except (TypeError, ValueError, AttributeError) as exc:
        raise DecodeError(f"not a time: {value!r}") from exc
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)).timestamp()


def _iso(text: str) -> str:
    return f"{text[:-1]}+00:00" if text.endswith("Z") else text  # which Python 3.10 does not read
