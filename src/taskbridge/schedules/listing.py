"""The schedules of a bridge: which there are, when they are next due, pausing them and letting them go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid5

from taskbridge.declaration import Declaration
from taskbridge.durations import moment
from taskbridge.exceptions import DeclarationError, SettingsError, UnknownSchedule, UnsupportedError, nearest
from taskbridge.schedules.plan import Schedule, Timing, named
from taskbridge.stores.ticks import ScheduleState, Ticks
from taskbridge.tasks import Call, SendOptions

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge
    from taskbridge.sending import Sending

SCHEDULE_HEADER: Final = "taskbridge.schedule"
"""The header that names the schedule which sent a message."""

PLANNED_HEADER: Final = "taskbridge.planned_at"
"""The header with the instant that a message was planned for, in UTC, as ISO 8601."""

_TICKS: Final = UUID("6f2c7f3e-0d5b-4b57-9c6b-5c1f5a3a3e1d")
"""The namespace, in the sense of RFC 9562, of the ids of ticks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleEntry:
    """A schedule as it is shown.

    Attributes:
        name: What it is called.
        task: The name of the task that it sends.
        timing: When it is due: `Cron(...)` or `Every(...)`.
        next_runs: The next instants it is due, each in the schedule's own zone; while it is paused, they are skipped.
        paused: Whether it is paused.
        missed: How many ticks were not sent: nobody was there, or the message before had not ended.
        last_id: The id of the message that was sent last; None if none was.
        last_planned_at: What that message was planned for, in the schedule's own zone.
    """

    name: str
    task: str
    timing: Timing
    next_runs: tuple[datetime, ...]
    paused: bool = False
    missed: int = 0
    last_id: str | None = None
    last_planned_at: datetime | None = None


class Schedules:
    """The schedules of a bridge; `Bridge.schedules`. Threads share it.

    Whoever lists, pauses or resumes them is told by `UnsupportedError` that there is no store, by `BrokerUnavailable`
    that it doesn't answer, and by `SettingsError` that the setting `schedules` names a task that is not declared.
    """

    def __init__(self, bridge: Bridge, sending: Sending) -> None:
        self._bridge = bridge
        self._sending = sending
        self._added: dict[str, Schedule] = {}

    # What there is

    def declare(self, declaration: Declaration) -> None:
        """Check that the schedules of a task which is about to be declared have names of their own.

        Raises:
            DeclarationError: There is a schedule of that name already.
        """
        self._check_free(declaration.schedules, self._of_code(but=declaration.name))

    def add(self, call: Call[Any], timing: Timing) -> None:
        """Take a schedule for a call.

        Raises:
            DeclarationError: There is another schedule of that name already.
            EncodeError: An argument can't be put in a message.
        """
        # Of a declaration apart, for a module that is imported has not all yet that type hints name.
        replace(call, declaration=replace(call.declaration)).encoded()
        options = call.options
        using = {name: getattr(options, name) for name in ("queue", "priority", "expires", "headers")}
        schedule = named(None, call.declaration.name, timing, results=call.declaration.results)
        schedule = replace(schedule, args=call.args, kwargs=dict(call.kwargs), using=using)
        if self._added.get(schedule.name) != schedule:  # else a module is imported twice, and says everything twice
            self._check_free([schedule], self._of_code())
            self._added = {**self._added, schedule.name: schedule}

    def _check_free(self, schedules: Sequence[Schedule], taken: dict[str, Schedule]) -> None:
        for schedule in schedules:
            if (other := taken.setdefault(schedule.name, schedule)) is not schedule:
                raise DeclarationError(
                    f"there is a schedule {schedule.name!r} already, of task {other.task!r}; give one of them a name"
                )

    def planned(self) -> Mapping[str, Schedule]:
        """Return all schedules by name: those of tasks, of `Bridge.periodic` and of the setting `schedules`.

        Raises:
            SettingsError: The setting names a task that is not declared, or a schedule that is.
        """
        found = self._of_code()
        for schedule in self._bridge.settings.schedules:
            if schedule.name in found:
                raise SettingsError("schedules", f"there is a schedule {schedule.name!r} already, declared in the code")
            self._check_setting(schedule)
            found[schedule.name] = schedule
        return found

    def _of_code(self, *, but: str | None = None) -> dict[str, Schedule]:
        """Return the schedules that the code declares by name, without those in the decorator of one task."""
        tasks = (each for each in self._bridge.declarations() if each.name != but)
        return {schedule.name: schedule for task in tasks for schedule in task.schedules} | self._added

    def _check_setting(self, schedule: Schedule) -> None:
        declaration = self._bridge.declaration_of(schedule.task)
        if declaration is None:
            hint = nearest(schedule.task, [each.name for each in self._bridge.declarations()])
            raise SettingsError("schedules", f"{schedule.name!r}: there is no task {schedule.task!r}{hint}")
        try:
            named(None, schedule.task, schedule.timing, results=declaration.results)
            declaration.signature.bind(*schedule.args, **schedule.kwargs)
        except TypeError as exc:  # a DeclarationError is one too
            raise SettingsError("schedules", f"{schedule.name!r}: {exc}") from exc

    # Sending

    def check(self) -> bool:
        """Return whether there are schedules, if nothing is in the way of sending by them.

        Raises:
            UnsupportedError: There are some, but no store.
            SettingsError: The setting `schedules` names a task that is not declared.
        """
        return bool(self.planned() and self._ticks())

    def _ticks(self) -> Ticks:
        store = self._bridge.store
        if store is None:
            raise UnsupportedError(
                "CR1",
                self._bridge.settings.url.target,
                "schedules need a store, so that each tick is sent once; set store (TASKBRIDGE_STORE) to redis://, "
                "postgresql:// or sqlite:///",
            )
        return store.ticks

    def send(self, name: str, planned_at: float) -> str:
        """Send the message of a schedule's tick, and return its id, which is the same whoever sends it.

        Raises:
            BrokerUnavailable: The broker didn't take it.
        """
        schedule = self.planned()[name]
        declaration = self._bridge.declaration_of(schedule.task)
        assert declaration is not None, "tasks that were declared stay so"
        options = SendOptions(**schedule.using)
        call: Call[Any] = Call(declaration=declaration, args=schedule.args, kwargs=schedule.kwargs, options=options)
        headers = {SCHEDULE_HEADER: name, PLANNED_HEADER: moment(planned_at).isoformat()}
        message_id = tick_id(self._bridge.settings.namespace, name, planned_at)
        self._sending.send_tick(call, id=message_id, headers=headers)
        return message_id

    # What users ask

    def list(self, *, runs: int = 1, timeout_s: float | None = None) -> list[ScheduleEntry]:
        """Return all schedules, sorted by name, with so many next runs of each."""
        planned = self.planned()
        if not planned:
            return []
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        states = self._ticks().states(tuple(planned), timeout_s=timeout_s)
        now = self._bridge.now()
        unknown = ScheduleState(settled_until=now)
        return [_entry(planned[name], states.get(name, unknown), now, runs) for name in sorted(planned)]

    def pause(self, name: str) -> None:
        """Send nothing of a schedule until `resume`, whatever is started anew; `UnknownSchedule` if there is none."""
        self._ticks_of(name).pause(name, paused=True, at=self._bridge.now(), timeout_s=self._timeout_s)

    def resume(self, name: str) -> None:
        """Let a paused schedule go on from now; what was due meanwhile is neither sent nor missed."""
        ticks, at, timeout_s = self._ticks_of(name), self._bridge.now(), self._timeout_s
        state = ticks.states((name,), timeout_s=timeout_s).get(name)
        if state is not None and state.paused:
            ticks.settle(name, at, message_id="", missed=0, timeout_s=timeout_s)
            ticks.pause(name, paused=False, at=at, timeout_s=timeout_s)

    @property
    def _timeout_s(self) -> float:
        return self._bridge.settings.send_timeout_s

    def _ticks_of(self, name: str) -> Ticks:
        planned = self.planned()
        if name not in planned:
            raise UnknownSchedule(name, sorted(planned))
        return self._ticks()


def tick_id(namespace: str, schedule: str, planned_at: float) -> str:
    """Return the id of the message of a tick, the same whoever sends it."""
    return str(uuid5(_TICKS, f"{namespace}\0{schedule}\0{planned_at!r}"))


def _entry(schedule: Schedule, state: ScheduleState, now: float, runs: int) -> ScheduleEntry:
    timing, last, after = schedule.timing, state.last_planned_at, max(now, state.settled_until)
    return ScheduleEntry(
        name=schedule.name,
        task=schedule.task,
        timing=timing,
        next_runs=tuple(datetime.fromtimestamp(tick, timing.zone) for tick in islice(timing.ticks(after), runs)),
        paused=state.paused,
        missed=state.missed,
        last_id=state.last_id or None,
        last_planned_at=None if last is None else datetime.fromtimestamp(last, timing.zone),
    )
