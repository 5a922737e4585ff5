"""`taskbridge check --deep` on Redis: each thing that puts messages at risk is one line, and exit code 1."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from taskbridge.brokers.redis.examination import judge
from taskbridge.contract.ports import free_port
from tests.servers import PrivateRedis
from tests.unit.command_line import Run, runner

PAGE = Path(__file__).parents[2] / "docs" / "security.md"

SAVED: Mapping[str, str] = {"redis_version": "7.0.15", "role": "master", "aof_enabled": "1"}
UNSAVED = {"aof_enabled": "0", "server_time_usec": "1000000000", "uptime_in_seconds": "600"}
"""What a server says that was started at 400 s."""


@pytest.mark.parametrize(
    ("info", "namespace", "saves", "failed", "noted"),
    [
        ({}, "shop", "", [], []),
        ({"maxmemory_policy": "noeviction"}, "shop", "", [], []),
        ({"maxmemory_policy": "allkeys-lru"}, "shop", "", ["eviction"], []),
        ({"maxmemory_policy": "volatile-lru"}, "shop", "", ["eviction"], []),
        ({"cluster_enabled": "1"}, "shop", "", ["cluster"], []),
        ({"cluster_enabled": "1"}, "{shop}", "", [], []),
        ({"cluster_enabled": "0"}, "shop", "", [], []),
        ({**UNSAVED, "rdb_last_save_time": "400"}, "shop", "", ["saving"], []),
        ({**UNSAVED, "rdb_last_save_time": "401"}, "shop", None, ["saving"], []),
        ({**UNSAVED, "rdb_last_save_time": "900"}, "shop", None, [], ["saving"]),
        ({**UNSAVED, "rdb_last_save_time": "900"}, "shop", "", ["saving"], []),
        ({**UNSAVED, "rdb_last_save_time": "400"}, "shop", "3600 1 300 100", [], ["saving"]),
        ({**UNSAVED, "rdb_last_save_time": "400", "connected_slaves": "2"}, "shop", None, [], ["saving"]),
        ({**UNSAVED, "rdb_last_save_time": "nan", "uptime_in_seconds": "x"}, "shop", None, ["saving"], []),
    ],
)
def test_what_a_server_says_is_judged(
    info: dict[str, str], namespace: str, saves: str | None, failed: Sequence[str], noted: Sequence[str]
) -> None:
    found = list(judge({**SAVED, **info}, namespace, saves=saves))
    assert [each.subject for each in found if each.outcome == "failed"] == failed
    assert [each.subject for each in found if each.outcome == "note"] == noted


@pytest.mark.parametrize(
    ("info", "says"),
    [({"valkey_version": "8.1.1"}, "Valkey 8.1.1, master"), ({}, "Redis 7.0.15, master"), ({"role": "slave"}, "slave")],
)
def test_the_server_is_named(info: dict[str, str], says: str) -> None:
    assert says in next(iter(judge({**SAVED, **info}, "shop", saves=""))).text


def test_the_page_shows_what_is_said() -> None:
    page = (PAGE.parent / "brokers.md").read_text(encoding="utf-8")
    told = judge({**SAVED, **UNSAVED, "maxmemory_policy": "allkeys-lru"}, "shop", saves="")
    assert [f"{each.subject:<9} {each.outcome:<7}  {each.text}" for each in told] == [
        line for line in page.splitlines() if line.startswith(("server  ", "eviction  ", "saving  "))
    ]


# On servers


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "shop.py").write_text("from taskbridge import task\n\n@task\ndef mail() -> None: ...\n")
    return runner(tmp_path, TASKBRIDGE_SEND_TIMEOUT="20")


def found(run: Run, server: PrivateRedis, engine: str = "celery", **variables: str) -> tuple[list[list[str]], int]:
    """Return what `check --deep` found to be failed or noted (subject, text), and its exit code."""
    settings: dict[str, str] = {"TASKBRIDGE_URL": f"{engine}+{server.url}", **variables}
    done = run("check", "shop", "--deep", "--json", **settings)
    assert done.stdout, done.stderr
    findings: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    said = [each for each in findings if each["outcome"] in ("failed", "error", "warning")]
    assert not any("\n" in each["text"] for each in findings)
    return [[each["subject"], each["text"]] for each in said], done.returncode


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_all_is_well_and_nothing_is_left(run: Run, make_redis: Callable[..., PrivateRedis], engine: str) -> None:
    server = make_redis()
    assert found(run, server, engine) == ([], 0)
    done = run("check", "shop", "--deep", TASKBRIDGE_URL=f"{engine}+{server.url}")
    for line in (
        r"^server +ok +(Redis|Valkey) [\d.]+, master$",
        r"^broker +ok +a message was sent, delayed and dead-lettered, in [1-9][\d.]* s$",
        r"^results +ok +kept, told and cancelled, in ",
    ):
        assert re.search(line, done.stdout, re.MULTILINE), done.stdout
    # What is left ends by itself: how long pumps live, and the cancellation of a message that never was.
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        deadline = time.monotonic() + 60
        while left := set(client.keys("*")) - {"taskbridge:cancelled", "taskbridge:cancelled:until"}:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


def test_without_being_asked_nothing_is_tried(run: Run, make_redis: Callable[..., PrivateRedis]) -> None:
    server = make_redis(extra_args=("--maxmemory-policy", "allkeys-lru"))
    done = run("check", "shop", TASKBRIDGE_URL=f"celery+{server.url}")
    assert (done.returncode, "eviction" in done.stdout) == (0, False)


def test_a_server_that_evicts_is_told(run: Run, make_redis: Callable[..., PrivateRedis]) -> None:
    server = make_redis(extra_args=("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"))
    [[subject, text]], code = found(run, server)
    assert (subject, code) == ("eviction", 1)
    assert "maxmemory-policy is allkeys-lru" in text


def test_a_server_that_saves_nothing_is_told(run: Run, make_redis: Callable[..., PrivateRedis]) -> None:
    server = make_redis(appendonly=False)
    [[subject, text]], code = found(run, server)
    assert (subject, code) == ("saving", 1)
    assert "set appendonly yes" in text
    server.command("CONFIG", "SET", "save", "3600 1")
    assert found(run, server) == ([], 0)


def test_a_cluster_needs_a_namespace_in_braces(run: Run, make_redis: Callable[..., PrivateRedis]) -> None:
    server = make_redis(extra_args=("--cluster-enabled", "yes", "--cluster-port", str(free_port())))
    server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    deadline = time.monotonic() + 60
    while "cluster_state:ok" not in server.command("CLUSTER", "INFO"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    [[subject, text], *_], code = found(run, server)
    assert (subject, code) == ("cluster", 1)
    assert "'{taskbridge}'" in text
    assert found(run, server, TASKBRIDGE_NAMESPACE="{taskbridge}") == ([], 0)


def permitted(server: PrivateRedis, *without: str, more: Sequence[str] = ()) -> str:
    """Make a user with the page's permissions but those that begin with one of these, and return a URL for it."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition("\nredis-cli ")
    words = shlex.split(rest.partition("\n```")[0].replace("\\\n", " "))
    server.command(*(word for word in words if not without or not word.startswith(without)), *more)
    return server.url.replace("//", "//shop:secret@")


@pytest.mark.parametrize(
    ("without", "more", "subjects", "says"),
    [
        ((), (), [], ""),
        (("~taskbridge:",), (), ["sending", "delays", "results"], "key"),
        ((), ("-evalsha", "-eval"), ["sending", "delays", "results"], "evalsha"),
        ((), ("-set",), ["results"], "set"),
    ],
)
def test_a_missing_permission_is_told(
    run: Run,
    make_redis: Callable[..., PrivateRedis],
    without: tuple[str, ...],
    more: Sequence[str],
    subjects: Sequence[str],
    says: str,
) -> None:
    server = make_redis()
    url = f"celery+{permitted(server, *without, more=more)}"
    told, code = found(run, server, TASKBRIDGE_URL=url)
    assert code == (1 if subjects else 0)
    assert {subject for subject, _ in told} <= set(subjects), told
    assert all(says in text for _, text in told)
    assert all("Security" in text for _, text in told) or not says, told


@pytest.mark.parametrize(("without", "more"), [(("&taskbridge:",), ()), ((), ("-subscribe",))])
def test_results_that_have_to_be_polled_are_a_warning(
    run: Run, make_redis: Callable[..., PrivateRedis], without: tuple[str, ...], more: Sequence[str]
) -> None:
    done = run("check", "shop", "--deep", TASKBRIDGE_URL=f"celery+{permitted(make_redis(), *without, more=more)}")
    says = r"^results +warning +Redis does not permit SUBSCRIBE, so results are polled; .*; the page \*Security\* "
    assert re.search(says, done.stdout, re.MULTILINE), done.stdout
    assert " failed " not in done.stdout
    assert done.returncode == 1


def test_a_server_that_may_not_be_asked_is_a_note(run: Run, make_redis: Callable[..., PrivateRedis]) -> None:
    server = make_redis()
    done = run("check", "shop", "--deep", TASKBRIDGE_URL=f"celery+{permitted(server, '+info')}")
    assert re.search(r"^server +note +.*the 'info' command; the page", done.stdout, re.MULTILINE), done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("begin", "says"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), "Redis is out of memory"),
        (("REPLICAOF", "127.0.0.1", "1"), "this Redis is a read-only replica"),
    ],
)
def test_a_server_that_takes_nothing_is_told(
    run: Run, make_redis: Callable[..., PrivateRedis], begin: Sequence[str], says: str
) -> None:
    server = make_redis()
    server.command(*begin)
    [[subject, text], *_], code = found(run, server)
    assert (subject, code) == ("sending", 1)
    assert says in text


def test_a_server_that_is_away_is_no_finding_of_the_trial(run: Run) -> None:
    done = run("check", "shop", "--deep", TASKBRIDGE_URL="celery+redis://127.0.0.1:1/0")
    assert re.search(r"^broker +error +", done.stdout, re.MULTILINE)
    assert done.returncode == 2


def test_a_store_on_another_server_is_looked_at(run: Run, make_redis: Callable[..., PrivateRedis]) -> None:
    broker, store = make_redis(), make_redis(extra_args=("--maxmemory-policy", "volatile-lru"))
    told, code = found(run, broker, TASKBRIDGE_STORE=store.url)
    assert ([subject for subject, _ in told], code) == (["eviction"], 1)


def test_messages_in_memory_need_no_trial(run: Run) -> None:
    done: Any = run("check", "shop", "--deep", TASKBRIDGE_URL="inline://")
    assert done.returncode == 0
