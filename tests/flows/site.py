"""The application of `tests.flows.app` in processes of its own: its workers, who sends, and what has run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from typing_extensions import Self

from benchmarks.guarantees.workers import KeptWorker
from taskbridge import Bridge, FlowStatus, NoSuchRecord
from taskbridge.contract.preloading import without_settings
from taskbridge.engines.base import WorkerOptions
from tests.flows.faults import Fault, flow_id

ROOT: Final = Path(__file__).parents[2]
LEASE_S: Final = 3.0
PATIENCE_S: Final = 300.0
_POLL_S: Final = 0.05


@dataclass
class Run:
    """A run that a task has noted."""

    key: str
    id: str
    attempt: int
    life: int
    engine: str


class Site:
    """The application on a pair, in processes of its own.

    Args:
        folder: Where it writes.
        url: The pair's.
        store: The store's URL.
        namespace: That of another site, to go on with its flows; one of its own if None.
        mutant: The mutant that its processes are; empty for the unbroken product.
    """

    def __init__(self, folder: Path, url: str, store: str, namespace: str | None = None, *, mutant: str = "") -> None:
        self.folder = folder
        self.namespace = namespace or f"flows-{uuid4().hex[:8]}"
        self.env = {
            **without_settings(),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src"))),
            "FLOWS_URL": url,
            "FLOWS_NAMESPACE": self.namespace,
            "FLOWS_STORE": store,
            "FLOWS_LEASE": repr(LEASE_S),
            "FLOWS_FOLDER": str(folder),
            "FLOWS_MUTANT": mutant,
        }
        self.bridge = Bridge(url, namespace=self.namespace, store=store, lease=LEASE_S, send_timeout=60)
        self._workers: list[KeptWorker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        self.bridge.close()

    def worker(self, fault: Fault | None = None, numbers: Sequence[int] = (), *, threads: int = 2) -> KeptWorker:
        """Start a worker, which is started again whenever it ends."""
        armed = {"FLOWS_FAULT": fault.dumps(), "FLOWS_NUMBERS": f"{numbers[0]} {len(numbers)}"} if fault else {}
        options = WorkerOptions(app="tests.flows.app:bridge", queues=(), processes=1, threads=threads)
        log = self.folder / f"worker-{len(self._workers)}.log"
        worker = KeptWorker(self.bridge.worker_commands(options), {**self.env, **armed}, log)
        self._workers.append(worker)
        return worker

    def send(self, kind: str, numbers: Sequence[int], *, members: int = 3) -> None:
        """Send flows that were perhaps sent before."""
        self.act("send-safely", kind, numbers, members=members)

    def act(self, what: str, kind: str, numbers: Sequence[int], *, members: int = 3) -> dict[int, bool]:
        """Have processes act on flows, and return which of them were killed."""
        words = (what, kind, str(numbers[0]), str(len(numbers)), str(members))
        done = subprocess.run(
            [sys.executable, "-m", "tests.flows.sender", *words],
            env=self.env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return {int(number): end == "killed" for number, end in map(str.split, done.stdout.splitlines())}

    def killed(self) -> dict[int, float]:
        """Return of which flows a process was killed, and when."""
        return {int(each.name[7:]): each.stat().st_mtime for each in self.folder.glob("killed-*")}

    def runs(self) -> dict[int, list[Run]]:
        """Return what has run of each flow."""
        found: dict[int, list[Run]] = defaultdict(list)
        notes = self.folder / "notes"
        for line in notes.read_text().splitlines() if notes.exists() else ():
            number, key, message_id, attempt, life, engine = line.split()
            found[int(number)].append(Run(key, message_id, int(attempt), int(life), engine))
        return found

    def status(self, number: int) -> FlowStatus | None:
        """Return what is known of a flow; None if it isn't."""
        try:
            return self.bridge.flow(flow_id(number)).status()
        except NoSuchRecord:
            return None

    def until_ended(self, numbers: Sequence[int], what: str) -> dict[int, FlowStatus]:
        """Return what is known of flows, when all have ended, their last callbacks too, and nothing is left.

        Raises:
            AssertionError: They do not, in time; or one was given up.
        """
        found: dict[int, FlowStatus] = {}

        def have_ended() -> bool:
            runs = self.runs()
            for number in set(numbers) - set(found):
                status = self.status(number)
                if status is not None and status.end is not None and status.end.reason == "undecodable":
                    raise AssertionError(f"{what}: flow {number} was given up, and nothing is called back: {status}")
                if status is not None and any(run.key == f"ended-{status.state}" for run in runs[number]):
                    found[number] = status
            return len(found) == len(numbers) and self._is_idle()

        self.until(have_ended, lambda: f"{what}: {self._shown([each for each in numbers if each not in found])}")
        return found

    def until(self, condition: Callable[[], object], what: Callable[[], str]) -> None:
        """Return when a condition is true; if it isn't in time, that is an `AssertionError`."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what()}\n{self.logs()}"
            time.sleep(_POLL_S)

    def _is_idle(self) -> bool:
        counts = self.bridge.counts()
        return not counts.delayed and not sum(counts.waiting.values())

    def _shown(self, numbers: Sequence[int]) -> str:
        runs = self.runs()
        return "\n".join(f"{number}: {self.status(number)}\n  {runs[number]}" for number in numbers[:3])

    def logs(self) -> str:
        """Return the last lines of what its workers wrote."""
        return "\n".join(each.read_text(errors="replace")[-3000:] for each in sorted(self.folder.glob("*.log")))
