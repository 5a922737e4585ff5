"""Durations and instants, as users give them and as they are kept: float seconds."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from math import isfinite
from typing import Final, overload

Duration = timedelta | int | float
"""A `timedelta`, or a number of seconds."""

When = timedelta | int | float | datetime
"""How long from now, or an aware `datetime`."""

LONGEST_DELAY_S: Final = 8 * 365.25 * 86400.0
"""8 years (rule D5)."""


def seconds(duration: Duration, *, name: str) -> float:
    """Return a duration in seconds; raise `ValueError` if it is negative or not finite, `TypeError` if it is none."""
    if isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, (int, float)) and not isinstance(duration, bool):
        value = float(duration)
    else:
        raise TypeError(f"{name} must be a timedelta or a number of seconds, not {duration!r}")
    if not isfinite(value) or value < 0:
        raise ValueError(f"{name} must be at least 0 and finite, not {duration!r}")
    return value


@overload
def moment(instant: float) -> datetime: ...


@overload
def moment(instant: float | None) -> datetime | None: ...


def moment(instant: float | None) -> datetime | None:
    """Return seconds since the epoch as a datetime in UTC; None of None."""
    return None if instant is None else datetime.fromtimestamp(instant, timezone.utc)


def timestamp(moment: datetime, *, name: str) -> float:
    """Return an aware datetime as seconds since the epoch; raise `ValueError` for a naive one."""
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError(
            f"{name} is a naive datetime ({moment.isoformat()}); give it a time zone, "
            "such as datetime.now(timezone.utc)"
        )
    return moment.timestamp()


def delay_s(when: When, *, now: float, name: str) -> float:
    """Return the seconds from now until a time, 0 if it is past; raises as `seconds` and `timestamp`."""
    if isinstance(when, datetime):
        return max(0.0, timestamp(when, name=name) - now)
    return seconds(when, name=name)


def positive(duration: Duration, *, name: str) -> float:
    """Return a duration in seconds, if it is more than 0; else raise `ValueError`."""
    value = seconds(duration, name=name)
    if value == 0:
        raise ValueError(f"{name} must be more than 0")
    return value
