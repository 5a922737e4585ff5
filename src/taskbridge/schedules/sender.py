"""The scheduler of a worker: a thread that sends what is due by its schedules (rules CR).

Any number of schedulers run at once, and none leads. All plan the same ticks; the store lets one claim each. The ticks
of a schedule are dealt with in order: whoever claims the first one that is not settled decides about it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from dataclasses import dataclass
from datetime import datetime, timezone
from math import inf
from typing import TYPE_CHECKING, Final

from taskbridge.background import Background
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.schedules.plan import NothingDue, Schedule, SendTick, SkipTicks, decide
from taskbridge.stores.base import Store
from taskbridge.stores.records import FINAL
from taskbridge.stores.ticks import ScheduleState, TickClaim, Ticks

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge

_log = logging.getLogger("taskbridge.scheduler")

OFF_VARIABLE: Final = "TASKBRIDGE_APP_SCHEDULER"
"""The environment variable that, being `off`, keeps a worker from sending by schedules, whatever its settings say."""

CLAIM_LEASE_S: Final = 10.0
"""How long after its claim a claimant that sent nothing counts as dead, or the setting `lease` if that is shorter."""

_LOOK_S: Final = 1.0
"""How long the thread sleeps at most: schedulers that stood still are to find out, and clocks are set."""

_POLL_S: Final = 0.25
"""How soon a tick is looked at again that somebody else has claimed."""

_SOON_S: Final = 0.02
"""How soon a schedule is looked at again whose tick somebody else has settled just now."""

_STUCK_LEASES: Final = 3
"""After how many leases a tick that is still claimed tells that nothing can be sent, and what is due is missed."""

_AT_A_TIME: Final = 20
"""How many ticks of a schedule are dealt with before the others have their turn; there may be many to catch up."""

_WITNESS_S: Final = 3.0
"""How long a tick that was due before this scheduler came is left to those that were there before."""


@dataclass(kw_only=True, slots=True)
class _Watched:
    """What a scheduler remembers of a schedule.

    Attributes:
        look_at: When to look at it again.
        unsent_at: When its message could not be sent: what was due until then is missed.
        left: Up to where it was settled when a decision was left to others, and since when it has been.
        to_release: The tick that is claimed here and was surely not sent.
    """

    look_at: float = 0.0
    unsent_at: float = -inf
    left: tuple[float, float] | None = None
    to_release: float | None = None


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
        self._timeout_s = bridge.settings.send_timeout_s
        self._here_at: float | None = None
        self._watched_since: float | None = None
        self._watched: dict[str, _Watched] = {}
        self._refused: BrokerUnavailable | None = None

    def lapse(self) -> None:
        """Take it that nobody was here until now: what was due is missed, unless somebody else was."""
        self._watched_since = None

    def step(self) -> float:
        """Deal with all that is due, and return when to call again, in seconds since the epoch.

        Raises:
            BrokerUnavailable: The store or the broker doesn't answer; some may have been dealt with.
        """
        self._refused = None
        schedules = self._bridge.all_schedules()
        self._watched = {each.name: self._watched.get(each.name, _Watched()) for each in schedules}
        for schedule in schedules:
            watched = self._watched[schedule.name]
            if watched.look_at <= self._here():
                try:
                    watched.look_at = self._attend(schedule, watched)
                except BrokerUnavailable:
                    self.lapse()
                    raise
        if self._refused is not None:
            raise self._refused
        return min((watched.look_at for watched in self._watched.values()), default=inf)

    def _here(self) -> float:
        """Return the time, and notice if this process stood still."""
        now = self._bridge.now()
        if self._here_at is not None and now - self._here_at > self._stall_s:
            _log.warning("nothing was scheduled here for %.1f s: the process stood still", now - self._here_at)
            self.lapse()
        self._here_at = now
        return now

    def _has_lapsed(self) -> bool:
        return self._watched_since is None

    def _attend(self, schedule: Schedule, watched: _Watched) -> float:
        """Deal with the ticks of a schedule that are due, and return when to look again."""
        self._release(schedule, watched)
        for _ in range(_AT_A_TIME):
            look_at = self._deal(schedule, watched)
            if look_at is not None:
                return look_at
        return self._here()

    def _deal(self, schedule: Schedule, watched: _Watched) -> float | None:
        """Deal with the first ticks that are not settled, and return when to look again; None is now."""
        name, now = schedule.name, self._here()
        state = self._ticks.begin(name, at=now, timeout_s=self._timeout_s)
        if self._watched_since is None:
            self._watched_since = now
        since = max(self._watched_since, watched.unsent_at)
        until, paused = state.settled_until, state.paused
        decision = decide(schedule.timing, settled_until=until, paused=paused, watched_since=since, now=now)
        if isinstance(decision, NothingDue):
            watched.left = None
            return inf if decision.next_at is None else decision.next_at
        first = decision.planned_at if isinstance(decision, SendTick) else decision.first
        is_missed = first <= since and schedule.timing.catch_up != "all" and not paused
        if is_missed and not _may_decide(watched, until, now):
            return now + _POLL_S
        now = self._here()  # what came before may have taken long
        if self._has_lapsed():
            return None  # this process stood still meanwhile: decide again
        lease_s = self._lease_s
        claim = self._ticks.claim(
            name, first, claimant=self._claimant, now=now, lease_s=lease_s, timeout_s=self._timeout_s
        )
        if claim is TickClaim.SETTLED:
            return now + _SOON_S
        if claim is TickClaim.CLAIMED:
            if now - first > _STUCK_LEASES * lease_s:  # whoever has it can't send: the broker is away
                watched.unsent_at = now
            return now + _POLL_S
        if claim is TickClaim.AGAIN and not paused:  # whoever claimed it before may have sent it: it is sent
            decision = SendTick(planned_at=first)
        overlaps = isinstance(decision, SendTick) and self._overlaps(schedule, state)
        passed_s = self._bridge.now() - now
        if passed_s > lease_s / 2:  # by now another may have it
            _log.warning("schedule %s: %.1f s since a tick was claimed: it is claimed again", name, passed_s)
            return None
        if overlaps:
            _log.warning("schedule %s: %s skipped, message %s has not ended", name, _shown(first), state.last_id)
            decision = SkipTicks(first=first, last=first, missed=1)
        if isinstance(decision, SendTick):
            return self._send(schedule, watched, first, is_first_claim=claim is TickClaim.OURS)
        self._skip(schedule, watched, decision)
        return None

    def _send(self, schedule: Schedule, watched: _Watched, planned_at: float, *, is_first_claim: bool) -> float | None:
        """Send a tick that is claimed here, and return when to look again; None is now."""
        name, shown = schedule.name, _shown(planned_at)
        try:
            message_id = self._bridge.send_tick(name, planned_at)
        except BrokerUnavailable as exc:  # its queue alone may be full: the others go on
            self._refused = exc
            if is_first_claim and not exc.maybe_taken:
                watched.to_release = planned_at
                self._release(schedule, watched)
            watched.unsent_at = self._bridge.now()
            return watched.unsent_at + _LOOK_S
        except Exception:  # an argument that can't be encoded, a queue that is not known any more: it won't go better
            _log.exception("schedule %s: %s can't be sent", name, shown)
            self._skip(schedule, watched, SkipTicks(first=planned_at, last=planned_at, missed=1))
            return None
        self._ticks.settle(name, planned_at, message_id=message_id, missed=0, timeout_s=self._timeout_s)
        _log.info("schedule %s: %s sent, task %s id %s", name, shown, schedule.task, message_id)
        return None

    def _release(self, schedule: Schedule, watched: _Watched) -> None:
        """Take the claim of a tick back that was surely not sent, for a claimed one is sent however late (rule CR4)."""
        at = watched.to_release
        if at is not None:
            self._ticks.release(schedule.name, at, claimant=self._claimant, timeout_s=self._timeout_s)
            watched.to_release = None

    def _skip(self, schedule: Schedule, watched: _Watched, skip: SkipTicks) -> None:
        name, missed = schedule.name, skip.missed
        self._ticks.settle(name, skip.last, message_id="", missed=missed, timeout_s=self._timeout_s)
        if watched.left is not None:  # it was this scheduler that went on, and it does so
            watched.left = skip.last, watched.left[1]
        if missed:
            first, last, catch_up = _shown(skip.first), _shown(skip.last), schedule.timing.catch_up
            _log.warning("schedule %s: %d missed, from %s to %s (catch_up %s)", name, missed, first, last, catch_up)

    def _overlaps(self, schedule: Schedule, state: ScheduleState) -> bool:
        """Return whether a tick is left out: the message before has not ended, and `overlap` says skip."""
        if schedule.timing.overlap == "allow" or not state.last_id:
            return False
        record = self._store.records.get(state.last_id, timeout_s=self._timeout_s)
        return record is not None and record.state not in FINAL

    @property
    def _store(self) -> Store:
        store = self._bridge.store
        assert store is not None, "`check_schedules` comes first"
        return store

    @property
    def _ticks(self) -> Ticks:
        return self._store.ticks


def _may_decide(watched: _Watched, settled_until: float, now: float) -> bool:
    """Return whether nobody else seems to have been there when a tick was due that this scheduler has not seen.

    To this scheduler it was missed. Others that were there are held up by a claimant that died, perhaps: as long as
    they go on, they know better.
    """
    if watched.left is None or watched.left[0] != settled_until:
        watched.left = settled_until, now
    return now - watched.left[1] >= _WITNESS_S


class Scheduler(Background):
    """The thread of a worker process that runs a `Ticker`.

    `stop` waits for it for 1 s at most: whatever it is at, another scheduler goes on with.
    """

    def __init__(self, bridge: Bridge) -> None:
        super().__init__("scheduler", join_s=1.0)
        self._bridge = bridge

    def start(self) -> None:
        """Start the thread if there are schedules, and this worker is to send by them; starting twice does nothing.

        Raises:
            UnsupportedError: There are schedules, but no store.
        """
        if is_wanted(self._bridge) and self._bridge.all_schedules():
            self._bridge.check_schedules()
            super().start()

    def run(self, stop: threading.Event) -> None:
        """Send what is due until `stop` is set."""
        claimant = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        # A call to the store or the broker may take this long without anybody having stood still.
        ticker = Ticker(self._bridge, claimant=claimant, stall_s=2 * self._bridge.settings.send_timeout_s + 5.0)
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


def check(bridge: Bridge) -> None:
    """Return if a worker of this bridge can send by schedules, or is not to.

    Raises:
        UnsupportedError: There are schedules, but no store.
        SettingsError: The setting `schedules` names a task that is not declared.
    """
    if is_wanted(bridge):
        bridge.check_schedules()


def is_wanted(bridge: Bridge) -> bool:
    """Return whether workers of this bridge send by schedules."""
    return bridge.settings.scheduler and os.environ.get(OFF_VARIABLE) != "off"


def _shown(instant: float) -> str:
    return datetime.fromtimestamp(instant, timezone.utc).isoformat().replace("+00:00", "Z")
