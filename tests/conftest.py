"""What every test may use: the chosen targets, and private servers.

`--target` (several times, or with commas) or `TASKBRIDGE_TEST_TARGETS` chooses targets; both take globs:

    pytest --target 'celery+*'
    TASKBRIDGE_TEST_TARGETS=inline,dramatiq+redis pytest

`--plain` runs workers with the setting `fast` off; `--no-servers` leaves out what needs a server.

`--select` takes a part of the contract's scenarios. `--servers` or `TASKBRIDGE_TEST_SERVERS` takes servers of other
Debian releases (`tests.programs`), `--deployment` deploys the targets' broker in another way (`tests.deployments`), and
`--setting` gives every bridge and worker a setting:

    pytest tests/contract --servers rabbitmq@sid --deployment cluster --setting queue_type=quorum --target '*+amqp'

A test that takes the argument `target` runs once for each of them; `target_url` is the URL to hand to a bridge.

A test that fails while the machine stands still proves nothing about time, and is run once more; the summary names it.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from _pytest.runner import runtestprotocol

from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.contract.stores.place import Place
from taskbridge.stores.backend import BackendWithTables
from tests import deployments, programs, servers
from tests.clusters import PrivateCluster
from tests.private_postgresql import PrivatePostgreSQL
from tests.servers import (
    PrivateRabbitMQ,
    PrivateRedis,
    PrivateServer,
    ServerNotInstalled,
)
from tests.shared_server import VARIABLE, Keeper, SharedRabbitMQ

TARGETS: Final = (
    "inline",
    "celery+memory",
    "dramatiq+memory",
    "celery+redis",
    "dramatiq+redis",
    "celery+amqp",
    "dramatiq+amqp",
)

# What a target needs to import, by the words in its name.
_MODULES: Final = {"celery": "celery", "dramatiq": "dramatiq", "redis": "redis", "amqp": "pika"}

# Folders and files of tests (test_celery_wire.py) that need it, by the words in theirs.
_WORDS_IN_PATHS: Final = {
    "celery": "celery",
    "dramatiq": "dramatiq",
    "redis": "redis",
    "rabbitmq": "pika",
    "postgresql": "psycopg",
}

AnyServer = TypeVar("AnyServer", bound="PrivateServer | PrivateCluster")

_HERE: Final = Path(__file__).parent
_CHOSEN: Final = pytest.StashKey[tuple[str, ...]]()
STALLED: Final = "the machine stood still for"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--target",
        action="append",
        metavar="TARGET",
        help=f"test this target; several times, or with commas, or a glob; default all: {', '.join(TARGETS)}",
    )
    parser.addoption("--plain", action="store_true", help="run all workers with the setting `fast` off")
    parser.addoption("--servers", metavar="WORDS", help="where servers come from, such as trixie or valkey@sid")
    parser.addoption(
        "--deployment",
        default=deployments.SINGLE,
        choices=deployments.NAMES,
        help="how the targets' broker is deployed",
    )
    parser.addoption(
        "--select",
        choices=("fast", "broker", "core"),
        help="of the contract: what the fast rooms bear on; a scenario of each rule that touches the broker, and "
        "what differs between releases of RabbitMQ; a scenario of each rule, and all about kills",
    )
    parser.addoption("--setting", action="append", default=[], metavar="KEY=VALUE", help="for all bridges and workers")
    parser.addoption(
        "--no-servers", action="store_true", help="leave out tests that need a Redis, RabbitMQ or PostgreSQL"
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a job in the background; what it starts would, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    servers.favour()
    if config.getoption("--plain"):
        os.environ["TASKBRIDGE_FAST"] = "0"
    given: list[str] = config.getoption("--setting")  # pyright: ignore[reportAssignmentType] - it has a default
    for key, _, value in (each.partition("=") for each in given):
        os.environ[f"TASKBRIDGE_{key.upper()}"] = value
    if (asked_servers := config.getoption("--servers")) is not None:
        os.environ[programs.VARIABLE] = asked_servers
    try:
        programs.chosen(os.environ.get(programs.VARIABLE, ""))
    except ValueError as exc:
        raise pytest.UsageError(f"--servers: {exc}") from exc
    asked = config.getoption("--target") or [os.environ.get("TASKBRIDGE_TEST_TARGETS", "")]
    globs = [word.strip() for text in asked for word in text.split(",") if word.strip()]
    deployment = str(config.getoption("--deployment"))
    there = [target for target in TARGETS if deployments.exists(deployment, target.rpartition("+")[2])]
    unknown = [glob for glob in globs if not any(fnmatchcase(target, glob) for target in there)]
    if unknown:
        raise pytest.UsageError(f"no target matches {', '.join(unknown)}; there are {', '.join(there)}")
    config.stash[_CHOSEN] = tuple(
        target for target in there if not globs or any(fnmatchcase(target, glob) for glob in globs)
    )
    if VARIABLE not in os.environ:  # in the processes of xdist it is there
        config.add_cleanup(Keeper().close)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the tests of a library that is not installed, if no chosen target needs it; else they fail."""
    words = {word for part in collection_path.relative_to(_HERE).parts for word in part.removesuffix(".py").split("_")}
    needed = {_WORDS_IN_PATHS[word] for word in words & _WORDS_IN_PATHS.keys()}
    wanted = {module for target in config.stash[_CHOSEN] for module in _modules_of(target)}
    return True if any(not _is_installed(module) for module in needed - wanted) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--no-servers"):
        leave_out(config, items, _needs_a_server)
    # Files that take long come first: one that begins last keeps a process busy when all others are done.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def leave_out(config: pytest.Config, items: list[pytest.Item], pointless: Callable[[pytest.Item], bool]) -> None:
    """Deselect tests; pytest counts them."""
    left_out = [item for item in items if pointless(item)]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


_SERVERS: Final = frozenset(("redis", "rabbitmq", "postgresql"))


def _needs_a_server(item: pytest.Item) -> bool:
    """Tell whether a test starts a server: its file, its fixtures or what it is parametrized with say so."""
    fixtures = " ".join(getattr(item, "fixturenames", ()))
    kind = str(params_of(item).get("kind", ""))
    return bool(_SERVERS & {*item.path.stem.split("_"), *fixtures.replace("_", " ").split(), kind})


def params_of(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadscope`, run tests together that share what takes long: a target's workers and servers, a file's.

    With `--dist loadfile`, files come in their own order, and not first those of the most tests.

    xdist's own groups don't work with pytest 9.2, which reads a test's id from elsewhere than xdist 3.8 writes it.
    """
    if config.getoption("dist") == "loadfile":
        config.option.loadscopereorder = False
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # it has no py.typed

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            words = nodeid.rpartition("[")[2].rstrip("]").split("-")
            file = nodeid.partition("::")[0]
            alone = file if _TOGETHER & set(Path(file).stem.split("_")) else nodeid
            return next((word for word in words if word in TARGETS), alone)

    return Together(config, log)


_TOGETHER: Final = frozenset(("postgresql", "guarantees", "deep", "several", "private"))
"""Words in the names of files whose tests run together: the servers, or what they look through, are made once."""


_MOST_TOLD: Final = 4000  # characters: of what a test said that is run again


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    with Stopwatch() as watch:
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if watch.stalled_s() and (failed := [report.longreprtext for report in reports if report.failed]):
        item.user_properties.append((STALLED, f"{watch.stalled_s():.1f} s, and said\n{failed[0][-_MOST_TOLD:]}"))
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    stalled = {
        report.nodeid: value
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == STALLED
    }
    for nodeid, seconds in stalled.items():
        terminalreporter.write_line(f"RUN AGAIN {nodeid}: it failed while {STALLED} {seconds}")
    if stalled:
        terminalreporter.write_line(f"run again, because the machine stood still: {len(stalled)}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        chosen: tuple[str, ...] = metafunc.config.stash[_CHOSEN]
        metafunc.parametrize("target", chosen, scope="session")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[PrivateRedis]:
    """A redis-server shared by the tests of this process; a test that breaks servers takes `make_redis`."""
    with _started(PrivateRedis) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[PrivateRabbitMQ]:
    """A RabbitMQ node shared by all tests of this run; a test that breaks servers takes `make_rabbitmq`."""
    with _started(SharedRabbitMQ) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PrivatePostgreSQL]:
    """A PostgreSQL server shared by the tests of this process."""
    with _started(PrivatePostgreSQL) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_store(postgresql_server: PrivatePostgreSQL) -> str:
    """The URL of a store in the shared PostgreSQL server, whose tables are made."""
    with Place(postgresql_server.url) as place:
        store = place.store()
        assert isinstance(store.backend, BackendWithTables)
        store.backend.init(timeout_s=20)
    return postgresql_server.url


@pytest.fixture
def make_redis() -> Iterator[Callable[..., PrivateRedis]]:
    """Start redis-servers of the test's own: `make_redis(extra_args=("--maxmemory", "2mb"))`."""
    with ExitStack() as stack:

        def make(**options: Any) -> PrivateRedis:
            return stack.enter_context(_started(PrivateRedis, **options))

        yield make


@pytest.fixture
def make_rabbitmq() -> Iterator[Callable[..., PrivateRabbitMQ]]:
    """Start RabbitMQ nodes of the test's own: `make_rabbitmq(extra_config=("consumer_timeout = 60000",))`."""
    with ExitStack() as stack:

        def make(**options: Any) -> PrivateRabbitMQ:
            return stack.enter_context(_started(PrivateRabbitMQ, **options))

        yield make


@pytest.fixture(scope="session")
def redis_deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the Redis that targets are on, deployed as `--deployment` says."""
    with _deployed("redis", request, tmp_path_factory) as url:
        yield url


@pytest.fixture(scope="session")
def amqp_deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the RabbitMQ that targets are on, deployed as `--deployment` says."""
    with _deployed("amqp", request, tmp_path_factory) as url:
        yield url


@contextmanager
def _deployed(broker: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    deployment = request.config.getoption("--deployment")
    if deployment == deployments.SINGLE:
        yield request.getfixturevalue({"redis": "redis_server", "amqp": "rabbitmq_server"}[broker]).url
        return
    with _started(deployments.make, deployment, broker, tmp_path_factory.mktemp(broker)) as server:
        yield server.url


@pytest.fixture(scope="session")
def url_of(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Returns the URL of a target, on a private server if it needs one."""

    def url(target: str) -> str:
        engine, _, broker = target.partition("+")
        if broker in ("redis", "amqp"):
            return f"{engine}+{request.getfixturevalue(f'{broker}_deployment')}"
        return f"{target}://"

    return url


@pytest.fixture(scope="session")
def store_of(request: pytest.FixtureRequest) -> Callable[[str], str | None]:
    """Returns where attempt marks live for a target whose broker keeps none: in a private Redis, with redis-py."""

    def store(target: str) -> str | None:
        if not target.endswith("amqp") or not _is_installed("redis"):
            return None
        return str(request.getfixturevalue("redis_server").url)

    return store


@pytest.fixture(scope="session")
def target_url(target: str, url_of: Callable[[str], str]) -> str:
    """The URL of a target, on a private server if it needs one."""
    missing = [module for module in _modules_of(target) if not _is_installed(module)]
    if missing:
        pytest.fail(f"target {target} needs {missing[0]}: install it, or choose other targets with --target")
    return url_of(target)


@contextmanager
def _started(make: Callable[..., AnyServer], *given: Any, **options: Any) -> Generator[AnyServer]:
    """Run a server; where its program is missing, skip the test, but on CI fail it."""
    try:
        server = make(*given, **options)
        server.start()
    except ServerNotInstalled as exc:
        if is_ci():
            raise
        pytest.skip(str(exc))
    try:
        yield server
    finally:
        server.stop()


def is_ci() -> bool:
    """Return whether this is continuous integration, where nothing may be missing."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def _modules_of(target: str) -> list[str]:
    return [module for word, module in _MODULES.items() if word in target.split("+")]


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
