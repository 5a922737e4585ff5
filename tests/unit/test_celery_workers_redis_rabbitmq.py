"""Celery workers started by hand, on real servers: they do all that `taskbridge worker` does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.events.state import State

from taskbridge import Bridge
from taskbridge.contract.odd import nested
from taskbridge.contract.proxy import Proxy
from taskbridge.contract.stopwatch import Stopwatch
from tests.forking import start_process
from tests.servers import PrivateRabbitMQ, PrivateRedis

APP = "tests.unit.celery_shop"
ROOT = Path(__file__).parents[2]
GRACE_S = 1.0
PATIENCE_S = 60.0  # a server that others use, too, may be slow to answer


class Shop:
    """The application, its workers and what they wrote down."""

    def __init__(self, url: str, folder: Path, **settings: Any) -> None:
        self._folder = folder
        self._notes = folder / "notes"
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")},
            "TASKBRIDGE_URL": url,
            "TASKBRIDGE_NAMESPACE": f"t{time.time_ns()}",
            "TASKBRIDGE_GRACE": str(GRACE_S),
            "TASKBRIDGE_LEASE": "3",
            "SHOP_NOTES": str(self._notes),
            "PYTHONWARNINGS": "ignore",
            **{f"TASKBRIDGE_{key.upper()}": str(value) for key, value in settings.items()},
        }
        self.namespace = self._env["TASKBRIDGE_NAMESPACE"]
        store = settings.get("store")
        self.bridge = Bridge(url, namespace=self.namespace, queues=["vip"], store=store, send_timeout=PATIENCE_S)
        self.queue = f"{self.namespace}.celery.default"
        self._workers: list[subprocess.Popen[bytes]] = []

    def send(self, task: str, *args: Any, **using: Any) -> Any:
        declared = self.bridge.task(name=f"{APP}.{task}")(_anything)
        return declared.using(**using).send(*args)

    def worker(self, pool: str, *args: str, **env: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "celery", "-A", APP, "worker", "-P", pool, "-c", "2", "-l", "INFO", *args]
        with (self._folder / "log").open("ab") as log:
            process: subprocess.Popen[bytes] = start_process(
                command, cwd=ROOT, env={**self._env, **env}, stdout=log, stderr=log, start_new_session=True
            )
        self._workers.append(process)
        return process

    def notes(self, what: str) -> list[list[Any]]:
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return [note[1:] for note in map(json.loads, lines) if note[0] == what]

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def has_seen_enough(self) -> None:
        """Let the tasks end that would take longer."""
        Path(f"{self._notes}.enough").touch()

    def until(self, condition: Callable[[], Any], what: str, within_s: float = 120.0) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {within_s:g} s in vain for {what}\n{self.log()[-4000:]}"
            time.sleep(0.02)

    def stop(self, process: subprocess.Popen[bytes]) -> tuple[int, float]:
        """Send SIGTERM, and return the exit code and how long it took, less what the machine stood still."""
        with Stopwatch() as watch:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        return code, watch.took_s

    def close(self) -> None:
        for process in self._workers:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(60)
        self.bridge.close()


def _anything(*args: Any, **kwargs: Any) -> None:
    """Stand for a task that only a worker runs."""


MakeShop = Callable[..., Shop]


@pytest.fixture(params=["redis", "rabbitmq"])
def server(request: pytest.FixtureRequest) -> PrivateRedis | PrivateRabbitMQ:
    found: PrivateRedis | PrivateRabbitMQ = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def make_shop(tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    shops: list[Shop] = []

    def make(server: PrivateRedis | PrivateRabbitMQ, **settings: Any) -> Shop:
        shops.append(Shop(f"celery+{server.url}", tmp_path, **settings))
        return shops[-1]

    yield make
    for shop in shops:
        shop.close()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_every_verdict_is_carried_out(server: PrivateRedis | PrivateRabbitMQ, pool: str, make_shop: MakeShop) -> None:
    shop = make_shop(server)
    worker = shop.worker(pool)
    for task in ("fails", "quits", "discards"):
        shop.send(task)
    shop.send("add", 1, 2, queue="vip")
    shop.until(lambda: len(shop.notes("dead")) == 2 and shop.notes("discarded") and shop.notes("add"), "all to end")
    processes = 2 if pool == "prefork" else 1
    shop.until(lambda: len(shop.notes("worker_started")) == processes, "the other child, which may have had no task")
    code, seconds = shop.stop(worker)
    assert [attempt for _, attempt in shop.notes("fails")] == [1, 2, 3]
    assert len(shop.notes("quits")) == 1
    assert sorted(letter.reason for letter in shop.bridge.dead_letters()) == ["exhausted", "gave_up"]
    ran = {pid for pid, *_ in shop.notes("fails") + shop.notes("quits") + shop.notes("add")}
    assert ran <= {pid for pid, *_ in shop.notes("worker_started")}
    assert {pid for pid, *_ in shop.notes("worker_started")} == {pid for pid, *_ in shop.notes("worker_stopping")}
    assert (code, seconds < GRACE_S + 5) == (0, True)
    assert shop.log().count('raise ValueError("no")') == 1  # the traceback, once


@pytest.mark.parametrize("listens", [False, True])
def test_in_threads_celery_logs_its_tasks_and_who_listens_hears_of_them(
    redis_server: PrivateRedis, listens: bool, make_shop: MakeShop
) -> None:
    """Where nobody listens, a message takes a shorter way, and nobody sees a difference."""
    shop = make_shop(redis_server)
    worker = shop.worker("threads", **({"SHOP_LISTENS": "1"} if listens else {}))
    sent = [shop.send("add", number, 2).id for number in range(5)]
    shop.until(lambda: len(shop.notes("request")) == 5, "all to run")
    assert shop.stop(worker)[0] == 0
    way = "celery.app.task" if listens else "taskbridge.engines.celery.fast.tasks"
    assert sorted(shop.notes("request"), key=str) == sorted(
        ([pid, way, True, False, [x, 2], True] for pid, x, _ in shop.notes("add")), key=str
    )
    for id_ in sent:
        line = f"Task {APP}.add[{id_}]"
        assert (shop.log().count(f"{line} received"), shop.log().count(f"{line} succeeded in ")) == (1, 1)
    heard = [[True, [number, 2]] for number in range(5)] if listens else []
    assert sorted(rest for _, *rest in shop.notes("task_prerun")) == heard
    assert len(shop.notes("task_success")) == len(heard)


def test_who_watches_events_sees_every_end_and_no_secrets(
    server: PrivateRedis | PrivateRabbitMQ, make_shop: MakeShop
) -> None:
    """As Flower does: what was discarded, or has expired, is not shown as started for ever."""
    shop = make_shop(server)
    state, seen, listens = State(), list[dict[str, Any]](), threading.Event()

    def heard(event: dict[str, Any]) -> None:
        seen.append(dict(event))
        state.event(event)

    def listen(receiver: Any) -> None:
        with suppress(Exception):  # the connection is closed when nothing more is to be heard
            receiver.capture(limit=None, timeout=300)

    app = shop.bridge.native
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": heard})
        receiver.on_iteration = listens.set  # called once it consumes
        thread = threading.Thread(target=listen, args=(receiver,), daemon=True)
        thread.start()
        shop.send("add", 1, 2, expires=0.01)
        names = ["add", "fails", "discards", "pay"]
        if isinstance(server, PrivateRedis):  # which is a store
            shop.send("long", 1.0).cancel()
            names.append("long")
        assert listens.wait(60)
        shop.worker("prefork", "-E", SHOP_HIDES="1", SHOP_LISTENS="1")
        shop.until(lambda: any(event["type"] == "worker-online" for event in seen), "the worker's first event")
        for task in ("fails", "discards"):
            shop.send(task)
        shop.send("pay", "s3cret", 120)
        shop.until(lambda: shop.notes("pay"), "a task that runs")
        active = json.dumps(app.control.inspect(timeout=60, limit=1).active())
        shop.has_seen_enough()
        shop.until(lambda: len(state.tasks) == len(names) and _all_ended(state), "all to end")
    ends = {task.name.rpartition(".")[2]: task.state for task in state.tasks.values()}
    assert ends == {name: {"fails": "FAILURE", "pay": "SUCCESS"}.get(name, "REVOKED") for name in names}
    assert [event["expired"] for event in seen if event["type"] == "task-revoked"].count(True) == 1
    assert [event["exception"] for event in seen if event["type"] == "task-retried"] == ["ValueError('no')"] * 2
    assert [event["exception"] for event in seen if event["type"] == "task-failed"] == ["ValueError('no')"]
    assert "s3cret" not in f"{seen} {active} {shop.log()}"
    assert "***" in active
    assert [result for _, name, result in shop.notes("task_success") if name.endswith("pay")] == ["s3cret"]


def _all_ended(state: Any) -> bool:
    return all(task.state in ("SUCCESS", "FAILURE", "REVOKED") for task in state.tasks.values())


FAST_TASKS = "taskbridge.engines.celery.fast.tasks"
PLAIN_TASKS = "celery.app.task"
RENAMED = Path(__file__).parent / "renamed"


def ways(shop: Shop) -> set[str]:
    """Return which classes of requests the tasks have had."""
    return {way for _, way, *_ in shop.notes("request")}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_deliveries_of_rabbitmq_are_taken_by_the_reader(
    rabbitmq_server: PrivateRabbitMQ, pool: str, make_shop: MakeShop
) -> None:
    shop = make_shop(rabbitmq_server)
    what = "taken by the reader" if pool == "threads" else "add"  # in threads, tasks are in the process that reads
    for number in range(3):  # which may come before there is a loop, and are read by py-amqp then
        shop.send("add", number, 1)
    shop.worker(pool)
    shop.until(lambda: len(shop.notes(what)) == 3 and " ready." in shop.log(), "the first to run, and the loop")
    for number in range(10):
        shop.send("add", number, 1)
    shop.until(lambda: len(shop.notes(what)) == 13, "all to run")
    if pool == "threads":
        assert max(taken for _, taken in shop.notes(what)) >= 5
    assert "the plain way" not in shop.log()


def test_with_celerys_django_fixup_the_fast_way_is_taken_and_closes_connections(
    redis_server: PrivateRedis, make_shop: MakeShop
) -> None:
    shop = make_shop(redis_server)
    shop.worker("threads", SHOP_DJANGO="1")
    for number in range(5):
        shop.send("add", number, 1)
    shop.until(lambda: len(shop.notes("close_cache")) == 5, "all to end")
    assert [in_task for _, in_task in shop.notes("close_database")] == [True] * 10
    assert ways(shop) == {FAST_TASKS}
    assert "the plain way" not in shop.log()


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"TASKBRIDGE_FAST": "off"}, "the setting fast is off"),
        ({"SHOP_LISTENS": "1"}, "somebody listens for Celery's signal task_prerun"),
        ({"PYTHONPATH": str(RENAMED)}, "there is no "),
    ],
)
def test_the_plain_way_is_taken_by_itself_and_the_log_says_why(
    server: PrivateRedis | PrivateRabbitMQ, env: dict[str, str], why: str, make_shop: MakeShop
) -> None:
    """Where it is asked for, where a tool listens, and where Celery's and py-amqp's own names are others."""
    shop = make_shop(server)
    worker = shop.worker("threads", **env)
    shop.send("fails")
    for number in range(5):
        shop.send("add", number, 1)
    shop.until(lambda: len(shop.notes("request")) == 5 and shop.notes("dead"), "all to end")
    assert [attempt for _, attempt in shop.notes("fails")] == [1, 2, 3]
    assert ways(shop) == {PLAIN_TASKS}
    told = [line for line in shop.log().splitlines() if "the plain way" in line]
    assert [line for line in told if f"tasks take the plain way: {why}" in line]
    assert len(told) == len(set(told)) <= 2
    if isinstance(server, PrivateRabbitMQ) and "SHOP_LISTENS" not in env:
        assert [line for line in told if f"messages from RabbitMQ take the plain way: {why}" in line]
        assert {taken for _, taken in shop.notes("taken by the reader")} == {None}
    assert shop.stop(worker)[0] == 0


@pytest.mark.parametrize(
    ("server", "pool"), [("redis", "prefork"), ("redis", "threads"), ("rabbitmq", "prefork")], indirect=["server"]
)
def test_sigterm_gives_back_what_outlasts_the_grace(
    server: PrivateRedis | PrivateRabbitMQ, pool: str, make_shop: MakeShop
) -> None:
    shop = make_shop(server)
    worker = shop.worker(pool)
    handle = shop.send("long", 60)
    shop.until(lambda: shop.notes("long"), "a start")
    code, seconds = shop.stop(worker)
    assert (code, seconds < GRACE_S + 5) == (0, True)
    assert [ending for _, ending in shop.notes("long ended")] == ["Interrupted"]
    shop.until(lambda: shop.bridge.counts().waiting["default"] == 1, "its return")
    shop.worker(pool)
    shop.until(lambda: len(shop.notes("long")) == 2, "a start elsewhere")
    assert [note[1:] for note in shop.notes("long")] == [[handle.id, 1]] * 2


def test_what_cannot_be_read_is_dead_and_the_worker_lives(redis_server: PrivateRedis, make_shop: MakeShop) -> None:
    import redis

    shop = make_shop(redis_server)
    worker = shop.worker("prefork")
    client = redis.Redis.from_url(redis_server.url)
    bad = [b"}{ no json", b'{"hello": 1}', b"[1, 2]", b"\xff\xfe", b"null"]
    client.lpush(shop.queue, *bad)
    shop.send("add", 1, 2)
    shop.until(lambda: shop.notes("add") and shop.bridge.counts().dead == len(bad), "the rest to run, and dead letters")
    assert {letter.raw for letter in shop.bridge.dead_letters()} == set(bad)
    assert {letter.reason for letter in shop.bridge.dead_letters()} == {"undecodable"}
    assert worker.poll() is None
    shop.until(lambda: not client.keys(f"{shop.namespace}.celery.held.*"), "nothing to be held")


@pytest.mark.parametrize("trusts", [False, True])
def test_a_message_that_can_not_be_pickled_for_a_child_is_dead_and_the_worker_lives(
    server: PrivateRedis | PrivateRabbitMQ, trusts: bool, make_shop: MakeShop
) -> None:
    """Deep nesting is refused as it is read; and what the pool raises all the same ends nothing but its message."""
    shop = make_shop(server)
    worker = shop.worker("prefork", **({"SHOP_TRUSTS": "1"} if trusts else {}))
    plain = _plain_client(server)
    for _ in range(3):
        plain.send_task(f"{APP}.add", (1, nested(485)), queue=shop.queue)
    shop.send("add", 1, 2)
    shop.until(lambda: shop.notes("add") and shop.bridge.counts().dead == 3, "the rest to run, and dead letters")
    assert {letter.reason for letter in shop.bridge.dead_letters()} == {"undecodable"}
    assert shop.stop(worker)[0] == 0
    assert "can't be interrupted" not in shop.log()


def test_json_that_is_no_celery_message_is_dead_and_the_worker_lives(
    server: PrivateRedis | PrivateRabbitMQ, make_shop: MakeShop
) -> None:
    shop = make_shop(server)
    worker = shop.worker("prefork")
    shop.send("add", 1, 2)  # which declares the queue
    bodies = ["[[1], {}, {}]", "{}", "5", "null", '"text"', '{"task": 5, "id": []}', "[[1], {}, 5]"]
    headers = {"task": f"{APP}.add", "id": "odd"}
    with _plain_client(server).connection_for_write() as connection:
        for body in bodies:
            _publish(connection, body, shop.queue, headers=headers if body == bodies[-1] else {})
    shop.send("add", 3, 4)
    shop.until(
        lambda: len(shop.notes("add")) == 2 and shop.bridge.counts().dead == len(bodies), "the rest to run, and letters"
    )
    assert {letter.reason for letter in shop.bridge.dead_letters()} == {"undecodable"}
    assert worker.poll() is None


def test_odd_messages_on_the_control_channel_end_nothing(
    server: PrivateRedis | PrivateRabbitMQ, make_shop: MakeShop
) -> None:
    import redis

    shop = make_shop(server)
    worker = shop.worker("threads")
    shop.send("add", 1, 2)
    shop.until(lambda: shop.notes("add"), "the worker to work")
    odd = ["5", "[]", "{}", "}{", '"text"', "[" * 100_000]
    odd += ['{"__type__": "datetime", "__value__": 5}', '{"__type__": [], "__value__": 5}']  # kombu's own tags
    odd += ['{"__type__": "decimal", "__value__": "x"}', '{"__type__": "uuid", "__value__": 5}']
    if isinstance(server, PrivateRabbitMQ):
        with _plain_client(server).connection_for_write() as connection:
            for body in odd:
                _publish(connection, body, shop.queue, exchange=f"{shop.namespace}.celery.pidbox")
    else:
        client = redis.Redis.from_url(server.url)
        heard = [client.publish(f"/0.{shop.namespace}.celery.pidbox", body) for body in odd]
        assert heard == [1] * len(odd)
    shop.until(lambda: shop.bridge.native.control.ping(timeout=2), "the worker to answer")
    shop.send("add", 3, 4)
    shop.until(lambda: len(shop.notes("add")) == 2, "the next task")
    assert (worker.poll(), shop.bridge.counts().dead) == (None, 0)
    assert "Connection to broker lost" not in shop.log()


def test_what_redis_does_not_permit_of_remote_control_is_left_out(
    make_redis: Callable[..., PrivateRedis], make_shop: MakeShop
) -> None:
    server = make_redis()
    shop = make_shop(SimpleNamespace(url=server.url.replace("//", "//shop:secret@", 1)))
    own = f"~{shop.namespace}:*", f"~{shop.namespace}.*", f"&{shop.namespace}:*"
    server.command("ACL", "SETUSER", "shop", "on", ">secret", "resetkeys", "resetchannels", *own, "+@all")
    worker = shop.worker("threads")
    said = ["PSUBSCRIBE is not permitted", f"PUBLISH /0.{shop.namespace}.celery.events/"]
    shop.until(lambda: all(each in shop.log() for each in said), "the worker to say what is left out")

    def has_added(count: int) -> bool:
        return len(shop.notes("add")) == count

    for number in (1, 2, 3):
        shop.send("add", number, 1)
        shop.until(partial(has_added, number), "the task")

    assert [shop.log().count(each) for each in said] == [1, 1]
    assert (worker.poll(), "Connection to broker lost" in shop.log()) == (None, False)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_remote_control_revokes_ends_as_cancelled(
    server: PrivateRedis | PrivateRabbitMQ, redis_server: PrivateRedis, pool: str, make_shop: MakeShop
) -> None:
    """With the setting `remote_control`; what runs goes on."""
    stored = {} if server is redis_server else {"store": redis_server.url}
    shop = make_shop(server, remote_control="on", **stored)
    shop.worker(pool)
    running = [shop.send("long", 120) for _ in range(2)]
    shop.until(lambda: len(shop.notes("long")) == 2, "both slots to be taken")
    waiting = shop.send("add", 1, 2)
    control = shop.bridge.native.control
    (reply,) = control.revoke(
        [waiting.id, *(each.id for each in running)], terminate=True, reply=True, timeout=60, limit=1
    )
    assert "ok" in str(reply)
    time.sleep(1)  # so that who would end with it, ends
    assert shop.notes("long ended") == []
    shop.has_seen_enough()
    shop.until(lambda: all(each.status().is_final for each in (waiting, *running)), "all to end")
    shop.until(lambda: shop.notes("discarded"), "the hook, which is called after that")
    assert [each.status().state for each in (waiting, *running)] == ["cancelled", "done", "done"]
    assert [reason for _, _, reason in shop.notes("discarded")] == ["cancelled"]
    assert (len(shop.notes("long")), shop.notes("add")) == (2, [])


def test_a_time_limit_of_celerys_does_not_apply(redis_server: PrivateRedis, make_shop: MakeShop) -> None:
    shop = make_shop(redis_server)
    shop.worker("prefork")
    plain = _plain_client(redis_server)
    plain.send_task(f"{APP}.long", (2,), queue=shop.queue, time_limit=1, soft_time_limit=1)
    shop.until(lambda: shop.notes("long ended"), "its end")
    assert [ending for _, ending in shop.notes("long ended")] == [""]


def test_a_pickle_is_dead_and_never_loaded(server: PrivateRedis | PrivateRabbitMQ, make_shop: MakeShop) -> None:
    shop = make_shop(server)
    worker = shop.worker("threads")
    plain = _plain_client(server)
    plain.send_task(f"{APP}.add", (1, 2), queue=shop.queue, serializer="pickle")
    shop.until(lambda: shop.bridge.counts().dead == 1, "a dead letter")
    assert shop.bridge.dead_letters()[0].reason == "undecodable"
    assert (shop.notes("add"), worker.poll()) == ([], None)


def test_a_plain_celery_client_is_served(server: PrivateRedis | PrivateRabbitMQ, make_shop: MakeShop) -> None:
    shop = make_shop(server)
    shop.worker("threads")
    plain = _plain_client(server)
    plain.send_task(f"{APP}.fails", queue=shop.queue)
    before = time.time()
    plain.send_task(f"{APP}.add", (1, 2), queue=shop.queue, countdown=1)
    shop.until(lambda: shop.notes("dead") and shop.notes("add"), "both to end")
    assert time.time() - before >= 1
    assert [attempt for _, attempt in shop.notes("fails")] == [1, 2, 3]


def test_messages_that_celery_itself_would_not_write_are_served_in_threads(
    server: PrivateRedis | PrivateRabbitMQ, make_shop: MakeShop
) -> None:
    """Those of protocol 1, and those of clients in other languages, which may leave out all that can be left out."""
    shop = make_shop(server)
    shop.worker("threads")
    plain = _plain_client(server)
    plain.conf.task_protocol = 1
    plain.send_task(f"{APP}.add", (1, 1), queue=shop.queue)
    with plain.connection_for_write() as connection:
        for number in (2, 3):  # as many as there are threads
            connection.Producer().publish(
                json.dumps([[number, 1], {}, None]),
                routing_key=shop.queue,
                exchange="",
                content_type="application/json",
                content_encoding="utf-8",
                headers={"lang": "go", "task": f"{APP}.add", "id": f"id-{number}"},
            )
    shop.send("add", 4, 1)
    shop.until(lambda: len(shop.notes("add")) == 4, "all to run")
    assert sorted(x for _, x, _ in shop.notes("add")) == [1, 2, 3, 4]
    assert shop.bridge.dead_letters() == []


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_an_error_before_the_carrier_is_unexpected_and_no_end(
    redis_server: PrivateRedis, pool: str, make_shop: MakeShop
) -> None:
    """Celery would acknowledge the message, or in threads never tell of it."""
    shop = make_shop(redis_server, requeue_pause=0.05)
    worker = shop.worker(pool, SHOP_REFUSES="1")
    shop.send("add", 1, 2)
    shop.until(lambda: shop.bridge.counts().dead == 1, "a dead letter")
    (letter,) = shop.bridge.dead_letters()
    assert letter.reason == "internal_error"
    assert "not today" in letter.traceback
    assert shop.notes("add") == []
    assert shop.stop(worker)[0] == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("name", ["get", "update", "_protected", "_get_custom_headers"])
def test_a_header_stands_in_the_place_of_nothing_of_celerys(
    redis_server: PrivateRedis, pool: str, name: str, make_shop: MakeShop
) -> None:
    """With one of these names, Celery's tracer called the task past the carrier, or acknowledged without a call."""
    shop = make_shop(redis_server, fast="off")
    shop.worker(pool)
    plain = _plain_client(redis_server)
    with plain.connection_for_write() as connection:
        headers = {"lang": "go", "task": f"{APP}.add", "id": "an-id", name: 1}
        _publish(connection, "[[1, 2], {}, null]", shop.queue, headers=headers)
    shop.until(lambda: shop.notes("succeeded"), "the end")
    assert [note[1:] for note in shop.notes("add")] == [[1, 2]]


def test_what_was_taken_by_a_script_whose_reply_was_lost_runs_soon(
    redis_server: PrivateRedis, make_shop: MakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = threading.Event()
    pass_on = Proxy._pass_on

    def lose_one(proxy: Proxy, source: socket.socket, target: socket.socket, heard: bytearray | None = None) -> None:
        if heard is not None:  # from the client
            return pass_on(proxy, source, target, heard)
        with suppress(OSError):  # the other side has ended it
            while data := source.recv(65536):
                if b"celery_shop.add" in data and not lost.is_set():
                    lost.set()
                    break
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        return None

    monkeypatch.setattr(Proxy, "_pass_on", lose_one)
    with Proxy(("127.0.0.1", redis_server.port)) as proxy:
        shop = make_shop(redis_server, lease=600)
        for number in range(4):
            shop.send("add", number, 1)
        shop.worker("threads", TASKBRIDGE_URL=f"celery+redis://127.0.0.1:{proxy.port}/0")
        shop.until(lost.is_set, "a reply to be lost")
        shop.until(lambda: len(shop.notes("add")) == 4, "all to run, long before the lease is over", within_s=60)


def _plain_client(server: PrivateRedis | PrivateRabbitMQ) -> Any:
    app: Any = Celery(broker=server.url, set_as_current=False)
    if isinstance(server, PrivateRabbitMQ):
        app.conf.task_queue_max_priority = 3  # as the queues are declared; else RabbitMQ answers 406
    return app


def _publish(connection: Any, body: str, routing_key: str, *, exchange: str = "", headers: Any = None) -> None:
    connection.Producer().publish(
        body,
        routing_key=routing_key,
        exchange=exchange,
        content_type="application/json",
        content_encoding="utf-8",
        headers=headers or {},
    )
