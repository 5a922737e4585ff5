"""Which suites of other projects are run, and what stands for their own classes when they run on taskbridge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

REDIS: Final = "redis://127.0.0.1:6379/0"
RABBITMQ: Final = "amqp://guest:guest@127.0.0.1:5672/%2F"
"""The usual addresses; what is sent there goes to private servers (`inside/sitecustomize.py`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A part of another project's tests.

    Attributes:
        title: What the page calls it.
        package: The project's name on the package index.
        chosen: Files and options for pytest, from the root of its sources.
        plugin: The plugin of pytest, in `inside`, which can put taskbridge's classes in the place of the project's.
        replaces: What that does, in a few words.
        variables: Environment variables for both runs.
        limit_s: How long one run may take.
    """

    title: str
    package: str
    chosen: Sequence[str]
    plugin: str
    replaces: str
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    limit_s: float = 600.0


_CELERY_FILES: Final = tuple(
    f"t/integration/test_{name}.py" for name in ("tasks", "canvas", "inspect", "worker", "loader", "serialization")
)


def _celery(broker: str, url: str) -> Suite:
    return Suite(
        title=f"Celery on {broker}",
        package="celery",
        chosen=_CELERY_FILES,
        plugin="on_celery",
        replaces="the app and its worker are `bridge.native` and the worker of that",
        variables={"TEST_BROKER": url, "TEST_BACKEND": REDIS, "PEERS_URL": f"celery+{url}"},
        limit_s=1800.0,
    )


def _kombu(broker: str, url: str, file: str) -> Suite:
    return Suite(
        title=f"kombu on {broker}",
        package="kombu",
        chosen=(f"t/integration/{file}",),
        plugin="on_kombu",
        replaces="the connection is that of the Celery engine, with its transport",
        variables={"PEERS_URL": f"celery+{url}"},
    )


def _dramatiq(place: str, *chosen: str) -> Suite:
    return Suite(
        title=f"Dramatiq {place}",
        package="dramatiq",
        chosen=chosen,
        plugin="on_dramatiq",
        replaces="the broker of the fixtures is `bridge.native`",
    )


SUITES: Final[Mapping[str, Suite]] = {
    "dramatiq-memory": _dramatiq(
        "in memory",
        "tests",
        *("--ignore=tests/test_redis.py", "--ignore=tests/test_rabbitmq.py"),
        *("--ignore=tests/test_cli.py", "--ignore=tests/test_watch.py", "--ignore=tests/test_pidfile.py"),
    ),
    "dramatiq-redis": _dramatiq("on Redis", "tests/test_redis.py"),
    "dramatiq-rabbitmq": _dramatiq("on RabbitMQ", "tests/test_rabbitmq.py"),
    "kombu-redis": _kombu("Redis", REDIS, "test_redis.py"),
    "kombu-rabbitmq": _kombu("RabbitMQ", RABBITMQ, "test_py_amqp.py"),
    "celery-redis": _celery("Redis", REDIS),
    "celery-rabbitmq": _celery("RabbitMQ", RABBITMQ),
}
