"""The runs of the matrix: the contract on one kind of broker each, with the newest engines and the oldest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from taskbridge.contract import leftovers
from tests.deployments import SINGLE
from tests.peers_suites.running import outcomes
from tests.programs import SYSTEM, VARIABLE, Origin, chosen

ROOT: Final = Path(__file__).parents[2]
ENGINES: Final = ("celery", "dramatiq")

_VERSIONS: Final = "import importlib.metadata as m, json; print(json.dumps([m.version(n) for n in {names!r}]))"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The contract on one kind of broker.

    Attributes:
        name: What it is called on the command line.
        broker: `redis` or `amqp`.
        what: What is special, after the server's name and version.
        servers: What `TASKBRIDGE_TEST_SERVERS` says.
        deployment: What `--deployment` says.
        settings: What `--setting` says.
        select: What `--select` says; None for all of the contract.
    """

    name: str
    broker: str
    what: str = ""
    servers: str = ""
    deployment: str = SINGLE
    settings: tuple[str, ...] = ()
    select: str | None = None

    @property
    def origin(self) -> Origin:
        """Where the broker's program comes from."""
        kind = {"redis": "redis", "amqp": "rabbitmq"}[self.broker]
        return chosen(self.servers).get(kind, Origin(name=kind))

    @property
    def releases(self) -> set[str]:
        """The Debian releases whose servers it needs."""
        return {origin.release for origin in chosen(self.servers).values()} - {SYSTEM}

    def title(self, versions: Mapping[Origin, str]) -> str:
        """Return what the page calls it."""
        server = f"{_TITLES[self.origin.name]} {versions.get(self.origin, '(not installed)')}"
        return f"{server}, {self.what}" if self.what else server


_TITLES: Final = {"redis": "Redis", "valkey": "Valkey", "rabbitmq": "RabbitMQ"}
_QUORUM: Final = ("queue_type=quorum",)

_SMALL: Final = "the least permissions, TLS with client certificates"

_RUNS: Final = (
    Run(name="rabbitmq", broker="amqp"),
    Run(name="rabbitmq-trixie", broker="amqp", servers="rabbitmq@trixie"),
    Run(name="rabbitmq-sid", broker="amqp", servers="rabbitmq@sid"),
    Run(name="quorum", broker="amqp", what="quorum queues", settings=_QUORUM),
    Run(name="quorum-trixie", broker="amqp", what="quorum queues", servers="rabbitmq@trixie", settings=_QUORUM),
    Run(name="quorum-sid", broker="amqp", what="quorum queues", servers="rabbitmq@sid", settings=_QUORUM),
    Run(
        name="rabbitmq-cluster",
        broker="amqp",
        what="three nodes, quorum queues, core",
        servers="rabbitmq@sid",
        deployment="cluster",
        settings=_QUORUM,
        select="core",
    ),
    Run(name="rabbitmq-tls", broker="amqp", what="TLS with client certificates, core", deployment="tls", select="core"),
    Run(name="rabbitmq-small", broker="amqp", what=f"{_SMALL}, 8 channels, core", deployment="small", select="core"),
    Run(name="postgresql-trixie", broker="amqp", what="PostgreSQL 17 as Dramatiq's store", servers="postgresql@trixie"),
    Run(name="redis", broker="redis"),
    Run(name="redis-trixie", broker="redis", servers="redis@trixie"),
    Run(name="valkey-trixie", broker="redis", servers="valkey@trixie"),
    Run(name="valkey-sid", broker="redis", servers="valkey@sid"),
    Run(name="sentinel", broker="redis", what="Sentinel, core", deployment="sentinel", select="core"),
    Run(name="redis-cluster", broker="redis", what="Cluster of 3 + 3, core", deployment="cluster", select="core"),
    Run(name="redis-managed", broker="redis", what="as hosted: no CONFIG, KEYS, CLIENT", deployment="managed"),
    Run(name="redis-tls", broker="redis", what="TLS with client certificates, core", deployment="tls", select="core"),
    Run(name="redis-small", broker="redis", what=f"{_SMALL}, timeout 3, core", deployment="small", select="core"),
)
RUNS: Final[Mapping[str, Run]] = {run.name: run for run in _RUNS}


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What came of a run with one release of an engine.

    Attributes:
        engine: Its name and version.
        passed: How many scenarios were right.
        failed: Why the others were not, by scenario.
    """

    engine: str
    passed: int = 0
    failed: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def is_good(self) -> bool:
        """Whether any scenario was run, and all were right."""
        return bool(self.passed) and not self.failed


def outcome_of(run: Run, engine: str, python: Path, more: Sequence[str], log: Path) -> Outcome:
    """Run the contract once, and return what came of it.

    Args:
        run: On what.
        engine: `celery` or `dramatiq`.
        python: The interpreter, with the engine's release.
        more: Further options for pytest.
        log: Where what pytest prints is kept.
    """
    outcome = Outcome(engine=f"{engine} {_version(python, engine)}")
    report = log.with_suffix(".xml")
    report.unlink(missing_ok=True)
    command = [
        *(str(python), "-m", "pytest", "tests/contract/test_contract.py", "--target", f"{engine}+{run.broker}"),
        *("--deployment", run.deployment, "--junitxml", str(report), "-o", "junit_family=xunit1", "-q"),
        *(word for setting in run.settings for word in ("--setting", setting)),
        *(() if run.select is None else ("--select", run.select)),
        *more,
    ]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TASKBRIDGE_", "CELERY_"))}
    folder = {name: value for name, value in os.environ.items() if name.startswith(f"{VARIABLE}_")}
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**inherited, **folder, VARIABLE: run.servers, "PATH": path, "CI": "true"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        leftovers.end_group(process.pid)
        process.wait()
    if not report.exists():
        outcome.failed["all"] = f"pytest ended with code {process.returncode}: {_last_line(log)}"
        return outcome
    for test, ending in outcomes(report).items():
        if ending.ending == "passed":
            outcome.passed += 1
        else:
            words = test.rpartition("[")[2].rstrip("]").split("-")
            outcome.failed[next(word for word in words if "+" not in word)] = ending.why
    return outcome


def _last_line(log: Path) -> str:
    return next(reversed([line for line in log.read_text(errors="replace").splitlines() if line.strip()]), "")


def _version(python: Path, package: str) -> str:
    command = [str(python), "-c", _VERSIONS.format(names=[package])]
    told: list[str] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    return told[0]


def in_turn(
    names: Sequence[str], engines: Sequence[str], pythons: Sequence[Path], more: Sequence[str], logs: Path | None
) -> Iterator[tuple[Run, Outcome]]:
    """Run the contract on each kind of broker, with each engine of each interpreter, and yield what came of it.

    A release of an engine that several interpreters have is taken once.
    """
    with tempfile.TemporaryDirectory(prefix="taskbridge-brokers-") as made:
        folder = Path(made) if logs is None else logs
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            seen: set[str] = set()
            for number, python in enumerate(pythons):
                for engine in engines:
                    if (version := f"{engine} {_version(python, engine)}") not in seen:
                        seen.add(version)
                        log = folder / f"{name}-{engine}-{number}.log"
                        yield RUNS[name], outcome_of(RUNS[name], engine, python, more, log)


def default_pythons() -> list[Path]:
    """Return this interpreter, and that with the oldest engines, if `./scripts/brokers` has made it."""
    older = ROOT / ".venv-older" / "bin" / "python"
    return [Path(sys.executable), *([older] if older.exists() else [])]
