"""What the page costs, with few and with many messages: `python -m benchmarks.pages [RECORDS [DEAD]]`, by hand.

A private Redis is filled with records that are listed, with dead letters, with as many flows as these, and with one
flow that has as many steps. Then each page is asked for through its ASGI app, first with 100 of each and then with all:
the commands that Redis was sent, and the median of the seconds. Last come 50 viewers of the first page for a minute,
each as often as the page asks for, and what of a processor they take in `taskbridge web` and in Redis.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final
from unittest import mock

import redis
from starlette.testclient import TestClient

from taskbridge import Bridge, codec, group
from taskbridge.message import DeadLetter, Message, new_id
from taskbridge.retry import ErrorInfo
from taskbridge.stores.backend import LISTED, Listed
from taskbridge.stores.records import key_of
from taskbridge.web import app, pages
from tests.servers import PrivateRedis

FEW: Final = 100
TIMES: Final = 5
LONGEST_S: Final = 60.0
BATCH: Final = 1000
VIEWERS: Final = 50
VIEWED_S: Final = 60.0
IDLE_S: Final = 20.0
OLD_S: Final = 61.0  # a flow of which nothing is heard for so long takes more commands
PAGES: Final = (
    *("", "running", "failures", "messages", "messages?state=done", "dead", "flows", "schedules", "workers"),
    *("message?id=ID", "letter?id=ID", "flow?id=ID"),
)
"""`ID` stands for that of a message, of a dead letter, and of the flow with the most steps."""

_OWN: Final = ("cmdstat_info", "cmdstat_config", "cmdstat_client", "cmdstat_hello", "cmdstat_select")


def fill(bridge: Bridge, first: int, records: int, letters: int, server: Any) -> None:
    """Have so many records and dead letters, and flows, of which `first` are there already."""
    store, now = bridge.store, time.time()
    assert store is not None
    for start in range(first, records, BATCH):
        ids = [new_id() for _ in range(start, min(records, start + BATCH))]
        row = {"task": "shop.pay", "queue": "default", "state": "done", "enqueued_at": now - 60, "ended_at": now}
        text = f"2\n{codec.to_json(row)}"
        store.backend.create([(key_of(each), text, 3600.0) for each in ids], timeout_s=30)
        store.backend.list_soon([Listed(each, "done", now, kept_s=3600.0) for each in ids])
        wanted, deadline = min(start + len(ids), LISTED), time.monotonic() + LONGEST_S
        while server.zcard(f"{bridge.settings.namespace}:listing:state:done") < wanted:
            time.sleep(0.001)  # nobody waits for the lists, so they could fall behind
            assert time.monotonic() < deadline, "the lists are not written"
    error = ErrorInfo(type="ValueError", message="no such card")
    for number in range(first, letters):
        message = Message(
            id=new_id(), task="shop.pay", queue="default", args_json=f"[{number}]", kwargs_json="{}", enqueued_at=now
        )
        letter = DeadLetter(
            message=message, reason="exhausted", error=error, traceback="...", died_at=now - 3600 + number / 1e3
        )
        bridge.broker.bury(letter, timeout_s=30)
    pay = bridge.named("shop.pay")
    for number in range(first, letters):
        pay.call(number).then_call(pay.call(number)).send()
    group(pay.call(number) for number in range(letters)).using(id=f"steps-{letters}").send()


def addresses(bridge: Bridge, letters: int) -> Mapping[str, str]:
    """Return where the pages are, by what they are called here, when there are so many dead letters."""
    [message, *_] = bridge.operations.messages(state="done").items
    [letter] = bridge.dead.list(limit=1).entries
    ids = {"message": message.id, "letter": letter.id, "flow": f"steps-{letters}"}
    return {page: page.replace("=ID", f"={ids.get(page.partition('?')[0], '')}") for page in PAGES}


def commands(server: Any, act: Callable[[], object]) -> int:
    """Return how many commands Redis carried out for an act, those of scripts included."""
    server.config_resetstat()
    act()
    found: dict[str, Any] = server.info("commandstats")
    return sum(each["calls"] for name, each in found.items() if not name.startswith(_OWN))


def keeping_no_answers() -> AbstractContextManager[object]:
    """Have each look ask the broker and the store, as a first look does."""
    return mock.patch.object(pages, "_RECENT_S", 0.0)


def look(client: Any, page: str) -> None:
    assert client.get(f"/{page}").status_code == 200, page


def measured(bridge: Bridge, letters: int, client: Any, server: Any) -> dict[str, tuple[int, float]]:
    """Return by page how many commands it takes, and the median of its seconds."""
    time.sleep(OLD_S)  # all flows have waited long enough then, and take as many commands each time
    found: dict[str, tuple[int, float]] = {}
    for name, page in addresses(bridge, letters).items():
        look(client, page)  # what is imported and connected once
        count = commands(server, partial(look, client, page))
        times: list[float] = []
        for _ in range(TIMES):
            began = time.perf_counter()
            client.get(f"/{page}")
            times.append(time.perf_counter() - began)
        found[name] = count, statistics.median(times)
    return found


@contextmanager
def served(bridge: Bridge) -> Generator[tuple[int, str]]:
    """Have `taskbridge web` serve the page; yield its process and the address."""
    settings = bridge.settings  # whose Redis has no password, so that the URL is shown whole
    command = [sys.executable, "-m", "taskbridge", "web", "--url", settings.url.safe_url, "--port", "0"]
    env = {**os.environ, "TASKBRIDGE_NAMESPACE": settings.namespace, "TASKBRIDGE_LISTING": "on"}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            found = re.search(r"http://([0-9.:]+)/", said)
            assert found is not None, said
            yield process.pid, found[1]
        finally:
            process.terminate()


def viewers_share(bridge: Bridge, server: Any) -> float:
    """Return what of a processor 50 viewers of the first page cost, in the process that serves it and in Redis.

    What these two take when nobody looks is not counted.
    """
    with served(bridge) as (page, address):
        viewers = [HTTPConnection(address, timeout=LONGEST_S) for _ in range(VIEWERS)]

        def view(number: int) -> bytes:
            viewer = viewers[number % VIEWERS]
            viewer.request("GET", "/")
            answer = viewer.getresponse()
            text = answer.read()
            assert answer.status == HTTPStatus.OK
            return text

        def watch() -> None:
            began = time.monotonic()
            for number in range(int(VIEWERS * VIEWED_S / period_s)):
                view(number)
                time.sleep(max(0.0, began + (number + 1) * period_s / VIEWERS - time.monotonic()))

        def share(act: Callable[[], object]) -> float:
            """Return what of a processor the two take while something is done."""
            before, began = used_s(page, server), time.monotonic()
            act()
            return (used_s(page, server) - before) / (time.monotonic() - began)

        first, *_ = [view(number) for number in range(VIEWERS)]  # each connects once
        [period_s] = [float(each) for each in re.findall(rb'data-live="(\d+)"', first)]  # see static/page.js
        idle = share(partial(time.sleep, IDLE_S))
        return share(watch) - idle


def used_s(page: int, server: Any) -> float:
    """Return the processor's seconds that the process with the page, and Redis, have used."""
    fields = Path(f"/proc/{page}/stat").read_text().rpartition(")")[2].split()
    redis_s = server.info("cpu")
    own_s: float = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own_s + float(redis_s["used_cpu_user"] + redis_s["used_cpu_sys"])


@contextmanager
def place(server: PrivateRedis) -> Generator[tuple[Bridge, Any]]:
    """Have a bridge on a Redis that nobody else uses, and a client of that."""
    bridge = Bridge(f"celery+{server.url}", namespace="pages", listing=True)

    @bridge.task(name="shop.pay")
    def pay(number: int) -> None: ...

    make: Any = redis.Redis  # whose types say little
    with make.from_url(server.url) as client:
        yield bridge, client
    bridge.close()


def main(records: int, letters: int) -> None:
    make: Any = TestClient
    with PrivateRedis() as started, place(started) as (bridge, server), make(app(bridge)) as client:
        fill(bridge, 0, FEW, FEW, server)
        with keeping_no_answers():
            few = measured(bridge, FEW, client, server)
        fill(bridge, FEW, records, letters, server)
        with keeping_no_answers():
            many = measured(bridge, letters, client, server)
        print(f"| page | commands, {FEW} | {records:,} records, {letters:,} dead | ms, {FEW} | ms, many | times |")
        print("|---|---|---|---|---|---|")
        for page, (count, took_s) in few.items():
            now, now_s = many[page]
            print(f"| /{page} | {count} | {now} | {took_s * 1e3:.1f} | {now_s * 1e3:.1f} | {now_s / took_s:.2f} |")
        print(f"\n{VIEWERS} viewers take {viewers_share(bridge, server):.1%} of a processor.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("records", nargs="?", type=int, default=1_000_000, metavar="RECORDS", help="default: 1000000")
    parser.add_argument("letters", nargs="?", type=int, default=100_000, metavar="DEAD", help="default: 100000")
    main(**vars(parser.parse_args()))
