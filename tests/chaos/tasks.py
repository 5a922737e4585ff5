"""The tasks of a chaos run: each writes down its start and its end, outside of what the library keeps."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from taskbridge import Bridge, Discard, Event, Task, current
from taskbridge.contract.probe import END, START, Probe
from tests.chaos.kinds import KINDS, NeverMore, NotNow

WORKER_VARIABLE: Final = "TASKBRIDGE_TEST_CHAOS_WORKER"
FOLDER_VARIABLE: Final = "TASKBRIDGE_TEST_CHAOS_FOLDER"
RUN_VARIABLE: Final = "TASKBRIDGE_TEST_CHAOS_RUN"

QUEUES: Final = ("chaos", "left", "right")
PROBE_FILE: Final = "probe.jsonl"
DEPLOYED_FILE: Final = "deployed"
SUICIDE: Final = "suicide"

_STEP_S: Final = 0.02


class Tasks:
    """Every task of a chaos run, declared on one bridge.

    Args:
        bridge: The bridge.
        folder: Where the probe's file is.
        knows_late: Whether the task `chaos.late` is declared: workers don't know it before a deploy.

    Attributes:
        by_kind: The tasks, by their kind's name.
    """

    def __init__(self, bridge: Bridge, folder: Path, *, knows_late: bool) -> None:
        self._probe = Probe(folder / PROBE_FILE, time.time)
        self._worker = os.environ.get(WORKER_VARIABLE, "")
        self.by_kind: Mapping[str, Task[[str, float], None]] = {
            kind.name: bridge.task(name=f"chaos.{kind.name}", queue=QUEUES[0], retry=kind.policy)(self._body(kind.name))
            for kind in KINDS.values()
            if knows_late or kind.name != "late"
        }
        bridge.on("worker_started")(self._note_worker)
        bridge.on("retrying")(self._note_retry)

    def _body(self, kind: str) -> Any:
        async def run_coroutine(key: str, number: float) -> None:
            with _Noted(self, key):
                await asyncio.sleep(number)

        def run(key: str, number: float) -> None:
            with _Noted(self, key) as noted:
                self._do(kind, number, noted)

        return run_coroutine if kind == "coroutine" else run

    def _do(self, kind: str, number: float, noted: _Noted) -> None:
        if kind == "flaky":
            if current().attempt <= number:
                raise NotNow
        elif kind in ("slow", "long", "once"):
            _sleep(number)
        elif kind == "discarding":
            raise Discard("as it is told")
        elif kind == "hopeless":
            raise NotNow
        elif kind == "given_up":
            raise NeverMore
        elif kind == "poison":
            noted.write(SUICIDE)
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, kind: str, *, id: str = "", attempt: int = 0, **data: Any) -> None:
        """Append a record that names the worker and the session which the process belongs to."""
        self._probe.write(kind, id=id, attempt=attempt, worker=self._worker, session=os.getsid(0), **data)

    def _note_worker(self, event: Event) -> None:
        self.write(event.name)

    def _note_retry(self, event: Event) -> None:
        if event.message is not None:
            self.write(event.name, id=event.message.id, attempt=event.message.attempt, delay_s=event.delay_s)


class _Noted:
    """Writes the start of a run and its end, if there is one."""

    def __init__(self, tasks: Tasks, key: str) -> None:
        self._tasks = tasks
        self._key = key
        self._id = current().id
        self._attempt = current().attempt

    def write(self, kind: str, **data: Any) -> None:
        """Append a record of this run."""
        self._tasks.write(kind, id=self._id, attempt=self._attempt, key=self._key, **data)

    def __enter__(self) -> _Noted:
        self.write(START)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.write(END, ending="returned" if kind is None else kind.__name__)


def _sleep(duration_s: float) -> None:
    """Sleep in steps, so that a time limit or the worker's end can interrupt it."""
    deadline = time.monotonic() + duration_s
    while (left_s := deadline - time.monotonic()) > 0:
        time.sleep(min(_STEP_S, left_s))
