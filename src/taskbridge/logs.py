"""The loggers of taskbridge: what came with a message forges no line of a log and commands no terminal (rule I4)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from textwrap import indent
from typing import Final

from taskbridge.failures import MOST_TEXT, clipped, is_ordinary, traceback_of

_MOST_VALUE: Final = 500  # how many characters of a value are logged, such as of a name that somebody else has chosen

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


class _Escapes(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        # Each value by itself: a long one leaves what stands behind it, and tools group lines by their `msg`.
        if isinstance(record.args, Mapping):
            record.args = {name: _shown(value, _MOST_VALUE) for name, value in record.args.items()}
        elif record.args:
            record.args = tuple(_shown(value, _MOST_VALUE) for value in record.args)
        record.msg = _shown(record.msg, MOST_TEXT)
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            # Indented, so that a line of the exception's own text doesn't look like one of the log.
            record.exc_text = indent(escaped(traceback_of(error).rstrip(), keep="\n\t"), "  ")
            if not is_ordinary(error):  # handlers that look at it themselves, such as Sentry's, would fail
                record.exc_info = None
        return True


_ESCAPES: Final = _Escapes()


def _shown(value: object, most: int) -> object:
    if value is None or type(value) in (int, float, bool):
        return value
    return escaped(clipped(value, most))[:most]
