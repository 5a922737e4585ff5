"""How things are written on the page: numbers, times, charts; all text is escaped and bounded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from glob import escape as exactly
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from taskbridge.failures import MOST_TRACEBACK, clipped
from taskbridge.logs import escaped

MOST_TEXT: Final = 500  # how many characters of a text are shown, but for tracebacks and arguments
MOST_VALUE: Final = 1000  # of one that a link or a form brings back, as it is

_UNITS: Final = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))
_BAR: Final = 4  # the width of a minute


def environment() -> Environment:
    """Return what renders the page's templates."""
    made = Environment(
        loader=PackageLoader("taskbridge.web"),
        autoescape=True,
        auto_reload=False,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    filters: Any = made.filters  # typed as those that Jinja has by itself
    filters.update(bars=bars, exactly=exactly, long=long, number=number, span=span, utc=utc, value=value)
    return made


def _shown(value: Any) -> Any:
    if value is None:
        return "\N{EN DASH}"
    return value if isinstance(value, Markup | int | float) else escaped(clipped(value, MOST_TEXT))


def long(text: str) -> Markup:
    """Return a text with its lines, such as a traceback."""
    return escape(escaped(clipped(text, MOST_TRACEBACK), keep="\n\t"))


def value(text: str) -> Markup:
    """Return what a form is to bring back unchanged."""
    return escape(clipped(text, MOST_VALUE))


def number(value: float | None) -> str | None:
    """Return a number with its thousands apart."""
    return None if value is None else f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def span(seconds: float | None) -> str | None:
    """Return seconds in one unit, rounded down: `42 s`, `3 min`, `5 h`, `12 d`."""
    if seconds is None:
        return None
    size, unit = next((each for each in _UNITS if seconds >= 2 * each[0]), (1.0, "s"))
    return f"{max(0, int(seconds / size))}\N{NO-BREAK SPACE}{unit}"


def utc(moment: datetime) -> str:
    """Return a moment in UTC, to the second."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def bars(values: Sequence[int], height: int = 40) -> Markup:
    """Return the SVG path of a chart with a bar for each value, 4 wide, as high as its part of the highest one."""
    top = max(1, *values)
    drawn: list[str] = []
    for index, value in enumerate(values):
        if value:
            tall = max(1.5, height * value / top)
            drawn.append(f"M{index * _BAR} {height}v{-tall:.1f}h{_BAR - 1}v{tall:.1f}z")
    return Markup("").join(drawn)
