"""What runs in a process, whatever the engine: rules R8 and T2."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any

import pytest

from taskbridge import Bridge, Cancelled, Message, NoCurrentTaskError, current
from taskbridge.retry import CancelledVerdict, Done, GivenBack
from taskbridge.runner import Runs, longest_s

_LONGEST_S = 60.0
_ENOUGH = 20

_STUCK = """
import re, sys, time
from taskbridge import Bridge, Message
from taskbridge.runner import Runs

bridge = Bridge("inline://?threads=0", grace=0.4)

@bridge.task(name="quick", time_limit=1)
def quick() -> None: ...

@bridge.task(name="stuck", time_limit=0.1)
def stuck() -> None:
    re.fullmatch("(a+)+b", "a" * 60)

runs = Runs()
runs.ends_process = lambda: True
for task in ("quick", sys.argv[1]):
    message = Message(id=task, task=task, queue="default", args_json="[]", kwargs_json="{}", enqueued_at=0)
    runs.run(bridge.bound(task), message)
time.sleep(4)  # by then, the process would have ended for a run that took longer than it may
"""


def a_message(task: str) -> Message:
    return Message(id="1", task=task, queue="default", args_json="[]", kwargs_json="{}", enqueued_at=0)


def ended(task: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _STUCK, task]
    return subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, check=False)


def test_a_run_that_keeps_the_interpreters_lock_ends_the_process_and_shows_where_it_was() -> None:
    done = ended("stuck")

    assert done.returncode == 1
    assert "in stuck" in done.stderr


def test_runs_that_end_in_time_leave_nothing_behind_that_ends_the_process() -> None:
    assert ended("quick").returncode == 0


_LAST = """
import sys, time
from threading import Thread
from taskbridge import Bridge, Message
from taskbridge.engines.worker_life import WorkerLife
from taskbridge.runner import Runs

class Life(WorkerLife):
    def stop_taking(self) -> None: ...
    def give_back(self) -> None:
        print("all is given back", flush=True)

bridge = Bridge("inline://?threads=0", grace=0.4)

@bridge.task(name="stuck", time_limit=0.1)
def stuck() -> None:
    time.sleep(60)

@bridge.task(name="slow")
def slow() -> None:
    time.sleep(60)

runs = Runs()
life = Life(bridge, runs)
life.boot(is_whole_process=True)
for task in ("slow", "stuck"):
    message = Message(id=task, task=task, queue="default", args_json="[]", kwargs_json="{}", enqueued_at=0)
    Thread(target=runs.run, args=(bridge.bound(task), message), daemon=True).start()
while not runs.stuck():
    time.sleep(0.01)
life.crash(runs.stuck())
"""


def test_a_process_with_a_stuck_run_ends_only_when_what_else_it_held_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LAST], capture_output=True, text=True, timeout=_LONGEST_S, check=False
    )

    assert (done.returncode, done.stdout) == (1, "all is given back\n"), done.stderr


def test_what_is_interrupted_is_given_back_and_nothing_else_starts() -> None:
    bridge = Bridge("inline://?threads=0")
    begun = threading.Event()

    @bridge.task(name="waits")
    def waits() -> None:
        begun.set()
        while True:
            time.sleep(0.01)

    runs = Runs()
    verdicts: list[object] = []
    run = partial(runs.run, bridge.bound("waits"), a_message("waits"))
    thread = threading.Thread(target=lambda: verdicts.append(run()), daemon=True)
    thread.start()
    assert begun.wait(_LONGEST_S)
    assert [run.message.task for run in runs.all()] == ["waits"]
    runs.interrupt()
    thread.join(_LONGEST_S)

    assert isinstance(verdicts[0], GivenBack)
    assert runs.all() == []
    assert isinstance(runs.run(bridge.bound("waits"), a_message("waits")), GivenBack)
    assert waits.name == "waits"


def test_a_run_is_stuck_only_after_its_limit_and_most_of_the_grace() -> None:
    bridge = Bridge("inline://?threads=0", grace=0.4)
    seen: list[int] = []
    runs = Runs()

    @bridge.task(name="looks", time_limit=0.1)
    def looks() -> None:
        seen.append(len(runs.stuck()))
        try:
            time.sleep(longest_s(looks.declaration, 0.4) + 0.05)  # the limit can't end it
        finally:
            seen.append(len(runs.stuck()))

    runs.run(bridge.bound(looks.name), a_message(looks.name))

    assert seen == [0, 1]
    assert runs.stuck() == []


def test_a_run_is_cancelled_once_and_what_comes_after_it_in_its_thread_is_not() -> None:
    bridge = Bridge("inline://?threads=0")
    runs, begun, raised = Runs(), threading.Event(), list[type]()

    @bridge.task(name="waits")
    def waits() -> None:
        begun.set()
        try:
            while True:
                time.sleep(0.01)
        except Cancelled as exc:
            raised.append(type(exc))
            runs.cancel(run)  # again, as it cleans up
            time.sleep(0.05)
            raise

    bridge.task(name="next")(lambda: time.sleep(0.05))
    verdicts: list[object] = []

    def work() -> None:
        verdicts.extend(runs.run(bridge.bound(name), a_message(name)) for name in (waits.name, "next"))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert begun.wait(_LONGEST_S)
    (run,) = runs.all()
    runs.cancel(run)
    thread.join(_LONGEST_S)
    runs.cancel(run)

    assert [type(each) for each in verdicts] == [CancelledVerdict, Done]
    assert raised == [Cancelled]
    assert runs.all() == []


def test_a_cancellation_that_comes_outside_of_the_tasks_own_code_cancels_too() -> None:
    class EndsSlowly:
        longest_s = 60.0

        def run(self, message: Message) -> None:
            while True:
                time.sleep(0.01)

    runs, verdicts = Runs(), list[object]()
    task: Any = EndsSlowly()
    thread = threading.Thread(target=lambda: verdicts.append(runs.run(task, a_message("t"))), daemon=True)
    thread.start()
    deadline = time.monotonic() + _LONGEST_S
    while not (found := runs.all()) and time.monotonic() < deadline:
        time.sleep(0.01)
    runs.cancel(found[0])
    thread.join(_LONGEST_S)

    assert isinstance(verdicts[0], CancelledVerdict)
    assert runs.all() == []


def test_a_cancelled_run_can_still_be_interrupted() -> None:
    bridge = Bridge("inline://?threads=0")
    runs, begun, stubborn = Runs(), threading.Event(), threading.Event()

    @bridge.task(name="waits")
    def waits() -> None:
        begun.set()
        try:
            while True:
                time.sleep(0.01)
        except Cancelled:
            stubborn.set()
            while True:
                time.sleep(0.01)

    verdicts: list[object] = []
    run = partial(runs.run, bridge.bound(waits.name), a_message(waits.name))
    thread = threading.Thread(target=lambda: verdicts.append(run()), daemon=True)
    thread.start()
    assert begun.wait(_LONGEST_S)
    runs.cancel(runs.all()[0])
    assert stubborn.wait(_LONGEST_S)
    runs.interrupt()
    thread.join(_LONGEST_S)
    assert isinstance(verdicts[0], GivenBack)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # some come into a weakref's callback
def test_whenever_short_runs_are_cancelled_nothing_of_that_gets_out() -> None:
    """A cancellation that comes as a run begins or ends stays with that run: the next one, a spared one, is done."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    bridge = Bridge("inline://?threads=0")
    runs, over = Runs(), threading.Event()
    for task in ("short", "spared"):
        bridge.task(name=task)(lambda: sum(range(2000)))

    def cancel() -> None:
        while not over.is_set():
            for run in runs.all():
                if run.message.task == "short":
                    runs.cancel(run)

    def verdict(task: str) -> object:
        given = runs.run(bridge.bound(task), a_message(task))
        assert runs.all() == []
        with pytest.raises(NoCurrentTaskError):
            current()
        return given

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    deadline, cancelled = time.monotonic() + _LONGEST_S, 0
    try:
        while cancelled < _ENOUGH and time.monotonic() < deadline:
            short = verdict("short")
            assert isinstance(short, CancelledVerdict | Done)
            cancelled += isinstance(short, CancelledVerdict)
            assert isinstance(verdict("spared"), Done)
    finally:
        over.set()
        thread.join(_LONGEST_S)
        sys.setswitchinterval(interval_s)
    assert cancelled == _ENOUGH


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, float("inf")), ({"time_limit": 2}, 2 + 17), ({"time_limit": 2, "hard_time_limit": 3}, 3)],
)
def test_when_a_run_is_stuck(options: dict[str, float], expected: float) -> None:
    bridge = Bridge("inline://?threads=0", grace=20)
    bridge.task(name="t", **options)(lambda: None)  # type: ignore[call-overload]
    assert bridge.bound("t").longest_s == expected
