"""Schedules: when periodic tasks are due (rules CR). Pure: nothing here asks for the time, or talks to a store.

A tick is one planned instant of a schedule, in whole seconds since the epoch. Whoever plans the same schedule gets the
same ticks, on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone, tzinfo
from functools import lru_cache
from itertools import islice, takewhile
from math import inf
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast, get_args

from taskbridge.durations import Duration, seconds
from taskbridge.exceptions import DeclarationError, NotInstalledError, nearest, needs

if TYPE_CHECKING:
    from cronsim import CronSim

CatchUp = Literal["none", "one", "all"]
"""What becomes of ticks that were due while no scheduler was there: none is sent, the latest, or each."""

Overlap = Literal["allow", "skip"]
"""What becomes of a tick while the message of the one before has not ended: it is sent, or skipped."""

LONGEST_NAME: Final = 255

_SIZES: Final = {"minute": 60, "hour": 24, "day": 31, "month": 12, "day of the week": 7}
"""The fields of a cron expression, and how many values each has."""


_CRONSIM_NAMES: Final = (" minute", "hour", "day-of-month", " month", "day-of-week")
"""What the errors of cronsim end with, for each field."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """When a schedule is due; `Cron` and `Every` are the two kinds."""

    name: str | None = None
    catch_up: CatchUp = "one"
    overlap: Overlap = "allow"

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)
        for key, choices in (("catch_up", get_args(CatchUp)), ("overlap", get_args(Overlap))):
            value = getattr(self, key)
            if value not in choices:
                hint = nearest(value, choices) if isinstance(value, str) else ""
                raise DeclarationError(f"{key} {value!r} is not one of {', '.join(choices)}{hint}")

    @property
    def spec(self) -> str:
        """When it is due, as default names have it."""
        raise NotImplementedError

    @property
    def zone(self) -> tzinfo:
        """The time zone."""
        return timezone.utc

    def ticks(self, after: float) -> Iterator[float]:
        """Return the ticks after an instant, in order; endless, but for a cron expression with none for 50 years."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Cron(Timing):
    """Ticks by a cron expression, in a time zone.

    A schedule that names hours (`30 2 * * *`) is for times of the day: what falls into the hour that a clock change
    skips is due once, as that hour would have ended, and what falls into the hour that comes twice is due the first
    time. One for every hour (`*/10 * * * *`) is for elapsed time: it knows no skipped hour, and is due in both of two.

    Attributes:
        expression: Five fields: minute, hour, day of the month, month, day of the week, as Debian's cron reads them.
        timezone: The name of an IANA zone.
        name: The schedule's name; None is made of the task's name and the expression.
        catch_up: What becomes of ticks that were due while no scheduler was there.
        overlap: What becomes of a tick while the message of the one before has not ended.

    Raises:
        DeclarationError: The expression, or another value, is wrong.
        NotInstalledError: cronsim, or the data of time zones, is missing.
    """

    expression: str
    timezone: str = field(default="UTC", kw_only=True)

    def __post_init__(self) -> None:
        Timing.__post_init__(self)
        if not isinstance(self.expression, str):
            raise DeclarationError(f"a cron expression is text, such as '0 8 * * mon-fri', not {self.expression!r}")
        object.__setattr__(self, "expression", " ".join(self.expression.split()))
        zone_of(self.timezone)
        for text, (name, size) in zip(self.expression.split(), _SIZES.items(), strict=False):
            if any(int(step) > size for step in re.findall(r"/(\d+)", text)):  # it would be due once in each
                problem = f"a step in {text!r}, the field {name}, is more than {size}; use every=timedelta(...)"
                raise DeclarationError(f"cron expression {self.expression!r}: {problem}")
        if next(_cronsim(self.expression), None) is None:
            raise DeclarationError(f"cron expression {self.expression!r} is never due")

    @property
    def spec(self) -> str:
        """The expression."""
        return self.expression

    @property
    def zone(self) -> tzinfo:
        """The time zone."""
        return zone_of(self.timezone)

    def ticks(self, after: float) -> Iterator[float]:
        """Return the ticks after an instant, in order."""
        minute, hour, *days = self.expression.split()
        named, start = _cronsim(self.expression), datetime.fromtimestamp(after, self.zone)
        if len(named.hours) == 24 and self.zone is not timezone.utc:
            # Minute by minute: cronsim goes on by an hour where one minute is named, also over a change of half of it.
            every_minute = _cronsim(" ".join(("*", "*", *days)), start)
            found: Iterator[datetime] = (moment for moment in every_minute if moment.minute in named.minutes)
        else:
            spelled = minute.replace("*", "0-59"), hour.replace("*", "0-23")
            found = _cronsim(" ".join((*spelled, *days)), start)
        return (tick for moment in found if (tick := moment.timestamp()) > after)


@dataclass(frozen=True, slots=True)
class Every(Timing):
    """Ticks at the multiples of an interval since 1970-01-01 00:00 UTC, so that all workers plan the same ones.

    Attributes:
        interval: A `timedelta` or a number of seconds; a whole number of at least 1.
        name: The schedule's name; None is made of the task's name and the interval.
        catch_up: What becomes of ticks that were due while no scheduler was there.
        overlap: What becomes of a tick while the message of the one before has not ended.

    Raises:
        DeclarationError: A value is wrong.
    """

    interval: Duration

    def __post_init__(self) -> None:
        Timing.__post_init__(self)
        try:
            interval_s = seconds(self.interval, name="every")
        except (TypeError, ValueError) as exc:
            raise DeclarationError(str(exc)) from exc
        if interval_s < 1 or interval_s != int(interval_s):
            raise DeclarationError(f"every must be whole seconds, at least 1, not {self.interval!r}")

    @property
    def interval_s(self) -> int:
        """The interval in seconds."""
        return int(seconds(self.interval, name="every"))

    @property
    def spec(self) -> str:
        """The interval, in words."""
        return f"every {self.interval_s} s"

    def ticks(self, after: float) -> Iterator[float]:
        """Return the ticks after an instant, in order."""
        number = int(after // self.interval_s)
        while True:
            number += 1
            yield float(number * self.interval_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A schedule of a bridge: when a task is sent, with which arguments, and `using` which options of `Task.using`.

    One that was put at run time has its arguments `encoded`, as `Call.encoded` returns them; a `revision`, which is
    more than 0 and grows; and `begins_at`, from when on its plan counts.
    """

    name: str
    task: str
    timing: Timing
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    using: Mapping[str, Any] = field(default_factory=dict[str, Any])
    encoded: tuple[str, str, int] | None = None
    revision: int = 0
    begins_at: float = 0.0

    @property
    def ends_at(self) -> float:
        """The instant after which all its messages would expire, so that it sends none; infinity if there is none."""
        expires = self.using.get("expires")
        return expires.timestamp() if isinstance(expires, datetime) else inf


# What is decided about ticks


class Decision(NamedTuple):
    """What becomes of the first ticks of a schedule that are not settled.

    Attributes:
        first: The first of them; infinity if there is none.
        skip: Those that are not sent, from the first one on. If empty, the first is sent once it is due.
    """

    first: float
    skip: Sequence[float] = ()


MOST_AT_ONCE: Final = 100_000
"""How many ticks one decision is about at most: going through them takes a second or two."""


def decide(timing: Timing, *, settled_until: float, paused: bool, watched_since: float, now: float) -> Decision:
    """Decide about the first ticks of a schedule that are not settled.

    Args:
        timing: The schedule's.
        settled_until: Every tick up to this instant is settled.
        paused: Whether the schedule is paused.
        watched_since: Since when this scheduler has been there: ticks planned until then were missed, as it seems.
        now: The time; all in seconds since the epoch.
    """
    first = next(timing.ticks(settled_until), inf)
    until = now if paused else -inf if timing.catch_up == "all" else min(now, watched_since)
    if first > until:
        return Decision(first)
    due = [first, *islice(takewhile(lambda tick: tick <= until, timing.ticks(first)), MOST_AT_ONCE - 1)]
    return Decision(first, due[:-1] if timing.catch_up == "one" and not paused else due)


# Names and options


def named(name: str | None, task: str, timing: Timing, *, results: bool) -> Schedule:
    """Return a schedule of a task; if neither the timing nor `name` names it, it is made of the task and the time.

    Raises:
        DeclarationError: The name is too long; or it has `overlap="skip"`, and the task's messages are not recorded.
    """
    if timing.overlap == "skip" and not results:
        raise DeclarationError("overlap='skip' needs to know what became of the last message: results must be True")
    return Schedule(name=check_name(timing.name or name or f"{task}:{timing.spec}"), task=task, timing=timing)


def check_name(name: Any) -> str:
    """Return a schedule's name if it is one; else raise `DeclarationError`."""
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise DeclarationError(f"a schedule's name must be text of up to {LONGEST_NAME} characters, not {name!r}")
    return name


def timing_of(*, cron: str | None = None, every: Duration | None = None, **options: Any) -> Timing | None:
    """Return what short options say: `cron` or `every`, and those of `Cron` and `Every`; None if they name no time.

    Raises:
        DeclarationError: They contradict one another, have no effect, or are wrong.
        NotInstalledError: cronsim, or the data of time zones, is missing.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if cron is not None and every is not None:
        raise DeclarationError("give cron or every, or several in schedules=[Cron(...), Every(...)]")
    if cron is not None:
        return Cron(cron, **given)
    if "timezone" in given:
        raise DeclarationError("timezone has an effect only with cron (every counts in UTC)")
    if every is not None:
        return Every(every, **given)
    for key in (key for key in given if key != "name"):
        raise DeclarationError(f"{key} has an effect only with cron or every; Cron(...) and Every(...) take it too")
    return None


def checked_timings(timings: object) -> tuple[Timing, ...]:
    """Return the timings that a task's option `schedules` holds; raise `DeclarationError` if it holds others."""
    given = tuple(cast("Iterable[object]", timings)) if isinstance(timings, Iterable) else (timings,)
    found = tuple(each for each in given if isinstance(each, Timing))
    if len(found) < len(given):
        raise DeclarationError(f"schedules must be a list of Cron(...) and Every(...), not {timings!r}")
    return found


# Time zones and expressions


@lru_cache(maxsize=64)
def zone_of(name: str) -> tzinfo:
    """Return a time zone by its IANA name.

    Raises:
        DeclarationError: There is no such zone.
        NotInstalledError: The system has no data of time zones, and the package tzdata is missing.
    """
    from zoneinfo import TZPATH, ZoneInfo, available_timezones  # here, for few programs need them

    if not isinstance(name, str):
        raise DeclarationError(f"a time zone is the name of one, such as 'Europe/Rome', not {name!r}")
    if name == "UTC":
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as exc:  # a folder's name is an OSError, one with dots a ValueError
        zones = available_timezones()
        if not zones:
            raise NotInstalledError(f"the data of time zones (none in {':'.join(TZPATH)})", "cron") from exc
        raise DeclarationError(f"there is no time zone {name!r}{nearest(name, zones)}") from exc


def _cronsim(expression: str, after: datetime = datetime(2000, 1, 1, tzinfo=timezone.utc)) -> CronSim:
    """Return the times of an expression after one of them, as cronsim finds them.

    Like Debian's cron, it takes a schedule for one of elapsed time if its minutes or hours begin with a star, and else
    for one of times of the day, and then knows what clock changes mean for it.
    """
    with needs("cronsim, which reads cron expressions,", "cron"):
        from cronsim import CronSim, CronSimError
    fields = expression.split()
    if len(fields) != len(_SIZES):  # it takes seconds, too
        raise DeclarationError(f"cron expression {expression!r} must have 5 fields: {', '.join(_SIZES)}")
    try:
        return CronSim(expression, after)
    except CronSimError as exc:
        wrong = next((text for text, name in zip(fields, _CRONSIM_NAMES, strict=True) if str(exc).endswith(name)), "")
        is_range = str(exc).endswith("day-of-week") and "-" in wrong
        hint = "; a range goes up, from SUN or 0 to SAT or 6, or to 7 for Sunday: 6-7, not sat-sun" if is_range else ""
        raise DeclarationError(f"cron expression {expression!r}: {exc} {wrong!r}{hint}") from exc
