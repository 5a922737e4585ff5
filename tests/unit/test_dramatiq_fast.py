"""The fast way is taken where it can be; else the plain one, which does the same, and a line of the log says why."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import Middleware
from prometheus_client import CollectorRegistry

from taskbridge import Bridge
from taskbridge.engines.dramatiq.fast import entry
from taskbridge.engines.dramatiq.fast.work import WorkQueue
from taskbridge.metrics import observe

RENAMED = Path(__file__).parent / "renamed_dramatiq"

PROGRAM = """
import logging, threading
logging.basicConfig(level="INFO", format="%(message)s")
from taskbridge import Bridge
bridge = Bridge("dramatiq+memory://")
done = threading.Event()
@bridge.task(name="ring")
def ring(): done.set()
with bridge.embedded_worker(threads=2):
    ring.send()
    assert done.wait(60)
    assert bridge.native.work is None
print("rang")
"""


class Listener(Middleware):
    """A middleware of an application's own."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.told.append(f"before {message.actor_name}")

    def after_process_message(self, broker: Any, message: Any, **_: Any) -> None:
        self.told.append(f"after {message.actor_name}")

    def after_ack(self, broker: Any, message: Any) -> None:
        self.told.append(f"acknowledged {message.actor_name}")


def run_one(bridge: Bridge) -> tuple[Any, list[str]]:
    """Run a task, and return what its worker took its messages from, and what a middleware was told."""
    done = threading.Event()
    listener = Listener()
    bridge.native.add_middleware(listener)

    @bridge.task(name="ring")
    def ring() -> None:
        done.set()

    with bridge.embedded_worker(threads=2):
        work = bridge.native.work
        ring.send()
        assert done.wait(60)
    bridge.close()
    return work, listener.told


def test_the_fast_way_is_taken() -> None:
    work, told = run_one(Bridge("dramatiq+memory://"))

    assert isinstance(work, WorkQueue)
    assert told == ["before ring", "after ring", "acknowledged ring"]


def test_metrics_leave_the_fast_way() -> None:
    bridge, registry = Bridge("dramatiq+memory://"), CollectorRegistry()
    counts = observe(bridge, registry=registry)

    work, _ = run_one(bridge)

    assert isinstance(work, WorkQueue)
    counts.flush()
    done = {"task": "ring", "queue": "default", "state": "done"}
    assert registry.get_sample_value("taskbridge_messages_total", done) == 1


def test_the_fast_way_keeps_to_pauses() -> None:
    bridge, done, ran = Bridge("dramatiq+memory://"), threading.Event(), list[str]()
    pay = bridge.task(name="shop.pay")(partial(ran.append, "pay"))
    ring = bridge.task(name="ring")(done.set)
    bridge.pause(task="shop.*")

    with bridge.embedded_worker(threads=1):
        assert isinstance(bridge.native.work, WorkQueue)
        pay.send()
        ring.send()
        assert done.wait(60)
        deadline = time.monotonic() + 60
        while bridge.counts().delayed != 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    assert ran == []
    bridge.close()


def test_the_setting_takes_the_plain_way(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TASKBRIDGE_FAST", "off")
    caplog.set_level(logging.INFO)

    work, told = run_one(Bridge("dramatiq+memory://"))

    assert work is None
    assert told == ["before ring", "after ring", "acknowledged ring"]
    assert [r.getMessage() for r in caplog.records if "plain way" in r.message] == [
        "messages are taken the plain way: the setting fast is off"
    ]


def test_an_untested_version_takes_the_plain_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(dramatiq, "__version__", "2.99.0")

    work, _ = run_one(Bridge("dramatiq+memory://"))

    assert work is None
    assert "Dramatiq 2.99.0 is none of the versions that were tested (2.0, 2.1, 2.2)" in caplog.text


def test_the_installed_dramatiq_has_what_the_fast_way_relies_on() -> None:
    bridge = Bridge("dramatiq+memory://")
    assert entry.obstacle(dramatiq.Worker(bridge.native)) is None
    bridge.close()


def test_a_release_that_renames_things_takes_the_plain_way() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(RENAMED), os.environ.get("PYTHONPATH", "")])}

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=150, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "rang\n"
    assert "messages are taken the plain way: Dramatiq's Worker.stop does not use work_queue any more" in done.stderr
