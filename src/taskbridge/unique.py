"""Unique tasks, as declared (rules U): which of their messages are the same, for how long, and what is done then."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from inspect import BoundArguments, Signature
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

from taskbridge import codec, locks
from taskbridge.durations import Duration, positive
from taskbridge.exceptions import nearest

if TYPE_CHECKING:
    from taskbridge.tasks import Call

Until = Literal["end", "start"]
OnConflict = Literal["skip", "raise", "replace", "after"]

TO_END: Final = "e"
TO_START: Final = "s"
REPLACED: Final = "r"
MOVED: Final = "d"
"""How a message holds its key, the first character of `Message.unique`: until it ends; until it starts; until it ends,
or is replaced before it starts; until it starts, which further sends move."""

FREED_AT_START: Final = (TO_START, MOVED)
STARTS_IN_ORDER: Final = (TO_START, MOVED, REPLACED)
"""A worker that does not look at the record before it starts them would run what was replaced or moved."""


@dataclass(frozen=True, slots=True, init=False)
class Unique:
    """Of all messages of a task with the same key, one waits or runs at a time: `@task(unique=Unique("table_id"))`.

    Args:
        key: What makes two messages the same: a parameter's name, or several; `()` for all messages of the task; None
            for all arguments; or a function that is called with the arguments, and returns a value that a message can
            hold.
        until: How long a message holds its key: until its `end`, whatever that is, or until its `start`, so that what
            is sent while it runs is run once more.
        on_conflict: What `send` does while another message holds the key. `skip` returns that one's handle, and `raise`
            raises `UniqueConflict`. `replace` cancels it if it has not started, and takes its place; else it is as
            `skip`. `after` has one more message start when that one ends, the latest; it needs `until="end"`.
        debounce: A message starts so long after the latest `send`, with the latest arguments; what is sent while it
            runs begins anew. Neither `until` nor `on_conflict` can be given then.
        at_most: With `debounce`, it starts no later than so long after the first `send`.

    Raises:
        ValueError, TypeError: A value is wrong, or does not go with another one.
    """

    key: str | tuple[str, ...] | Callable[..., Any] | None
    until: Until
    on_conflict: OnConflict
    debounce_s: float | None
    at_most_s: float | None

    def __init__(
        self,
        key: str | Sequence[str] | Callable[..., Any] | None = None,
        *,
        until: Until | None = None,
        on_conflict: OnConflict | None = None,
        debounce: Duration | None = None,
        at_most: Duration | None = None,
    ) -> None:
        _one_of(until, "until", get_args(Until))
        _one_of(on_conflict, "on_conflict", get_args(OnConflict))
        if debounce is not None and (until is not None or on_conflict is not None):
            raise ValueError("debounce moves the start of the message that waits: leave out until and on_conflict")
        if debounce is None and at_most is not None:
            raise ValueError("at_most bounds what debounce does: give debounce too")
        if on_conflict == "after" and until == "start":
            raise ValueError("on_conflict='after' starts a message when another one ends: it needs until='end'")
        debounce_s = None if debounce is None else positive(debounce, name="debounce")
        at_most_s = None if at_most is None else positive(at_most, name="at_most")
        if debounce_s is not None and at_most_s is not None and at_most_s < debounce_s:
            raise ValueError(f"at_most ({at_most_s:g} s) is shorter than debounce ({debounce_s:g} s)")
        if not (key is None or isinstance(key, str) or callable(key)):
            key = tuple(key)
        fields = {
            "key": key,
            "until": until or ("end" if debounce is None else "start"),
            "on_conflict": on_conflict or "skip",
            "debounce_s": debounce_s,
            "at_most_s": at_most_s,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def check(self, signature: Signature) -> None:
        """Return if the key's names are parameters of a function; else raise `ValueError`."""
        names = () if self.key is None or callable(self.key) else self.key
        for name in (names,) if isinstance(names, str) else names:
            if name not in signature.parameters:
                hint = nearest(name, signature.parameters)
                raise ValueError(f"unique names {name!r}, which is no parameter of {signature}{hint}")

    def held_by(self, call: Call[Any], args_json: str | None = None) -> str:
        """Return how a call's message holds its key, and the key's hash: `Message.unique`.

        Args:
            call: The call.
            args_json: Its positional arguments as `Call.encoded` returns them, if they are encoded already.

        Raises:
            EncodeError: The key is no value that a message can hold.
        """
        names = (self.key,) if isinstance(self.key, str) else self.key
        if callable(names):
            hashed = hash_of(names(*call.args, **call.kwargs), "key")
        elif names is None:
            hashed = hash_of(_given(call), "key")
        elif names and args_json is not None and not call.kwargs and names == call.declaration.names[: len(call.args)]:
            hashed = _hash_of_text(args_json)  # which is what the values of these names would be as JSON
        else:
            hashed = hash_of(_named(call, names), "key")
        mode = MOVED if self.debounce_s is not None else TO_START if self.until == "start" else TO_END
        if self.on_conflict == "replace" and mode == TO_END:
            mode = REPLACED
        return f"{mode}:{hashed}"


def unique_of(given: object) -> Unique | None:
    """Return what the option `unique` of a decorator says: a `Unique`, a parameter's name or several, True or False."""
    if isinstance(given, Unique):
        return given
    if isinstance(given, bool):
        return Unique() if given else None
    if isinstance(given, (str, list, tuple)):
        return Unique(cast("str | Sequence[str]", given))
    raise TypeError(f"unique must name parameters, or be True or Unique(...), not {given!r}")


def digest_of(call: Call[Any]) -> str:
    """Return a hash of a call's arguments: `Message.digest`."""
    return hash_of(_given(call), "args")


def _named(call: Call[Any], names: Sequence[str]) -> list[Any]:
    """Return the arguments of these names, as they are sent."""
    known = call.declaration.names
    if known and call.declaration.hints is None:  # few calls need more than this, which takes half the time
        given = dict(zip(known, call.args, strict=False), **call.kwargs)
        with suppress(KeyError):
            return [given[name] for name in names]
    bound = _bound(call)
    if not bound.arguments.keys() >= set(names):
        bound.apply_defaults()
    sent = _as_sent(call, bound)
    return [sent[name] for name in names]


def _given(call: Call[Any]) -> dict[str, Any]:
    """Return the arguments that are not defaults, of which a later release may have more, as they are sent."""
    bound = _bound(call)
    defaults = {name: each.default for name, each in bound.signature.parameters.items()}
    names = [name for name, value in bound.arguments.items() if not _is_same(value, defaults[name])]
    sent = _as_sent(call, bound)
    return {name: sent[name] for name in names}


def _bound(call: Call[Any]) -> BoundArguments:
    """Return a call's arguments by name, without defaults; few functions need `bind`, which takes 5 us."""
    declaration = call.declaration
    if not declaration.names:
        return declaration.signature.bind(*call.args, **call.kwargs)
    arguments: Any = dict(zip(declaration.names, call.args, strict=False), **call.kwargs)
    return BoundArguments(declaration.signature, arguments)


def _as_sent(call: Call[Any], bound: BoundArguments) -> Mapping[str, Any]:
    """Return bound arguments by name, as they are sent: the codec knows no values of hinted classes."""
    hints = call.declaration.hints
    if hints is None:
        return bound.arguments
    args, kwargs = hints.lowered(bound.args, bound.kwargs)
    return bound.signature.bind(*args, **kwargs).arguments


def _is_same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


def hash_of(value: object, place: str) -> str:
    """Return a hash of a value, the same in each process.

    Raises:
        EncodeError: No message can hold it; `place` is what the error calls it.
    """
    # Both write the same of a list; most keys are one of few plain values, for which this takes half the time.
    return _hash_of_text(codec.dumps_array(value, place) if codec.is_list(value) else codec.dumps(value, place))


def _hash_of_text(text: str) -> str:
    """Return a hash of what the codec has written."""
    if "{" in text:  # else there is nothing whose order could differ
        text = json.dumps(_in_order(codec.from_json(text)), sort_keys=True)
    digest: str = blake2b()(text.encode(), digest_size=16).hexdigest()
    return digest


@cache
def blake2b() -> Callable[..., Any]:
    """Return `hashlib.blake2b`."""
    with locks.no_fork():
        from hashlib import blake2b  # here, for it loads OpenSSL, and few tasks are unique

    return blake2b


def _in_order(plain: Any) -> Any:
    """Return what JSON holds, with what sets and dicts hold in order: theirs differs from process to process."""
    match plain:
        case list():
            return [_in_order(item) for item in cast("list[Any]", plain)]  # type: ignore[redundant-cast]  # pyright's
        case {codec.TAG: "set" | "frozenset" | "dict" as kind, "v": list()}:
            return {codec.TAG: kind, "v": sorted(_in_order(plain["v"]), key=json.dumps)}
        case dict():
            return {name: _in_order(item) for name, item in cast("dict[str, Any]", plain).items()}
        case _:
            return plain


def _one_of(value: object, name: str, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}{nearest(str(value), known)}")
