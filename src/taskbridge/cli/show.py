"""How values are shown: tables, JSON, durations, retry policies, colours."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TextIO

from taskbridge import ErrorInfo
from taskbridge.retry import RetryPolicy

_UNITS = ((86400.0, "day"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def print_json(data: Any) -> None:
    """Print data as JSON."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Return a table: columns as wide as they need to be, two spaces apart.

    Args:
        head: The names of the columns.
        rows: The cells.
        right: The columns that are aligned to the right.
    """
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    aligned = [">" if name in right else "<" for name in head]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, aligned, widths, strict=True)).rstrip()
        for line in lines
    )


def details(lines: Sequence[tuple[str, str]], traceback: str = "") -> str:
    """Return a line for each name and value, and a traceback below if there is one."""
    described = "\n".join(f"{name:<10}  {value}" for name, value in lines)
    return f"{described}\n\n{traceback.rstrip()}" if traceback else described


def local_time(moment: datetime | None) -> str:
    """Return a moment in this machine's zone, to the second; `-` if there is none."""
    return "-" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def iso(moment: datetime | None) -> str | None:
    """Return a moment for JSON, to the millisecond."""
    return None if moment is None else moment.isoformat(timespec="milliseconds")


def error_data(error: ErrorInfo | None) -> dict[str, str] | None:
    """Return an error for JSON."""
    return None if error is None else {"type": error.type, "message": error.message}


def duration(seconds: float) -> str:
    """Return seconds in the largest unit that needs no more than two decimals: `0.25 s`, `10 min`, `7 days`."""
    for size, unit in _UNITS:
        number = seconds / size
        if number >= 1 and round(number, 2) == number:
            return f"{number:g} {unit}{'s' if unit == 'day' and number != 1 else ''}"
    return f"{seconds:g} s"


def policy(of: RetryPolicy) -> str:
    """Return a retry policy in a few words: `5 attempts, 1 s x 2 up to 10 min, jitter 50%`."""
    if of.max_attempts == 1:
        return "1 attempt"
    words = ["any number of attempts" if of.max_attempts is None else f"{of.max_attempts} attempts", _delays(of)]
    if of.jitter:
        words.append(f"jitter {of.jitter:.0%}")
    if of.retry_on != (Exception,):
        words.append(f"only on {_names(of.retry_on)}")
    if of.give_up_on:
        words.append(f"not on {_names(of.give_up_on)}")
    return ", ".join(words)


def _delays(of: RetryPolicy) -> str:
    if of.delays is not None:
        return " then ".join(duration(delay.total_seconds()) for delay in of.delays)
    first, longest = of.min_delay.total_seconds(), of.max_delay.total_seconds()
    if of.factor == 1 or first == longest:
        return duration(first)
    return f"{duration(first)} x {of.factor:g} up to {duration(longest)}"


def _names(types: Sequence[type[BaseException]]) -> str:
    return " or ".join(kind.__name__ for kind in types)


class Paint:
    """Colours, on a terminal that wants them; else the text as it is."""

    def __init__(self, stream: TextIO) -> None:
        terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._on = (terminal and not os.environ.get("NO_COLOR")) or bool(os.environ.get("FORCE_COLOR"))

    def __call__(self, style: str, text: str) -> str:
        """Return text in a style: `bold`, `dim`, `red`, `green`, `yellow`, `blue`, `magenta` or `cyan`."""
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self._on and text else text


_CODES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36}


def say(text: str) -> None:
    """Write a line about what the command does to stderr, where logs go."""
    print(f"taskbridge: {text}", file=sys.stderr, flush=True)
