"""What taskbridge is to reach, and how far a noisy machine may be off.

Goals are ratios to the others in the same run, but where a figure must not depend on the machine: such as memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from benchmarks.results import Result, ratio

C: Final = "taskbridge on Celery"
D: Final = "taskbridge on Dramatiq"


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """Our figure over theirs, or ours alone, is at most `most`, or at least `least`.

    Attributes:
        row: The row's key.
        metric: Which of its figures.
        ours: The contender that is to reach it.
        theirs: Whom it is compared with; None if the figure itself is to reach the goal, in the metric's unit.
        most: The goal, where less is better.
        least: The goal, where more is better.
        tolerance: By which part the guard lets a run miss it; 0.2 lets `most` be 1.2 times as high.
    """

    row: str
    metric: str
    ours: str
    theirs: str | None
    most: float | None = None
    least: float | None = None
    tolerance: float = 0.25

    @property
    def text(self) -> str:
        """The goal, to be read."""
        return f"<= {self.most:.3g}" if self.most is not None else f">= {self.least:.3g}"

    def met(self, found: float, *, tolerance: float = 0.0) -> bool:
        """Tell whether what was found reaches the goal, or misses it by no more than this part."""
        if self.most is not None:
            return found <= self.most * (1 + tolerance)
        assert self.least is not None
        return found >= self.least / (1 + tolerance)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A goal, and what was found.

    Attributes:
        goal: The goal.
        found: The median of the rounds' ratios, or of the rounds.
        at_best: The ratio of both sides' best rounds, or the best round: what disturbs a round only makes it worse.
    """

    goal: Goal
    found: float
    at_best: float

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.goal.met(self.found)

    @property
    def passes(self) -> bool:
        """Whether the guard lets it pass: one of both ratios is within the tolerance."""
        return any(self.goal.met(each, tolerance=self.goal.tolerance) for each in (self.found, self.at_best))


def judge(result: Result, goals: Iterable[Goal]) -> list[Judged]:
    """Return the goals of which all sides were measured, with what was found."""
    return [judged for goal in goals if (judged := _judged(result, goal)) is not None]


def _judged(result: Result, goal: Goal) -> Judged | None:
    best = max if goal.most is None else min
    ours = result.find(goal.row, goal.ours, goal.metric)
    if ours is None:
        return None
    if goal.theirs is None:
        return Judged(goal=goal, found=ours.median, at_best=best(ours.values))
    theirs = result.find(goal.row, goal.theirs, goal.metric)
    if theirs is None:
        return None
    return Judged(goal=goal, found=ratio(ours, theirs), at_best=best(ours.values) / best(theirs.values))


def _below(row: str, metric: str, theirs: str, most: float, *, tolerance: float, ours: str | None = None) -> list[Goal]:
    """Return the goal for both engines, or for one."""
    who = (C, D) if ours is None else (ours,)
    return [Goal(row=row, metric=metric, ours=each, theirs=theirs, most=most, tolerance=tolerance) for each in who]


def _above(row: str, theirs: str, least: float, ours: str) -> list[Goal]:
    return [Goal(row=row, metric="tasks/s", ours=ours, theirs=theirs, least=least)]


def _beside_recorded(row: str) -> list[Goal]:
    """Return the goal that unique messages cost their sender little more than recorded ones, on the same engine."""
    return [
        Goal(row=row, metric="us", ours=f"{each}, unique", theirs=f"{each}, results", most=1.15, tolerance=0.15)
        for each in (C, D)
    ]


def _seen(row: str) -> list[Goal]:
    """Return the goals of what metrics and spans may cost a worker, on the same engine."""
    return [
        Goal(row=row, metric="cpu_us", ours=f"{each}, {what}", theirs=each, most=most, tolerance=tolerance)
        for each in (C, D)
        for what, most, tolerance in (("metrics", 1.05, 0.1), ("spans", 1.3, 0.15))
    ]


def _flat(row: str) -> list[Goal]:
    """Return the goal that a worker's memory stays flat, within 10 MB."""
    return [Goal(row=row, metric="MB more", ours=each, theirs=None, most=10.0) for each in (C, D)]


GOALS: Final[tuple[Goal, ...]] = (
    # The bare socket's round trip alone takes 0.05 to 0.18 of Celery's time, more where waking one takes longer.
    # What is added to it is held down by the goal to Dramatiq, who adds less.
    *_below("send-redis", "us", "Celery", 1 / 6, tolerance=1.2),
    *_below("send-redis", "us", "Dramatiq", 0.69, tolerance=0.3),  # 0.63 before the redesign, and 10 %
    *_below("many-redis", "us", "Celery, loop", 1 / 25, tolerance=0.4),
    *_below("many-redis", "us", "Celery, one producer", 1 / 12, tolerance=0.3),
    # 0.088 before the redesign, and 10 %. It was up to 0.235 where Python was half as fast as usual, and Redis was not.
    *_below("many-redis", "us", "Dramatiq", 0.097, tolerance=1.5),
    *_below("send-amqp", "us", "Celery", 0.6, tolerance=0.25),
    *_below("send-amqp", "us", "Dramatiq", 1.0, tolerance=0.25),
    *_below("many-amqp", "us", "Celery", 1 / 6, tolerance=0.3),
    *_below("many-amqp", "us", "Dramatiq", 1 / 5, tolerance=0.3),
    *_below("many-amqp", "us", "Celery, no confirms", 1.0, tolerance=0.3),
    *_below("many-amqp", "us", "Dramatiq, no confirms", 1.0, tolerance=0.5),
    *_above("worker-redis", "Celery", 3.0, C),
    # Dramatiq sleeps while its queue is empty for a moment, which bounds it where little is prefetched.
    *_above("worker-redis", "Dramatiq", 3.5, D),
    *_above("worker-redis", "Dramatiq, prefetch 128", 1.4, D),
    *_above("worker-redis", "Celery", 1.0, f"{C}, plain"),
    *_above("worker-redis", "Dramatiq", 1.0, f"{D}, plain"),
    *_above("worker-amqp", "Celery", 2.0, C),
    *_above("worker-amqp", "Dramatiq", 1.4, D),
    *_above("worker-amqp", "Celery", 1.0, f"{C}, plain"),
    *_above("worker-amqp", "Dramatiq", 1.0, f"{D}, plain"),
    *_above("worker-traced", "Celery, traced", 1.5, f"{C}, traced"),
    *_seen("worker-seen-redis"),
    *_seen("worker-seen-amqp"),
    *_above("worker-django", "Celery, Django", 3.0, f"{C}, Django"),
    *_above("results-worker", "Celery, results", 3.0, f"{C}, results"),
    *_above("results-worker", "Dramatiq, results", 2.0, f"{D}, results"),
    *_beside_recorded("unique-send"),
    *_beside_recorded("unique-many"),
    *_below("import", "ms", "Celery, with an app", 15 / 87, tolerance=0.25, ours="import taskbridge"),
    # redis-py alone is two thirds of it: 8.1 imports asyncio, and OpenTelemetry's metrics where these are installed.
    *_below("first-send", "ms", "Celery", 0.9, tolerance=0.25),
    *_below("memory", "MB", "Celery", 33 / 40, tolerance=0.1),
    *_below("memory", "MB", "Dramatiq", 33 / 32, tolerance=0.1),
    *_below("idle-redis", "p50 ms", "Celery", 1.1, tolerance=0.25),
    *_below("idle-redis", "p99 ms", "Celery", 1.1, tolerance=1.0),
    *_below("idle-redis", "p50 ms", "Dramatiq", 1.1, tolerance=0.25, ours=D),
    *_below("idle-redis", "p99 ms", "Dramatiq", 1.1, tolerance=1.0, ours=D),
    *_below("idle-amqp", "p50 ms", "Celery", 1.1, tolerance=0.25, ours=C),
    *_below("idle-amqp", "p99 ms", "Celery", 1.1, tolerance=1.0, ours=C),
    *_below("idle-amqp", "p50 ms", "Dramatiq", 1.1, tolerance=0.25, ours=D),
    *_below("idle-amqp", "p99 ms", "Dramatiq", 1.1, tolerance=1.0, ours=D),
    *_flat("lasting-redis"),
    *_flat("lasting-amqp"),
)
