"""Why a task may have been started once more than it should: each cause is an incident that hit the right moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, Literal

from tests.chaos.happenings import EVERYONE, PRODUCER, Incident, Run, Send

SETTLING_S: Final = 1.5
"""How long after its task's end a message may be unacknowledged, on a busy machine."""

RECOVERY_S: Final = 4.0
"""How long after an outage connections may still be broken."""

PROMOTION_S: Final = 2.5
"""How long after its time a delayed message may be on its way to its queue."""

_UNRENEWED: Final = 0.7
"""Of a lease, how much is left at least when an outage begins: it is renewed each quarter of it."""

_MARK_KEPT_S: Final = 60.0
"""How long beyond the lease the mark of a run that has ended is kept (taskbridge/stores/redis/marks.py)."""

_KILL_LASTS_S: Final = 12.0
"""How long after a stop was asked for a worker may still end runs; the grace is shorter."""


Marks = Literal["broker", "apart"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What a run's servers and settings make possible.

    Attributes:
        lease_s: The setting.
        broker: `redis` or `amqp`.
        marks: Where attempt marks are kept: in the `broker`, which has outages; `apart`, in a store that has none; or
            nowhere (None).
        pace: How much longer than on an idle machine a worker takes for what it does after a run, or a pump.
    """

    lease_s: float
    broker: Literal["redis", "amqp"]
    marks: Marks | None
    pace: float = 1.0


class Causes:
    """Finds the cause of starts.

    Args:
        conditions: What is possible.
        incidents: Everything that was done.
    """

    def __init__(self, conditions: Conditions, incidents: Iterable[Incident]) -> None:
        self._conditions = conditions
        self._settling_s = SETTLING_S * conditions.pace
        self._promotion_s = PROMOTION_S * conditions.pace
        every = sorted(incidents, key=lambda incident: incident.at)
        self._kills = [each for each in every if each.kind == "kill"]
        self._stops = [each for each in every if each.kind in ("stop", "kill")]
        self._freezes = [each for each in every if each.kind == "freeze"]
        self._outages = [each for each in every if each.kind == "outage"]

    def of_start(self, run: Run, earlier: Sequence[Run], send: Send) -> str | None:
        """Return why a start was made that no failure before it had asked for; None if nothing explains it.

        Args:
            run: The start.
            earlier: The same message's runs before it.
            send: How it was sent.
        """
        near = [other for other in earlier if run.attempt - other.attempt in (0, 1)]
        causes = (cause for other in near for cause in self._of_pair(run, other))
        return next(causes, None) or next(self._of_publishing(run, near, send), None)

    def of_end(self, run: Run, until: float) -> str | None:
        """Return what befell a run, so that the worker did not come to know how it ended; None if nothing did."""
        if run.end is None:
            return "killed while it ran" if self._killed(run, run.start, until) else self._out_of_sight(run, until)
        if self._killed(run, run.end, run.end + self._settling_s):
            return "killed after its end and before its acknowledgement"
        return self._out_of_sight(run, until)

    def of_unseen(self, after: float, before: float) -> str | None:
        """Return why an attempt may have been marked that never came to its task's first line."""
        for incident in (*self._stops, *self._freezes):
            if incident.overlaps(after, before):
                return "marked, but killed or frozen before its first line"
        return None

    def _of_pair(self, run: Run, other: Run) -> Iterator[str]:
        if other.ending == "Interrupted" and self._stopped(other):
            yield "given back by a worker that stopped"
        marked = self._conditions.marks == "apart" or (
            self._conditions.marks == "broker" and not self._mark_lost(other)
        )
        forgotten = other.end is not None and run.start - other.end > self._conditions.lease_s + _MARK_KEPT_S
        if run.attempt == other.attempt and marked and not forgotten:
            return  # the mark says that this attempt was started: it ended, runs, or counts as failed (rules A5 and A7)
        befell = self.of_end(other, run.start)
        if befell is not None:
            yield f"{befell}, and its mark was forgotten before it came back" if forgotten else befell

    def _out_of_sight(self, run: Run, until: float) -> str | None:
        """Return what kept a run's worker from telling that it lives, or how the run ended."""
        settled = until if run.end is None else run.end + self._settling_s
        for freeze in self._freezes:
            long_enough = freeze.until - freeze.at > self._conditions.lease_s
            if freeze.hits(run.worker) and long_enough and freeze.overlaps(run.start, settled) and freeze.at < until:
                return "frozen beyond its lease"
        for outage in self._outages:
            if not outage.hits(run.worker):
                continue
            if run.end is not None and outage.overlaps(run.end - RECOVERY_S, settled):
                return "its acknowledgement met an outage"
            if self._conditions.broker == "amqp" and outage.overlaps(run.start - RECOVERY_S, settled):
                return "its connection was lost while it ran"
            if min(outage.until, settled) - outage.at > _UNRENEWED * self._conditions.lease_s and outage.overlaps(
                run.start, settled
            ):
                return "cut off beyond its lease"
        return None

    def _of_publishing(self, run: Run, near: Sequence[Run], send: Send) -> Iterator[str]:
        """Find what may have made a message of this attempt be published twice."""
        if send.kind == "late" and run.attempt == 1:  # parked again and again, nobody knows when
            for incident in (*self._outages, *self._stops):
                if incident.overlaps(send.at, run.start):
                    yield f"published twice: put off as unknown, and met: {incident.kind}"
        if run.attempt == 1 and self._met_outage(send.at, PRODUCER):
            yield "published twice: the producer's confirm met an outage"
        for other in near:
            if other.attempt < run.attempt and other.end is not None and self._met_outage(other.end, other.worker):
                yield "published twice: the retry's confirm met an outage"
        if self._conditions.broker == "amqp":  # on Redis, a pump moves a message in one step
            for due in _promotions(run, near, send):
                if any(outage.overlaps(due - RECOVERY_S, due + self._promotion_s) for outage in self._outages):
                    yield "published twice: a pump's confirm met an outage"
                if any(due - 1 <= stop.at <= due + self._promotion_s for stop in self._stops):
                    yield "published twice: a pump ended between publishing and acknowledging"

    def _met_outage(self, moment: float, who: str) -> bool:
        return any(
            outage.hits(who) and outage.overlaps(moment - RECOVERY_S, moment + self._settling_s)
            for outage in self._outages
        )

    def _mark_lost(self, run: Run) -> bool:
        return any(
            outage.at - 1 <= run.start <= outage.until + RECOVERY_S
            for outage in self._outages
            if outage.hits(run.worker)
        )

    def _killed(self, run: Run, start: float, end: float) -> bool:
        return any(
            kill.overlaps(start, end)
            and kill.hits(run.worker)
            and (not kill.pids or run.pid in kill.pids or run.session in kill.pids)
            for kill in self._kills
        )

    def _stopped(self, run: Run) -> bool:
        end = inf if run.end is None else run.end
        return any(
            stop.at <= end and end - stop.at <= _KILL_LASTS_S and (stop.hits(run.worker) or stop.who == EVERYONE)
            for stop in self._stops
        )


def _promotions(run: Run, near: Sequence[Run], send: Send) -> Iterator[float]:
    """Return when messages of this attempt fell due that were parked, as far as it is known."""
    if run.attempt == 1 and send.due > send.at:
        yield send.due
    for other in near:
        if other.attempt < run.attempt and other.end is not None and other.delay_s is not None:
            yield other.end + other.delay_s
