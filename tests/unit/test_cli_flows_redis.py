"""`taskbridge flow` with a worker on a real Redis, and what is said of flows whose messages are lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from taskbridge import Bridge
from taskbridge.message import new_id
from tests.servers import PrivateRedis
from tests.unit.command_line import Run, runner
from tests.web import shop

LONGEST_S = 120.0


@pytest.fixture
def bridge(redis_server: PrivateRedis) -> Iterator[Bridge]:
    with shop.bridge.temporarily(url=f"dramatiq+{redis_server.url}", namespace=f"ns-{new_id()[:8]}", send_timeout=60):
        yield shop.bridge


@pytest.fixture
def variables(bridge: Bridge, redis_server: PrivateRedis, tmp_path: Path) -> dict[str, str]:
    return {
        "TASKBRIDGE_URL": f"dramatiq+{redis_server.url}",
        "TASKBRIDGE_NAMESPACE": bridge.settings.namespace,
        "TASKBRIDGE_SEND_TIMEOUT": "60",
        "SHOP_FIXED": str(tmp_path / "fixed"),
        "TZ": "UTC",
    }


@pytest.fixture
def run(tmp_path: Path, variables: dict[str, str]) -> Run:
    return runner(tmp_path, **variables)


@pytest.fixture
def worker(variables: dict[str, str], run: Run, tmp_path: Path) -> Iterator[None]:
    """A worker of the shop."""
    command = [sys.executable, "-m", "taskbridge", "worker", "tests.web.shop:bridge", "--processes", "1"]
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], env={**os.environ, **variables}, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(LONGEST_S)


@pytest.fixture
def killed_worker(variables: dict[str, str], tmp_path: Path) -> Iterator[Callable[[], None]]:
    """What kills a worker of the shop, which is started."""
    command = [sys.executable, "-m", "taskbridge", "worker", "tests.web.shop:bridge", "--processes", "1"]
    with (tmp_path / "killed.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            env={**os.environ, **variables},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(LONGEST_S)

    try:
        yield kill
    finally:
        kill()


def until(is_so: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_failed_flow_is_listed_shown_and_retried(run: Run, worker: None, tmp_path: Path) -> None:
    assert run("flow", "ls").stdout == "no such flows\n"
    flow = shop.parcels(1, shop.BROKEN, 2).using(id="nightly").send()
    until(lambda: flow.status().is_final, "its end")

    listed = run("flow", "ls", "--state", "failed").stdout
    assert re.search(
        r"^id +flow +state +stage +steps ended +sent\nnightly +shop\.pack +failed +1/2 +\d/4 +\d{4}-", listed
    )
    assert run("flow", "ls", "--state", "done").stdout == "no such flows\n"
    shown = run("flow", "show", "nightly").stdout
    assert re.search(r"^progress +\[[#.]+\] .*1 dead.* of 4 steps$", shown, re.MULTILINE)
    assert re.search(r"^because +shop\.pack \S+ is dead$", shown, re.MULTILINE)
    assert "nobody packs order 13" in shown
    [dead] = [each for each in _data(run, "show", "nightly")["steps"] if each["state"] == "dead"]
    assert f"shop.pack {dead['id']} is dead" in shown

    (tmp_path / "fixed").touch()
    assert run("flow", "retry", "nightly").stdout == "flow nightly goes on\n"
    assert flow.result(LONGEST_S) == "3 parcels go by bike"
    again = run("flow", "retry", "nightly")
    assert (again.returncode, again.stdout) == (1, "nothing to retry: flow nightly is done\n")
    late = run("flow", "cancel", "nightly", "--json")
    assert (late.returncode, json.loads(late.stdout)["state"]) == (1, "done")
    assert [each["state"] for each in _data(run, "ls")["flows"]] == ["done"]


def test_a_flow_that_waits_is_cancelled_and_its_steps_are_shown_in_pages(run: Run) -> None:
    flow = shop.parcels(*range(100, 175)).send()

    first = run("flow", "show", flow.id).stdout
    assert first.endswith("\n\nmore with --first 51\n")
    ids = [each["id"] for start in ("1", "51") for each in _data(run, "show", flow.id, "--first", start)["steps"]]
    assert (len(ids), len(set(ids))) == (75, 75)
    assert all(line.startswith(each) for each, line in zip(ids, first.splitlines()[-52:-2], strict=False))

    assert run("flow", "cancel", flow.id).stdout == f"flow {flow.id} is cancelled: it starts no step\n"
    assert flow.status().state == "cancelled"
    assert _data(run, "ls", "--state", "cancelled")["flows"][0]["id"] == flow.id


def test_flows_are_listed_page_by_page(run: Run) -> None:
    ids = [shop.parcels(number).using(id=f"flow-{number}").send().id for number in range(7)]

    shown = run("flow", "ls", "--most", "5").stdout
    found = re.search(r"more with --cursor '(.*)'", shown)
    assert found is not None
    pages = [_data(run, "ls", "--most", "5", *more)["flows"] for more in ([], ["--cursor", found[1]])]
    assert [each["id"] for page in pages for each in page] == ids[::-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["flow", "show", "unknown"], "nothing is known of a "),
        (["flow", "cancel", "unknown"], "nothing is known of a "),
        (["flow", "retry", "unknown"], "nothing is known of a "),
        (["flow", "ls", "--state", "odd"], "there is no 'odd'"),
        (["flow", "ls", "--cursor", "odd"], "there is no page with the cursor 'odd'"),
        (["flow", "show", "x", "--first", "0"], "it must be a whole number of at least 1, not '0'"),
    ],
)
def test_what_is_wrong_is_one_line(run: Run, words: list[str], said: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


def test_a_stalled_flow_is_told_everywhere_and_retried(
    run: Run, bridge: Bridge, redis_server: PrivateRedis, request: pytest.FixtureRequest
) -> None:
    flow = shop.order.call(1).then_call(shop.order.call(2)).send()
    assert "flows " not in run("check").stdout
    with redis.Redis.from_url(redis_server.url) as client:  # somebody deletes its message, and what is known of that
        lost = [*client.scan_iter(f"{bridge.settings.namespace}*dramatiq.default*")]
        assert client.delete(*lost, *client.scan_iter(f"{bridge.settings.namespace}*:record:*")) >= 3
        [key] = client.scan_iter(f"{bridge.settings.namespace}*:flow:{flow.id}")
        text: Any = client.get(key)
        long_ago = f'"created_at":{flow.status().created_at.timestamp() - 3600}'  # else the sender may be at it still
        client.set(key, re.sub('"created_at":[0-9.]+', long_ago, text.decode()))

    assert [each["id"] for each in _data(run, "ls", "--state", "stalled")["flows"]] == [flow.id]
    assert re.search(r"^state +stalled$", run("flow", "show", flow.id).stdout, re.MULTILINE)
    checked = run("check")
    assert checked.returncode == 1
    assert f"stalled, until `taskbridge flow retry ID`: {flow.id}\n" in checked.stdout
    assert [each.text for each in bridge.operations.alarms() if "stalled" in each.text] == ["1 flow is stalled"]
    assert 'taskbridge_flows{state="stalled"} 1.0' in run("metrics").stdout

    request.getfixturevalue("worker")
    assert run("flow", "retry", flow.id).stdout == f"flow {flow.id} goes on\n"
    assert flow.result(LONGEST_S) == "order 2 is on its way"
    assert "flows " not in run("check").stdout


def test_a_flow_is_stalled_whose_step_was_lost_with_the_worker_that_ran_it(
    bridge: Bridge,
    variables: dict[str, str],
    redis_server: PrivateRedis,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow = shop.import_products.call(str(tmp_path / "done")).then_call(shop.order.call(2)).send()
    worker = request.getfixturevalue("killed_worker")
    until(lambda: bridge.flows.steps(flow.id)[0].state == "running", "its first run")
    now = bridge.now
    monkeypatch.setattr(bridge, "now", lambda: now() + 3600)
    assert not flow.status().is_stalled  # for its worker lives

    worker()
    with redis.Redis.from_url(
        redis_server.url
    ) as client:  # the broker forgets what it had, and the worker's lease ends
        lost = [*client.scan_iter(f"{bridge.settings.namespace}*dramatiq*")]
        assert client.delete(*lost, *client.scan_iter(f"{bridge.settings.namespace}*:alive:*")) >= 2
    assert flow.status().is_stalled
    assert [each.id for each in bridge.flows.stalled()] == [flow.id]
    (tmp_path / "done").touch()
    assert not flow.retry().is_stalled
    monkeypatch.setattr(bridge, "now", now)

    request.getfixturevalue("worker")
    assert flow.result(LONGEST_S) == "order 2 is on its way"
    assert [len(each.attempts) for each in bridge.flows.steps(flow.id)] == [1, 1]


def test_a_page_of_flows_is_full_though_some_in_the_list_are_gone(bridge: Bridge, redis_server: PrivateRedis) -> None:
    ids = [shop.parcels(number).using(id=f"flow-{number}").send().id for number in range(9)]
    with redis.Redis.from_url(redis_server.url) as client:
        keys = [key for key in client.scan_iter("*:flow:flow-[4567]") if bridge.settings.namespace in key.decode()]
        assert client.delete(*keys) == 4

    first = bridge.operations.flows(most=3)
    assert [each.id for each in first.items] == [ids[8], ids[3], ids[2]]
    assert [each.id for each in bridge.operations.flows(most=3, cursor=first.cursor).items] == [ids[1], ids[0]]


def test_what_is_shown_takes_as_many_commands_however_wide_a_flow_is(
    bridge: Bridge, redis_server: PrivateRedis
) -> None:
    costs: list[int] = []
    for width in (60, 3_000):
        with bridge.temporarily(namespace=f"ns-{new_id()[:8]}"), redis.Redis.from_url(redis_server.url) as client:
            flow = shop.parcels(*range(100, 100 + width)).send()

            def look(id: str = flow.id) -> None:
                bridge.now()
                bridge.flows.status(id)
                bridge.flows.steps(id, most=50)
                bridge.operations.flows()
                bridge.flows.counts()

            look()
            client.config_resetstat()
            look()
            found = client.info("commandstats")
            costs.append(
                sum(each["calls"] for name, each in found.items() if name not in ("cmdstat_time", "cmdstat_info"))
            )

    assert costs[0] == costs[1]
    assert costs[0] < 60


def _data(run: Run, *words: str) -> Any:
    return json.loads(run("flow", *words, "--json").stdout)
