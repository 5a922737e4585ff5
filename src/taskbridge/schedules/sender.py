"""The scheduler of a worker: a thread that sends what is due by its schedules (rules CR).

Any number of schedulers run at once, and none leads. All plan the same ticks; the store lets one claim each. The ticks
of a schedule are dealt with in order: who claims the first one that is not settled decides about it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Sequence
from datetime import datetime, timezone
from math import inf
from typing import Final, Protocol

from taskbridge import locks
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.schedules.plan import NothingDue, Schedule, SendTick, SkipTicks, decide
from taskbridge.settings import Settings
from taskbridge.stores.base import Store
from taskbridge.stores.records import FINAL
from taskbridge.stores.ticks import ScheduleState, TickClaim, Ticks

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

_JOIN_S: Final = 1.0


class TickHost(Protocol):
    """The bridge, as its scheduler sees it."""

    @property
    def settings(self) -> Settings:
        """The checked settings."""
        ...

    @property
    def store(self) -> Store | None:
        """The store; None without one."""
        ...

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        ...

    def all_schedules(self) -> Sequence[Schedule]:
        """Return all schedules declared so far."""
        ...

    def check_schedules(self) -> None:
        """Raise what stands in the way of sending by schedules."""
        ...

    def send_tick(self, schedule: str, planned_at: float) -> str:
        """Send the message of a tick, always with the same id, and return that."""
        ...


class _NotSentError(Exception):
    """The broker did not take the message of a tick; `cause` says why."""

    def __init__(self, cause: BrokerUnavailable) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Ticker:
    """One scheduler, without a thread: whoever has one calls `step` again and again.

    Args:
        host: The bridge.
        claimant: A name that no other has.
        stall_s: A pause in the calls of this length means that nobody was here.
    """

    def __init__(self, host: TickHost, *, claimant: str, stall_s: float) -> None:
        self._host = host
        self._claimant = claimant
        self._stall_s = stall_s
        self._lease_s = min(CLAIM_LEASE_S, host.settings.lease_s)
        self._timeout_s = host.settings.send_timeout_s
        self._here_at: float | None = None
        self._watched_since: float | None = None
        self._look_at: dict[str, float] = {}
        self._unsent_at: dict[str, float] = {}
        self._left: dict[str, tuple[float, float]] = {}
        self._to_release: dict[str, float] = {}

    def lapse(self) -> None:
        """Take it that nobody was here until now: what was due is missed, unless somebody else was."""
        self._watched_since = None

    def step(self) -> float:
        """Deal with all that is due, and return when to call again, in seconds since the epoch.

        Raises:
            BrokerUnavailable: The store or the broker doesn't answer; some may have been dealt with.
        """
        failure: BrokerUnavailable | None = None
        schedules = self._host.all_schedules()
        for schedule in schedules:
            now = self._here()
            if self._look_at.get(schedule.name, 0.0) > now:
                continue
            try:
                self._look_at[schedule.name] = self._attend(schedule)
            except _NotSentError as exc:  # its queue alone may be full: the others go on
                failure = exc.cause
                self._unsent_at[schedule.name] = self._host.now()
                self._look_at[schedule.name] = self._host.now() + _LOOK_S
            except BrokerUnavailable:
                self.lapse()
                raise
        if failure is not None:
            raise failure
        # Of those that are there: a task may be declared anew, with other schedules.
        self._look_at = {each.name: self._look_at[each.name] for each in schedules}
        return min(self._look_at.values(), default=inf)

    def _here(self) -> float:
        """Return the time, and notice if this process stood still."""
        now = self._host.now()
        if self._here_at is not None and now - self._here_at > self._stall_s:
            _log.warning("nothing was scheduled here for %.1f s: the process stood still", now - self._here_at)
            self.lapse()
        self._here_at = now
        return now

    def _has_lapsed(self) -> bool:
        return self._watched_since is None

    def _attend(self, schedule: Schedule) -> float:
        """Deal with the ticks of a schedule that are due, and return when to look again."""
        ticks = self._ticks()
        self._release(ticks, schedule)
        for _ in range(_AT_A_TIME):
            now = self._here()
            state = ticks.begin(schedule.name, at=now, timeout_s=self._timeout_s)
            if self._watched_since is None:
                self._watched_since = now
            since = max(self._watched_since, self._unsent_at.get(schedule.name, -inf))
            decision = decide(
                schedule.timing,
                settled_until=state.settled_until,
                paused=state.paused,
                watched_since=since,
                now=now,
            )
            if isinstance(decision, NothingDue):
                self._left.pop(schedule.name, None)
                return inf if decision.next_at is None else decision.next_at
            first = decision.planned_at if isinstance(decision, SendTick) else decision.first
            is_missed = first <= since and schedule.timing.catch_up != "all" and not state.paused
            if is_missed and not self._may_decide(schedule, state, now):
                return now + _POLL_S
            now = self._here()  # what came before may have taken long
            if self._has_lapsed():
                continue  # this process stood still meanwhile: decide again
            claim = ticks.claim(
                *(schedule.name, first),
                claimant=self._claimant,
                now=now,
                lease_s=self._lease_s,
                timeout_s=self._timeout_s,
            )
            if claim is TickClaim.SETTLED:
                return now + _SOON_S
            if claim is TickClaim.CLAIMED:
                if now - first > _STUCK_LEASES * self._lease_s:  # whoever has it can't send: the broker is away
                    self._unsent_at[schedule.name] = now
                return now + _POLL_S
            try:
                self._settle(ticks, schedule, state, _after_claim(claim, decision, first, state), now)
            except _NotSentError as exc:
                if claim is TickClaim.OURS and not exc.cause.maybe_taken:
                    self._to_release[schedule.name] = first
                    self._release(ticks, schedule)
                raise
        return self._here()

    def _release(self, ticks: Ticks, schedule: Schedule) -> None:
        """Take the claim of a tick back that was surely not sent, for a claimed one is sent however late (rule CR4)."""
        planned_at = self._to_release.get(schedule.name)
        if planned_at is None:
            return
        ticks.release(schedule.name, planned_at, claimant=self._claimant, timeout_s=self._timeout_s)
        del self._to_release[schedule.name]

    def _may_decide(self, schedule: Schedule, state: ScheduleState, now: float) -> bool:
        """Return whether nobody else seems to have been there when a tick was due that this scheduler has not seen.

        To this scheduler it was missed. Others that were there are held up by a claimant that died, perhaps: as long as
        they go on, they know better.
        """
        seen, since = self._left.get(schedule.name, (-inf, now))
        if seen != state.settled_until:
            self._left[schedule.name] = state.settled_until, now
            return False
        return now - since >= _WITNESS_S

    def _settle(
        self, ticks: Ticks, schedule: Schedule, state: ScheduleState, decision: SendTick | SkipTicks, claimed_at: float
    ) -> None:
        """Carry a decision out about ticks, the first of which is claimed here.

        Raises:
            BrokerUnavailable: The store doesn't answer.
            _NotSentError: The broker did not take the message.
        """
        if self._has_stood_still(schedule, claimed_at):
            return  # the ticks may be another's by now: claim again
        if isinstance(decision, SendTick) and self._overlaps(schedule, state):
            _log.warning(
                "schedule %s: %s skipped, message %s has not ended", *_names(schedule, decision), state.last_id
            )
            decision = SkipTicks(first=decision.planned_at, last=decision.planned_at, missed=1)
        if isinstance(decision, SkipTicks):
            self._skip(ticks, schedule, decision)
            return
        if self._has_stood_still(schedule, claimed_at):
            return
        planned_at = decision.planned_at
        try:
            message_id = self._host.send_tick(schedule.name, planned_at)
        except BrokerUnavailable as exc:
            raise _NotSentError(exc) from exc
        except Exception:  # an argument that can't be encoded, a queue that is not known any more: it won't go better
            _log.exception("schedule %s: %s can't be sent", *_names(schedule, decision))
            self._skip(ticks, schedule, SkipTicks(first=planned_at, last=planned_at, missed=1))
            return
        ticks.settle(schedule.name, planned_at, message_id=message_id, missed=0, timeout_s=self._timeout_s)
        _log.info("schedule %s: %s sent, task %s id %s", *_names(schedule, decision), schedule.task, message_id)

    def _has_stood_still(self, schedule: Schedule, claimed_at: float) -> bool:
        """Return whether a claim is too old to act on it, for another may take it over."""
        passed_s = self._host.now() - claimed_at
        if passed_s <= self._lease_s / 2:
            return False
        _log.warning("schedule %s: %.1f s since a tick was claimed: it is claimed again", schedule.name, passed_s)
        return True

    def _skip(self, ticks: Ticks, schedule: Schedule, skip: SkipTicks) -> None:
        ticks.settle(schedule.name, skip.last, message_id="", missed=skip.missed, timeout_s=self._timeout_s)
        if schedule.name in self._left:  # it was this scheduler that went on, and it does so
            self._left[schedule.name] = skip.last, self._left[schedule.name][1]
        if skip.missed:
            _log.warning(
                "schedule %s: %d missed, from %s to %s (catch_up %s)",
                schedule.name,
                skip.missed,
                _shown(skip.first),
                _shown(skip.last),
                schedule.timing.catch_up,
            )

    def _overlaps(self, schedule: Schedule, state: ScheduleState) -> bool:
        """Return whether a tick is left out: the message before has not ended, and `overlap` says skip."""
        if schedule.timing.overlap == "allow" or not state.last_id or self._host.store is None:
            return False
        record = self._host.store.records.get(state.last_id, timeout_s=self._timeout_s)
        return record is not None and record.state not in FINAL

    def _ticks(self) -> Ticks:
        store = self._host.store
        if store is None:
            self._host.check_schedules()
            raise AssertionError("schedules without a store")
        return store.ticks


def _after_claim(
    claim: TickClaim, decision: SendTick | SkipTicks, first: float, state: ScheduleState
) -> SendTick | SkipTicks:
    """Return what becomes of a tick that is claimed: one that somebody claimed before may have been sent, so it is."""
    return SendTick(planned_at=first) if claim is TickClaim.AGAIN and not state.paused else decision


class Scheduler:
    """The thread of a worker process that runs a `Ticker`, from `start` to `stop`."""

    def __init__(self, host: TickHost) -> None:
        self._host = host
        self._stop = locks.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread if there are schedules, and this worker is to send by them; starting twice does nothing.

        Raises:
            UnsupportedError: There are schedules, but no store.
        """
        if self._thread is not None or not is_wanted(self._host) or not self._host.all_schedules():
            return
        self._host.check_schedules()
        self._stop = locks.Event()
        self._thread = threading.Thread(target=self.run, args=(self._stop,), name="taskbridge-scheduler", daemon=True)
        self._thread.start()

    def run(self, stop: threading.Event) -> None:
        """Send what is due until `stop` is set."""
        claimant = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        # A call to the store or the broker may take this long without anybody having stood still.
        ticker = Ticker(self._host, claimant=claimant, stall_s=2 * self._host.settings.send_timeout_s + 5.0)
        is_away = False
        while not stop.is_set():
            try:
                wait_s = min(_LOOK_S, ticker.step() - self._host.now())
                is_away = False
            except BrokerUnavailable as exc:
                if not is_away:
                    _log.warning("nothing is scheduled until the store and the broker are back: %s", exc.problem)
                wait_s, is_away = _LOOK_S, True
            except Exception:
                _log.exception("scheduling failed, trying again")
                wait_s = _LOOK_S
            stop.wait(max(0.0, wait_s))

    def stop(self) -> None:
        """Stop the thread and wait for it, for 1 s at most: whatever it is at, another scheduler goes on with."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            self._thread = None


def check(host: TickHost) -> None:
    """Return if a worker of this bridge can send by schedules, or is not to.

    Raises:
        UnsupportedError: There are schedules, but no store.
        SettingsError: The setting `schedules` names a task that is not declared.
    """
    if is_wanted(host):
        host.check_schedules()


def is_wanted(host: TickHost) -> bool:
    """Return whether workers of this bridge send by schedules."""
    return host.settings.scheduler and os.environ.get(OFF_VARIABLE) != "off"


def _names(schedule: Schedule, tick: SendTick) -> tuple[str, str]:
    return schedule.name, _shown(tick.planned_at)


def _shown(instant: float) -> str:
    return datetime.fromtimestamp(instant, timezone.utc).isoformat().replace("+00:00", "Z")
