"""What each worker process tells the store of itself: what it runs, how many runs ended, and how those failed.

| text | holds | who writes it |
|---|---|---|
| `vitals` | the names of the processes, the oldest first | who comes, and who folds |
| `vital:{process}` | what a process tells | that process: once a second if there is news, and every 5 s |
| `vitals:past` | the counts of processes that are gone | who folds |

To fold is to add the counts of a process to the past, and to remove its text and its name, in one commit: so no run is
counted twice. A process folds itself as it ends. Each looks at the texts of the next ones in `vitals`, and folds those
that have not changed for a minute. A process that was folded, but had only stood still, begins a new text.

A process is named `host:process id~random`: where containers share a host's name, two may have the same process id.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from taskbridge import locks
from taskbridge._version import __version__
from taskbridge.background import Background
from taskbridge.durations import moment
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.failures import clipped
from taskbridge.logs import logger
from taskbridge.message import can_be_kept
from taskbridge.retry import Dead, Discarded, Done, ErrorInfo, RunAgain, Verdict
from taskbridge.stores.backend import ABSENT, Backend, Commit, Write, head_of, next_of
from taskbridge.stores.states import begins_with, is_count, is_list, is_object, is_text, is_time

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge

_log = logger("taskbridge.worker")

FAILURES_KEPT_S: Final = 86400.0
MINUTES: Final = 60
AHEAD_S: Final = 60.0
"""How far the clocks of machines may be apart; what says that it was later than that is not believed."""

_PART_S: Final = 300.0  # what a task's runs are counted by; by minutes, many tasks would make long texts
_MOST_TASKS: Final = 100
_MOST_FAILURES: Final = 50  # groups of equal ones
_MOST_RUNNING: Final = 100
_MOST_PROCESSES: Final = 500
_MOST_TEXT: Final = 300  # characters of a failure's text; longer ones that begin alike are equal
_MOST_NAME: Final = 200

_LOOK_S: Final = 1.0
_HEARTBEAT_S: Final = 5.0
_NEIGHBOURS: Final = 10
_NEIGHBOURS_S: Final = 15.0
_LOOKS: Final = 4  # after how many of them without a change one is folded; not by time, for all may have stood still
_LAST_S: Final = 1.0
_TRIES: Final = 10

_NO_ERROR: Final = "unknown_task"  # the only reason for which a message dies without an exception
_REGISTRY: Final = "vitals"
_PAST: Final = "vitals:past"

_MOST_UNTOLD: Final = 100_000  # ends of runs that wait to be counted

Ended = tuple[str, str, type[Verdict], ErrorInfo | None]
"""A verdict that was carried out: its task, the message's id, its kind, and the error, if there was one."""

_KINDS: Final[Mapping[type[Verdict], int]] = {Done: 0, RunAgain: 1, Dead: 2, Discarded: 3}
_Group = tuple[int, int, float, float, str]
_RUN: Final = is_text, is_text, is_text, is_count, is_time  # what a process tells of a run


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A run that goes on.

    Attributes:
        task: The task's name.
        id: The message's id.
        queue: Where the message was.
        attempt: 1 is the first.
        since: When it started, in UTC.
        worker: Which process runs it, as `host:process id`.
    """

    task: str
    id: str
    queue: str
    attempt: int
    since: datetime
    worker: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A process that runs tasks.

    Attributes:
        name: `host:process id`.
        engine: Such as `celery`.
        version: The release of taskbridge.
        queues: What it consumes.
        slots: How many tasks it runs at a time.
        busy: How many it runs now.
        seen_at: When it told that, in UTC.
        started_at: When it started, in UTC.
    """

    name: str
    engine: str
    version: str
    queues: tuple[str, ...]
    slots: int
    busy: int
    seen_at: datetime
    started_at: datetime


class Tally:
    """Counts of runs, and groups of equal failures.

    Attributes:
        counts: By task and time, how many were done, retried, dead and discarded: of all tasks together, which are "",
            by minutes since the epoch; of each task by five minutes.
        failures: By task, type and text of the error: how many there were, how many of them were deaths, when the first
            and the last one was, and the id of that one's message.
    """

    def __init__(self) -> None:
        self.counts: dict[str, dict[int, list[int]]] = {}
        self.failures: dict[tuple[str, str, str], _Group] = {}

    def count(self, task: str, slot: int, numbers: Sequence[int]) -> None:
        """Add to the counts of a time; not of a task beyond the first 100, whose runs are counted with all."""
        if task in self.counts or len(self.counts) <= _MOST_TASKS:
            mine = self.counts.setdefault(task, {})
            mine[slot] = [one + more for one, more in zip(mine.get(slot, (0, 0, 0, 0)), numbers, strict=True)]

    def fail(self, key: tuple[str, str, str], group: _Group) -> None:
        """Add failures to those that are equal."""
        if (old := self.failures.get(key)) is not None:
            late, early = (group, old) if group[3] >= old[3] else (old, group)
            group = old[0] + group[0], old[1] + group[1], min(early[2], late[2]), late[3], late[4]
        self.failures[key] = group

    def add(self, other: Tally) -> None:
        """Add all of another one."""
        for task, slots in other.counts.items():
            for slot, numbers in slots.items():
                self.count(task, slot, numbers)
        for key, group in other.failures.items():
            self.fail(key, group)

    def trim(self, now: float, *, most_failures: int = _MOST_FAILURES) -> None:
        """Forget what is too old, or says that it is of the future, and of failures all but the latest groups."""
        for task, slots in list(self.counts.items()):
            span_s = _PART_S if task else 60.0
            first, last = int((now - MINUTES * 60) // span_s), int(now // span_s) + 1
            self.counts[task] = {slot: slots[slot] for slot in slots if first <= slot <= last}
            if task and not self.counts[task]:
                del self.counts[task]
        recent = [each for each in self.failures.items() if now - FAILURES_KEPT_S < each[1][3] < now + AHEAD_S]
        self.failures = dict(sorted(recent, key=lambda each: each[1][3])[-most_failures:])

    def packed(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return {"counts": self.counts, "failures": [[*key, *group] for key, group in self.failures.items()]}

    @classmethod
    def read(cls, text: str | None) -> Tally:
        """Return what a text holds, which anybody may have written; what is not sound in it is left out."""
        tally, found = cls(), _unpacked(text)
        for task, slots in _object(found.get("counts")).items():
            for slot, numbers in _object(slots).items():
                if slot.isdecimal() and len(slot) < 10 and begins_with(numbers, *[is_count] * 4):
                    tally.count(task, int(slot), numbers[:4])
        for each in _list(found.get("failures")):
            if begins_with(each, is_text, is_text, is_text, is_count, is_count, is_time, is_time, is_text):
                task, kind, said, *group, last_id = each[:8]
                tally.fail((task, kind, said), (group[0], group[1], group[2], group[3], last_id))
        return tally


def read(backend: Backend, *, timeout_s: float) -> tuple[list[tuple[Worker, tuple[Running, ...]]], Tally]:
    """Return what each process has told last, in two reads, and the counts of all together.

    A process that was killed is among them until it is folded; `Worker.seen_at` tells.
    """
    [registry] = backend.get([_REGISTRY], timeout_s=timeout_s)
    names = _names(registry)
    past, *texts = backend.get([_PAST, *map(_key, names)], timeout_s=timeout_s)
    tally, told = Tally.read(past), list[tuple[Worker, tuple[Running, ...]]]()
    for name, text in zip(names, texts, strict=True):
        tally.add(Tally.read(text))
        found = _unpacked(text)
        if begins_with(found.get("worker"), is_text, is_text, is_list, is_count, is_count, is_time, is_time):
            its: list[Any] = found["worker"]
            engine, release, queues, slots, busy, seen_at, started_at = its[:7]
            worker = Worker(
                name=name.partition("~")[0],
                engine=engine,
                version=release,
                queues=tuple(each for each in _list(queues) if is_text(each)),
                slots=slots,
                busy=busy,
                seen_at=moment(float(seen_at)),
                started_at=moment(float(started_at)),
            )
            runs = [each[:5] for each in _list(found.get("running")) if begins_with(each, *_RUN)]
            running = tuple(
                Running(task=task, id=each, queue=of, attempt=attempt, since=moment(float(since)), worker=worker.name)
                for task, each, of, attempt, since in runs
            )
            told.append((worker, running))
    return told, tally


def _key(worker: str) -> str:
    return f"vital:{worker}"


def _unpacked(text: str | None) -> dict[str, Any]:
    """Return the object in a text, behind its head; empty if there is none."""
    try:
        return _object(json.loads((text or "").partition("\n")[2] or "{}"))
    except (ValueError, RecursionError):
        return {}


def _object(found: Any) -> dict[str, Any]:
    return found if is_object(found) else {}


def _list(found: Any) -> list[Any]:
    return found if is_list(found) else []


def _names(registry: str | None) -> list[str]:
    names = [each for each in _list(_unpacked(registry).get("workers")) if is_text(each) and can_be_kept(each)]
    return list(dict.fromkeys(names))[-_MOST_PROCESSES:]


def _following(text: str | None, data: Mapping[str, Any]) -> str:
    """Return the text that replaces another one."""
    return f"{next_of(head_of(text))}\n{json.dumps(data)}"


class Vitals(Background):
    """Tells the store what this process does, from `start` to `stop`; nothing without a store.

    Args:
        host: The bridge.
        name: Returns what this process is called.
        queues: Returns what it consumes.
        slots: Returns how many tasks it runs at a time.
    """

    def __init__(
        self, host: Bridge, *, name: Callable[[], str], queues: Callable[[], Sequence[str]], slots: Callable[[], int]
    ) -> None:
        super().__init__("vitals", join_s=_LAST_S)
        self._host = host
        self._name_of, self._queues, self._slots = name, queues, slots
        self._telling = locks.Lock()
        self._ended: deque[Ended] = deque(maxlen=_MOST_UNTOLD)
        self._begin()

    def _begin(self) -> None:
        self._name, self._number = f"{self._name_of()}~{secrets.token_hex(4)}", 0
        self._seen = ABSENT  # the head of this process's text
        self._told = Tally()
        self._ended.clear()
        self._is_registered = self._is_away = False
        self._shown: tuple[str, ...] = ()
        self._tell_at = self._started_at = 0.0
        self._neighbours: dict[str, tuple[str, int]] = {}

    def attach(self) -> None:
        """Begin to count, without a thread: whoever runs messages calls `tell`."""
        if self._host.store is not None and not self.is_counting:
            self._begin()
            self._host.ended.append(self._ended)

    @property
    def is_counting(self) -> bool:
        """Whether runs are counted."""
        return any(each is self._ended for each in self._host.ended)

    def start(self) -> None:
        """Begin to count, and start the thread."""
        self.attach()
        if self.is_counting:
            super().start()

    def stop(self) -> None:
        """Have the counts folded, for a second at most, and end."""
        if self.is_counting:
            super().stop()
            self._host.ended[:] = [each for each in self._host.ended if each is not self._ended]

    def run(self, stop: threading.Event) -> None:
        """Tell what is new, and look after the neighbours, until `stop` is set; outages are waited out."""
        look_at = monotonic() + _NEIGHBOURS_S
        while not stop.is_set():
            self._try(self.tell)
            if monotonic() >= look_at:
                look_at = monotonic() + _NEIGHBOURS_S
                self._try(self._look_at_neighbours)
            stop.wait(_LOOK_S)
        self._try(self._leave)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
            self._is_away = False
        except BrokerUnavailable as exc:
            if not self._is_away:
                _log.warning("nobody is told what this worker does until the store is back: %s", exc.problem)
            self._is_away = True
        except Exception:
            _log.exception("what this worker does could not be told")

    @property
    def _backend(self) -> Backend:
        store = self._host.store
        assert store is not None, "it is not started without one"
        return store.backend

    # This process's own text

    def tell(self, *, at_once: bool = False) -> None:
        """Write what this process does, if there is news or it is time to, or it is to be done at once."""
        with self._telling:
            runs = self._host.cancellations.runs
            running = [] if runs is None else runs.all()
            shown = tuple(each.message.attempt_key for each in running)
            if not (at_once or self._ended or shown != self._shown or monotonic() >= self._tell_at):
                return
            now, ticks = self._host.now(), monotonic()
            self._gather(now)
            self._started_at = self._started_at or now
            here = self._host.settings.url.engine, __version__, [*self._queues()][:_MOST_RUNNING], self._slots()
            rows = [
                [clipped(each.task, _MOST_NAME), each.id, each.queue, each.attempt, now - (ticks - run.began)]
                for run in running[:_MOST_RUNNING]
                for each in (run.message,)
            ]
            self._write({"worker": [*here, len(running), now, self._started_at], "running": rows})
            self._shown, self._tell_at = shown, monotonic() + _HEARTBEAT_S

    def _gather(self, now: float) -> None:
        """Count the runs that have ended since the last time."""
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        for (task, kind), number in Counter((task, kind) for task, _, kind, _ in ended if kind in _KINDS).items():
            numbers = [number if _KINDS[kind] == each else 0 for each in range(len(_KINDS))]
            self._told.count("", int(now // 60), numbers)
            self._told.count(clipped(task, _MOST_NAME), int(now // _PART_S), numbers)
        for task, message_id, kind, error in ended:
            if kind in (RunAgain, Dead):
                said = (_NO_ERROR, "") if error is None else (error.type, error.message)
                key = clipped(task, _MOST_NAME), clipped(said[0], _MOST_NAME), clipped(said[1], _MOST_TEXT)
                self._told.fail(key, (1, int(kind is Dead), now, now, message_id))
        self._told.trim(now)

    def _write(self, of_now: Mapping[str, Any]) -> None:
        timeout_s, key = self._host.settings.send_timeout_s, _key(self._name)
        for _ in range(_TRIES):
            self._number += 1
            head = str(self._number)
            text = f"{head}\n{json.dumps({**of_now, **self._told.packed()})}"
            if self._backend.write([Write(key, self._seen, text, FAILURES_KEPT_S)], timeout_s=timeout_s)[0]:
                self._seen = head
                break
            [found] = self._backend.get([key], timeout_s=timeout_s)
            if found is None:
                self._told, self._is_registered = Tally(), False  # it was folded
            self._seen = ABSENT if found is None else head_of(found)
        for _ in range(0 if self._is_registered else _TRIES):
            [registry] = self._backend.get([_REGISTRY], timeout_s=timeout_s)
            names = [each for each in _names(registry) if each != self._name]
            text = _following(registry, {"workers": [*names, self._name][-_MOST_PROCESSES:]})
            write = Write(_REGISTRY, head_of(registry), text)
            if self._backend.write([write], timeout_s=timeout_s)[0]:
                self._is_registered = True
                break

    # Folding

    def _leave(self) -> None:
        with self._telling:
            self._gather(self._host.now())
            self._fold(self._name, self._seen, self._told)

    def _look_at_neighbours(self) -> None:
        [registry] = self._backend.get([_REGISTRY], timeout_s=_LAST_S)
        names = _names(registry)
        self._is_registered = self._name in names  # else the store has lost it, or there are too many
        at = names.index(self._name) + 1 if self._name in names else 0
        near = [each for each in [*names[at:], *names[:at]] if each != self._name][:_NEIGHBOURS]
        texts = self._backend.get([_key(each) for each in near], timeout_s=_LAST_S)
        seen = {name: ABSENT if text is None else head_of(text) for name, text in zip(near, texts, strict=True)}
        former = {name: self._neighbours.get(name, ("", 0)) for name in near}
        self._neighbours = {
            name: (head, former[name][1] + 1 if former[name][0] == head else 1) for name, head in seen.items()
        }
        for name, text in zip(near, texts, strict=True):
            if self._neighbours[name][1] > _LOOKS:
                self._fold(name, seen[name], Tally.read(text))

    def _fold(self, worker: str, head: str, tally: Tally) -> None:
        """Fold a process, unless its text has another head than this; several that do so at once try again."""
        key = _key(worker)
        for _ in range(_TRIES):
            registry, past, text = self._backend.get([_REGISTRY, _PAST, key], timeout_s=_LAST_S)
            if head != (ABSENT if text is None else head_of(text)):
                return
            total = Tally.read(past)
            total.add(tally)
            total.trim(self._host.now())
            names = [each for each in _names(registry) if each != worker]
            writes = [
                Write(_REGISTRY, head_of(registry), _following(registry, {"workers": names})),
                Write(_PAST, head_of(past), _following(past, total.packed()), FAILURES_KEPT_S),
                *([Write(key, head, None)] if text is not None else ()),
            ]
            if self._backend.commit([Commit(writes)], timeout_s=_LAST_S)[0]:
                return
