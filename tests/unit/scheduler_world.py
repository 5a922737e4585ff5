"""A world with a clock of its own, in which schedulers take turns, and are killed and stopped between any two steps.

Each scheduler runs in a thread, but only one thread runs at a time: at every call to the store or the broker it stops,
and the world chooses who goes on, by its seed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

from taskbridge import BrokerUnavailable, Call
from taskbridge.declaration import declare
from taskbridge.schedules.listing import Schedules, tick_id
from taskbridge.schedules.plan import Schedule
from taskbridge.schedules.sender import Ticker
from taskbridge.schedules.stored import StoredSchedules
from taskbridge.settings import Settings, load
from taskbridge.stores.records import Status
from taskbridge.stores.ticks import ScheduleState, Ticks
from taskbridge.tasks import SendOptions

STALL_S = 15.0
FOLLOWS_S = 2.0
LOOKS_S = 1.0


class Killed(BaseException):
    """Ends a scheduler where it stands."""


@dataclass(kw_only=True)
class World:
    """What the schedulers share.

    Attributes:
        ticks: The real ticks, of the store under test.
        schedules: What is to be sent.
        now: The time.
        seed: What chance begins with.
        sent: The ids that were sent, how often, by schedule and planned instant.
        away: Whether the store does not answer.
        records: What is known of messages.
        full_until: Until when nothing is taken of a schedule.
        edits: Whether schedules are put at run time.
        full_is_unsure: Whether what is not taken may have been taken, as far as its sender knows.
        away_s: How long after a kill another scheduler may take to come in the place of the one that was killed.
    """

    ticks: Ticks
    schedules: Sequence[Schedule]
    now: float
    seed: int = 1
    sent: Counter[tuple[str, float, str]] = field(default_factory=Counter)
    away: bool = False
    records: dict[str, Status] = field(default_factory=dict)
    away_s: Sequence[float] = (0.5, 5.0, 60.0, 3600.0)
    settings: Settings = field(default_factory=lambda: load({"url": "celery+redis://nowhere"}, environ={})[0])
    full_until: dict[str, float] = field(default_factory=dict)
    full_is_unsure: bool = False
    edits: bool = False
    kills: int = 0
    freezes: int = 0

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.actors: list[Actor] = []
        self.shared: Any = SimpleNamespace(backend=self.ticks._backend, ticks=self.ticks, clock=None)  # undisturbed

    def planned(self, schedule: str) -> list[float]:
        """Return the instants for which something was sent, each once, in order."""
        return sorted({planned_at for name, planned_at, _ in self.sent if name == schedule})

    def state(self, schedule: str) -> ScheduleState:
        return self.ticks.states([schedule], timeout_s=5.0)[schedule]

    def edit(self) -> Schedules:
        """Return what puts and deletes schedules; from now on, schedulers look for that."""
        self.edits = True
        for actor in self.actors:
            actor.wake_at = min(actor.wake_at, self.now + LOOKS_S)
        sending: Any = None
        bridge: Any = SimpleNamespace(
            settings=self.settings,
            store=self.shared,
            now=lambda: self.now,
            declarations=tuple[Any, ...],
            declaration_of=lambda name: TASK if name == TASK.name else None,
        )
        return Schedules(bridge, sending)

    def add(self, name: str, *, is_mortal: bool = True) -> None:
        actor = Actor(self, name, is_mortal)
        self.actors.append(actor)
        actor.start()

    def run(self, until: float, *, disorder: float = 0.0) -> None:
        """Let the schedulers go on until then; at each step, one of them is killed or stopped with this probability."""
        while self.now < until:
            ready = [actor for actor in self.actors if actor.wake_at <= self.now]
            if not ready:
                self.now = min(until, *(actor.wake_at for actor in self.actors))
                continue
            actor = self.random.choice(ready)
            if actor.is_mortal and self.random.random() < disorder:
                self._disturb(actor)
            else:
                actor.go_on()
                self.now += self.random.random() * 0.01

    def _disturb(self, actor: Actor) -> None:
        if self.random.random() < 0.5:
            self.kills += 1
            actor.kill()
            self.actors.remove(actor)
            self.add(f"{actor.claimant}'", is_mortal=True)
            self.actors[-1].wake_at = self.now + self.random.choice(self.away_s)
        else:
            self.freezes += 1
            actor.wake_at = self.now + self.random.choice((1.0, 9.0, 20.0, *self.away_s))

    def close(self) -> None:
        for actor in self.actors:
            actor.kill()


TASK = declare(lambda: None, name="task")
CALL: Call[None] = Call(declaration=TASK, args=(), kwargs={}, options=SendOptions())


class Actor:
    """One scheduler; it is its own host, and its own store."""

    def __init__(self, world: World, claimant: str, is_mortal: bool) -> None:
        self.world = world
        self.claimant = claimant
        self.is_mortal = is_mortal
        self.wake_at = world.now
        self.settings = world.settings
        self.store: Any = self
        self.schedules: Any = self
        self.ticks: Any = self
        self.records: Any = self
        self.clock: Any = None
        self.stored = StoredSchedules()
        self.followed_at = -FOLLOWS_S
        self._turn = threading.Lock()  # each is let go by one thread, and taken by the other
        self._back = threading.Lock()
        self._turn.acquire()
        self._back.acquire()
        self._killed = False
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name=claimant, daemon=True)

    # The world's side

    def start(self) -> None:
        self._thread.start()
        self._back.acquire(timeout=60)

    def go_on(self) -> None:
        self._turn.release()
        assert self._back.acquire(timeout=60)
        if self._problem is not None:
            raise self._problem

    def kill(self) -> None:
        self._killed = True
        self._turn.release()
        self._thread.join(60)
        assert not self._thread.is_alive()

    # Its own side

    def _live(self) -> None:
        try:
            self._point()
            bridge: Any = self
            ticker = Ticker(bridge, claimant=self.claimant, stall_s=STALL_S)
            while True:
                try:
                    wake_at = ticker.step()
                except BrokerUnavailable:
                    wake_at = self.world.now + 1.0
                self._sleep(ticker, wake_at)
        except Killed:
            pass
        except BaseException as exc:
            self._problem = exc
            self._back.release()

    def _sleep(self, ticker: Ticker, wake_at: float) -> None:
        """Sleep as the thread of a worker does, which wakes every second and so notices if it stood still."""
        self.wake_at = min(wake_at, self.world.now + LOOKS_S) if self.world.edits else wake_at
        self._point()
        if self.world.now - wake_at <= STALL_S:
            ticker._here_at = self.world.now

    def _point(self) -> None:
        self._back.release()
        self._turn.acquire()
        if self._killed:
            raise Killed

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Do something that another process does; whoever asks may be killed before it, and after it."""
        self._point()
        if self.world.away:
            raise BrokerUnavailable("the store is away")
        answer = call()
        self._point()
        return answer

    # What a ticker asks for

    def now(self) -> float:
        return self.world.now

    def planned(self) -> Mapping[str, Schedule]:
        return {**self.stored.known, **{schedule.name: schedule for schedule in self.world.schedules}}

    def follow(self, *, at_once: bool = False) -> None:
        if self.world.edits and (at_once or self.world.now - self.followed_at >= FOLLOWS_S):
            self.followed_at = self.world.now
            self._ask(lambda: self.stored.follow(self.world.shared, at_once=True, timeout_s=5.0))

    def send(self, schedule: Schedule, planned_at: float) -> str:
        name = schedule.name
        message_id = tick_id("world", name, planned_at)

        def send() -> None:
            if self.world.now < self.world.full_until.get(name, 0.0):
                raise BrokerUnavailable("the queue is full", maybe_taken=self.world.full_is_unsure)
            self.world.sent[name, planned_at, message_id] += 1

        self._ask(send)
        return message_id

    def begin(self, schedule: str, **given: Any) -> ScheduleState:
        state: ScheduleState = self._ask(lambda: self.world.ticks.begin(schedule, **given))
        return state

    def knows(self, task: str) -> bool:
        return True

    def note(self, plans: Mapping[str, list[str]], **given: Any) -> bool:
        is_noted: bool = self._ask(lambda: self.world.ticks.note(plans, **given))
        return is_noted

    def states(self, schedules: Sequence[str], **given: Any) -> Mapping[str, ScheduleState]:
        states: Mapping[str, ScheduleState] = self._ask(lambda: self.world.ticks.states(schedules, **given))
        return states

    def claim(self, *args: Any, **given: Any) -> Any:
        return self._ask(lambda: self.world.ticks.claim(*args, **given))

    def release(self, *args: Any, **given: Any) -> Any:
        return self._ask(lambda: self.world.ticks.release(*args, **given))

    def settle(self, *args: Any, **given: Any) -> Any:
        return self._ask(lambda: self.world.ticks.settle(*args, **given))

    def get(self, message_id: str, **given: Any) -> Status | None:
        record: Status | None = self._ask(lambda: self.world.records.get(message_id))
        return record
