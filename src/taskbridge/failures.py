"""What is said of an exception, in messages, records, dead letters and logs: safe and bounded.

Exceptions are the user's own code: `__str__` may raise anything, a text may have 30 MB, a chain 200,000 causes.
Python's `traceback` module, and `logging` with it, raises for some and writes all of others. Nothing here raises, and
nothing here returns more than its bound.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from traceback import extract_tb, walk_tb
from types import TracebackType
from typing import Any, Final, TypeGuard

MOST_TEXT: Final = 2_000
"""How many characters of an exception's text are kept."""

MOST_TRACEBACK: Final = 32_000
"""How many characters of a traceback are kept: its beginning and its end."""

_MOST_NAME: Final = 200
_MOST_LINKS: Final = 10
_MOST_NOTES: Final = 10
_MOST_FRAMES: Final = 50
"""How many frames of each traceback are told, at its beginning and at its end each."""

_CAUSE: Final = "The above exception was the direct cause of the following exception:"
_CONTEXT: Final = "During handling of the above exception, another exception occurred:"

# The attributes as the interpreter keeps them: a subclass may hide them behind a property that raises.
_cause: Final[Any] = BaseException.__dict__["__cause__"]
_context: Final[Any] = BaseException.__dict__["__context__"]
_suppress_context: Final[Any] = BaseException.__dict__["__suppress_context__"]
_traceback: Final[Any] = BaseException.__dict__["__traceback__"]


class OddError(Exception):
    """Stands for an exception that can't be formatted, or would fill a log, where others than taskbridge format it."""


def presentable(error: BaseException) -> BaseException:
    """Return an exception that an engine's own tools may format: this one, or a plain one with its description."""
    return error if is_ordinary(error) else OddError(f"{type_of(type(error))}: {text_of(error)}")


def clipped(text: object, most: int = MOST_TEXT) -> str:
    """Return a text with at most so many characters, all of which every store can keep; empty for what is no text."""
    if not isinstance(text, str):
        return "" if text is None else _text_of(text, most)
    kept = str.__getitem__(text, slice(0, most))
    if kept.isascii() and "\0" not in kept:
        return kept
    kept = kept.replace("\0", "\\x00")  # PostgreSQL keeps none
    return kept.encode("utf-8", "backslashreplace").decode()


def _text_of(value: object, most: int) -> str:
    try:
        return clipped(str(value), most)
    except BaseException as exc:  # a user's own `__str__` may raise anything, `SystemExit` too
        return f"<its text can't be had: {type_of(type(exc))}>"


def text_of(error: BaseException) -> str:
    """Return an exception's text, at most 2,000 characters of it."""
    return _text_of(error, MOST_TEXT)


def type_of(kind: type) -> str:
    """Return the qualified name of an exception's class."""
    try:
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    except BaseException:  # a metaclass may have properties
        name = type.__dict__["__qualname__"].__get__(kind)
    return clipped(name, _MOST_NAME)


def is_ordinary(error: BaseException) -> bool:
    """Return whether Python's `traceback` and `logging` can format an exception, and write a bounded text of it."""
    try:
        links = list(islice(_chain(error), _MOST_LINKS + 1))
        return bool(error) and len(links) <= _MOST_LINKS and all(_is_ordinary(each) for each, _ in links)
    except BaseException:
        return False


def _is_ordinary(error: BaseException) -> bool:
    """Return this of one exception of a chain; raises what formatting it would raise."""
    if len(str(error)) > MOST_TEXT or getattr(error, "__cause__", None) is not _cause.__get__(error):
        return False
    notes: Any = getattr(error, "__notes__", None) or ()
    if len(notes) > _MOST_NOTES or any(type(note) is not str or len(note) > MOST_TEXT for note in notes):
        return False
    if isinstance(error, SyntaxError):  # `traceback` shows the line, and takes for granted what these are
        places = (error.lineno, error.offset)
        texts = (error.text, error.filename)
        return all(isinstance(each, int | None) for each in places) and all(
            isinstance(each, str | None) for each in texts
        )
    members = _group(error)
    return len(members) <= _MOST_LINKS and all(map(is_ordinary, members))


def _group(error: BaseException) -> tuple[Any, ...]:
    """Return the exceptions of a group; none for another exception. Raises what a property of that name raises."""
    members: Any = getattr(error, "exceptions", None)
    return members if _is_tuple(members) else ()


def _is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple)


def traceback_of(error: BaseException | None) -> str:
    """Return what Python prints of an exception and of those that led to it, at most 32,000 characters of it.

    Of a longer one the beginning and the end are kept. None gives an empty text.
    """
    if error is None:
        return ""
    parts: list[str] = []
    links = list(islice(_chain(error), _MOST_LINKS))
    for number, (each, joint) in enumerate(reversed(links)):
        parts.append(_one(each))
        if number < len(links) - 1:
            parts.append(f"\n{links[len(links) - number - 2][1] or joint}\n\n")
    text = "".join(parts)
    if len(text) <= MOST_TRACEBACK:
        return text
    half = MOST_TRACEBACK // 2 - 20
    return f"{text[:half]}\n  ...\n{text[-half:]}"


def _chain(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """Yield an exception and those that led to it, the last first, each with how the one before it led to it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        cause = _cause.__get__(current)
        if cause is not None:
            before, joint = cause, _CAUSE
        else:
            before, joint = None if _suppress_context.__get__(current) else _context.__get__(current), _CONTEXT
        yield current, joint
        current = before


def _one(error: BaseException) -> str:
    """Return what is printed of one exception, without those that led to it."""
    frames = _frames(_traceback.__get__(error))
    lines = [f"{type_of(type(error))}: {text_of(error)}".removesuffix(": ")]
    try:
        notes: Any = getattr(error, "__notes__", None) or ()
        lines += [clipped(note) for note in islice(notes, _MOST_NOTES)]
    except BaseException as exc:
        lines.append(f"<its notes can't be had: {type_of(type(exc))}>")
    lines += _members(error)
    return "".join(f"{line}\n" for line in (*frames, *lines))


def _members(error: BaseException) -> list[str]:
    """Return what is printed of the exceptions of a group."""
    try:
        members = _group(error)
    except BaseException:
        return []
    each = [one for one in members[:_MOST_LINKS] if isinstance(one, BaseException)]
    return [f"  | {line}" for one in each for line in clipped(_leaf(one), MOST_TEXT).splitlines()]


def _leaf(error: BaseException) -> str:
    return "\n".join((*_frames(_traceback.__get__(error)), f"{type_of(type(error))}: {text_of(error)}"))


def _frames(traceback: TracebackType | None) -> list[str]:
    if traceback is None:
        return []
    try:
        left_out = sum(1 for _ in walk_tb(traceback)) - 2 * _MOST_FRAMES
        if left_out <= 0:
            told = extract_tb(traceback).format()
        else:
            first, last = extract_tb(traceback, _MOST_FRAMES).format(), extract_tb(traceback, -_MOST_FRAMES).format()
            told = [*first, f"  ({left_out} frames are left out)", *last]
    except BaseException as exc:  # a module's own loader gives the source
        told = [f"  <it can't be told: {type_of(type(exc))}>"]
    return ["Traceback (most recent call last):", *(line.rstrip("\n") for line in told)]


def log(logger: logging.Logger, level: int, message: str, *args: object, error: BaseException) -> None:
    """Log a message with an exception, as `exc_info` does, but safe and bounded.

    Handlers that look at `exc_info` themselves, such as Sentry's, get the exception if it is an ordinary one.
    """
    if not logger.isEnabledFor(level):
        return
    if not is_ordinary(error):
        logger.log(level, "%s\n%s", message % args, traceback_of(error).rstrip(), stacklevel=2)
        return
    file, line, function, _ = logger.findCaller(stacklevel=2)
    exc_info = (type(error), error, _traceback.__get__(error))
    record = logger.makeRecord(logger.name, level, file, line, message, args, exc_info, function)
    record.exc_text = traceback_of(error).rstrip()  # which formatters write, instead of formatting it once more
    logger.handle(record)
