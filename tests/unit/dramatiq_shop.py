"""A small application, its workers as processes, and what they did: one line of JSON an event in a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dramatiq

from taskbridge import Bridge, Discard, Event, RetryPolicy, current
from tests.forking import start_process

ROOT: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 90.0


@dataclass(frozen=True, kw_only=True)
class Record:
    """Something that a worker did; `what` is a task's name or a hook's, and how it went."""

    at: float
    pid: int
    what: str
    data: list[Any]


class Shop:
    """The application, for its producer and, by the same environment, for its workers."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = {name: value for name, value in environ.items() if name.startswith("SHOP_")}
        self._log = Path(environ["SHOP_LOG"])
        self.own = f"own-{environ['SHOP_NAMESPACE']}"  # a queue of no task of ours; shops share a server
        self.bridge = Bridge(
            environ["SHOP_URL"],
            namespace=environ["SHOP_NAMESPACE"],
            queues=("email",),
            retry=RetryPolicy(max_attempts=3, min_delay=0.2, jitter=0),
            grace=float(environ["SHOP_GRACE"]),
            lease=float(environ["SHOP_LEASE"]),
            unknown_task_grace=0.5,
            send_timeout=30,
            store=environ.get("SHOP_STORE"),
        )
        self._declare()

    @classmethod
    def at(cls, url: str, folder: Path, *, grace_s: float = 8, lease_s: float = 30, store: str | None = None) -> Shop:
        """Open a shop with a namespace and a log file of its own."""
        environ = {
            "SHOP_URL": url,
            "SHOP_NAMESPACE": f"shop-{os.urandom(4).hex()}",
            "SHOP_LOG": str(folder / "events"),
            "SHOP_GRACE": str(grace_s),
            "SHOP_LEASE": str(lease_s),
        }
        return cls(environ if store is None else {**environ, "SHOP_STORE": store})

    def record(self, what: str, *data: Any) -> None:
        line = json.dumps({"at": time.time(), "pid": os.getpid(), "what": what, "data": data})
        with self._log.open("a") as file:
            file.write(f"{line}\n")

    def records(self, *what: str) -> list[Record]:
        """Return what was recorded, of these kinds, or all."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        found = [Record(**json.loads(line)) for line in lines]
        return [record for record in found if not what or record.what in what]

    def data(self, *what: str) -> list[list[Any]]:
        return [record.data for record in self.records(*what)]

    def wait(self, condition: Callable[[], Any], *, within_s: float = PATIENCE_S) -> Any:
        """Wait for something, and return it."""
        deadline = time.monotonic() + within_s
        while not (found := condition()):
            shown = "\n".join(f"{record.at:.2f} {record.pid} {record.what} {record.data}" for record in self.records())
            assert time.monotonic() < deadline, f"it did not happen in {within_s} s; {self.bridge.counts()}\n{shown}"
            time.sleep(0.02)
        return found

    def idle(self) -> None:
        """Return when nothing waits and nothing is delayed, seen twice."""
        for _ in range(2):
            self.wait(lambda: (counts := self.bridge.counts()).delayed + sum(counts.waiting.values()) == 0)
            time.sleep(0.2)

    def native_queue(self, queue: str = "default") -> str:
        return f"{self.environ['SHOP_NAMESPACE']}.dramatiq.{queue}"

    @contextmanager
    def worker(self, *options: str, threads: int = 2, **environ: str) -> Generator[subprocess.Popen[bytes]]:
        """Run Dramatiq's own command line, as a user would by hand."""
        started = len(self.records("worker_started"))
        command = [sys.executable, "-m", "dramatiq", "tests.unit.dramatiq_shop_worker:broker", "-p", "1"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}
        with (self._log.parent / "output").open("ab") as output:
            start: Any = subprocess.Popen if options else start_process
            process: subprocess.Popen[bytes] = start(
                [*command, "-t", str(threads), *options],
                cwd=ROOT,
                env={**inherited, **self.environ, **environ},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self.wait(lambda: len(self.records("worker_started")) > started)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)

    def _declare(self) -> None:
        bridge, record = self.bridge, self.record

        @bridge.task(name="note")
        def note(x: Any) -> None:
            record("note", x, current().attempt, current().queue, current().priority)

        @bridge.task(name="flaky", queue="email")
        def flaky() -> None:
            record("flaky", current().attempt)
            if current().attempt < 3:
                raise ValueError("not yet")

        @bridge.task(name="fails")
        def fails(error: str) -> None:
            record("fails", error, current().attempt)
            raise {"ValueError": ValueError, "SystemExit": SystemExit, "Discard": Discard}[error]("no")

        @bridge.task(name="lasts")
        def lasts(name: str, seconds: float) -> None:
            error = current().previous_error
            record("lasts", name, current().attempt, None if error is None else error.type)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(0.01)
            record("lasted", name)

        @bridge.task(name="is_stuck")
        def is_stuck(seconds: float) -> None:
            record("is_stuck", current().attempt)
            time.sleep(seconds)

        self.note, self.flaky, self.fails, self.lasts, self.is_stuck = note, flaky, fails, lasts, is_stuck

    def as_worker(self) -> Any:
        """Return the broker, with hooks that record, and an actor that is none of taskbridge's."""

        def hook(event: Event) -> None:
            self.record(event.name, event.message and event.message.task, event.reason)

        for name in ("worker_started", "worker_stopping", "retrying", "dead", "discarded"):
            self.bridge.on(name)(hook)

        @dramatiq.actor(broker=self.bridge.native, queue_name=self.own, max_retries=1, min_backoff=100, max_backoff=100)
        def ordinary() -> None:
            self.record("ordinary")
            raise ValueError("no")

        return self.bridge.native
