"""Counts what a process sends and runs.

A thread in which something happens appends a number to a list, which needs no lock. Once a second a thread of the
process hands on what is in the lists, so that no bucket is looked for for a single message.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from taskbridge import locks
from taskbridge.background import Background
from taskbridge.exceptions import BrokerUnavailable, SendError, WorkerLost
from taskbridge.logs import logger
from taskbridge.metrics.names import ATTEMPTS, COUNTED, MESSAGES, RUN, SEND, UNKNOWN, WAIT
from taskbridge.observing import OUTCOMES, Observer
from taskbridge.retry import Dead, RunAgain, Verdict

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge
    from taskbridge.hooks import Event
    from taskbridge.message import Message

_log = logger("taskbridge.metrics")

_EVERY_S: Final = 1.0
_JOIN_S: Final = 5.0
_MOST_HEARD: Final = 10_000  # in one row, before somebody asks whether the thread is there

Batch: TypeAlias = list[tuple[str, tuple[str, ...], Sequence[float]]]
"""What was counted: by metric and the values of its labels, one number of a counter, or each time of a histogram."""

Adder: TypeAlias = Callable[[Mapping[str, str]], Callable[[float], object]]
"""Returns what adds a number to a counter with these labels, or a time to a histogram: looked up once for many."""


class Counts(Observer):
    """Counts for one bridge, in each process by itself; a forked child begins at nothing.

    Args:
        bridge: Whose messages they are.
        deliverer: Makes what is handed each batch, once a process; that may raise `OSError`, which is logged.
        supervising: What to do in the process that supervises the workers.
    """

    def __init__(
        self,
        bridge: Bridge,
        deliverer: Callable[[], Callable[[Batch], object]],
        *,
        supervising: Callable[[], object] = bool,
    ) -> None:
        self._bridge = bridge
        self._supervising = supervising
        self._here = locks.PerProcess(lambda: _Heard(bridge, deliverer()))

    def begin(self) -> None:
        """Hear of the bridge's messages from here on; what is heard last is handed on as the worker or process ends."""

        def started(_: Event) -> None:
            self._here.get().begin_at_0()

        def stopping(_: Event) -> None:  # Celery's children end without `atexit`
            self.flush()

        self._bridge.observers.append(self)
        self._bridge.on("worker_started")(started)
        self._bridge.on("worker_stopping")(stopping)
        atexit.register(self.flush)

    def flush(self) -> None:
        """Hand on at once what was heard in this process."""
        if (heard := self._here.made) is not None:
            heard.flush()

    def supervising(self) -> None:
        """Do what one process does for all workers."""
        self._supervising()

    def sent(self, messages: Sequence[Message], seconds: float, error: BaseException | None) -> None:
        """Count messages by queue, and how long it took once for each queue."""
        add = (self._here.made or self._here.get()).add
        outcome = "sent"
        if error is not None:
            outcome = "failed" if isinstance(error, (BrokerUnavailable, SendError)) else "refused"
        taken = frozenset(error.sent) if isinstance(error, SendError) else frozenset[str]()
        for each in messages:
            if error is None or each.id in taken:
                add((MESSAGES, each.task, each.queue, "sent"), 1.0)
        for queue in {each.queue for each in messages}:
            add((SEND, queue, outcome), seconds)

    def ran(self, message: Message, verdict: Verdict, started_at: float, seconds: float) -> None:
        """Count a run, unless it was given back, or was none because the message had expired."""
        outcome = OUTCOMES.get(type(verdict))
        if outcome is None:
            return
        if outcome == "discarded" and message.expires_at is not None and started_at > message.expires_at:
            return
        due_at = message.enqueued_at if message.due_at is None else message.due_at
        heard = self._here.made or self._here.get()
        heard.add((RUN, message.task, message.queue, outcome), seconds, started_at - due_at)

    def settled(self, message: Message, verdict: Verdict) -> None:
        """Count the end of a message, and an attempt that was lost with its worker."""
        heard = self._here.made or self._here.get()
        if (state := OUTCOMES.get(type(verdict))) is not None and state != "retried":
            heard.add((MESSAGES, message.task, message.queue, state), 1.0)
        if state != "done" and isinstance(verdict, (RunAgain, Dead)) and isinstance(verdict.error, WorkerLost):
            heard.add((ATTEMPTS, message.task, "lost"), 1.0)


class _Heard(Background):
    """What was heard in this process, and the thread that hands it on."""

    def __init__(self, bridge: Bridge, deliver: Callable[[Batch], object]) -> None:
        super().__init__("metrics", join_s=_JOIN_S)
        self._deliver = deliver
        self._flushing = locks.Lock()
        self._bridge = bridge
        self._rows: dict[tuple[str, ...], list[float]] = {}  # each time, or a 1 each time; of a run, also its wait
        self._zeros: Batch = []
        self._see_to_thread()

    def begin_at_0(self) -> None:
        """Hand on that no known task has died or was lost yet: else an alert would see no increase by the first one."""
        zeros: Batch = []
        for each in self._bridge.declarations():
            zeros.append((MESSAGES, (each.name, self._bridge.queue_of(each.name), "dead"), [0.0]))
            zeros.append((ATTEMPTS, (each.name, "lost"), [0.0]))
        self._zeros = zeros

    def add(self, key: tuple[str, ...], *values: float) -> None:
        """Note numbers in the row of a metric and the values of its labels."""
        if (row := self._rows.get(key)) is None:
            row = self._rows.setdefault((key[0], *map(self._known, COUNTED[key[0]].labels, key[1:])), [])
        row += values
        if len(row) > _MOST_HEARD:
            self._see_to_thread()

    def _known(self, label: str, value: str) -> str:
        """Return the value of a label; what is not known here shares a row."""
        is_known = {"task": self._bridge.knows, "queue": self._bridge.queues().__contains__}.get(label)
        return value if is_known is None or is_known(value) else UNKNOWN

    def _see_to_thread(self) -> None:
        try:
            self.start()
        except RuntimeError:  # none is to be had: the interpreter ends, or there are too many
            self.flush()

    def run(self, stop: threading.Event) -> None:
        """Hand on what was heard, once a second."""
        while not stop.wait(_EVERY_S):
            self.flush()

    def flush(self) -> None:
        """Hand on what was heard."""
        try:
            with self._flushing:
                self._deliver(self._batch())
        except Exception:  # metrics are never worth a task
            _log.exception("metrics could not be handed on")

    def _batch(self) -> Batch:
        """Take what was heard; what comes meanwhile is appended behind it, and is for the next one."""
        batch, self._zeros = self._zeros, []
        for (name, *labels), row in list(self._rows.items()):
            values = row[:]
            del row[: len(values)]
            if not values:
                continue
            if name == RUN:
                task, queue, outcome = labels
                batch.append((WAIT, (task, queue), [max(0.0, wait_s) for wait_s in values[1::2]]))
                values = values[::2]
                batch.append((ATTEMPTS, (task, outcome), [len(values)]))
            batch.append((name, tuple(labels), values if COUNTED[name].is_histogram else [len(values)]))
        return batch
