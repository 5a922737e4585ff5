"""Ticks: which planned instants of which schedules have been sent (rule CR).

Every worker plans the same instants; the store lets one of them send each. A claim has a lease, for its claimant may be
killed before it has sent. Whoever claims the tick then sends it again with the same message id, marked as redelivered,
so that the attempt marks let one of the two run (rule A7).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from functools import partial
from time import monotonic
from typing import Any, Final, TypeAlias, TypeVar

from taskbridge.durations import moment
from taskbridge.exceptions import StoreUnavailable
from taskbridge.logs import logger
from taskbridge.message import END_OF_TIME
from taskbridge.stores.backend import Backend, Write, head_of
from taskbridge.stores.clock import SKEW_S

T = TypeVar("T")

_log = logger("taskbridge.scheduler")

_NOTED: Final = "schedules"
"""The key of what is noted of all schedules: by its name, each one's task, and when it is due."""


_LONGEST_LEASE_S: Final = 60.0  # for how long a tick is claimed at most

DELETED_KEPT_S: Final = 3600.0
"""How long is kept that a schedule was deleted: longer than any worker goes without reading which there are."""


class TickClaim(Enum):
    """What may be done about a tick."""

    OURS = "ours"
    """Nobody has claimed it before: send it."""

    AGAIN = "again"
    """Who claimed it is past its lease and may have sent it or not: send it, marked as redelivered."""

    CLAIMED = "claimed"
    """Somebody else is about to send it: look again later."""

    SETTLED = "settled"
    """It was sent or skipped, or the schedule is no more as it was seen: look again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleState:
    """What the store knows of a schedule.

    Attributes:
        settled_until: Every tick planned up to this instant is settled, in seconds since the epoch.
        paused: Whether it is paused.
        last_id: The id of the message that was sent last; empty if none was.
        last_planned_at: The instant that message was planned for.
        missed: How many ticks were not sent because nobody was there, by `overlap="skip"`, or because the schedule was
            changed first.
        revision: That of the newest definition, of a schedule that was put at run time; else 0.
    """

    settled_until: float
    paused: bool = False
    last_id: str = ""
    last_planned_at: float | None = None
    missed: int = 0
    revision: int = 0

    def supersedes(self, revision: int) -> bool:
        """Return whether there is a newer definition than one of this revision; none is newer than the code's, 0."""
        return 0 < revision < self.revision


Claims: TypeAlias = Mapping[float, tuple[str, float]]
"""By tick, who has claimed it, and until when."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A schedule as it is kept.

    Attributes:
        state: What is known of it; None if nobody has begun with it.
        claims: The ticks that are claimed and not settled: who has claimed each, and until when. Those up to
            `settled_until` were cut off as they were about to be sent: an edit has begun a plan that is later. Each
            counts as missed unless its claimant tells in time that it has sent it.
    """

    state: ScheduleState | None = None
    claims: Claims = field(default_factory=dict[float, tuple[str, float]])

    def is_settled(self, planned_at: float) -> bool:
        """Return whether a tick is settled."""
        return self.state is not None and planned_at <= self.state.settled_until

    def begun(self, *, revision: int, begins_at: float, at: float, missed: int = 0) -> Plan:
        """Return the plan from when a definition counts; without a state, all is settled until `at`.

        From here on, ticks of earlier revisions can't be claimed. What was due until `begins_at`, by the plan before,
        counts as settled, and so many of it as missed.
        """
        state = ScheduleState(settled_until=at) if self.state is None else self.state
        if revision <= state.revision:
            return replace(self, state=state)
        until = max(begins_at, state.settled_until)
        begun = replace(state, settled_until=until, revision=revision, missed=state.missed + missed)
        # What is paused is claimed to be skipped, and is not missed.
        skipped = [instant for instant in self.claims if state.paused and state.settled_until < instant <= until]
        return Plan(state=begun, claims=_without(self.claims, skipped))

    def lapsed(self, now: float) -> list[float]:
        """Return the ticks that were cut off as they were about to be sent, and whose claims are over."""
        return [
            instant
            for instant, (_, until) in self.claims.items()
            if self.is_settled(instant) and not _holds(until, now, _LONGEST_LEASE_S)
        ]

    def missing(self, instants: Sequence[float]) -> Plan:
        """Return the plan after ticks that were cut off count as missed."""
        if self.state is None or not instants:
            return self
        state = replace(self.state, missed=self.state.missed + len(instants))
        return Plan(state=state, claims=_without(self.claims, instants))

    def dumps(self) -> str:
        """Return the plan as JSON."""
        claims = [[planned_at, *claim] for planned_at, claim in self.claims.items()]
        return json.dumps([None if self.state is None else asdict(self.state), claims], separators=(",", ":"))


def _without(claims: Claims, instants: Sequence[float]) -> Claims:
    return {instant: claim for instant, claim in claims.items() if instant not in instants}


def _holds(until: float, now: float, lease_s: float) -> bool:
    """Return whether a claim holds; one of a clock that was ahead doesn't: else the schedule would wait until then."""
    return now < until <= now + max(lease_s, _LONGEST_LEASE_S) + SKEW_S


_FIELDS: Final = frozenset(each.name for each in fields(ScheduleState))


def loads(text: str | None) -> Plan:
    """Return the plan that `Plan.dumps` wrote; an empty one if there is none, or what is there is no plan."""
    if text is None:
        return Plan()
    try:
        state, claims, *_ = json.loads(text)
        return Plan(
            state=None if state is None else _state(state),
            claims={
                float(planned_at): (str(claimant), float(until))
                for planned_at, claimant, until, *_ in claims
                if 0 <= planned_at <= END_OF_TIME
            },
        )
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        _log.warning("what is kept of a schedule can't be read, it begins anew: %s", type(exc).__name__)
        return Plan()


def _state(found: Mapping[str, Any]) -> ScheduleState:
    """Return what is known of a schedule; fields that are not known here are a newer release's, and left out."""
    state = ScheduleState(**{name: value for name, value in found.items() if name in _FIELDS})
    times_are_sound = all(0 <= each <= END_OF_TIME for each in (state.settled_until, state.last_planned_at or 0.0))
    if not (
        times_are_sound
        and isinstance(state.last_id, str)
        and isinstance(state.missed, int)
        and isinstance(state.revision, int)
    ):
        raise ValueError("not a state")
    return state


class Ticks:
    """The ticks of a bridge's schedules. All calls raise `StoreUnavailable` if the store doesn't answer."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._claimed: dict[str, str] = {}  # by schedule, what was written with a claim that is not settled yet

    def note(
        self, plans: Mapping[str, list[str]], *, knows: Callable[[str], bool], at: float, timeout_s: float
    ) -> bool:
        """Note which schedules there are; one that is new, or was changed, begins at `at`, whatever was settled of it.

        `plans` are by their names: each one's task, and when it is due. Of the tasks that this process `knows`, no
        other schedules stay noted. Each step may take `timeout_s`. False if somebody else noted something meanwhile.
        """
        [text] = self._backend.get([_NOTED], timeout_s=timeout_s)
        try:
            noted: dict[str, list[str]] = {} if text is None else json.loads(text)
            left = {name: plan for name, plan in noted.items() if not knows(str(plan[0]))} | dict(plans)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # it can't be read
            noted, left = {}, dict(plans)
        for name in plans:
            if text is not None and noted.get(name) != plans[name]:  # an earlier release noted nothing
                self._change(name, partial(_anew, at), timeout_s)
        write = Write(_NOTED, head_of(text), json.dumps(left))
        return left == noted or self._backend.write([write], timeout_s=timeout_s)[0]

    def begin(
        self,
        schedule: str,
        *,
        now: Callable[[], float],
        revision: int = 0,
        begins_at: float = 0.0,
        timeout_s: float,
    ) -> ScheduleState:
        """Return what is known of a schedule; one that nobody knew of is settled until now. Atomic.

        One that was settled by a clock that was ahead, so until far in the future, goes back to now. Its definition has
        a revision, whose plan begins at `begins_at`; see `Plan.begun`.
        """

        def decide(plan: Plan) -> tuple[ScheduleState, Plan | None]:
            state, at = plan.state, now()  # asked after what it is compared with was read, which may take long
            if state is not None and state.settled_until > at + SKEW_S:
                until = moment(state.settled_until).isoformat()
                _log.warning("schedule %s was settled until %s, which is to come: it goes on from now", schedule, until)
                state = replace(state, settled_until=at)
            begun = replace(plan, state=state).begun(revision=revision, begins_at=begins_at, at=at)
            assert begun.state is not None, "it has begun"
            return begun.state, None if begun.state == plan.state else begun

        return self._change(schedule, decide, timeout_s)

    def states(self, schedules: Sequence[str], *, timeout_s: float) -> Mapping[str, ScheduleState]:
        """Return what is known of those of these schedules that are known."""
        texts = self._backend.get([key_of(name) for name in schedules], timeout_s=timeout_s) if schedules else ()
        states = {name: loads(text).state for name, text in zip(schedules, texts, strict=True)}
        return {name: state for name, state in states.items() if state is not None}

    def claim(
        self,
        schedule: str,
        planned_at: float,
        *,
        claimant: str,
        now: float,
        lease_s: float,
        seen: ScheduleState | None = None,
        timeout_s: float,
    ) -> TickClaim:
        """Claim a tick, in one step; of any number that ask at once, one is told `OURS` or `AGAIN`.

        Ticks up to `settled_until` are `SETTLED`, and all if what is known of the schedule is no more as it was `seen`.
        A claim by the same claimant again is `AGAIN`. Whoever claims a tick counts as missed what an edit has cut off,
        and its claimant has not sent in time.
        """
        lapsed, claimed = list[float](), Plan()

        def decide(plan: Plan) -> tuple[TickClaim, Plan | None]:
            nonlocal claimed
            if plan.is_settled(planned_at) or seen not in (None, plan.state):
                return TickClaim.SETTLED, None
            owner, until = plan.claims.get(planned_at, ("", 0.0))
            if owner and owner != claimant and _holds(until, now, lease_s):
                return TickClaim.CLAIMED, None
            lapsed[:] = plan.lapsed(now)
            left = plan.missing(lapsed)
            claims = {**left.claims, planned_at: (claimant, now + lease_s)}
            claimed = replace(left, claims=claims)
            return TickClaim.AGAIN if owner else TickClaim.OURS, claimed

        answer = self._change(schedule, decide, timeout_s)
        if answer in (TickClaim.OURS, TickClaim.AGAIN):
            self._claimed[schedule] = claimed.dumps()
            _tell_cut_off(schedule, lapsed)
        return answer

    def release(self, schedule: str, planned_at: float, *, claimant: str, timeout_s: float) -> None:
        """Take a claim back that came to nothing, if it is still this claimant's: the tick is as if never claimed.

        Only for one that was `OURS`, and whose message was surely not sent. It counts as missed if an edit has cut it
        off meanwhile.
        """

        def decide(plan: Plan) -> tuple[bool, Plan | None]:
            if plan.claims.get(planned_at, ("", 0.0))[0] != claimant:
                return False, None
            if plan.is_settled(planned_at):
                return True, plan.missing((planned_at,))
            return False, replace(plan, claims=_without(plan.claims, (planned_at,)))

        is_missed = self._change(schedule, decide, timeout_s, seen=self._claimed.pop(schedule, None))
        _tell_cut_off(schedule, (planned_at,) if is_missed else ())

    def settle(self, schedule: str, planned_at: float, *, message_id: str, missed: int, timeout_s: float) -> None:
        """Say that a tick, and all before it, are settled, and remove their claims; never goes back.

        Of one that an edit has cut off meanwhile, what became of it is noted.

        `message_id` is that of its message, empty if it was skipped; `missed` ticks up to it were not sent, which are
        counted once for each settled tick.
        """

        def decide(plan: Plan) -> tuple[None, Plan | None]:
            is_cut_off = plan.is_settled(planned_at)
            if is_cut_off and planned_at not in plan.claims:
                return None, None
            state = ScheduleState(settled_until=planned_at) if plan.state is None else plan.state
            is_last = not is_cut_off or planned_at > (state.last_planned_at or 0.0)
            until = max(planned_at, state.settled_until)
            state = replace(state, settled_until=until, missed=state.missed + missed)
            if message_id and is_last:
                state = replace(state, last_id=message_id, last_planned_at=planned_at)
            over = [each for each in plan.claims if each <= planned_at and not plan.is_settled(each)]
            return None, Plan(state=state, claims=_without(plan.claims, [*over, planned_at]))

        self._change(schedule, decide, timeout_s, seen=self._claimed.pop(schedule, None))

    def pause(self, schedule: str, *, paused: bool, at: float, timeout_s: float) -> None:
        """Pause a schedule or let it go on; lasts until it is changed. Makes the schedule known, settled until `at`."""

        def decide(plan: Plan) -> tuple[None, Plan | None]:
            state = ScheduleState(settled_until=at) if plan.state is None else plan.state
            return None, replace(plan, state=replace(state, paused=paused))

        self._change(schedule, decide, timeout_s)

    def _change(
        self,
        schedule: str,
        decide: Callable[[Plan], tuple[T, Plan | None]],
        timeout_s: float,
        *,
        seen: str | None = None,
    ) -> T:
        """Decide about a schedule, replace it if that says so, and return the answer.

        What was `seen` of it before is decided about first, if that leads to a write: that notices a change meanwhile.
        """
        key, deadline = key_of(schedule), monotonic() + timeout_s
        while True:
            is_read = seen is None
            if is_read:
                [seen] = self._backend.get([key], timeout_s=deadline - monotonic())
            answer, plan = decide(loads(seen))
            if plan is not None:
                write = Write(key, head_of(seen), plan.dumps())
                if self._backend.write([write], timeout_s=deadline - monotonic())[0]:
                    return answer
                if monotonic() >= deadline:
                    raise StoreUnavailable("others change the same schedule")
            elif is_read:
                return answer
            seen = None


def _anew(at: float, plan: Plan) -> tuple[None, Plan]:
    state = ScheduleState(settled_until=at) if plan.state is None else plan.state
    until = max(at, state.settled_until)
    # What is due by then, by the plan before, is not missed, claimed or not (rule CR7).
    claims = {instant: claim for instant, claim in plan.claims.items() if instant > until}
    return None, Plan(state=replace(state, settled_until=until), claims=claims)


def _tell_cut_off(schedule: str, missed: Sequence[float]) -> None:
    """Log ticks that were about to be sent as their schedule was changed, and count as missed."""
    if missed:
        first, last, many = moment(min(missed)).isoformat(), moment(max(missed)).isoformat(), len(missed)
        _log.warning("schedule %s: %d missed, from %s to %s (changed as it was to send)", schedule, many, first, last)


def key_of(schedule: str) -> str:
    """Return the key of what is kept of a schedule."""
    return f"schedule:{schedule}"
