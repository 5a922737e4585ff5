"""What is said of an exception, in messages, records, dead letters and logs: safe and bounded.

Exceptions are the user's own code: `__str__` may raise anything, a text may have 30 MB, a chain 200,000 causes.
Python's `traceback` module, and `logging` with it, raises for some and writes all of others. Nothing here raises, and
nothing here returns more than its bound.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from traceback import extract_tb, format_exception
from typing import Any, Final

from taskbridge import locks

MOST_TEXT: Final = 2_000  # how many characters of an exception's text are kept
MOST_TRACEBACK: Final = 32_000  # how many characters of a traceback are kept: its beginning and its end
_PACKAGE: Final = str(Path(__file__).parent) + os.sep
_MOST_NAME: Final = 200
_MOST_LINKS: Final = 10
_MOST_NOTES: Final = 10
_MOST_FRAMES: Final = 100
_MOST_PRINTED: Final = 8 * MOST_TRACEBACK  # of what others write who format it themselves, as of a deep stack
_CAUSE: Final = "The above exception was the direct cause of the following exception:"
_CONTEXT: Final = "During handling of the above exception, another exception occurred:"

# The attributes as the interpreter keeps them: a subclass may hide them behind a property that raises.
_cause: Final[Any] = BaseException.__dict__["__cause__"]
_context: Final[Any] = BaseException.__dict__["__context__"]
_suppress_context: Final[Any] = BaseException.__dict__["__suppress_context__"]
_traceback: Final[Any] = BaseException.__dict__["__traceback__"]


_now: Final[Any] = locks.Local()


@contextmanager
def printed_once(error: BaseException) -> Generator[None]:
    """Have an exception printed once for all that this thread says of it while the block runs; it takes 0.2 ms."""
    former = getattr(_now, "printed", None)  # on `inline://`, a hook about one death may run what dies too
    _now.printed = error, _printed(error)
    try:
        yield
    finally:
        _now.printed = former  # else it would keep what the exception's frames hold


class Portable(Exception):
    """An exception that can be pickled and copied whatever arguments its class takes."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Be made again without them, of all that it holds."""
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(kind: type[Portable], args: tuple[Any, ...], values: dict[str, Any]) -> Portable:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(values)  # a subclass may have properties of these names
    return error


class OddError(Exception):
    """Stands for an exception that can't be formatted, or would fill a log, where others than taskbridge format it."""


def presentable(error: BaseException) -> BaseException:
    """Return an exception that an engine's own tools may format: this one, or a plain one with its description."""
    return error if is_ordinary(error) else OddError(f"{type_of(type(error))}: {text_of(error)}")


def clipped(text: object, most: int = MOST_TEXT) -> str:
    """Return a text with at most so many characters, all of which every store can keep; empty for what is no text."""
    if text is None:
        return ""
    try:
        kept = str.__getitem__(text if isinstance(text, str) else str(text), slice(0, most))
    except BaseException as exc:  # a user's own `__str__` may raise anything, `SystemExit` too
        return f"<its text can't be had: {type_of(type(exc))}>"
    if kept.isascii() and "\0" not in kept:
        return kept
    kept = kept.replace("\0", "\\x00")  # PostgreSQL keeps none
    return kept.encode("utf-8", "backslashreplace").decode()


def text_of(error: BaseException) -> str:
    """Return an exception's text, at most 2,000 characters of it."""
    return clipped(error)


def type_of(kind: type) -> str:
    """Return the qualified name of an exception's class."""
    try:
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    except BaseException:  # a metaclass may have properties
        name = type.__dict__["__qualname__"].__get__(kind)
    return clipped(name, _MOST_NAME)


def cause_of(error: BaseException) -> BaseException | None:
    """Return the exception that one was raised from; None if there is none."""
    cause: BaseException | None = _cause.__get__(error)
    return cause


def is_ordinary(error: BaseException) -> bool:
    """Return whether Python's `traceback` and `logging` can format an exception, and write a bounded text of it."""
    return 0 < len(_printed(error)) <= _MOST_PRINTED


def traceback_of(error: BaseException | None) -> str:
    """Return what Python prints of an exception and of those that led to it, at most 32,000 characters of it.

    Of a longer one the beginning and the end are kept. None gives an empty text.
    """
    text = "" if error is None else _printed(error) or _told(error)
    if len(text) > MOST_TRACEBACK:
        half = MOST_TRACEBACK // 2 - 20
        text = f"{text[:half]}\n  ...\n{text[-half:]}"
    return clipped(text, MOST_TRACEBACK)


def _printed(error: BaseException) -> str:
    """Return what Python prints of an exception; nothing if it can't, or would have to print very much."""
    known: tuple[BaseException, str] | None = getattr(_now, "printed", None)
    if known is not None and known[0] is error:
        return known[1]
    try:
        links = list(islice(_chain(error), _MOST_LINKS + 1))
        if not error or len(links) > _MOST_LINKS or any(len(str(each)) > MOST_TEXT for each, _ in links):
            return ""
        if len(repr(error)) > 2 * MOST_TEXT:  # it holds more than its text tells, and engines log it
            return ""
        return "".join(format_exception(type(error), error, _traceback.__get__(error)))
    except BaseException:
        return ""


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


def _told(error: BaseException) -> str:
    """Return about the same of any exception, of each one that led to it by itself."""
    links = list(islice(_chain(error), _MOST_LINKS))
    parts = [_one(links[-1][0])]
    for each, joint in reversed(links[:-1]):
        parts.append(f"\n{joint}\n\n{_one(each)}")
    return "".join(parts)


def _one(error: BaseException) -> str:
    lines = [f"{type_of(type(error))}: {text_of(error)}".removesuffix(": ")]
    try:
        frames = extract_tb(_traceback.__get__(error), -_MOST_FRAMES).format()
        lines = [*(["Traceback (most recent call last):\n"] if frames else []), *frames, *lines]
        lines += [clipped(note) for note in islice(getattr(error, "__notes__", ()), _MOST_NOTES)]
    except BaseException as exc:  # a module's own loader gives the source, and notes are the user's code
        lines.append(f"<more can't be told: {type_of(type(exc))}>")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def exc_info(error: BaseException) -> tuple[type[BaseException], BaseException, Any]:
    """Return any exception for a logger of `logs`: `exc_info=error` would ask for its truth, which may raise."""
    return type(error), error, _traceback.__get__(error)


def place_of(error: BaseException) -> str:
    """Return where an exception was raised, in the innermost function that is not taskbridge's, as ` (file:1 in f)`.

    It is empty if there is no such function.
    """
    found, link = "", _traceback.__get__(error)
    while link is not None:
        code = link.tb_frame.f_code
        if not code.co_filename.startswith(_PACKAGE):
            found = f" ({code.co_filename}:{link.tb_lineno} in {code.co_name})"
        link = link.tb_next
    return found
