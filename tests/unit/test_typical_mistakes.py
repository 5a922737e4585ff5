"""What a new user does wrong, and what is said: the value, and what to do. A number is that of a list of such mistakes.

Those without a number are told well already, and stay so.

Of the list, 15 (an application's own logging has no effect) is no mistake any more: see rule E.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from taskbridge import Bridge, NoSuchRecord, ResultTimeout, RetryPolicy, TaskBridgeError
from taskbridge.cli.applications import others
from taskbridge.contract import leftovers
from taskbridge.engines import settle
from taskbridge.hooks import HOOK_NAMES
from taskbridge.remedies import COMMANDS as COMMANDS_ELSEWHERE
from taskbridge.remedies import HOOKS
from taskbridge.settings import load
from tests.servers import PrivateRabbitMQ, PrivateRedis
from tests.unit.command_line import runner

SHOP = """
from taskbridge import task

@task
def mail(user: int) -> None: ...
"""


AWAY = "celery+redis://127.0.0.1:1/0"

FILES = {
    "shop.py": SHOP,
    "empty.py": "import taskbridge\n",
    "circle.py": f"from half import half\n{SHOP}\nround = 1\n",
    "half.py": "from circle import round\nhalf = 1\n",
}


class Row:
    """A row of a database, as Django has it."""

    _meta = None
    pk = 7


def plain(user: int) -> None: ...


class Shop:
    def mail(self, user: int) -> None: ...


def bridge(url: str = "inline://?threads=0", **settings: Any) -> Bridge:
    settings = {"store": "memory://", **settings} if url.startswith("inline") else settings
    return Bridge(url, **settings)


def task(function: Any = plain, **options: Any) -> Any:
    return bridge().task(name="shop.mail", **options)(function)


def why_dead(function: Any, *args: Any) -> str:
    """Run a task until it is dead, and return what its dead letter says."""
    here = bridge(retry=RetryPolicy.never())
    here.task(name="shop.mail")(function).send(*args)
    here.run_until_idle()
    [letter] = here.dead_letters()
    return "" if letter.error is None else letter.error.message


def same_name_twice() -> None:
    here = bridge()
    here.task(name="shop.mail")(plain)
    here.task(name="shop.mail")(Shop.mail.__get__(Shop()))


def waits_in_a_task() -> str:
    here = bridge(retry=RetryPolicy.never())
    other = here.task(name="shop.other")(plain)

    def wait() -> None:
        other.send(1).result()

    here.task(name="shop.wait")(wait).send()
    here.run_until_idle()
    return here.dead_letters()[0].error.message  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]


async def fetch() -> None: ...


def returns_a_coroutine() -> Any:
    return fetch()


def changed_signature() -> str:
    sent = bridge()
    message: Any = None

    @sent.on("after_send")
    def keep(event: Any) -> None:
        nonlocal message
        message = event.message

    sent.task(name="shop.mail")(lambda user, name: None).send(1, name="x")
    verdict: Any = _declared(plain).bound("shop.mail").run(message)
    return str(verdict.error)


def _declared(function: Any) -> Bridge:
    here = bridge()
    here.task(name="shop.mail")(function)
    return here


def two_applications() -> str:
    here = bridge()
    for name in ("shop.mail", "blog.post"):
        here._tasks = {name: here.task(name=name)(plain).declaration}
        said = others(here, name.partition(".")[0], ["default"], is_started=True, timeout_s=5)
    return said[0]


def a_certificate_that_is_not_there(place: str) -> None:
    bridge(f"celery+{place}?ssl_ca_certs=/nowhere/ca.pem").task(name="shop.mail")(plain).send(1)


@dataclass
class Order:
    id: int


@dataclass
class Grows:
    count: int

    def __post_init__(self) -> None:
        self.count += 1


@dataclass
class Refuses:
    count: int

    def __post_init__(self) -> None:
        if isinstance(self.count, str):
            raise TypeError("no text")


def counted(value: Grows | Refuses) -> None: ...


def on(name: Any) -> Any:
    """Ask for a hook by any name, as code can that no type checker reads."""
    return bridge().on(name)


def refusing() -> Refuses:
    value = Refuses(1)
    vars(value)["count"] = "one"
    return value


RAISED: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "1 a URL without an engine": (lambda: Bridge("redis://localhost/0"), ("redis is", "celery+redis://", "dramatiq+")),
    "3 no @task, sent": (lambda: bridge().send_many([plain]), ("plain", "task.call(...)", "@task")),  # type: ignore[list-item]  # pyright: ignore
    "3 no @task, by schedule": (lambda: bridge().periodic(plain, every=60), ("plain", "task.call(...)", "@task")),  # type: ignore[arg-type]  # pyright: ignore
    "3 no call, put as a schedule": (
        lambda: bridge().schedules.put("nightly", task(), every=60),
        ("shop.mail", "task.call(...)", "@task"),
    ),
    "3 what a plain call returns, put as a schedule": (
        lambda: bridge().schedules.put("nightly", task()(1), every=60),
        ("None", "task.call(...)", "@task"),
    ),
    "4 a row of a database": (
        lambda: task(lambda x: None).send({"a": [Row()]}),
        ('args[0]["a"][0]', "Row", "primary key"),
    ),
    "4 a value of a class": (lambda: task(lambda x: None).send(Order(1)), ("Order", "annotate the parameter")),
    "4 a range": (lambda: task(lambda x: None).send(range(3)), ("range", "list(value)")),
    "4 a path": (lambda: task(lambda x: None).send(Path("a")), ("Path", "annotate")),
    "4 a value that changes as it is made": (lambda: task(counted).send(Grows(1)), ("Grows", "not equal", "pass what")),
    "4 a value that can't be made again": (lambda: task(counted).send(refusing()), ("Refuses", "no text", "pass what")),
    "4 bytes that change": (lambda: task(lambda x: None).send(bytearray(b"a")), ("bytearray", "bytes(value)")),
    "5 a coroutine that nobody awaits": (
        lambda: why_dead(returns_a_coroutine),
        ("shop.mail", "coroutine", "async def"),
    ),
    "6 two applications": (two_applications, ("worker of shop", "'default'", "TASKBRIDGE_NAMESPACE")),
    "8 no store": (
        lambda: Bridge("dramatiq+amqp://localhost//").handle("i").result(),
        ("amqp", "TASKBRIDGE_STORE=redis://"),
    ),
    "9 a result in a task": (waits_in_a_task, ("shop.wait", "hold its slot", "send what follows")),
    "11 a name twice": (same_name_twice, ("shop.mail", f"{__file__}:", "@task(name=...)")),
    "12 a wrong argument": (lambda: task().send(1, nmae="x"), ("shop.mail(user)", "1 by position, nmae=", "nmae")),
    "12 a changed signature": (changed_signature, ("shop.mail(user)", "1 by position, name=", "name")),
    "13 a cron typo": (lambda: task(lambda: None, cron="0 25 * * *"), ("0 25 * * *", "hour '25'")),
    "13 a day's name": (lambda: task(lambda: None, cron="0 8 * * sat-sun"), ("day-of-week 'sat-sun'", "6-7")),
    "16 .delay()": (lambda: task().delay(1), ("'delay'", "send(...)")),
    "16 .apply_async()": (lambda: task().apply_async((1,), countdown=5), ("'apply_async'", "schedule(when, ...)")),
    "16 .s()": (lambda: task().s(1), ("'s'", "call(...)")),
    "16 .send_with_options()": (
        lambda: task().send_with_options(args=(1,)),
        ("'send_with_options'", "using(queue=...)"),
    ),
    "17 max_retries": (lambda: task(max_retries=3), ("'max_retries'", "RetryPolicy(max_attempts=...)")),
    "17 retry as a number": (lambda: task(retry=3), ("3 retries", "RetryPolicy(max_attempts=4)")),
    "18 a method": (lambda: task(Shop.mail), ("shop.mail", "method", "declare a function")),
    "18 a class": (lambda: task(Shop), ("Shop", "a task is made of a function")),
    "19 milliseconds": (lambda: task(time_limit=600_000), ("600000", "write 600;", "timedelta(seconds=600000)")),
    "20 bind": (lambda: task(bind=True), ("'bind'", "current()")),
    "20 base": (lambda: task(base=object), ("'base'", "@bridge.on")),
    "20 rate_limit": (lambda: task(rate_limit="10/m"), ("'rate_limit'", "queue of its own")),
    "20 min_backoff": (lambda: task(min_backoff=1000), ("'min_backoff'", "min_delay", "seconds")),
    "20 a mistyped option": (lambda: task(que="x"), ("'que'", "did you mean 'queue'")),
    "16 a signal of Celery's": (lambda: on("task_failure"), ("'task_failure'", "'dead'", "'retrying'")),
    "16 a method of Dramatiq's middleware": (
        lambda: on("after_process_message"),
        ("'after_process_message'", "'succeeded'", "@bridge.around"),
    ),
    "16 a mistyped hook": (lambda: on("succeded"), ("'succeded'", "did you mean 'succeeded'")),
    "23 middleware on Celery": (
        lambda: bridge("celery+memory://").native.add_middleware,
        ("Celery's app", "@bridge.on"),
    ),
    "24 no certificate for RabbitMQ": (
        lambda: a_certificate_that_is_not_there("amqps://127.0.0.1:1//"),
        ("ca_certs", "/nowhere/ca.pem", "can't be read"),
    ),
    "24 no certificate for Redis": (
        lambda: a_certificate_that_is_not_there("rediss://127.0.0.1:1/0"),
        ("ssl_ca_certs=/nowhere/ca.pem", "can't be read"),
    ),
    "schedule for no time": (lambda: task().schedule(None, 1), ("None", "send is for now")),
    "schedule at a naive time": (lambda: task().schedule(datetime(2030, 1, 1), 1), ("2030-01-01", "timezone.utc")),
    "a broker that is down": (
        lambda: bridge(AWAY).task(name="shop.mail")(plain).send(1),
        ("127.0.0.1:1", "refused", "not taken"),
    ),
    "a handle, printed": (lambda: task().send(1), ("id='", "task='shop.mail'", "queue='default'")),
    "an unknown engine": (lambda: Bridge("celrey+redis://localhost"), ("'celrey'", "did you mean 'celery'")),
    "an unknown setting": (lambda: load({"lese": 5}), ("'lese'", "did you mean 'lease'")),
    "an unknown queue": (lambda: task().using(queue="emial").send(1), ("'emial'", "declare it")),
}


@pytest.mark.parametrize("mistake", RAISED)
def test_what_is_raised_names_the_value_and_what_to_do(mistake: str) -> None:
    commit, words = RAISED[mistake]
    try:
        said = str(commit())
    except Exception as exc:
        said = str(exc)

    assert [word for word in words if word not in said] == [], said


def test_2_a_worker_that_does_not_know_a_task_names_the_nearest(caplog: pytest.LogCaptureFixture) -> None:
    here, message = bridge(), None

    @here.on("after_send")
    def keep(event: Any) -> None:
        nonlocal message
        message = event.message

    here.task(name="shop.mial")(plain).send(1)
    other = bridge()
    other.task(name="shop.mail")(plain)
    assert message is not None
    with caplog.at_level(logging.INFO):
        settle.put_off_unknown(other, message)

    words = ("shop.mial", "did you mean 'shop.mail'", "knows 1 task", "600 s")
    assert [word for word in words if word not in caplog.text] == [], caplog.text


def test_5_a_coroutine_that_is_not_awaited_is_warned_of_by_python() -> None:
    with pytest.warns(RuntimeWarning, match="asend' was never awaited"):
        task().asend(1)


def test_26_sending_without_the_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] in ("redis", "pika") or "brokers.r" in each]:
        monkeypatch.delitem(sys.modules, name)
    for module, url, extra in (("redis", "celery+redis://h/0", "redis"), ("pika", "celery+amqp://h//", "rabbitmq")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"pip install 'taskbridge-queue\[{extra}\]'"):
            bridge(url).task(name="shop.mail")(plain).send(1)


COMMANDS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "3 no @task": (["worker", "empty"], ("'empty' declares no task", "@task")),
    "25 pause": (["pause", "email", "--until", "soon"], ("'soon'", "2h")),
    "25 retry": (["retry", "3f2b"], ("'retry'", "dead replay")),
    "25 inspect": (["inspect", "active"], ("'inspect'", "taskbridge running", "taskbridge health")),
    "25 flower": (["flower"], ("'flower'", "taskbridge web")),
    "25 events": (["events"], ("'events'", "taskbridge top")),
    "25 revoke": (["revoke", "3f2b"], ("'revoke'", "taskbridge cancel ID")),
    "25 beat": (["beat"], ("'beat'", "taskbridge scheduler")),
    "a mistyped command": (["wroker"], ("'wroker'", "did you mean 'worker'")),
    "no module": (["worker"], ("which MODULE", "taskbridge worker shop.tasks")),
    "a wrong module": (["worker", "shpo"], ("'shpo'", "did you mean 'shop'")),
    "a file": (["worker", "shop.py"], ("'shop.py'", "shop")),
    "no URL": (["worker", "shop"], ("inline://", "TASKBRIDGE_URL", "celery+redis://")),
    "a wrong folder": (["worker", "project.shop"], ("'project.shop'", "FOLDER", "Python's path")),
    "a circular import": (["worker", "circle"], ("'circle'", "circular import", "half.py, line 1")),
    "an unknown queue of a worker": (
        ["worker", "shop", "--url", AWAY, "--queues", "emial"],
        ("'emial'", "known: default", "declare it"),
    ),
    "a broker that is down": (["check", "shop", "--url", AWAY], ("redis://127.0.0.1:1/0", "refused")),
}


@pytest.mark.parametrize("mistake", COMMANDS)
def test_what_the_command_line_says_names_the_value_and_what_to_do(mistake: str, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    arguments, words = COMMANDS[mistake]

    done = runner(tmp_path)(*arguments)

    said = (done.stdout + done.stderr).replace(str(tmp_path), "FOLDER")
    assert done.returncode == 2
    assert [word for word in words if word not in said] == [], said


def test_25_each_command_that_stands_for_anothers_is_there_and_no_word_for_it_is_a_command_of_ours(
    tmp_path: Path,
) -> None:
    own = set(re.findall(r"^ {4}(\w+)", runner(tmp_path)("--help").stdout.partition("COMMAND\n")[2], re.MULTILINE))
    named = {word for what in COMMANDS_ELSEWHERE.values() for word in re.findall(r"`taskbridge (\w+)", what)}

    assert {"worker", "dead", "top"} <= own
    assert sorted(named - own) == []
    assert sorted(set(COMMANDS_ELSEWHERE) & own) == []


def test_16_what_stands_for_anothers_hook_is_a_hook_of_ours() -> None:
    assert {word for what in HOOKS.values() for word in re.findall(r"'(\w+)'", what)} <= set(HOOK_NAMES)
    assert set(HOOKS) & set(HOOK_NAMES) == set()


def test_14_a_script_in_a_package_names_its_tasks_as_a_worker_imports_them(tmp_path: Path) -> None:
    package = tmp_path / "pkg" / "sub"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "jobs.py").write_text(SHOP + "\nprint(mail.name)\n")
    (package / "__main__.py").write_text("from pkg.sub import jobs\n")

    for arguments in (["pkg/sub/jobs.py"], ["-m", "pkg.sub.jobs"], ["-m", "pkg.sub"]):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["pkg.sub.jobs.mail"], done.stderr


def test_10_whoever_waits_for_a_result_that_nobody_makes_is_told(
    redis_server: PrivateRedis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("taskbridge.results._WARNS_AFTER_S", 0.2)
    here = bridge(f"celery+{redis_server.url}", namespace="nobody")
    handle = here.task(name="shop.mail")(plain).send(1)

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "taskbridge.results"]

    with caplog.at_level(logging.WARNING, "taskbridge.results"):
        with pytest.raises(ResultTimeout):
            handle.result(timeout=3)
        deadline = time.monotonic() + 30  # a queue is asked for 5 s whether anybody consumes it
        while not told() and time.monotonic() < deadline:
            time.sleep(0.05)

    here.close()
    assert told() == [
        f"the result of message {handle.id} is waited for, and no worker consumes its queue 'default': start one for it"
    ]


def test_10_of_many_who_wait_one_at_a_time_looks_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskbridge.results._WARNS_AFTER_S", 0.0)
    results, look, ids = bridge("inline://?threads=0").results, threading.Event(), list[str]()

    def get(records: Any, id: str) -> Any:
        ids.append(id)
        look.wait(20)
        raise NoSuchRecord(id)

    monkeypatch.setattr(results, "_get", get)
    records: Any = None
    pauses = [results._pauses(records, str(number)) for number in range(5)]
    assert all(next(each) > 0 for each in pauses)
    deadline = time.monotonic() + 20
    while not ids and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert ids == ["0"]
    look.set()
    while len(ids) < 5 and time.monotonic() < deadline:
        assert all(next(each) > 0 for each in pauses)  # as they look for their records again
    assert sorted(ids) == [str(number) for number in range(5)]


def test_21_and_22_commands_that_find_nothing_say_why(redis_server: PrivateRedis, tmp_path: Path) -> None:
    run = runner(tmp_path, TASKBRIDGE_URL=f"celery+{redis_server.url}", TASKBRIDGE_NAMESPACE="nothing")

    queues, replay = run("queues"), run("dead", "replay", "--all", "--task", "shop.*")

    assert "no MODULE is named" in queues.stdout
    assert replay.stdout == "nothing to replay: no such dead letters\n"
    assert run("dead", "replay", "--all").stdout == "nothing to replay: no dead letters\n"


@contextmanager
def working(folder: Path, *options: str, **variables: str) -> Generator[Callable[[str], None]]:
    """Run a worker meanwhile; the function returns when it has written a text."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}
    env = {**inherited, **variables}
    command = [sys.executable, "-m", "taskbridge", "worker", "shop", *options]
    log = folder / "worker.log"

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 180
        while text not in log.read_text():
            assert time.monotonic() < deadline, f"it should say {text!r}:\n{log.read_text()}"
            time.sleep(0.05)

    with log.open("wb") as output:
        worker = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True)
    leftovers.end_group(worker.pid)
    try:
        yield wait_for
        worker.terminate()
        worker.wait(60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(30)


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_7_a_worker_whose_virtual_host_is_missing_names_it(
    engine: str, rabbitmq_server: PrivateRabbitMQ, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    url = f"{engine}+amqp://guest:guest@127.0.0.1:{rabbitmq_server.port}/nowhere"

    checked = runner(tmp_path, TASKBRIDGE_SEND_TIMEOUT="30")("check", "shop", "--url", url)

    assert checked.returncode == 2
    assert "vhost nowhere not found" in checked.stdout
    with working(tmp_path, "--url", url) as wait_for:
        wait_for("vhost nowhere not found")


def _url_with_a_wrong_password(kind: str, request: pytest.FixtureRequest) -> str:
    if kind == "redis":
        url: str = request.getfixturevalue("make_redis")(password="right").url
        return url.replace("right", "wr0ng")
    return str(request.getfixturevalue("rabbitmq_server").url).replace("guest:guest@", "guest:wr0ng@")


@pytest.mark.parametrize(("kind", "says"), [("redis", "refuses the credentials"), ("rabbitmq", "ACCESS_REFUSED")])
def test_a_wrong_password_is_told_by_check_and_by_send(
    kind: str, says: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    url = f"celery+{_url_with_a_wrong_password(kind, request)}"

    checked = runner(tmp_path, TASKBRIDGE_SEND_TIMEOUT="30")("check", "shop", "--url", url)
    with closing(bridge(url, send_timeout=30)) as here, pytest.raises(TaskBridgeError) as refused:
        here.task(name="shop.mail")(plain).send(1)

    assert (checked.returncode, says in checked.stdout, says in str(refused.value)) == (2, True, True), checked.stdout
    assert "wr0ng" not in f"{checked.stdout}{checked.stderr}{refused.value}"


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_queue_whose_workers_consume_others_is_told_by_health(
    engine: str, redis_server: PrivateRedis, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    options = ["--url", f"{engine}+{redis_server.url}"]
    settings = {"TASKBRIDGE_NAMESPACE": f"elsewhere-{engine}", "TASKBRIDGE_QUEUES": "email"}

    with working(tmp_path, *options, "--queues", "email", **settings) as wait_for:
        wait_for("taskbridge: ready\n")
        told = runner(tmp_path)("health", "shop", *options, "--timeout", "8", **settings)

    assert told.returncode == 1
    assert told.stdout == "default: silent: no worker consumes it\nemail: consumed\n"
