"""What commands print: tables, JSON, durations, retry policies, colours."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import accumulate
from textwrap import indent
from time import monotonic
from typing import Any, Final
from unicodedata import category, east_asian_width

from taskbridge import ErrorInfo
from taskbridge.logs import escaped
from taskbridge.retry import RetryPolicy

GREEN: Final = 32
YELLOW: Final = 33
RED: Final = 31
CYAN: Final = 36

LAYOUT: Final = "\n\t"  # what is not escaped where several lines are printed
_NAMES: Final = 12  # how wide the names are before values
_SHOW_S: Final = 0.1  # how often a bar of progress is drawn anew
_UNITS = ((86400.0, "day"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


said_by: list[logging.Logger] = []  # the logger of a command that logs; of others none


def say(text: str, level: int = logging.INFO) -> None:
    """Write a line about what the command does to stderr, or to the log if it has one."""
    for logger in said_by:
        logger.log(level, "%s", escaped(text))
    if not said_by:
        print(f"taskbridge: {escaped(text)}", file=sys.stderr, flush=True)


def line(text: str) -> None:
    """Write a line to stderr, on a terminal in the place of the one before."""
    sys.stderr.write(f"\r\x1b[K{text}" if sys.stderr.isatty() else f"{text}\n")
    sys.stderr.flush()


def bar(done: float, total: float, *, width: int = 30) -> str:
    """Return a bar of so many characters that shows how much is done."""
    full = width if done >= total else int(width * done / total)
    return f"[{'#' * full}{'.' * (width - full)}]"


@contextmanager
def progress(what: str, count: Callable[[], int]) -> Generator[Callable[[int], None] | None, None, None]:
    """Show how much is done, in a line that vanishes in the end; nothing unless stdout and stderr are terminals.

    Yields what is to be told how much is done by now; None if that is not shown, and then nothing is counted.
    """
    if not (sys.stdout.isatty() and sys.stderr.isatty()) or os.environ.get("TERM") == "dumb":
        yield None
        return
    shown_at, total = 0.0, count()

    def show(done: int) -> None:
        nonlocal shown_at
        if monotonic() - shown_at >= _SHOW_S:
            shown_at, most = monotonic(), max(done, total)
            print(f"\r{what} {bar(done, most)} {done} of {most}\x1b[K", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def print_json(data: Any) -> None:
    """Print data as JSON, in ASCII; moments to the millisecond."""
    print(json.dumps(data, indent=2, default=lambda moment: moment.isoformat(timespec="milliseconds")))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "") -> str:
    """Return a table: columns as wide as they need to be, two spaces apart; one may be aligned to the right."""
    lines = [[escaped(cell) for cell in line] for line in (head, *rows)]
    widths = [max(columns(line[column]) for line in lines) for column in range(len(head))]

    def filled(cell: str, width: int, name: str) -> str:
        space = " " * (width - columns(cell))
        return f"{space}{cell}" if name == right else f"{cell}{space}"

    return "\n".join("  ".join(map(filled, line, widths, head)).rstrip() for line in lines)


def table_or_list(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; on a terminal that is too narrow for it, a list: a line for each cell, with its column's name."""
    text, width = table(head, rows), shutil.get_terminal_size().columns
    if not sys.stdout.isatty() or max(map(columns, text.split("\n"))) <= width:
        return text
    names = max(_NAMES, *(len(name) + 2 for name in head))
    return "\n\n".join(
        details(
            [(name, "\n".join(_parts(escaped(cell), width - names))) for name, cell in zip(head, row, strict=True)],
            names=names,
        )
        for row in rows
    )


def columns(text: str) -> int:
    """Return how many columns of a terminal escaped text takes: two for each wide character, as of Chinese."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(character: str) -> int:
    return 0 if category(character) in ("Mn", "Me", "Cf") else 2 if east_asian_width(character) in ("W", "F") else 1


def cut(text: str, width: int) -> str:
    """Return as much of escaped text as so many columns of a terminal hold."""
    if columns(text) <= width:
        return text
    ends = accumulate(map(_columns, text))
    return text[: sum(end <= width for end in ends)]


def _parts(text: str, width: int) -> Iterator[str]:
    while text:
        part = cut(text, max(2, width))
        yield part
        text = text[len(part) :]


def details(lines: Sequence[tuple[str, str | None]], traceback: str = "", *, names: int = _NAMES) -> str:
    """Return a line for each name that has a value, and a traceback below if there is one."""
    # The further lines of a value must not look like those of another one.
    shown = [
        (name, escaped(value, keep=LAYOUT).replace("\n", f"\n{'':{names}}"))
        for name, value in lines
        if value is not None
    ]
    described = "\n".join(f"{name:<{names - 2}}  {value}" for name, value in shown)
    return f"{described}\n\n{indent(escaped(traceback.rstrip(), keep=LAYOUT), '  ')}" if traceback else described


def local_time(moment: datetime | None) -> str:
    """Return a moment in this machine's zone, to the second; `-` if there is none."""
    return "-" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def error_text(error: ErrorInfo | None) -> str | None:
    """Return an error's type and message."""
    return None if error is None else f"{error.type}: {error.message}"


def many(number: int, one: str, more: str = "") -> str:
    """Return a number with its noun: `1 task`, `2 tasks`; `more` is the plural if it is not `one` and an s."""
    return f"{number} {one if number == 1 else more or f'{one}s'}"


def colored(color: int, text: str) -> str:
    """Return text in a colour, by its ANSI code, where stdout is a terminal that wants colours; else as it is."""
    wanted = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    return f"\x1b[{color}m{text}\x1b[0m" if wanted or os.environ.get("FORCE_COLOR") else text


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
