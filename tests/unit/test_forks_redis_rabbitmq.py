"""A process that forks while it sends, on servers (rule S7): each child sends too."""

from __future__ import annotations

import subprocess
import sys
from uuid import uuid4

import pytest

from tests.servers import PrivateRabbitMQ, PrivateRedis

FIRST_SEND = """
import faulthandler, os, signal, sys, threading, time

from taskbridge import Bridge

bridge = Bridge(sys.argv[1], namespace=sys.argv[2], send_timeout=60)
pauses_ms = [0, 0, 1, 4, 10, 15, 30, 60]

@bridge.task(name="shop.note")
def note(): ...

sender = threading.Thread(target=note.send)
sender.start()
children = []
for pause_ms in pauses_ms:
    time.sleep(pause_ms / 1000)
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(90)
        signal.alarm(100)
        note.send()
        os._exit(0)
    children.append(child)
ended = [os.waitpid(child, 0)[1] for child in children]
sender.join()
print(ended.count(0), "children sent")
"""

BESIDE_SENDERS = """
import faulthandler, os, signal, sys, threading

from taskbridge import Bridge

bridge = Bridge(sys.argv[1], namespace=sys.argv[2], send_timeout=60)
over = threading.Event()

@bridge.task(name="shop.note")
def note(): ...

def go_on():
    while not over.is_set():
        note.send()

senders = [threading.Thread(target=go_on) for _ in range(3)]
for sender in senders:
    sender.start()
good = 0
for _ in range(25):
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(90)
        signal.alarm(100)
        for _ in range(3):
            note.send()
        os._exit(0)
    good += os.waitpid(child, 0)[1] == 0
over.set()
for sender in senders:
    sender.join()
print(good, "children sent")
"""

PAIRS = ["celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp"]


def _url(pair: str, request: pytest.FixtureRequest) -> str:
    engine, _, broker = pair.partition("+")
    server: PrivateRedis | PrivateRabbitMQ
    server = request.getfixturevalue("redis_server" if broker == "redis" else "rabbitmq_server")
    return f"{engine}+{server.url}"


def _run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return f"{done.stdout}{done.stderr}"  # where a child says why it could not send


@pytest.mark.parametrize("pair", PAIRS)
def test_a_child_forked_during_the_first_send_sends(pair: str, request: pytest.FixtureRequest) -> None:
    printed = _run(FIRST_SEND, _url(pair, request), f"f{uuid4().hex[:8]}")
    assert "8 children sent" in printed


@pytest.mark.parametrize("pair", PAIRS)
def test_a_child_forked_beside_threads_that_send_sends(pair: str, request: pytest.FixtureRequest) -> None:
    printed = _run(BESIDE_SENDERS, _url(pair, request), f"f{uuid4().hex[:8]}")
    assert "25 children sent" in printed
