"""One failover run: servers that stand in for one another, workers, an even load, and one kill after another."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from taskbridge import Bridge, BrokerUnavailable
from taskbridge.contract.probe import Records
from tests.chaos.account import outcome_of
from tests.chaos.fleet import Place, wait_until
from tests.chaos.happenings import Run, letters_of, runs_of
from tests.chaos.tasks import FOLDER_VARIABLE, PROBE_FILE, QUEUES, RUN_VARIABLE, Tasks
from tests.failover.account import Account, Strike, settle_up
from tests.failover.load import Load
from tests.failover.scenes import Scene

_WORKERS: Final = (("--processes", "1", "--threads", "4"), ("--processes", "2"))
_LEASE_S: Final = 5.0
_GRACE_S: Final = 3.0
_START_S: Final = 60.0
_STEADY_S: Final = 3.0
"""How long the load runs before the first kill, and after the last one was mended."""

_REST_S: Final = 2 * _LEASE_S
_CALM_S: Final = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a failover run came to.

    Attributes:
        account: Of its messages.
        problems: What must not be.
        folder: Where the workers' logs and records are, if they were kept.
    """

    account: Account
    problems: list[str]
    folder: Path | None = None

    def lines(self) -> list[str]:
        """Return it as text."""
        kept = [] if self.folder is None else [f"logs and records: {self.folder}"]
        return [*self.account.lines(), *(f"FAULT {problem}" for problem in self.problems), *kept]


def run(
    scene: Scene[Any], engine: str, *, kills: int, rate: float, settle_s: float, keep: bool, say: Callable[[str], None]
) -> Result:
    """Kill servers under load, and return what came of it.

    Args:
        scene: The broker.
        engine: `celery` or `dramatiq`.
        kills: How many.
        rate: Messages a second.
        settle_s: How long all may take to come to rest after the last kill.
        keep: Whether to keep logs and records even if nothing is wrong.
        say: Told what is done, a line at a time.
    """
    folder = Path(tempfile.mkdtemp(prefix="taskbridge-failover-"))
    with ExitStack() as stack:
        result = _Stage(scene, engine, rate, folder, stack, say).play(kills, settle_s)
    if result.problems or keep:
        return Result(account=result.account, problems=result.problems, folder=folder)
    shutil.rmtree(folder)
    return result


class _Stage:
    """The servers, workers and senders of one run."""

    def __init__(
        self, scene: Scene[Any], engine: str, rate: float, folder: Path, stack: ExitStack, say: Callable[[str], None]
    ) -> None:
        self._scene, self._engine, self._folder, self._say = scene, engine, folder, say
        self._records = Records(folder / PROBE_FILE)
        stack.enter_context(scene.cluster)
        say(f"the servers are whole: {scene.cluster.hosts}")
        variables = {
            "TASKBRIDGE_URL": f"{engine}+{scene.url}",
            "TASKBRIDGE_NAMESPACE": scene.namespace,
            "TASKBRIDGE_QUEUES": ",".join(QUEUES),
            "TASKBRIDGE_LEASE": str(_LEASE_S),
            "TASKBRIDGE_GRACE": str(_GRACE_S),
            **{f"TASKBRIDGE_{key.upper()}": value for key, value in scene.settings.items()},
            FOLDER_VARIABLE: str(folder),
            RUN_VARIABLE: str(uuid4()),
        }
        self._places = [Place(f"w{n}", shape, variables, folder) for n, shape in enumerate(_WORKERS, 1)]
        for place in self._places:
            stack.callback(place.end)
            place.start()
        self._looker = stack.enter_context(closing(self._bridge()))
        sender = stack.enter_context(closing(self._bridge()))
        self._load = Load(sender, Tasks(sender, folder, knows_late=True), rate)

    def _bridge(self) -> Bridge:
        scene = self._scene
        settings: dict[str, Any] = {"namespace": scene.namespace, "queues": QUEUES, "lease": _LEASE_S, **scene.settings}
        return Bridge(f"{self._engine}+{scene.url}", **settings)

    def play(self, kills: int, settle_s: float) -> Result:
        if not wait_until(self._all_work, _START_S):
            logs = [f"{place.name}:\n{place.last_lines()}" for place in self._places]
            return Result(account=Account(), problems=["the workers did not start", *logs])
        self._load.start()
        time.sleep(_STEADY_S)
        strikes: list[Strike] = []
        for number in range(kills):
            strike = self._scene.round(self._engine, number)
            strikes.append(strike)
            self._say(f"{number + 1}/{kills}: {strike.what} killed and back within {time.time() - strike.at:.1f} s")
            time.sleep(_STEADY_S)
        self._load.stop()
        until = time.time()
        problems = list(self._load.faults)
        if not self._come_to_rest(settle_s):
            problems.append(f"not at rest {settle_s:g} s after the last kill: {self._counts()}")
        letters = letters_of(self._looker.dead_letters())
        account = settle_up(self._load.sends, self._runs(), letters, strikes, until=until)
        problems += account.problems(self._scene.limits)
        problems += [f"dead: {each.key}, {each.reason}, {each.error}" for each in letters]
        return Result(account=account, problems=problems)

    def _all_work(self) -> bool:
        started = {record.data["worker"] for record in self._records.all() if record.kind == "worker_started"}
        return {place.worker for place in self._places} <= started

    def _runs(self) -> list[Run]:
        return runs_of(self._records.all())

    def _come_to_rest(self, timeout_s: float) -> bool:
        """Wait until nothing waits, runs or is parked for longer than leases last; return whether that came."""
        deadline = time.monotonic() + timeout_s
        quiet_since, size = time.monotonic(), -1
        while time.monotonic() < deadline:
            is_empty = self._is_empty()
            if self._records.size != size or not is_empty:
                quiet_since, size = time.monotonic(), self._records.size
            if time.monotonic() - quiet_since > _REST_S:
                return True
            time.sleep(_CALM_S)
        return False

    def _is_empty(self) -> bool:
        with suppress(BrokerUnavailable):
            counts = self._looker.counts()
            return not counts.delayed and not any(counts.waiting.values())
        return False

    def _counts(self) -> str:
        by_key: dict[str, list[Run]] = {}
        for each in self._runs():
            by_key.setdefault(each.key, []).append(each)
        open_keys = [
            send.key
            for send in self._load.sends
            if send.fate == "sent" and outcome_of(by_key.get(send.key, []), ()) is None
        ]
        with suppress(BrokerUnavailable):
            return f"{self._looker.counts()}; without an outcome: {len(open_keys)} {open_keys[:10]}"
        return "the broker does not answer"
