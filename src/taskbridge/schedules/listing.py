"""The schedules of a bridge: which there are, when they are next due, putting, deleting and pausing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID, uuid5

from taskbridge.declaration import Declaration
from taskbridge.durations import Duration, moment
from taskbridge.exceptions import (
    DeclarationError,
    DecodeError,
    SettingsError,
    UnknownSchedule,
    UnsupportedError,
    nearest,
)
from taskbridge.logs import logger
from taskbridge.message import Message
from taskbridge.routing import check_known
from taskbridge.schedules.plan import CatchUp, Overlap, Schedule, Timing, named, timing_of
from taskbridge.schedules.stored import (
    MOST_CUT_OFF,
    Definition,
    StoredSchedules,
    change,
    cut_off,
    definition_of,
    newest,
    revised,
    using_of,
)
from taskbridge.stores.base import Store
from taskbridge.stores.ticks import DELETED_KEPT_S, Plan, ScheduleState, Ticks
from taskbridge.tasks import Call, SendOptions

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge
    from taskbridge.sending import Sending

_log = logger("taskbridge.scheduler")

SCHEDULE_HEADER: Final = "taskbridge.schedule"
"""The header that names the schedule which sent a message."""

PLANNED_HEADER: Final = "taskbridge.planned_at"
"""The header with the instant that a message was planned for, in UTC, as ISO 8601."""

Source = Literal["code", "settings", "store"]
"""Where a schedule comes from; one that was put at run time is in the store."""

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
        missed: How many ticks were not sent: nobody was there, the message before had not ended, or the schedule was
            changed first.
        last_id: The id of the message that was sent last; None if none was.
        last_planned_at: What that message was planned for, in the schedule's own zone.
        source: Where it comes from: `code`, `settings`, or `store` if it was put at run time.
    """

    name: str
    task: str
    timing: Timing
    next_runs: tuple[datetime, ...]
    paused: bool = False
    missed: int = 0
    last_id: str | None = None
    last_planned_at: datetime | None = None
    source: Source = "code"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept(Call[Any]):
    """A call that is sent as it was encoded, as its schedule was put."""

    texts: tuple[str, str, int]

    def encoded(self) -> tuple[str, str, int]:
        """Return the arguments as they were."""
        return self.texts


class Schedules:
    """The schedules of a bridge; `Bridge.schedules`. Threads share it.

    Whoever lists or changes them is told by `UnsupportedError` that there is no store, by `BrokerUnavailable` that it
    doesn't answer, and by `SettingsError` that the setting `schedules` names a task that is not declared.
    """

    def __init__(self, bridge: Bridge, sending: Sending) -> None:
        self._bridge = bridge
        self._sending = sending
        self._added: dict[str, Schedule] = {}
        self._stored = StoredSchedules()

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
        schedule = self._of_call(call, timing)
        # Of a declaration apart, for a module that is imported has not all yet that type hints name.
        replace(call, declaration=replace(call.declaration)).encoded()
        if self._added.get(schedule.name) != schedule:  # else a module is imported twice, and says everything twice
            self._check_free([schedule], self._of_code())
            self._added = {**self._added, schedule.name: schedule}

    def _of_call(self, call: Call[Any], timing: Timing) -> Schedule:
        declaration, using = call.declaration, using_of(call.options)
        if self._bridge.declaration_of(declaration.name) is None:
            raise DeclarationError(f"task {declaration.name!r} is not one of this bridge")
        schedule = named(None, declaration.name, timing, results=declaration.results)
        return replace(schedule, args=call.args, kwargs=dict(call.kwargs), using=using)

    def _check_free(self, schedules: Sequence[Schedule], taken: dict[str, Schedule]) -> None:
        for schedule in schedules:
            if (other := taken.setdefault(schedule.name, schedule)) is not schedule:
                raise DeclarationError(
                    f"there is a schedule {schedule.name!r} already, of task {other.task!r}; give one of them a name"
                )

    def planned(self) -> Mapping[str, Schedule]:
        """Return all schedules by name, those that were put at run time as `follow` has last read them.

        Of these, those are left out whose task is not known here.

        Raises:
            SettingsError: The setting names a task that is not declared, or a schedule that is.
        """
        knows, stored = self._bridge.knows, self._stored.known
        return {name: each for name, each in stored.items() if knows(each.task)} | self.declared()

    def declared(self) -> dict[str, Schedule]:
        """Return by name the schedules of tasks, of `Bridge.periodic` and of the setting `schedules`.

        Raises:
            SettingsError: As `planned` does.
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
        return bool(self.planned() and self._store())

    def _store(self) -> Store:
        store = self._bridge.store
        if store is None:
            raise UnsupportedError(
                "CR1",
                self._bridge.settings.url.target,
                "schedules need a store, so that each tick is sent once; set store (TASKBRIDGE_STORE) to redis://, "
                "postgresql:// or sqlite:///",
            )
        return store

    def send(self, schedule: Schedule, planned_at: float) -> str:
        """Send the message of a schedule's tick, and return its id, which is the same whoever sends it.

        Raises:
            BrokerUnavailable: The broker didn't take it.
            DecodeError, TypeError: The task is unique, and the arguments that are stored don't fit it here.
        """
        name = schedule.name
        declaration = self._bridge.declaration_of(schedule.task)
        assert declaration is not None, "tasks that were declared stay so"
        options, args, kwargs = SendOptions(**schedule.using), schedule.args, schedule.kwargs
        call: Call[Any] = Call(declaration=declaration, args=args, kwargs=kwargs, options=options)
        if schedule.encoded is not None:
            args_json, kwargs_json, form = schedule.encoded
            texts: Any = {"args_json": args_json, "kwargs_json": kwargs_json, "form": form}
            message = Message(id="", task="", queue="", enqueued_at=planned_at, **texts)
            try:
                positional, kwargs = declaration.decoded(message)
                args = tuple(positional)
            except (DecodeError, TypeError):  # they fit another release, which may be the one that runs it
                if declaration.unique is not None:  # nobody here knows their key
                    raise
            call = _Kept(declaration=declaration, args=args, kwargs=kwargs, options=options, texts=schedule.encoded)
        headers = {SCHEDULE_HEADER: name, PLANNED_HEADER: moment(planned_at).isoformat()}
        message_id = tick_id(self._bridge.settings.namespace, name, planned_at)
        self._sending.send_tick(call, id=message_id, headers=headers)
        return message_id

    def run(self, name: str) -> str:
        """Send a schedule's message now, beside its ticks and though it is paused, and return the message's id.

        Raises:
            UnknownSchedule: There is none of this name, or its task is not known here.
            UnsupportedError, BrokerUnavailable: There is no store, or it or the broker doesn't answer.
            DecodeError, TypeError: The task is unique, and the arguments that are stored don't fit it here.
        """
        self.follow(at_once=True)
        known = self.planned()
        if name not in known:
            raise UnknownSchedule(name, sorted(known))
        self._store()
        return self.send(known[name], self._bridge.now())

    # Those that are put at run time

    def put(
        self,
        name: str,
        call: Call[Any],
        *,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str | None = None,
        catch_up: CatchUp | None = None,
        overlap: Overlap | None = None,
        expires: Duration | datetime | None = None,
        enabled: bool | None = None,
    ) -> None:
        """Keep a schedule in the store, in the place of one of this name that was put before (rule CR8).

        Workers that know the task follow it within 5 s. It begins now; put again at the same times, it goes on.
        The call and the options are as in `Bridge.periodic`. After an instant that `expires` gives, the schedule sends
        no more. `enabled=False` is `pause`, `True` is `resume`, and None leaves that as it was.

        Raises:
            DeclarationError: An option is wrong, or the code or the settings have a schedule of this name.
            EncodeError, UnknownQueue: As `Task.send` does.
            UnsupportedError: There is no store.
            StoreUnavailable: The store doesn't answer; to do it again is safe.
        """
        timing = timing_of(cron=cron, every=every, timezone=timezone, name=name, catch_up=catch_up, overlap=overlap)
        if timing is None:
            raise DeclarationError(f"schedule {name!r} needs cron or every")
        if not isinstance(call, Call):  # who has no type checker is told, too
            raise DeclarationError(f"put takes what task.call(...) returns, not {call!r}: is it a @task?")
        schedule = self._of_call(call, timing)
        if expires is not None:
            schedule = replace(schedule, using=using_of(replace(call.options, expires=expires)))
        if call.options.queue is not None:
            check_known(call.options.queue, self._bridge.queues())
        self._check_own(name, "give this one another name")
        new = definition_of(replace(schedule, encoded=call.encoded()))
        unsent: list[float] = []

        def decide(old: Definition | None, plan: Plan) -> tuple[Definition, Plan, None]:
            at = self._bridge.now()  # asked after the plan was read: no tick that is claimed there is due later
            put = revised(old, new, plan, at=at)
            unsent[:] = cut_off(name, old, plan, put["begins_at"])
            begun = plan.begun(revision=put["revision"], begins_at=put["begins_at"], at=at, missed=len(unsent))
            if enabled is False and begun.state is not None:
                begun = replace(begun, state=replace(begun.state, paused=True))
            return put, begun, None

        change(self._store_to_change().backend, name, decide, timeout_s=self._timeout_s)
        _tell(name, unsent)
        self.follow(at_once=True)
        if enabled:
            self.resume(name)

    def delete(self, name: str) -> bool:
        """Remove a schedule that was put at run time, and return whether there was one.

        It sends nothing any more, but for a tick that a worker is about to send. Messages that it has sent stay.

        Raises:
            DeclarationError: There is none, but the code or the settings have a schedule of this name.
            UnsupportedError, StoreUnavailable: As `put` does.
        """
        is_declared, unsent = name in self.declared(), list[float]()

        def decide(old: Definition | None, plan: Plan) -> tuple[None, Plan, float | None]:
            at = self._bridge.now()  # as in `put`
            unsent[:] = [] if is_declared else cut_off(name, old, plan, at)
            state = plan.state if is_declared else None  # the code's goes on
            ended = replace(state or ScheduleState(settled_until=at), revision=newest(old, plan) + 1)
            if is_declared:
                return None, replace(plan, state=ended), None
            return None, Plan(state=ended), DELETED_KEPT_S

        old = change(self._store_to_change().backend, name, decide, timeout_s=self._timeout_s)
        _tell(name, unsent)
        self.follow(at_once=True)
        if old is None:
            self._check_own(name, "remove it there, or pause it")
        return old is not None

    def _check_own(self, name: str, remedy: str) -> None:
        if (found := self.declared().get(name)) is not None:
            where = "settings" if found in self._bridge.settings.schedules else "code"
            raise DeclarationError(f"schedule {name!r}, of task {found.task!r}, is in the {where}: {remedy}")

    def follow(self, *, at_once: bool = False) -> None:
        """Read which schedules were put at run time, if that was not done for 2 s, or `at_once`.

        Raises:
            StoreUnavailable: The store doesn't answer.
        """
        if (store := self._bridge.store) is not None:
            self._stored.follow(store, at_once=at_once, timeout_s=self._timeout_s)

    # What users ask

    def list(self, *, runs: int = 1, timeout_s: float | None = None) -> list[ScheduleEntry]:
        """Return all schedules, sorted by name, with so many next runs of each."""
        everything = self._all()
        if not everything:
            return []
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        states = self._store().ticks.states(tuple(everything), timeout_s=timeout_s)
        now = self._bridge.now()
        unknown = ScheduleState(settled_until=now)
        return [_entry(*everything[name], states.get(name, unknown), now, runs) for name in sorted(everything)]

    def _all(self) -> dict[str, tuple[Schedule, Source]]:
        """Return all schedules as they are now, by name, and where each comes from."""
        self.follow(at_once=True)
        settings = self._bridge.settings.schedules
        found: dict[str, tuple[Schedule, Source]] = {}
        for name, each in {**self._stored.known, **self.declared()}.items():
            found[name] = each, "store" if each.revision else "settings" if each in settings else "code"
        return found

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
        everything = self._all()
        if name not in everything:
            raise UnknownSchedule(name, sorted(everything))
        return self._store_to_change().ticks

    def _store_to_change(self) -> Store:
        """Return the store when its clock is known: by that of this machine, a change might begin in an hour."""
        store = self._store()
        if store.clock is not None:
            store.clock.ensure(timeout_s=self._timeout_s)
        return store


def tick_id(namespace: str, schedule: str, planned_at: float) -> str:
    """Return the id of the message of a tick, the same whoever sends it."""
    return str(uuid5(_TICKS, f"{namespace}\0{schedule}\0{planned_at!r}"))


def _tell(name: str, missed: Sequence[float]) -> None:
    """Log what an edit has cut off."""
    if missed:
        first, last = moment(missed[0]).isoformat(), moment(missed[-1]).isoformat()
        many = f"at least {len(missed)}" if len(missed) == MOST_CUT_OFF else str(len(missed))
        _log.warning("schedule %s: %s missed, from %s to %s (it was changed first)", name, many, first, last)


def _entry(schedule: Schedule, source: Source, state: ScheduleState, now: float, runs: int) -> ScheduleEntry:
    timing, last, after = schedule.timing, state.last_planned_at, max(now, state.settled_until)
    ticks = takewhile(lambda tick: tick <= schedule.ends_at, islice(timing.ticks(after), runs))
    return ScheduleEntry(
        name=schedule.name,
        task=schedule.task,
        timing=timing,
        next_runs=tuple(datetime.fromtimestamp(tick, timing.zone) for tick in ticks),
        paused=state.paused,
        missed=state.missed,
        last_id=state.last_id or None,
        last_planned_at=None if last is None else datetime.fromtimestamp(last, timing.zone),
        source=source,
    )
