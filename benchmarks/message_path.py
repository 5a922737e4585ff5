"""Counts what one message passes through: functions, files, and moves between files.

    .venv/bin/python -m benchmarks.message_path               # sends, and a run on each pair, on private servers
    .venv/bin/python -m benchmarks.message_path --show send   # each function, in order

A *function* is counted once, by file and name. A *call* is counted each time. A *move* is a call of a function in
another file than the one called before, in the same thread. Only taskbridge's own code is looked at.

A send is counted in this process, when others have gone before it. A run is counted in a worker with one slot that
finds `MESSAGES` waiting: its threads that have nothing to do with messages are left out, and a function belongs to the
way if it is called at least once in ten messages.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import taskbridge
from taskbridge import Bridge, Task
from taskbridge.engines.base import WorkerOptions
from tests.servers import PrivateRabbitMQ, PrivateRedis

_ROOT: Final = os.path.join(os.path.dirname(taskbridge.__file__), "")
MESSAGES: Final = 200
"""How many messages a worker runs while it is traced once."""
_WARM: Final = 20
_TRACED: Final = 5
"""How many sends are traced, and how often a worker is: who waits long for a reply looks for it several times."""
_OUTPUT_VARIABLE: Final = "MESSAGE_PATH_OUTPUT"
_NO_MESSAGES: Final = ("pump", "schedul", "busy", "watch", "prepare", "cancel", "relay", "vitals")
"""What the names of threads hold that take no message: they promote, relay, send by schedules, tell of the worker."""

_RUN_WITHIN_S: Final = 300.0

Call = tuple[str, str]
"""A file, from the package's folder, and a function's name in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Passed:
    """What a message passed through.

    Attributes:
        functions: How many functions.
        files: How many files.
        moves: How many moves between files, a message.
        calls: How many calls, a message.
    """

    functions: int
    files: int
    moves: int
    calls: int


class Tracer:
    """Notes each call of taskbridge's functions, by thread, from `start` to `stop`."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self._on = False

    def install(self) -> None:
        """Look at this thread, and at those that are started later."""
        threading.setprofile(self.look)
        sys.setprofile(self.look)

    def start(self) -> None:
        """Begin to note."""
        self._on = True

    def stop(self) -> None:
        """Note no more."""
        self._on = False

    def look(self, frame: FrameType, event: str, argument: object) -> None:
        """Note a call; the interpreter calls this."""
        if self._on and event == "call" and frame.f_code.co_filename.startswith(_ROOT):
            code = frame.f_code
            name: str = getattr(code, "co_qualname", code.co_name)
            self.calls[threading.current_thread().name].append((code.co_filename[len(_ROOT) :], name))


def measured(calls: Mapping[str, Sequence[Call]], messages: int) -> Passed:
    """Return what so many messages passed through."""
    often = Counter(call for thread in calls.values() for call in thread)
    way = {call for call, times in often.items() if times * 10 >= messages}
    moves = sum(first[0] != second[0] for thread in calls.values() for first, second in itertools.pairwise(thread))
    return Passed(
        functions=len(way),
        files=len({file for file, _ in way}),
        moves=round(moves / messages),
        calls=round(sum(often.values()) / messages),
    )


def _declare(bridge: Bridge, *, results: bool, body: Callable[[int], int]) -> Task[[int], int]:
    return bridge.task(name="path.step", results=results)(body)


def trace_send(url: str, *, results: bool = False) -> Mapping[str, Sequence[Call]]:
    """Return the calls of one send, in order: of several the one with the fewest, which waited once for its reply."""
    bridge = Bridge(url, namespace="path")
    task = _declare(bridge, results=results, body=lambda number: number)
    for number in range(_WARM):
        task.send(number)
    traced: list[Mapping[str, Sequence[Call]]] = []
    for number in range(_TRACED):
        tracer = Tracer()
        sys.setprofile(tracer.look)
        tracer.start()
        task.send(number)
        sys.setprofile(None)
        traced.append(dict(tracer.calls))
    bridge.close()
    return min(traced, key=lambda calls: sum(map(len, calls.values())))


# In the worker, which imports this module as its application

_tracer: Final = Tracer()
_traced: Final[list[Mapping[str, Sequence[Call]]]] = []
_done: Final = Counter[str]()


def _step(number: int) -> int:
    """Count the messages: the first ones warm the worker up, then it is traced several times."""
    _done["messages"] += 1
    if _done["messages"] == _WARM:
        _tracer.start()
    elif _done["messages"] > _WARM and (_done["messages"] - _WARM) % MESSAGES == 0:
        calls, _tracer.calls = _tracer.calls, defaultdict(list)
        _traced.append(calls)
        if len(_traced) == _TRACED:
            _tracer.stop()
            output = Path(os.environ[_OUTPUT_VARIABLE])
            output.with_suffix(".part").write_text(json.dumps(_traced))
            output.with_suffix(".part").rename(output)
    return number


if _OUTPUT_VARIABLE in os.environ:
    _tracer.install()
    bridge: Bridge = Bridge()
    step: Task[[int], int] = _declare(bridge, results=False, body=_step)


def trace_runs(url: str) -> Mapping[str, Sequence[Call]]:
    """Return the calls of a worker's threads while it ran `MESSAGES` messages, when they were fewest.

    Raises:
        TimeoutError: It has not run them within five minutes.
    """
    namespace = f"path-{secrets.token_hex(4)}"
    sender = Bridge(url, namespace=namespace)
    task = _declare(sender, results=False, body=lambda number: number)
    task.send_many([task.call(number) for number in range(_WARM + _TRACED * MESSAGES)])
    # Without the two lines that Celery logs of each message at INFO: their format is no part of the message's way.
    options = WorkerOptions(app="benchmarks.message_path:bridge", threads=2, scheduler=False, log_level="WARNING")
    (command,) = sender.worker_commands(options)
    argv = command.words()
    for option in ("--concurrency", "--threads"):
        if option in argv:
            argv[argv.index(option) + 1] = "1"
    with tempfile.TemporaryDirectory(prefix="taskbridge-path-") as folder:
        output = Path(folder, "calls.json")
        env = {**os.environ, "TASKBRIDGE_URL": url, "TASKBRIDGE_NAMESPACE": namespace, _OUTPUT_VARIABLE: str(output)}
        log = Path(folder, "log")
        said = log.open("wb")
        worker = subprocess.Popen(
            argv,
            env=command.environment(env),
            cwd=Path(__file__).parents[1],
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + _RUN_WITHIN_S
            while not output.exists():
                if time.monotonic() > deadline:
                    last = log.read_text(errors="replace")[-2000:]
                    raise TimeoutError(f"the worker on {url} has not run all messages in {_RUN_WITHIN_S:g} s: {last}")
                time.sleep(0.05)
            traced: list[dict[str, list[Call]]] = [
                {
                    thread: [(file, name) for file, name in noted]
                    for thread, noted in calls.items()
                    if not any(word in thread for word in _NO_MESSAGES)
                }
                for calls in json.loads(output.read_text())
            ]
        finally:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            said.close()
            sender.close()
    return min(traced, key=lambda calls: measured(calls, MESSAGES).moves)


SENDS: Final[Mapping[str, tuple[str, str, bool]]] = {
    "send, Redis": ("dramatiq", "redis", False),
    "send, recorded": ("dramatiq", "redis", True),
    "send, RabbitMQ": ("dramatiq", "amqp", False),
}
"""The engine and broker of each send that is counted, and whether it is recorded."""

RUNS: Final[Mapping[str, tuple[str, str]]] = {
    f"run, {engine.capitalize()} + {name}": (engine, broker)
    for engine in ("celery", "dramatiq")
    for broker, name in (("redis", "Redis"), ("amqp", "RabbitMQ"))
}
"""The engine and broker of each run that is counted."""


def _url(engine: str, server_url: str) -> str:
    return f"{engine}+{server_url}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="count what a message passes through")
    parser.add_argument("--show", metavar="WORD", help="print each function of the rows whose names hold this word")
    shown: str | None = parser.parse_args().show
    with PrivateRedis() as redis, PrivateRabbitMQ() as rabbitmq:
        urls = {"redis": redis.url, "amqp": rabbitmq.url}
        rows: list[tuple[str, Mapping[str, Sequence[Call]], int]] = []
        for name, (engine, broker, recorded) in SENDS.items():
            if shown is None or shown in name:
                rows.append((name, trace_send(_url(engine, urls[broker]), results=recorded), 1))
        for name, (engine, broker) in RUNS.items():
            if shown is None or shown in name:
                rows.append((name, trace_runs(_url(engine, urls[broker])), MESSAGES))
    print("| one message | functions | files | moves | calls |\n|---|---|---|---|---|")
    for name, calls, messages in rows:
        passed = measured(calls, messages)
        print(f"| {name} | {passed.functions} | {passed.files} | {passed.moves} | {passed.calls} |")
    for name, calls, messages in rows if shown is not None else ():
        print(f"\n{name}")
        for thread, noted in calls.items():
            often = Counter(noted)
            for (file, function), times in often.items():
                if times * 10 >= messages:
                    print(f"  {thread:24} {times / messages:6.2f} {file}: {function}")


if __name__ == "__main__":
    main()
