"""CR with a real Redis: schedulers that are killed and stopped, and a store that is away for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import datetime
from typing import get_args
from uuid import uuid4

import pytest

from taskbridge import Bridge, Event
from taskbridge.contract.proxy import Proxy
from taskbridge.schedules.listing import PLANNED_HEADER, SCHEDULE_HEADER
from taskbridge.schedules.plan import CatchUp
from taskbridge.schedules.sender import Scheduler
from tests.servers import PrivateRedis
from tests.unit.test_scheduler import a_day_in_disorder
from tests.unit.test_stored_schedules import many_put_and_delete


def test_five_schedulers_that_are_killed_and_stopped_send_each_tick_once(redis_server: PrivateRedis) -> None:
    bridge = Bridge(f"celery+{redis_server.url}", namespace=f"t{uuid4().hex[:10]}")
    store = bridge.store
    assert store is not None

    a_day_in_disorder(store.ticks)

    bridge.close()


def test_what_many_put_and_delete_at_once_is_there(redis_server: PrivateRedis) -> None:
    namespace = f"t{uuid4().hex[:10]}"
    many_put_and_delete(lambda: Bridge(f"celery+{redis_server.url}", namespace=namespace, send_timeout=60))


@pytest.mark.slow
def test_what_was_due_while_redis_was_away_is_caught_up_as_it_is_set(redis_server: PrivateRedis) -> None:
    namespace = f"t{uuid4().hex[:10]}"
    sent: list[tuple[str, float]] = []

    def note(event: Event) -> None:
        assert event.message is not None
        headers = event.message.headers
        sent.append((headers[SCHEDULE_HEADER], datetime.fromisoformat(headers[PLANNED_HEADER]).timestamp()))

    with Proxy(("127.0.0.1", redis_server.port)) as proxy:
        url = f"celery+redis://127.0.0.1:{proxy.port}"
        bridges = [Bridge(url, namespace=namespace, send_timeout=1) for _ in range(3)]
        stop = threading.Event()
        threads: list[threading.Thread] = []
        for bridge in bridges:
            task = bridge.task(name="tick")(print)
            for catch_up in get_args(CatchUp):
                bridge.periodic(task.call(), every=2, name=catch_up, catch_up=catch_up)

            bridge.on("after_send")(note)
            threads.append(threading.Thread(target=Scheduler(bridge).run, args=(stop,), daemon=True))
            threads[-1].start()
        time.sleep(5)
        _wait_for_the_middle()
        proxy.cut()
        away = time.time()
        time.sleep(9)
        _wait_for_the_middle()
        back = time.time()
        proxy.restore()
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline and not _each_goes_on(sent, back + 4):
            time.sleep(0.1)
        stop.set()
        for thread in threads:
            thread.join(20)
        entries = {entry.name: entry for entry in bridges[0].schedules.list()}
        for bridge in bridges:
            bridge.close()
    ran = {name: sorted({instant for schedule, instant in sent if schedule == name}) for name in get_args(CatchUp)}
    for name, instants in ran.items():
        planned = int(instants[-1] - instants[0]) // 2 + 1
        assert len(instants) + entries[name].missed == planned, name
    meanwhile = {name: [each for each in ran[name] if away + 1 < each < back] for name in ran}
    assert meanwhile["none"] == []
    assert len(meanwhile["one"]) <= 1
    assert entries["all"].missed == 0
    assert 3 <= entries["one"].missed <= entries["none"].missed
    # the latest that was missed is sent, right before the first that was not
    assert min(each for each in ran["one"] if each > away + 1) <= min(each for each in ran["none"] if each > away + 1)


def _wait_for_the_middle() -> None:
    """Wait until no tick is about to be sent, or has just been: they are due every 2 s."""
    time.sleep((1 - time.time()) % 2)


def _each_goes_on(sent: Sequence[tuple[str, float]], after: float) -> bool:
    return {name for name, instant in sent if instant > after} == set(get_args(CatchUp))
