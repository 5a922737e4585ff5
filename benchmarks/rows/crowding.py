"""How cost grows with processes: workers at work, workers with nothing to do, and senders with nothing to send."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Final

from benchmarks.contenders import BRIDGES, CELERY, DRAMATIQ, RECORDED, Contender
from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.processes import MeasuringFailed, WorkerProcess
from benchmarks.rows.base import Measure
from benchmarks.rows.growing import grown

_PROCESSES: Final[Mapping[str, tuple[int, ...]]] = {"redis": (1, 2, 4, 8), "amqp": (1, 4)}
_NAMES: Final[Mapping[str, str]] = {"redis": "Redis", "amqp": "RabbitMQ"}
_QUEUES: Final = ("default",)
_TIMEOUT_S: Final = 120.0
_LOOK_S: Final = 0.05

_FIRST_WORKERS: Final = 3
_MORE_WORKERS: Final = 3
_MORE_SENDERS: Final = 10
_TASKS_FIRST: Final = 1200
_WATCHED_S: Final[Mapping[str, float]] = {"redis": 5.0, "amqp": 20.0}
"""How long a server is looked at; what RabbitMQ's CPU time is counted in is coarse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Moment:
    """How far workers were."""

    at: float
    left: int
    cpu_s: float
    server_s: float


def _at_work(broker: str, number: int) -> Measure:
    """Fill a queue before workers that stand still, and let them run."""

    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty(broker)
        tasks = plan.tasks
        words = tuple(str(number) if before == "--processes" else word for before, word in _pairs(contender.worker))
        with (
            place.worker(contender.like(contender.name, worker=words), broker) as worker,
            closing(place.bridge(contender, broker)) as bridge,
        ):

            def moment() -> _Moment:
                left = sum(bridge.broker.counts(_QUEUES).waiting.values())
                return _Moment(at=time.monotonic(), left=left, cpu_s=worker.cpu_s(), server_s=place.read(broker).cpu_s)

            worker.wait_until_idle(timeout_s=_TIMEOUT_S)
            with worker.frozen():
                place.run(contender, broker, "marking", "fill", tasks)
            found = [each for each in _followed(moment) if each.left <= tasks * 0.8]
            memory_mb = worker.memory_mb()
        return {**_between(found[0], found[-1]), "MB": memory_mb}

    return measure


def _pairs(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    return zip(("", *words), words, strict=False)


def _followed(moment: Callable[[], _Moment]) -> Iterator[_Moment]:
    """Yield how far they are, again and again, until little is left."""
    deadline = time.monotonic() + _TIMEOUT_S
    first = last = moment()
    while last.left > first.left / 20:
        if last.at > deadline:
            raise MeasuringFailed(f"{last.left} messages are left after {_TIMEOUT_S:.0f} s")
        yield last
        time.sleep(_LOOK_S)
        last = moment()


def _between(start: _Moment, end: _Moment) -> Mapping[str, float]:
    count = start.left - end.left
    return {
        "tasks/s": count / (end.at - start.at),
        "cpu_us": (end.cpu_s - start.cpu_s) / count * 1e6,
        "server_us": (end.server_s - start.server_s) / count * 1e6,
    }


def _idle_workers(broker: str) -> Measure:
    """Start workers and then more, and return what each of those costs the server while it has nothing to do.

    They have run tasks before: only then a worker has all its connections, and asks what is cancelled. Before each look
    as many tasks are run, so that what these leave behind is there both times, or is the same. It begins with several,
    for one by itself looks more often for what is due than one of several does.
    """

    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty(broker)
        with ExitStack() as stack:
            first = _started(place, contender, broker, stack, _FIRST_WORKERS)
            _run_some(place, contender, broker, first)
            once = _watched(place, broker)
            _run_some(place, contender, broker, first)
            few = _watched(place, broker)
            more = _started(place, contender, broker, stack, _MORE_WORKERS)
            _run_some(place, contender, broker, [*first, *more])
            many = _watched(place, broker, more)
            memory_mb = sum(worker.memory_mb() for worker in more) / _MORE_WORKERS
        own = many.own_cpu / _MORE_WORKERS * 100
        kept = {"server KB": (many.kept - few.kept - (few.kept - once.kept)) / _MORE_WORKERS / 1e3}
        return {**_each(few, many, _MORE_WORKERS), **kept, "own CPU %": own, "own MB": memory_mb}

    return measure


def _started(place: Place, contender: Contender, broker: str, stack: ExitStack, number: int) -> list[WorkerProcess]:
    workers = [stack.enter_context(place.worker(contender, broker)) for _ in range(number)]
    _wait_until_idle(workers)
    return workers


def _run_some(place: Place, contender: Contender, broker: str, workers: Sequence[WorkerProcess]) -> None:
    """Let workers run tasks, the last of which tells that they are done."""
    told = sum(len(worker.lines("mark")) for worker in workers)
    place.run(contender, broker, "marking", "fill", _TASKS_FIRST)
    place.run(contender, broker, "marking", "knock")
    deadline = time.monotonic() + _TIMEOUT_S
    while sum(len(worker.lines("mark")) for worker in workers) <= told:
        if time.monotonic() > deadline:
            raise MeasuringFailed(f"no worker has run the last task after {_TIMEOUT_S:.0f} s")
        time.sleep(_LOOK_S)
    _wait_until_idle(workers)


def _wait_until_idle(workers: Iterable[WorkerProcess]) -> None:
    for worker in workers:
        worker.wait_until_idle(timeout_s=_TIMEOUT_S)


def _idle_senders(broker: str) -> Measure:
    """Let one process send a message and then more, and return what each of those costs the server after that."""

    def measure(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
        place.empty(broker)
        with place.senders(contender, broker, 1, sent=1):
            one = _watched(place, broker)
            with place.senders(contender, broker, _MORE_SENDERS, sent=1):
                many = _watched(place, broker)
        return _each(one, many, _MORE_SENDERS)

    return measure


@dataclass(frozen=True, kw_only=True, slots=True)
class _Watched:
    """What a server did in a second, and kept; and the CPU time of workers in that second."""

    commands: float
    cpu: float
    own_cpu: float
    moved: float
    connections: int
    channels: int
    kept: int


def _watched(place: Place, broker: str, workers: Sequence[WorkerProcess] = ()) -> _Watched:
    """Look at a server for some seconds, and at workers."""
    before, own_s = place.read(broker), sum(worker.cpu_s() for worker in workers)
    watched_s = _WATCHED_S[broker]
    time.sleep(watched_s)
    after, own_s = place.read(broker), sum(worker.cpu_s() for worker in workers) - own_s
    now = place.read(broker, closely=True)
    return _Watched(
        commands=(after.commands - before.commands) / watched_s,
        cpu=(after.cpu_s - before.cpu_s) / watched_s,
        own_cpu=own_s / watched_s,
        moved=(after.moved - before.moved) / watched_s,
        connections=now.connections,
        channels=now.channels,
        kept=now.kept,
    )


def _each(one: _Watched, many: _Watched, number: int) -> Mapping[str, float]:
    """Return what each of those costs that were there later."""
    return {
        "commands/s": (many.commands - one.commands) / number,
        "server CPU %": (many.cpu - one.cpu) / number * 100,
        "bytes/s": (many.moved - one.moved) / number,
        "connections": (many.connections - one.connections) / number,
        "channels": (many.channels - one.channels) / number,
        "server KB": (many.kept - one.kept) / number / 1e3,
    }


_OF_SERVER: Final[Mapping[str, tuple[str, ...]]] = {
    "redis": ("commands/s", "server CPU %", "bytes/s", "connections", "server KB"),
    "amqp": ("server CPU %", "connections", "channels", "server KB"),
}
ROWS: Final = (
    *(
        grown(
            f"processes-{broker}-{number}",
            f"worker processes, {_NAMES[broker]}",
            f"{number}",
            _at_work(broker, number),
            *("tasks/s", "cpu_us", "server_us", "MB"),
        )
        for broker, numbers in _PROCESSES.items()
        for number in numbers
    ),
    *(
        grown(
            f"idle-workers-{broker}",
            f"one more worker process with nothing to do, {name}",
            "",
            _idle_workers(broker),
            *(*_OF_SERVER[broker], "own CPU %", "own MB"),
            contenders=(*(RECORDED if broker == "redis" else BRIDGES), CELERY, DRAMATIQ),
        )
        for broker, name in _NAMES.items()
    ),
    *(
        grown(
            f"idle-senders-{broker}",
            f"one more sender with nothing to send, {name}",
            "",
            _idle_senders(broker),
            *_OF_SERVER[broker],
        )
        for broker, name in _NAMES.items()
    ),
)
