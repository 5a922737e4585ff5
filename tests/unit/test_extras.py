"""The extras name all that an engine and a broker import, also what their libraries import and don't name."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from taskbridge import NotInstalledError

EXTRAS = {"redis": "redis", "amqp": "rabbitmq"}

# Imports what a client and a worker need, with all modules missing that are not to be there.
PROGRAM = """
import importlib, pkgutil, sys

url, package, worker, library = sys.argv[1:5]
absent = set(sys.argv[5:])

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
    importlib.import_module(module.name)
importlib.import_module(worker)
importlib.import_module(library)

from taskbridge import Bridge

assert Bridge(url).native is not None
"""

LIBRARIES = {
    ("celery", "redis"): "taskbridge.engines.celery.redis_queues",
    ("celery", "amqp"): "kombu.transport.pyamqp",
    ("dramatiq", "redis"): "dramatiq.brokers.redis",
    ("dramatiq", "amqp"): "dramatiq.brokers.rabbitmq",
}


def closure(name: str, extras: frozenset[str]) -> Iterator[str]:
    """Yield the distributions that pip would install for this one with these extras."""
    todo = [(canonicalize_name(name), extras)]
    seen = set(todo)
    while todo:
        current, wanted = todo.pop()
        yield current
        for text in distribution(current).requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in wanted | {""}):
                found = (canonicalize_name(requirement.name), frozenset(requirement.extras))
                if found not in seen:
                    seen.add(found)
                    todo.append(found)


@pytest.mark.parametrize(("engine", "broker"), LIBRARIES)
def test_an_engine_and_a_broker_need_nothing_but_their_extras(engine: str, broker: str) -> None:
    library = LIBRARIES[engine, broker]
    if importlib.util.find_spec(engine) is None or importlib.util.find_spec("pika") is None:
        pytest.skip("not all engines and brokers are installed")  # tox's smaller environments; CI has all
    present = set(closure("taskbridge-queue", frozenset({engine, EXTRAS[broker]})))
    absent = {
        module
        for module, names in packages_distributions().items()
        if module not in ("taskbridge", "pkg_resources") and not {canonicalize_name(name) for name in names} & present
    }
    url, package = f"{engine}+{broker}://127.0.0.1:1", f"taskbridge.brokers.{EXTRAS[broker]}"
    worker = {"celery": "taskbridge.engines.celery.consumer", "dramatiq": "taskbridge.engines.dramatiq.app"}[engine]

    command = [sys.executable, "-c", PROGRAM, url, package, worker, library, *sorted(absent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("library", "extra"), [("opentelemetry", "opentelemetry"), ("sentry_sdk", "sentry")])
def test_an_integration_without_its_tool_says_what_to_install(
    library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"taskbridge.integrations.{extra}", raising=False)

    with pytest.raises(NotInstalledError, match=rf"pip install 'taskbridge-queue\[{extra}\]'"):
        importlib.import_module(f"taskbridge.integrations.{extra}")
