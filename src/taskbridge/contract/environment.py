"""Environments: a namespace on a target, with its bridge, its tasks, what was seen of it, and its workers."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, TypeVar

from typing_extensions import Self, Unpack

from taskbridge import Bridge, Counts, DeadLetter, Queue
from taskbridge.contract import leftovers
from taskbridge.contract.application import Application
from taskbridge.contract.cleaning import PREFIX
from taskbridge.contract.failure import ContractFailure, NotIdle
from taskbridge.contract.pace import Pace, starting
from taskbridge.contract.preloading import passed_on
from taskbridge.contract.probe import END, START, Record, Records
from taskbridge.contract.program import RETURN
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import PRIORITIES, PROBE_FILE, QUEUES, ROUTES, Tasks, Variant
from taskbridge.contract.workers import APP, EmbeddedWorker, ProcessWorker, SupervisedWorker, Worker, is_gone
from taskbridge.engines.base import WorkerOptions

T = TypeVar("T")

POLL_S: Final = 0.02
CALM_S: Final = 0.3
"""How far apart the two looks are that show that nothing is left."""

_WORKER_START_S: Final = 60.0

_TOLD_LINES: Final = 400  # of a worker's log, where something is wrong: what it said as it started matters, too

SEND_TIMEOUT_S: Final = 30.0
"""Longer than the default: the first delay in a namespace makes 28 queues on RabbitMQ, and many may do so at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentSpec:
    """What an environment is like.

    Attributes:
        name: How reports call it.
        workers: How many it starts with.
        processes: Of each worker.
        threads: Of each process.
        lease_s: The setting `lease`.
        grace_s: The setting `grace`.
        unknown_task_grace_s: The setting of this name.
        requeue_pause_s: The setting of this name.
        max_message_bytes: The setting of this name.
        queue_type: The setting of this name; None leaves it as it is.
        result_ttl_s: The setting `result_ttl`; None leaves it as it is.
        stored: Whether attempt marks live in the target's store, if its broker keeps none.
        outbox: Whether what is sent is put in the outbox of an application, and published by workers.
        shared: Whether scenarios may share it; each has one of its own otherwise.
        quiet: Whether nothing else may run meanwhile, for what is to be on time on an idle worker.
        new: Whether its queues may not be there before, as those of an environment that has ended may be.
    """

    name: str
    workers: int = 0
    processes: int = 1
    threads: int = 1
    lease_s: float = 60.0
    grace_s: float = 10.0
    unknown_task_grace_s: float = 600.0
    requeue_pause_s: float = 1.0
    max_message_bytes: int = 100_000
    queue_type: Literal["classic", "quorum"] | None = None
    result_ttl_s: float | None = None
    stored: bool = False
    outbox: bool = False
    shared: bool = False
    quiet: bool = False
    new: bool = False


class WorkerChoices(TypedDict, total=False):
    """How a worker is started.

    Attributes:
        queues: What it consumes; all if left out.
        processes: How many, 1 if left out; in this process they are threads too.
        threads: Slots of each, 1 if left out.
        url: The way to the broker, if not the target's own.
        variant: What its tasks are like; this and the following are only for one in a process of its own.
        supervised: Whether `taskbridge worker` starts it, and starts it again when it ends by itself.
        max_tasks: After how many tasks one of its processes ends for another; only if it is supervised.
        max_memory: With how many MB it does, likewise.
        variables: More variables of its environment.
    """

    queues: Sequence[str]
    processes: int
    threads: int
    url: str | None
    variant: Variant | None
    supervised: bool
    max_tasks: int
    max_memory: int
    variables: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What was seen at one moment: what the broker holds, and the runs that have not ended."""

    begun: float
    counts: Counts
    running: tuple[str, ...]
    size: int

    def rests(self, delayed: int) -> bool:
        """Return whether nothing waits or runs, and so many are parked."""
        return not self.running and self.counts.delayed == delayed and not any(self.counts.waiting.values())

    def __str__(self) -> str:
        waiting = {queue: count for queue, count in self.counts.waiting.items() if count}
        return f"waiting {waiting or 0}, delayed {self.counts.delayed}, running {list(self.running) or 0}"


class Environment:
    """A namespace of its own on a target. Threads share it.

    Args:
        target: The target.
        spec: What it is like.
        patience_s: How long something may take that should happen at once, on an idle machine.
        pace: How fast this machine is; as the one that limits were chosen on if None.
        namespace: What names in the broker begin with; one of its own if None.

    Attributes:
        bridge: What scenarios send through.
        application: Has the outbox in which sends are put, and their transactions; None if they are put in none.
        tasks: The contract's tasks, declared on it.
        records: What happened so far.
        workers: Those that were started and not forgotten, the oldest first.
    """

    def __init__(
        self,
        target: Target,
        spec: EnvironmentSpec,
        *,
        patience_s: float,
        pace: Pace | None = None,
        namespace: str | None = None,
    ) -> None:
        self.target = target
        self.spec = spec
        self.pace: Pace = Pace() if pace is None else pace
        self.patience_s: float = patience_s * self.pace.factor
        name = f"{PREFIX}{secrets.token_hex(5)}"
        self.namespace: str = (f"{{{name}}}" if target.braces else name) if namespace is None else namespace
        self.folder: Path = Path(tempfile.mkdtemp(prefix=f"taskbridge-{name}-"))
        leftovers.remove_folder(self.folder)
        self.bridge: Bridge = self.make_bridge()
        self.application: Application | None = Application(self.bridge, self.folder) if spec.outbox else None
        self.tasks: Tasks = Tasks(self.bridge, self.folder)
        self.records: Records = Records(self.folder / PROBE_FILE)
        self.workers: list[Worker] = []
        self._looking = threading.Lock()
        self._last: Look | None = None
        self._reading = threading.Lock()
        self._letters: tuple[float, list[DeadLetter]] = (-math.inf, [])
        self._old_letters: frozenset[str] = frozenset()
        if namespace is not None:
            self._old_letters = frozenset(letter.id for letter in self.bridge.dead_letters())
        self._ended_pids: set[int] = set()
        self._workers_started = 0

    def make_bridge(self, url: str | None = None, *, send_timeout_s: float = SEND_TIMEOUT_S, **settings: Any) -> Bridge:
        """Return another bridge to the same namespace, perhaps by another way; it has no tasks yet."""
        shared = self._settings(url) | settings
        queues: list[str | Queue] = [*QUEUES, Queue(PRIORITIES, type="classic")]
        return Bridge(**shared, queues=queues, routes=ROUTES, send_timeout=send_timeout_s)

    def _settings(self, url: str | None) -> dict[str, Any]:
        """Return the settings that all processes share."""
        spec = self.spec
        settings: dict[str, Any] = {
            "url": self.target.url if url is None else url,
            "namespace": self.namespace,
            "default_queue": QUEUES[0],
            "lease": spec.lease_s,
            "grace": spec.grace_s,
            "unknown_task_grace": spec.unknown_task_grace_s,
            "requeue_pause": spec.requeue_pause_s,
            "max_message_bytes": spec.max_message_bytes,
        }
        if spec.queue_type is not None:
            settings["queue_type"] = spec.queue_type
        if spec.result_ttl_s is not None:
            settings["result_ttl"] = spec.result_ttl_s
        if spec.outbox:
            settings["commit"] = "outbox"
        if spec.stored and not self.target.keeps_marks and self.target.store is not None:
            settings["store"] = self.target.store
        return settings

    def variables(self, url: str | None = None, variant: Variant | None = None) -> Mapping[str, str]:
        """Return the variables by which another process makes the same bridge."""
        return {
            **passed_on(),
            **{f"TASKBRIDGE_{name.upper()}": str(value) for name, value in self._settings(url).items()},
            "TASKBRIDGE_QUEUES": ",".join((*QUEUES, f"{PRIORITIES}=classic")),
            "TASKBRIDGE_ROUTES": ",".join(f"{pattern}={queue}" for pattern, queue in ROUTES),
            "TASKBRIDGE_FAST": str(self.bridge.settings.fast),
            "TASKBRIDGE_CONTRACT_FOLDER": str(self.folder),
            "TASKBRIDGE_CONTRACT_VARIANT": (Variant() if variant is None else variant).dumps(),
        }

    def __enter__(self) -> Self:
        try:
            if self.spec.workers:
                self.start_workers()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and close the bridge."""
        self.end_workers()
        self.bridge.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def end_workers(self) -> None:
        """Kill the workers that are left."""
        for worker in self.workers:
            worker.kill()

    # Workers

    def start_workers(self) -> None:
        """Start as many workers as the environment is to have, and return when they work."""
        for _ in range(1 if self.target.in_process else self.spec.workers):
            with self._turn():
                worker = self._launch({"processes": self.spec.processes, "threads": self.spec.threads})
                self._wait_ready(worker, self.spec.processes)
        self._wait_for_answer(QUEUES[0])

    def start_worker(self, *, answers: bool = True, **choices: Unpack[WorkerChoices]) -> Worker:
        """Start another worker; its `worker_started` hooks are waited for.

        Args:
            answers: Whether to wait, too, until a message sent to its first queue was run.
            **choices: How it is started.
        """
        with self._turn():
            worker = self._launch(choices)
            variant = choices.get("variant")
            mortal = variant is not None and variant.dies != ""
            self._wait_ready(worker, choices.get("processes", 1), mortal=mortal)
        if answers:
            self._wait_for_answer([*choices.get("queues", ()), QUEUES[0]][0])
        return worker

    def _turn(self) -> AbstractContextManager[None]:
        """Return what a worker is started in: threads of this process start at once."""
        return nullcontext() if self.target.in_process else starting()

    def beside(self, target: Target | None = None, *, namespace: str | None = None) -> Environment:
        """Return an environment like this one, perhaps on another target or in its namespace; it is not open yet."""
        return Environment(
            self.target if target is None else target,
            self.spec,
            patience_s=self.patience_s / self.pace.factor,
            pace=self.pace,
            namespace=namespace,
        )

    def _launch(self, choices: WorkerChoices) -> Worker:
        queues, variant = tuple(choices.get("queues", ())), choices.get("variant")
        processes, threads = choices.get("processes", 1), choices.get("threads", 1)
        worker: Worker
        if self.target.in_process:
            worker = EmbeddedWorker(self.bridge, queues, threads * processes * max(1, self.spec.workers))
        else:
            self._workers_started += 1
            options = WorkerOptions(
                app=APP,
                queues=queues,
                processes=processes,
                threads=threads,
                max_tasks_per_child=choices.get("max_tasks"),
                max_memory_per_child=choices.get("max_memory"),
            )
            log = self.folder / f"worker-{self._workers_started}.log"
            kind = SupervisedWorker if choices.get("supervised") else ProcessWorker
            env = {**self.variables(choices.get("url"), variant), **choices.get("variables", {})}
            worker = kind.start(self.bridge, options, env, log)
        self.workers.append(worker)
        return worker

    def _wait_ready(self, worker: Worker, processes: int, *, mortal: bool = False) -> None:
        count = 1 if self.target.in_process else processes

        def started() -> bool:
            if (code := worker.wait(0)) is not None:
                if mortal and code == -signal.SIGKILL:
                    return True  # what it dies of waited for it
                raise ContractFailure(f"a worker ended with code {code} while it started\n{worker.log()}")
            seen = [record for record in self.records.all() if record.kind == "worker_started"]
            return len({record.pid for record in seen if worker.owns(record.pid)}) >= count

        self.until(
            started, f"the worker_started hook in {count} processes", within_s=_WORKER_START_S * self.pace.factor
        )

    def _wait_for_answer(self, queue: str) -> None:
        handle = self.tasks.programs["once"].using(queue=queue).send([RETURN.plain()])
        self.until(
            lambda: any(record.kind == END for record in self.records.of(handle.id)),
            f"a run of the first message on queue {queue}",
            within_s=_WORKER_START_S * self.pace.factor,
        )

    def kill(self, worker: Worker) -> None:
        """Kill a worker, and take the runs it was in for ended."""
        self.note_end(worker)
        worker.kill()

    def note_end(self, worker: Worker) -> None:
        """Take the runs that a worker is in for ended: it is about to be killed."""
        pids = {record.pid for record in self.records.all() if record.kind == START}
        self._ended_pids |= {pid for pid in pids if pid != os.getpid() and worker.owns(pid)}

    # Looking

    def until(self, condition: Callable[[], T], what: str, *, within_s: float | None = None) -> T:
        """Wait until a condition is true, and return its value.

        Raises:
            ContractFailure: It is not within this time, the environment's patience if None; it tells what was seen.
        """
        limit_s = self.patience_s if within_s is None else within_s
        deadline = time.monotonic() + limit_s
        while True:
            if value := condition():
                return value
            if time.monotonic() > deadline:
                raise ContractFailure(f"waited {limit_s:g} s in vain for {what}\n{self.situation()}")
            time.sleep(POLL_S)

    def look(self) -> Look:
        """Return what is to be seen now; threads that look at the same time see the same."""
        asked = time.monotonic()
        with self._looking:
            if self._last is not None and self._last.begun >= asked:
                return self._last
            begun = time.monotonic()
            counts = self.bridge.counts()
            self._last = Look(begun=begun, counts=counts, running=self._running(), size=self.records.size)
            return self._last

    def letters(self) -> list[DeadLetter]:
        """Return the dead letters since the environment was opened, oldest first; threads that ask together read once.

        On RabbitMQ, who reads the dead letters has them all in hand for a moment, and others would see none.
        """
        asked = time.monotonic()
        with self._reading:
            read, letters = self._letters
            if read < asked:
                begun = time.monotonic()
                letters = [letter for letter in self.bridge.dead_letters() if letter.id not in self._old_letters]
                self._letters = (begun, letters)
            return letters

    def is_clean(self) -> bool:
        """Return whether nothing is left in the broker but dead letters, so that another may have its names."""
        counts = self.bridge.counts()
        return not counts.delayed and not any(counts.waiting.values())

    def _running(self) -> tuple[str, ...]:
        runs: Counter[tuple[str, int, int]] = Counter()
        for record in self.records.all():
            if record.pid not in self._ended_pids and record.kind in (START, END):
                runs[record.id, record.attempt, record.pid] += 1 if record.kind == START else -1
        for worker in self.workers:
            worker.wait(0)  # else what has died is still there
        return tuple(key[0] for key, count in runs.items() if count > 0 and not is_gone(key[2]))

    def wait_idle(self, within_s: float, own_ids: Callable[[], frozenset[str]]) -> None:
        """Wait until nothing waits, runs or is parked, in two looks between which nothing happened.

        Raises:
            NotIdle: Not within this time.
        """
        try:
            self.wait_rest(within_s, delayed=0)
        except ContractFailure as exc:
            raise NotIdle(str(exc), own=any(self._is_open(each) for each in own_ids())) from None

    def wait_rest(self, within_s: float, *, delayed: int) -> None:
        """Wait until nothing waits or runs and so many are parked, in two looks between which nothing happened.

        Raises:
            ContractFailure: Not within this time.
        """
        deadline = time.monotonic() + within_s
        before: Look | None = None
        while True:
            if self._running() and time.monotonic() <= deadline:  # nothing rests, so the broker need not be asked
                before = None
                time.sleep(CALM_S)
                continue
            now = self.look()
            if before is not None and before.rests(delayed) and now.rests(delayed) and before.size == now.size:
                return
            before = now
            if time.monotonic() > deadline:
                what = "idle" if delayed == 0 else f"at rest with {delayed} delayed"
                raise ContractFailure(f"not {what} after {within_s:g} s: {now}\n{self.situation()}")
            time.sleep(CALM_S)

    def _is_open(self, id: str) -> bool:
        kinds = [record.kind for record in self.records.of(id) if record.kind != "after_send"]  # it may end before that
        return not kinds or kinds[-1] not in ("succeeded", "dead", "discarded")

    def runs(self) -> list[Record]:
        """Return the starts so far."""
        return [record for record in self.records.all() if record.kind == START]

    def situation(self) -> str:
        """Return what a failure should show of the broker and the workers."""
        try:
            counts = str(self.look())
        except Exception as exc:  # whatever is wrong, it must not hide the failure that is being shown
            counts = f"no counts: {type(exc).__name__}: {exc}"
        logs = [
            f"--- log of worker {number}\n{worker.log(_TOLD_LINES)}" for number, worker in enumerate(self.workers, 1)
        ]
        return "\n".join([counts, *(log for log in logs if log.count("\n"))])
