"""What the tests of the Redis broker share: tiny wires, brokers in a namespace of their own, and a look into Redis."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import redis

from taskbridge.brokers.base import RedisCommand
from taskbridge.brokers.redis import RedisBroker, connect
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.message import DeadLetter, Message, loads, new_id
from taskbridge.settings import load


class OneListWire:
    """A message is one command, as with Celery: its own text at the end of a list."""

    def __init__(self, engine: str, namespace: str) -> None:
        self.engine = engine
        self.namespace = namespace

    def encode(self, message: Message) -> tuple[RedisCommand, ...]:
        return (("RPUSH", self.places(message.queue)[0], message.dumps()),)

    def places(self, queue: str) -> Sequence[str]:
        return [f"{self.namespace}.{self.engine}.{queue}"]


class HashWire(OneListWire):
    """A message is two commands, as with Dramatiq: its text in a hash, and its id at the end of a list."""

    def encode(self, message: Message) -> tuple[RedisCommand, ...]:
        place = self.places(message.queue)[0]
        return (("HSET", f"{place}.msgs", message.id, message.dumps()), ("RPUSH", place, message.id))


@dataclass
class Place:
    """A namespace of a test on a Redis server."""

    url: str
    client: Any
    namespace: str = field(default_factory=lambda: f"t{uuid4().hex[:10]}")
    brokers: list[RedisBroker] = field(default_factory=list[RedisBroker])

    def broker(
        self, wire: type[OneListWire] = OneListWire, engine: str = "celery", url: str | None = None, **settings: Any
    ) -> RedisBroker:
        chosen, _ = load(
            {"url": f"celery+{url or self.url}", "namespace": self.namespace, "send_timeout": 3, **settings}, environ={}
        )
        broker = connect(chosen, wire(engine, self.namespace))
        self.brokers.append(broker)
        return broker

    def waiting(self, queue: str = "email", engine: str = "celery") -> list[Message]:
        """Return what waits in a queue of a `OneListWire`, the first first."""
        return [loads(text) for text in self.client.lrange(f"{self.namespace}.{engine}.{queue}", 0, -1)]

    def delayed(self, engine: str = "celery") -> dict[str, float]:
        """Return what is parked: members, and when they are due in milliseconds."""
        entries = self.client.zrange(f"{self.namespace}:parked:{engine}", 0, -1, withscores=True)
        return {member.decode(): score for member, score in entries}

    def texts(self, engine: str = "celery") -> dict[bytes, bytes]:
        """Return the texts of what is parked."""
        texts: dict[bytes, bytes] = self.client.hgetall(f"{self.namespace}:parked:{engine}:messages")
        return texts

    def now_ms(self) -> float:
        seconds, microseconds = self.client.time()
        return float(seconds * 1000 + microseconds / 1000)


@contextmanager
def place_on(url: str) -> Generator[Place]:
    with redis.Redis.from_url(url, socket_timeout=10) as client:
        place = Place(url, client)
        yield place
        for broker in place.brokers:
            broker.close()


def message(queue: str = "email", task: str = "shop.tasks.add", **changes: Any) -> Message:
    fields: dict[str, Any] = {"args_json": "[1,2]", "kwargs_json": "{}", "enqueued_at": time.time(), **changes}
    return Message(id=new_id(), task=task, queue=queue, **fields)


@contextmanager
def pumping(
    broker: RedisBroker,
    knows: Callable[[str], bool] = lambda task: True,
    *,
    stop_s: float = 6.0,
    buried: Callable[[DeadLetter], object] | None = None,
) -> Generator[threading.Thread]:
    """Run a pump in a thread, and yield that; at the end it must stop in time, and must not have raised.

    By default it may end a call before, for whose answer it waits 5 s at most.
    """
    errors: list[BaseException] = []
    stop = threading.Event()

    def run() -> None:
        try:
            broker.pump(knows=knows, stop=stop, buried=buried)
        except BaseException as exc:
            errors.append(exc)
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        with Stopwatch() as watch:
            thread.join(20)
    assert not thread.is_alive(), "the pump did not stop within 20 s"
    assert errors == []
    assert watch.took_s < stop_s, f"the pump took {watch.took_s:.2f} s to stop"


PUMP_PROCESS = f"""
from __future__ import annotations
import signal, sys, threading
from collections.abc import Sequence
from taskbridge.brokers.base import RedisCommand
from taskbridge.brokers.redis import connect, pump
from taskbridge.message import Message
from taskbridge.settings import load

{inspect.getsource(OneListWire)}

url, namespace, engine, step, after_s = sys.argv[1:]
settings, _ = load({{"url": "celery+" + url, "namespace": namespace}}, environ={{}})
broker = connect(settings, OneListWire(engine, namespace))
broker.ping(timeout_s=20)
signal.signal(signal.SIGALRM, signal.SIG_DFL)
run, steps = pump.Pump._run, 0

def deadly(*given):
    global steps
    steps += 1
    if steps == int(step):
        signal.setitimer(signal.ITIMER_REAL, float(after_s))
    return run(*given)

pump.Pump._run = deadly
print("ready", flush=True)
broker.pump(knows=lambda task: True, stop=threading.Event())
"""


@contextmanager
def pump_process(
    place: Place, engine: str = "celery", *, dies_at: tuple[int, float] = (0, 0.0)
) -> Generator[subprocess.Popen[str]]:
    """Run a pump in a process of its own, until it is killed; return when it is up.

    If `dies_at` says so, it dies so many seconds after it began with the script of that number, counted from 1. It sets
    itself an alarm for that: another process may be so late on a loaded machine that all is done.
    """
    step, after_s = dies_at
    command = [sys.executable, "-c", PUMP_PROCESS, place.url, place.namespace, engine, str(step), f"{after_s:f}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool], *, timeout_s: float, saw: Callable[[], object]) -> float:
    """Return how long it took until the condition held; fail with what was seen if it didn't."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"not within {timeout_s} s; saw {saw()}"
        time.sleep(0.01)
    return time.monotonic() - started
