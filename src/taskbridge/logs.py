"""The loggers of taskbridge: what came with a message forges no line of a log and commands no terminal (rule I4)."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Mapping
from textwrap import indent
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from taskbridge import locks
from taskbridge.failures import MOST_TEXT, clipped, exc_info, is_ordinary, traceback_of

if TYPE_CHECKING:
    from taskbridge.message import Message

_MOST_VALUE: Final = 500  # how many characters of a value are logged, such as of a name that somebody else has chosen

_MINUTE_S: Final = 60.0
_MOST_NAMES: Final = 1000

_CONTROL: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f"  # C0 and C1: line ends, and what begins a terminal's commands
    r"\u2028\u2029"  # line ends
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # these change the direction of what follows
    r"\ud800-\udfff]"  # halves of a surrogate pair, which can't be written
)


def escaped(text: str, *, keep: str = "") -> str:
    r"""Return a text with its control characters written as escapes, such as `\x1b`; those in `keep` stay."""
    if text.isprintable():
        return text
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def logger(name: str) -> logging.Logger:
    """Return the logger of this name; what it logs is escaped and bounded, and an exception's traceback safe too."""
    found = logging.getLogger(name)
    found.addFilter(_ESCAPES)
    return found


def about(message: Message) -> dict[str, Any]:
    """Return which message a record is about; loggers are given it as `extra={"taskbridge": ...}`."""
    return {
        "task": clipped(message.task, _MOST_VALUE),
        "id": clipped(message.id, _MOST_VALUE),
        "attempt": message.attempt,
        "queue": clipped(message.queue, _MOST_VALUE),
    }


def say(
    logger: logging.Logger,
    level: int,
    message: Message,
    text: str,
    *args: object,
    error: BaseException | None = None,
    traceback: str | None = None,
) -> None:
    """Log a line about a message, by one of these loggers, with any exception, or with what may be shown of it."""
    text, named = f"task %s id %s attempt %d {text}", (message.task, message.id, message.attempt)
    extra: dict[str, Any] = {"taskbridge": about(message)}
    if traceback is not None:
        extra["shown_traceback"] = traceback
    info = None if error is None else exc_info(error)
    logger.log(level, text, *named, *args, exc_info=info, extra=extra, stacklevel=2)


class OncePerMinute:
    """Says for each of some names, such as of tasks, when a line about it is due; threads share it."""

    def __init__(self) -> None:
        self._lock = locks.Lock()
        self._said: OrderedDict[str, list[float]] = OrderedDict()  # when the last line was, and how many came since

    def due(self, name: str, *, is_new: bool) -> int | None:
        """Return how many new ones there were since the last line about a name; None if none is due yet."""
        name = name[:_MOST_VALUE]
        with self._lock:
            now, last = monotonic(), self._said.get(name)
            if last is not None and now - last[0] < _MINUTE_S:
                last[1] += is_new
                return None
            self._said.pop(name, None)
            self._said[name] = [now, 0]
            if len(self._said) > _MOST_NAMES:
                self._said.popitem(last=False)
            return 0 if last is None else int(last[1])


class _Escapes(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        # Each value by itself: a long one leaves what stands behind it, and tools group lines by their `msg`.
        if isinstance(record.args, Mapping):
            record.args = {name: _shown(value, _MOST_VALUE) for name, value in record.args.items()}
        elif record.args:
            record.args = tuple(_shown(value, _MOST_VALUE) for value in record.args)
        record.msg = _shown(record.msg, MOST_TEXT)
        error = record.exc_info[1] if record.exc_info else None
        text = getattr(record, "shown_traceback", None) or traceback_of(error)
        if text:  # indented, so that a line of the exception's own text doesn't look like one of the log
            record.exc_text = indent(escaped(text.rstrip(), keep="\n\t"), "  ")
        if error is not None and not is_ordinary(error):  # handlers that look at it, such as Sentry's, would fail
            record.exc_info = None
        return True


_ESCAPES: Final = _Escapes()


def _shown(value: object, most: int) -> object:
    if value is None or type(value) in (int, float, bool):
        return value
    return escaped(clipped(value, most))[:most]
