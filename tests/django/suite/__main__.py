"""`python -m tests.django.suite`: Django's own tests of its tasks, on taskbridge's backend, with real workers."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import django

from taskbridge.contract import leftovers
from tests.django.suite import page
from tests.django.suite.left_out import LEFT_OUT
from tests.servers import PrivateRabbitMQ, PrivateRedis

TARGETS: Final = ("inline", "celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp")

_DESCRIPTION: Final = """\
Run the tests of tasks that Django ships in its source distribution, as they are, on taskbridge's backend: against
private servers, with a stock worker in processes of its own. Exits with 1 unless all pass that apply. pip fetches the
sources, which are thrown away at the end.
"""
_ALL: Final = 85  # how many tests the release has that the list of those that don't apply was made for
_ROOT: Final = Path(__file__).parents[3]
_AT_A_TIME: Final = 2  # most of a run is the start of servers, a worker and Django
_PATIENCE_S: Final = 1800.0


class SuiteFailed(Exception):
    """The tests could not be run; the text says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of the tests on a target: those that ran, each with why it failed, empty if it passed."""

    target: str
    ran: Mapping[str, str]
    took_s: float

    @property
    def failed(self) -> list[str]:
        """The tests that failed, or the parts of the run around them."""
        return [test for test, why in self.ran.items() if why]


def main() -> int:
    """Run the tests on the chosen targets, and return 1 if one fails."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.django.suite",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--source", type=Path, metavar="FOLDER", help="Django's sources, if they are there")
    parser.add_argument("--write", action="store_true", help="write the results into docs/django-tasks.md")
    options = parser.parse_args()
    targets: list[str] = options.targets or list(TARGETS)
    if unknown := [target for target in targets if target not in TARGETS]:
        parser.error(f"there is no target {unknown[0]!r} among {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory(prefix="taskbridge-django-") as made:
        folder, outcomes = Path(made), list[Outcome]()
        try:
            sources = _fetched(folder) if options.source is None else options.source.resolve()
            for outcome in _run_all(targets, sources, folder):
                outcomes.append(outcome)
                passed = len(outcome.ran) - len(outcome.failed)
                print(f"{outcome.target}: {passed} of {len(outcome.ran)} passed, in {outcome.took_s:.0f} s", flush=True)
                for test in outcome.failed:
                    print(f"  FAILED {test}\n{outcome.ran[test]}", flush=True)
        except SuiteFailed as exc:
            print(exc, file=sys.stderr)
            return 1
    if options.write:
        page.write({each.target: (len(each.ran), len(each.failed)) for each in outcomes}, django.__version__)
    return 1 if any(each.failed for each in outcomes) else 0


def _fetched(folder: Path) -> Path:
    """Return the folder with the sources of the Django that is installed."""
    asked = (f"django=={django.__version__}", "--no-deps", "--no-binary", "django", "-d", str(folder))
    command = [sys.executable, "-m", "pip", "download", "-q", *asked]
    for pause_s in (5, 30, 0):  # an index may be away for a moment
        got = subprocess.run(command, check=False, capture_output=True, text=True)
        if archives := sorted(folder.glob("*.tar.gz")):
            break
        time.sleep(pause_s)
    else:
        raise SuiteFailed(f"pip can't fetch the sources of Django {django.__version__}:\n{got.stderr[-2000:]}")
    shutil.unpack_archive(archives[0], folder, filter="data")
    return folder / archives[0].name.removesuffix(".tar.gz")


def _run_all(targets: Sequence[str], sources: Path, folder: Path) -> Iterator[Outcome]:
    """Run the tests on targets, two at a time, and yield what came of each, in this order."""
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        yield from pool.map(lambda target: _run(target, sources, folder / target), targets)


def _run(target: str, sources: Path, folder: Path) -> Outcome:
    """Run the tests on a target, whose servers and workers are this run's own."""
    logs, report = folder / "logs", folder / "report.json"
    logs.mkdir(parents=True)
    with _servers(target) as where:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("TASKBRIDGE_", "DJANGO_"))} | {
            **where,
            "SUITE_NAMESPACE": f"django-{uuid4().hex[:8]}",
            "DJANGO_SETTINGS_MODULE": "tests.django.suite.inside.settings",
            "PYTHONPATH": os.pathsep.join(map(str, (_ROOT, sources / "tests"))),
        }
        with _worker(env | {"SUITE_LOGS": str(logs)}, folder) if target != "inline" else ExitStack():
            started_at = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "django", "test", "tasks", "--noinput"],
                cwd=sources / "tests",
                env=env
                | {"SUITE_FOLDER": str(logs), "SUITE_REPORT": str(report), "SUITE_LEFT_OUT": json.dumps([*LEFT_OUT])},
                capture_output=True,
                text=True,
                check=False,
                timeout=_PATIENCE_S,
            )
            took_s = time.monotonic() - started_at
    if not report.exists():
        raise SuiteFailed(f"{target}: Django's tests did not run:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    told = json.loads(report.read_text(encoding="utf-8"))
    found = {test.removeprefix("tasks.") for test in told["found"]}
    if len(found) != _ALL or not LEFT_OUT.keys() <= found:
        raise SuiteFailed(f"Django {django.__version__} has other tests ({len(found)}) than `left_out` knows ({_ALL})")
    return Outcome(target=target, ran=told["ran"], took_s=took_s)


@contextmanager
def _servers(target: str) -> Generator[dict[str, str]]:
    """Start what a target needs; yield the variables that say where it is."""
    engine, _, broker = target.partition("+")
    with ExitStack() as stack:
        if not broker:
            yield {"SUITE_URL": "inline://?threads=0"}
            return
        redis = stack.enter_context(PrivateRedis())
        if broker == "redis":
            yield {"SUITE_URL": f"{engine}+{redis.url}"}
        else:
            yield {"SUITE_URL": f"{engine}+{stack.enter_context(PrivateRabbitMQ()).url}", "SUITE_STORE": redis.url}


@contextmanager
def _worker(env: Mapping[str, str], folder: Path) -> Generator[None]:
    """Run `taskbridge worker` while the block runs, for the queue of the tests that are to be run."""
    log = folder / "worker.log"
    words = ("worker", "--queues", "default", "--processes", "1", "--threads", "2")
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "taskbridge", *words],
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    leftovers.end_group(worker.pid)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while "taskbridge: ready\n" not in log.read_text(errors="replace"):
            if worker.poll() is not None or time.monotonic() > deadline:
                raise SuiteFailed(f"the worker is not ready:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)
        yield
    finally:
        worker.terminate()
        try:
            worker.wait(60)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


if __name__ == "__main__":
    sys.exit(main())
