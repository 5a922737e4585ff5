"""Counts what a process sends and runs.

Each event costs the thread that it happens in a tuple and an append. Once a second a thread of the process groups what
was heard and hands it on, so that no label is looked up and no bucket found for a single message.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from taskbridge import locks
from taskbridge.background import Background
from taskbridge.exceptions import BrokerUnavailable, SendError, WorkerLost
from taskbridge.logs import logger
from taskbridge.metrics.names import ATTEMPTS, MESSAGES, RUN, SEND, UNKNOWN, WAIT
from taskbridge.observing import Observer
from taskbridge.retry import CancelledVerdict, Dead, Discarded, Done, RunAgain, Verdict

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge
    from taskbridge.message import Message

_log = logger("taskbridge.metrics")

_EVERY_S: Final = 1.0
_JOIN_S: Final = 5.0
_MOST_HEARD: Final = 50_000  # events that are kept while nobody takes them, as when a process stands still: some 10 MB

Batch: TypeAlias = list[tuple[str, tuple[str, ...], Sequence[float]]]
"""What was counted: by metric and the values of its labels, one number of a counter, or each time of a histogram."""

Add: TypeAlias = Callable[[float, Mapping[str, str]], object]
"""Adds a number to a counter with these labels, or a time to a histogram."""

_OUTCOMES: Final[Mapping[type, str]] = {
    Done: "done",
    RunAgain: "retried",
    Dead: "dead",
    Discarded: "discarded",
    CancelledVerdict: "cancelled",
}
"""By kind of verdict; one that is none of these, but of a subclass, ends no attempt."""

_LOST: Final = "lost"


class Counts(Observer):
    """Counts for one bridge, in each process by itself; a forked child begins at nothing.

    Args:
        bridge: Whose messages they are; its observers have yet to hold this.
        deliverer: Makes what is handed each batch, once a process; that may raise `OSError`, which is logged.
    """

    def __init__(self, bridge: Bridge, deliverer: Callable[[], Callable[[Batch], object]]) -> None:
        self._bridge = bridge
        self._here = locks.PerProcess(lambda: _Heard(bridge, deliverer()))

    def flush(self) -> None:
        """Hand on at once what was heard in this process."""
        if (heard := self._here.made) is not None:
            heard.flush()

    def sent(self, messages: Sequence[Message], seconds: float, error: BaseException | None) -> None:
        """Count messages by queue, and how long it took once for each queue."""
        heard = self._here.made or self._here.get()
        outcome = "sent"
        if error is not None:
            outcome = "failed" if isinstance(error, (BrokerUnavailable, SendError)) else "refused"
        taken = frozenset(error.sent) if isinstance(error, SendError) else frozenset[str]()
        for each in messages:
            if error is None or each.id in taken:
                heard.ends.append((MESSAGES, each.task, each.queue, "sent"))
        heard.sends.extend((queue, outcome, seconds) for queue in {each.queue for each in messages})

    def ran(self, message: Message, verdict: Verdict, started_at: float, seconds: float) -> None:
        """Count a run, unless it was none because the message had expired."""
        kind = type(verdict)
        if kind is Discarded and message.expires_at is not None and started_at > message.expires_at:
            return
        due_at = message.enqueued_at if message.due_at is None else message.due_at
        heard = self._here.made or self._here.get()
        heard.runs.append((message.task, message.queue, kind, seconds, started_at - due_at))

    def settled(self, message: Message, verdict: Verdict) -> None:
        """Count the end of a message, and an attempt that was lost with its worker."""
        kind = type(verdict)
        heard = self._here.made or self._here.get()
        if kind is not RunAgain and kind in _OUTCOMES:
            heard.ends.append((MESSAGES, message.task, message.queue, _OUTCOMES[kind]))
        if isinstance(verdict, (RunAgain, Dead)) and isinstance(verdict.error, WorkerLost):
            heard.ends.append((ATTEMPTS, message.task, message.queue, _LOST))


class _Heard(Background):
    """What was heard in this process, and the thread that hands it on."""

    def __init__(self, bridge: Bridge, deliver: Callable[[Batch], object]) -> None:
        super().__init__("metrics", join_s=_JOIN_S)
        self._bridge = bridge
        self._deliver = deliver
        self._flushing = locks.Lock()
        self.runs: deque[tuple[str, str, type, float, float]] = deque(maxlen=_MOST_HEARD)
        self.ends: deque[tuple[str, str, str, str]] = deque(maxlen=_MOST_HEARD)
        self.sends: deque[tuple[str, str, float]] = deque(maxlen=_MOST_HEARD)
        with suppress(RuntimeError):  # the interpreter ends, and no thread is to be had
            self.start()

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
        """Take what was heard; events that come meanwhile are for the next one."""
        queues = frozenset(self._bridge.queues())
        numbers: Counter[tuple[str, tuple[str, ...]]] = Counter()
        times: defaultdict[tuple[str, tuple[str, ...]], list[float]] = defaultdict(list)
        runs: defaultdict[tuple[str, str, type], list[tuple[float, float]]] = defaultdict(list)
        for task, queue, kind, seconds, wait_s in _taken(self.runs):
            runs[task, queue, kind].append((seconds, wait_s))
        for (of, at, kind), each in runs.items():
            if (outcome := _OUTCOMES.get(kind)) is not None:
                task, queue = self._task(of), at if at in queues else UNKNOWN
                numbers[ATTEMPTS, (task, outcome)] += len(each)
                times[RUN, (task, queue, outcome)] += [seconds for seconds, _ in each]
                times[WAIT, (task, queue)] += [max(0.0, wait_s) for _, wait_s in each]
        for (name, of, at, state), number in Counter(_taken(self.ends)).items():
            task, queue = self._task(of), at if at in queues else UNKNOWN
            numbers[name, (task, queue, state) if name == MESSAGES else (task, state)] += number
        for at, outcome, seconds in _taken(self.sends):
            times[SEND, (at if at in queues else UNKNOWN, outcome)].append(seconds)
        counted: Batch = [(*key, [number]) for key, number in numbers.items()]
        return counted + [(*key, values) for key, values in times.items()]

    def _task(self, name: str) -> str:
        return name if self._bridge.knows(name) else UNKNOWN


def _taken(heard: deque[Any]) -> list[Any]:
    return [heard.popleft() for _ in range(len(heard))]
