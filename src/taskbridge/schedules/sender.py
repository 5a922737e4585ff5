"""The scheduler of a worker: a thread that sends what is due by its schedules (rules CR).

Any number of schedulers run at once, and none leads. All plan the same ticks; the store lets one claim each. The ticks
of a schedule are dealt with in order: whoever claims the first one that is not settled decides about it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from random import Random
from typing import TYPE_CHECKING, Final

from taskbridge.background import Background
from taskbridge.durations import moment
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.logs import logger
from taskbridge.schedules.plan import Schedule, decide
from taskbridge.stores.clock import SKEW_S
from taskbridge.stores.records import FINAL
from taskbridge.stores.starts import process_name
from taskbridge.stores.ticks import ScheduleState, TickClaim

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge

_log = logger("taskbridge.scheduler")

OFF_VARIABLE: Final = "TASKBRIDGE_APP_SCHEDULER"
"""The environment variable that, being `off`, keeps a worker from sending by schedules, whatever its settings say."""

CLAIM_LEASE_S: Final = 10.0
"""How long after its claim a claimant that sent nothing counts as dead, or the setting `lease` if that is shorter."""

_LOOK_S: Final = 1.0
"""How long the thread sleeps at most: schedulers that stood still are to find out, and clocks are set."""

_POLL_S: Final = 0.25
"""How soon a schedule is looked at again with which somebody else goes on."""

_STUCK_LEASES: Final = 3
"""After how many leases a tick that is still claimed tells that nothing can be sent, and what is due is missed."""

_WITNESS_S: Final = 3.0
"""How long a tick that was due before this scheduler came is left to those that were there before."""


@dataclass(kw_only=True, slots=True)
class _Watched:
    """What a scheduler remembers of a schedule while it can send."""

    revision: int  # of the schedule's definition
    since: float  # from when on it could: what was due until then is missed, unless somebody else knows better
    look_at: float = 0.0  # when to look at it again
    settled_until: float | None = None  # up to where it was settled when others were last seen to go on
    seen_at: float = 0.0  # when that was

    def is_alone(self, settled_until: float, now: float) -> bool:
        """Return whether nobody else goes on with the schedule.

        To a scheduler that has not seen a tick it was missed. Others that were there are held up by a claimant that
        died, perhaps: as long as they go on, they know better.
        """
        if self.settled_until != settled_until:
            self.settled_until, self.seen_at = settled_until, now
        return now - self.seen_at >= _WITNESS_S


class Ticker:
    """One scheduler, without a thread: whoever has one calls `step` again and again.

    Args:
        bridge: Whose schedules it keeps to.
        claimant: A name that no other has.
        stall_s: A pause in the calls of this length means that nobody was here.
    """

    def __init__(self, bridge: Bridge, *, claimant: str, stall_s: float) -> None:
        self._bridge = bridge
        self._claimant = claimant
        self._stall_s = stall_s
        self._lease_s = min(CLAIM_LEASE_S, bridge.settings.lease_s)
        store = bridge.store
        assert store is not None, "`Schedules.check` comes first"
        self._ticks, self._records, self._clock = store.ticks, store.records, store.clock
        self._timeout_s = bridge.settings.send_timeout_s
        self._since: float | None = None  # from when on it was here all the time
        self._here_at = inf
        self._random = Random(claimant)
        self._watched: dict[str, _Watched] = {}
        self._plans: dict[str, list[str]] | None = None
        self._refused: BrokerUnavailable | None = None
        self._unsent: dict[str, float] = {}  # claimed here, surely not sent and still to be released

    def lapse(self) -> None:
        """Take it that nobody was here until now: what was due is missed, unless somebody else was."""
        self._watched, self._since = {}, None

    def step(self) -> float:
        """Deal with all that is due, and return when to call again, in seconds since the epoch.

        Raises:
            BrokerUnavailable: The store or the broker doesn't answer; some may have been dealt with.
        """
        try:
            return self._step()
        except BrokerUnavailable as exc:
            if exc is not self._refused:  # the store: nobody here sees what is put meanwhile
                self.lapse()
            raise

    def _step(self) -> float:
        self._refused = None
        if self._clock is not None:
            self._clock.ensure(timeout_s=self._timeout_s)
        self._bridge.schedules.follow()
        begun, schedules = self._bridge.now(), self._bridge.schedules.planned()
        plans = {
            name: [each.task, f"{each.timing.spec} {each.timing.zone}"]
            for name, each in schedules.items()
            if not each.revision  # those that were put at run time tell by themselves when they begin
        }
        note, knows = self._ticks.note, self._bridge.knows
        if plans != self._plans and note(plans, knows=knows, at=begun, timeout_s=self._timeout_s):
            self._plans = plans
        if self._has_stood_still(begun):
            return begun
        here_since = self._since = begun if self._since is None else self._since
        self._watched = {name: self._watch(each, here_since, begun) for name, each in schedules.items()}
        due = [name for name, watched in self._watched.items() if watched.look_at <= begun]
        self._random.shuffle(due)  # else all schedulers go for the same one
        states = self._ticks.states(due, timeout_s=self._timeout_s)
        for name in due:
            now, watched = self._bridge.now(), self._watched[name]
            if self._has_stood_still(now):
                return now
            if now - begun > _LOOK_S:  # the rest is due still; some may have been put or deleted meanwhile
                break
            try:
                watched.look_at = self._deal(schedules[name], watched, states.get(name), now)
            except BrokerUnavailable:
                raise
            except Exception:  # of one schedule; the others go on
                _log.exception("schedule %s can't be dealt with, trying again", name)
                watched.look_at = now + self._lease_s
        if self._refused is not None:
            raise self._refused
        return min((watched.look_at for watched in self._watched.values()), default=inf)

    def _has_stood_still(self, now: float) -> bool:
        """Return whether nobody was here for long, so that what was due meanwhile is missed."""
        stood_s, self._here_at = now - self._here_at, now
        if stood_s > self._stall_s:
            _log.warning("nothing was scheduled here for %.1f s: the process stood still", stood_s)
            self.lapse()
        return stood_s > self._stall_s

    def _watch(self, schedule: Schedule, here_since: float, now: float) -> _Watched:
        """Return what is remembered of a schedule; of one that began while this was here, nothing was missed.

        What was missed before only what it sends was changed stays so.
        """
        watched = self._watched.get(schedule.name)
        if watched is not None and watched.revision == schedule.revision:
            return watched
        since = now if watched is None else watched.since
        if schedule.begins_at >= here_since:
            since = schedule.begins_at if watched is None else max(schedule.begins_at, since)
        return _Watched(revision=schedule.revision, since=since)

    def _deal(self, schedule: Schedule, watched: _Watched, state: ScheduleState | None, now: float) -> float:
        """Deal with the first ticks that are not settled, and return when to look again.

        The state may have changed since it was read: then the claim is refused.
        """
        name, timing, revision = schedule.name, schedule.timing, schedule.revision
        self._release(name)
        if state is None or state.revision < revision or state.settled_until > now + SKEW_S:
            begins_at, timeout_s = schedule.begins_at, self._timeout_s
            state = self._ticks.begin(
                name, now=self._bridge.now, revision=revision, begins_at=begins_at, timeout_s=timeout_s
            )
        if state.supersedes(revision):  # it was put anew or deleted
            self._bridge.schedules.follow(at_once=True)
            return now + _POLL_S
        until, paused = state.settled_until, state.paused
        first, skip = decide(timing, settled_until=until, paused=paused, watched_since=watched.since, now=now)
        if first > min(now, schedule.ends_at):
            watched.settled_until = None
            return first if first <= schedule.ends_at else inf
        is_missed = first <= watched.since and timing.catch_up != "all" and not paused
        if is_missed and not watched.is_alone(until, now):
            return now + _POLL_S
        overlaps = not paused and self._overlaps(schedule, state)
        now = self._bridge.now()  # what came before may have taken long
        claim = self._ticks.claim(
            name,
            first,
            claimant=self._claimant,
            now=now,
            lease_s=self._lease_s,
            seen=state,
            timeout_s=self._timeout_s,
        )
        if claim in (TickClaim.CLAIMED, TickClaim.SETTLED):
            if claim is TickClaim.CLAIMED and now - first > _STUCK_LEASES * self._lease_s:
                # Whoever has it can't send: the broker is away.
                watched.since = now
            return now + _POLL_S
        if claim is TickClaim.AGAIN and not paused:  # whoever claimed it before may have sent it: it is sent
            skip = ()
        if overlaps and not skip:
            _log.warning("schedule %s: %s skipped, message %s has not ended", name, _shown(first), state.last_id)
            skip = (first,)
        if not skip:
            return self._send(schedule, watched, first, is_first_claim=claim is TickClaim.OURS)
        self._skip(schedule, watched, skip, missed=0 if paused else len(skip))
        return now

    def _overlaps(self, schedule: Schedule, state: ScheduleState) -> bool:
        """Return whether a tick is left out: the message before has not ended, and `overlap` says skip."""
        if schedule.timing.overlap == "allow" or not state.last_id:
            return False
        record = self._records.get(state.last_id, timeout_s=self._timeout_s)
        return record is not None and record.state not in FINAL

    def _send(self, schedule: Schedule, watched: _Watched, planned_at: float, *, is_first_claim: bool) -> float:
        """Send a tick that is claimed here, and return when to look again."""
        name, shown = schedule.name, _shown(planned_at)
        try:
            message_id = self._bridge.schedules.send(schedule, planned_at)
        except BrokerUnavailable as exc:  # its queue alone may be full: the others go on
            self._refused = exc
            watched.since = self._bridge.now()
            if is_first_claim and not exc.maybe_taken:  # else it is sent however late (rule CR2)
                self._unsent[name] = planned_at
                self._release(name)
            return watched.since + _LOOK_S
        except Exception:  # an argument that can't be encoded, a queue that is not known any more: it won't go better
            _log.exception("schedule %s: %s can't be sent", name, shown)
            self._skip(schedule, watched, (planned_at,), missed=1)
            return planned_at
        self._ticks.settle(name, planned_at, message_id=message_id, missed=0, timeout_s=self._timeout_s)
        _log.info("schedule %s: %s sent, task %s id %s", name, shown, schedule.task, message_id)
        return next(schedule.timing.ticks(planned_at), inf)

    def _release(self, name: str) -> None:
        """Give up the claim of a tick that was not sent; if the store is away, that is tried again."""
        planned_at = self._unsent.get(name)
        if planned_at is not None:
            self._ticks.release(name, planned_at, claimant=self._claimant, timeout_s=self._timeout_s)
            del self._unsent[name]

    def _skip(self, schedule: Schedule, watched: _Watched, skip: Sequence[float], *, missed: int) -> None:
        name = schedule.name
        self._ticks.settle(name, skip[-1], message_id="", missed=missed, timeout_s=self._timeout_s)
        if watched.settled_until is not None:  # it was this scheduler that went on, and it does so
            watched.settled_until = skip[-1]
        if missed:
            first, last, catch_up = _shown(skip[0]), _shown(skip[-1]), schedule.timing.catch_up
            _log.warning("schedule %s: %d missed, from %s to %s (catch_up %s)", name, missed, first, last, catch_up)


class Scheduler(Background):
    """The thread of a worker process that runs a `Ticker`.

    `stop` waits for it for 1 s at most: whatever it is at, another scheduler goes on with.
    """

    def __init__(self, bridge: Bridge) -> None:
        super().__init__("scheduler", join_s=1.0)
        self._bridge = bridge

    def start(self) -> None:
        """Start the thread if this worker is to send by schedules; starting twice does nothing.

        Raises:
            UnsupportedError: There are schedules, but no store.
        """
        if check(self._bridge):
            super().start()

    def run(self, stop: threading.Event) -> None:
        """Send what is due until `stop` is set; without schedules, look whether some are put."""
        # Dealing with a tick takes five calls to the store and the broker: that is no standing still.
        ticker = Ticker(self._bridge, claimant=process_name(), stall_s=5 * self._bridge.settings.send_timeout_s + 5.0)
        is_away = False
        while not stop.is_set():
            wait_s = _LOOK_S
            try:
                wait_s = min(_LOOK_S, ticker.step() - self._bridge.now())
                is_away = False
            except BrokerUnavailable as exc:
                if not is_away:
                    _log.warning("nothing is scheduled until the store and the broker are back: %s", exc.problem)
                is_away = True
            except Exception:
                _log.exception("scheduling failed, trying again")
            stop.wait(max(0.0, wait_s))


def check(bridge: Bridge) -> bool:
    """Return whether a worker of this bridge is to send by schedules, of which there may be none now.

    Raises:
        UnsupportedError: There are schedules, but no store.
        SettingsError: The setting `schedules` names a task that is not declared.
    """
    is_on = bridge.settings.scheduler and os.environ.get(OFF_VARIABLE) != "off"
    return is_on and (bridge.schedules.check() or bridge.store is not None)


def _shown(instant: float) -> str:
    return moment(instant).isoformat().replace("+00:00", "Z")
