"""The command line with a Redis that is away, is empty, or holds something; and without what it needs installed."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from taskbridge import Bridge, DeadLetter
from taskbridge.engines.settle import letter_of
from taskbridge.message import Message, new_id
from taskbridge.retry import Dead, ErrorInfo
from taskbridge.stores.records import Ending
from taskbridge.vitals import Vitals
from tests.servers import PrivateRedis
from tests.unit.command_line import Run, runner
from tests.unit.dead_letter_tests import bury
from tests.unit.terminals import on_a_terminal

SHOP = """
from taskbridge import task

@task(queue="email")
def mail(user: int) -> None: ...
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "shop.py").write_text(SHOP)
    return runner(tmp_path, TZ="UTC")


def test_health_is_red_for_a_queue_that_nobody_consumes(run: Run, redis_server: PrivateRedis) -> None:
    settings = {"TASKBRIDGE_URL": f"celery+{redis_server.url}", "TASKBRIDGE_NAMESPACE": f"unwell-{time.time_ns()}"}

    red = run("health", "shop", "--timeout", "1", **settings)
    assert (red.stdout, red.stderr) == (
        "default: silent: no worker consumes it\nemail: silent: no worker consumes it\n",
        "",
    )
    assert red.returncode == 1

    found: Any = json.loads(run("health", "--queues", "email", "--timeout", "1", "--json", **settings).stdout)
    assert (found["ok"], found["queues"]) == (False, {"email": "silent"})
    queues: Any = json.loads(run("queues", "shop", "--json", **settings).stdout)
    assert queues["waiting"] == {"default": 0, "email": 0}, "a probe is left"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--queues", "emial"], "queue 'emial' is not known; did you mean 'email'"),
        (["--timeout", "0"], "it must be a number above 0, not '0'"),
        (["--url", "inline://"], "keeps its messages in the process that sends them"),
    ],
)
def test_health_that_cannot_be_asked_is_a_usage_error(run: Run, arguments: list[str], says: str) -> None:
    done = run("health", "shop", *arguments, TASKBRIDGE_URL=AWAY)
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == 2


def test_health_is_red_when_the_broker_is_away(run: Run) -> None:
    done = run("health", "shop", TASKBRIDGE_URL=AWAY)
    assert done.stdout.splitlines() == [
        f"{queue}: unknown: the broker does not answer" for queue in ("default", "email")
    ]
    assert re.fullmatch(r"taskbridge: .*127\.0\.0\.1:1.*refused.*\n", done.stderr), done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_health_imports_no_engine(run: Run, engine: str) -> None:
    url = AWAY.replace("celery", engine)
    done = run("health", "--queues", "email", TASKBRIDGE_URL=url, PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "taskbridge.health" in imported
    assert not imported & {"celery", "kombu", "dramatiq", "taskbridge.contract"}


AWAY = "celery+redis://user:secret@127.0.0.1:1/0"


@pytest.mark.parametrize(
    "arguments", [["queues", "shop"], ["dead", "list"], ["dead", "show", "1"], ["dead", "replay", "1"]]
)
def test_a_broker_that_is_away_is_one_line(run: Run, arguments: list[str]) -> None:
    done = run(*arguments, TASKBRIDGE_URL=AWAY)
    assert re.fullmatch(r"taskbridge: .*127\.0\.0\.1:1.*refused.*\n", done.stderr), done.stderr
    assert "taken" not in done.stderr
    assert "secret" not in done.stderr
    assert done.returncode == 2


def test_check_tells_that_the_broker_is_away_and_all_else(run: Run) -> None:
    pytest.importorskip("celery", reason="another finding comes first without it")
    done = run("check", "shop", TASKBRIDGE_URL=AWAY)
    assert done.returncode == 2
    assert re.search(r"^broker +error +.*127\.0\.0\.1:1.*refused", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^tasks +ok +1: shop\.mail", done.stdout, re.MULTILINE)
    assert "secret" not in done.stdout + done.stderr


def test_check_names_a_clock_that_differs_from_the_stores(run: Run, tmp_path: Path, redis_server: PrivateRedis) -> None:
    pytest.importorskip("celery", reason="another finding comes first without it")
    skewed = f"import time; real = time.time; time.time = lambda: real() + 90\n{SHOP}"
    (tmp_path / "skewed.py").write_text(skewed)
    done = run("check", "skewed", TASKBRIDGE_URL=f"celery+{redis_server.url}")
    assert re.search(r"^clock +warning +this machine's clock is (89|9\d) s ahead of the st", done.stdout, re.MULTILINE)
    assert done.returncode == 1
    assert "clock" not in run("check", "shop", TASKBRIDGE_URL=f"celery+{redis_server.url}").stdout


@pytest.mark.parametrize(
    ("module", "url", "says"),
    [
        (
            "celery",
            "celery+redis://127.0.0.1:1",
            r"engine 'celery' is not installed: pip install 'taskbridge-queue\[celery\]'",
        ),
        ("dramatiq", "dramatiq+redis://127.0.0.1:1", r"engine 'dramatiq' is not installed: pip .*\[dramatiq\]'"),
        (
            "redis",
            "celery+redis://127.0.0.1:1",
            r"redis-py, the client of broker 'redis', is not installed: .*\[redis\]'",
        ),
    ],
)
def test_what_is_not_installed_is_told_with_its_remedy(
    run: Run, tmp_path: Path, module: str, url: str, says: str
) -> None:
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError({module!r}, name={module!r})")

    done = run("worker", "shop", "--url", url)
    assert re.fullmatch(f"taskbridge: {says}\n", done.stderr), done.stderr
    assert done.returncode == 2

    checked = run("check", "shop", "--url", url)
    assert re.search(rf"^(engine|client) +error +{says}$", checked.stdout, re.MULTILINE), checked.stdout
    assert checked.returncode == 2


def test_queues_and_dead_letters_are_shown(run: Run, redis_server: PrivateRedis) -> None:
    url = f"celery+{redis_server.url}"
    settings = {"TASKBRIDGE_URL": url, "TASKBRIDGE_NAMESPACE": f"cli-{time.time_ns()}"}
    bridge = Bridge(url, namespace=settings["TASKBRIDGE_NAMESPACE"], queues=["email"])
    mail = bridge.task(name="shop.mail", queue="email")(lambda user: None)
    for user in (1, 2):
        mail.send(user)
    mail.schedule(3600, 3)
    message = Message(
        id="3f2b0000-0000-4000-8000-000000000000",
        task="shop.mail",
        queue="email",
        args_json='[42,{"$tb":"x"}]',  # not to be decoded: then it is shown as it is
        kwargs_json="{}",
        enqueued_at=0.0,
        attempt=5,
        headers={"tenant": "acme"},
    )
    died_at = time.time() // 1
    error = ValueError("no such user\nand more")
    bridge.broker.bury(letter_of(message, reason="exhausted", error=error, now=died_at), timeout_s=5)
    bridge.close()

    queues: Any = json.loads(run("queues", "shop", "--json", **settings).stdout)
    assert queues == {"waiting": {"default": 0, "email": 2}, "delayed": 1, "dead": 1, "paused": []}
    shown = run("queues", "shop", **settings).stdout
    assert re.search(r"email +2\n", shown)
    assert "delayed 1, dead 1" in shown

    listed = run("dead", "list", **settings).stdout.splitlines()
    assert [re.split("  +", line) for line in listed] == [
        ["id", "died at", "task", "queue", "attempts", "reason", "error"],
        [
            message.id,
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(died_at)),
            "shop.mail",
            "email",
            "5",
            "exhausted",
            "ValueError: no such user",
        ],
    ]
    assert run("dead", "list", "--task", "other.*", **settings).stdout == "no such dead letters\n"
    found: Any = json.loads(run("dead", "list", "--reason", "exhausted", "--json", **settings).stdout)
    assert [(letter["id"], letter["attempts"]) for letter in found] == [(message.id, 5)]

    one = run("dead", "show", "3f2b", **settings).stdout
    for line in ("task        shop.mail", "header      tenant: acme", "attempts    5", "reason      exhausted"):
        assert line in one
    assert "ValueError: no such user\n  and more" in one
    assert "42" in one
    missing = run("dead", "show", "9", **settings)
    assert missing.stderr == "taskbridge: there is no dead letter '9'; `taskbridge dead list` shows what there is\n"
    assert missing.returncode == 2


@pytest.fixture
def buried(redis_server: PrivateRedis) -> Iterator[tuple[Bridge, dict[str, str]]]:
    """A bridge with four dead letters, one of them unreadable, and the settings of a command line that sees them."""
    url = f"celery+{redis_server.url}"
    settings = {"TASKBRIDGE_URL": url, "TASKBRIDGE_NAMESPACE": f"cli-{time.time_ns()}"}
    with closing(Bridge(url, namespace=settings["TASKBRIDGE_NAMESPACE"])) as bridge:
        for number, reason in enumerate(("exhausted", "exhausted", "gave_up")):
            message = Message(
                id=f"{number}abc",
                task="shop.mail",
                queue="email",
                args_json='["s3cret"]',
                kwargs_json="{}",
                enqueued_at=1.0,
                attempt=5,
            )
            letter = letter_of(message, reason=reason, error=ValueError("x"), now=time.time())
            bridge.broker.bury(letter, timeout_s=5)
        raw = DeadLetter(message=None, reason="undecodable", raw=b"}{", died_at=time.time())
        bridge.broker.bury(raw, timeout_s=5)
        yield bridge, settings


def test_dead_letters_are_replayed(run: Run, buried: tuple[Bridge, dict[str, str]]) -> None:
    bridge, settings = buried
    refused = run("dead", "replay", "0", "raw-", **settings)
    assert re.fullmatch(r"taskbridge: raw-\w+ can't be replayed: .*nothing was replayed\n", refused.stderr)
    assert refused.returncode == 2
    assert bridge.counts().dead == 4

    one = run("dead", "replay", "0", "0abc", **settings)
    assert (one.stdout, one.returncode) == ("replayed 1 dead letter\n", 0), one.stderr
    some: Any = json.loads(run("dead", "replay", "--all", "--reason", "gave_up", "--json", **settings).stdout)
    assert some == {"replayed": ["2abc"], "missing": [], "unreadable": [], "held": []}
    rest = run("dead", "replay", "--all", **settings)
    assert re.fullmatch(r"replayed 1 dead letter; 1 dead letter can't be read and stays: raw-\w+\n", rest.stdout)
    assert (bridge.counts().dead, bridge.counts().delayed) == (1, 3)


HASTY = """
from taskbridge import default_bridge

dead = default_bridge().dead

@dead.redact
def purge(entry):
    dead.purge([entry.id])
    return entry
"""  # an application with which a letter is gone as soon as it was listed


@pytest.mark.parametrize("with_json", [False, True])
def test_a_letter_that_is_gone_meanwhile_is_named(
    run: Run, tmp_path: Path, buried: tuple[Bridge, dict[str, str]], with_json: bool
) -> None:
    (tmp_path / "hasty.py").write_text(HASTY)

    done = run("dead", "replay", "0", *(["--json"] if with_json else []), "--app", "hasty", **buried[1])

    said = "1 dead letter is not there any more: 0abc\n"
    assert done.returncode == 2
    if not with_json:
        assert (done.stdout, done.stderr) == (said, "")
    else:
        assert json.loads(done.stdout) == {"replayed": [], "missing": ["0abc"], "unreadable": [], "held": []}
        assert done.stderr == f"taskbridge: {said}"


def test_dead_letters_are_purged_if_that_is_meant(run: Run, buried: tuple[Bridge, dict[str, str]]) -> None:
    bridge, settings = buried
    asked = run("dead", "purge", "--all", **settings)
    assert asked.stderr == "taskbridge: purge: this forgets 4 dead letters for good; add --yes if that is meant\n"
    assert asked.returncode == 2
    assert bridge.counts().dead == 4

    done = run("dead", "purge", "raw", "--yes", **settings)
    assert (done.stdout, done.returncode) == ("purged 1 dead letter\n", 0), done.stderr
    some: Any = json.loads(run("dead", "purge", "--all", "--reason", "gave_up", "--yes", "--json", **settings).stdout)
    assert some == {"purged": ["2abc"]}
    assert [letter.id for letter in bridge.dead_letters()] == ["0abc", "1abc"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["replay"], "replay: which? Name their IDs, or say --all .*"),
        (["replay", "--task", "shop.*"], "replay: which? Name their IDs, or say --all .*"),
        (["replay", "0", "--all"], "replay: name IDs, or say --all with filters, not both"),
        (["purge", "0", "--reason", "gave_up"], "purge: name IDs, or say --all with filters, not both"),
        (["replay", "9"], "there is no dead letter '9'; `taskbridge dead list` shows what there is"),
        (["purge", "", "--yes"], "4 dead letters begin with '': .*; write more of it"),
    ],
)
def test_what_is_not_clear_is_refused(
    run: Run, buried: tuple[Bridge, dict[str, str]], arguments: list[str], says: str
) -> None:
    bridge, settings = buried
    done = run("dead", *arguments, **settings)
    assert re.fullmatch(f"taskbridge: {says.replace('?', '[?]')}\n", done.stderr), done.stderr
    assert done.returncode == 2
    assert bridge.counts().dead == 4


def test_an_applications_secrets_are_not_shown(run: Run, tmp_path: Path, buried: tuple[Bridge, dict[str, str]]) -> None:
    _, settings = buried
    (tmp_path / "safe.py").write_text(
        "from dataclasses import replace\nfrom taskbridge import default_bridge, task\n"
        "@default_bridge().dead.redact\ndef hide(entry): return replace(entry, args=('***',))\n"
    )
    for command in (["list", "--json"], ["show", "0"], ["show", "0", "--json"]):
        shown = run("dead", *command, "--app", "safe", **settings)
        assert "***" in shown.stdout, shown.stderr
        assert "s3cret" not in shown.stdout
    assert "s3cret" in run("dead", "show", "0", **settings).stdout


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_worker_says_that_the_broker_is_away_and_can_be_stopped_then(tmp_path: Path, engine: str) -> None:
    pytest.importorskip(engine, reason="a worker needs its engine")
    (tmp_path / "shop.py").write_text(SHOP)
    env = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "taskbridge", "worker", "shop", "--url", f"{engine}+redis://:secret@127.0.0.1:1/0"],
        cwd=tmp_path,
        env={**env, "TASKBRIDGE_GRACE": "45"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stderr is not None
        banner, line = process.stderr.readline(), process.stderr.readline()
        time.sleep(3)
        process.terminate()
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()

    assert re.match(r"\S+Z INFO \d+ taskbridge: 1 task of shop on ", banner)
    away = r"\S+Z WARNING \d+ taskbridge: the broker does not answer yet, the workers keep trying: .*refused"
    assert re.match(away, line)
    assert process.returncode == 0, rest
    assert "secret" not in banner + line + rest


CALLS = """
from taskbridge import RetryPolicy, task

@task
def add(a: int, b: int) -> tuple[int, ...]:
    return (a, b)

@task(retry=RetryPolicy.never())
def fail() -> None:
    raise ValueError("no")
"""


class TestStatusAndCancel:
    @pytest.fixture
    def calls(self, tmp_path: Path, redis_server: PrivateRedis) -> tuple[Run, Bridge]:
        (tmp_path / "calls.py").write_text(CALLS)
        settings = {"TASKBRIDGE_URL": f"dramatiq+{redis_server.url}", "TASKBRIDGE_NAMESPACE": tmp_path.name}
        bridge = Bridge(settings["TASKBRIDGE_URL"], namespace=settings["TASKBRIDGE_NAMESPACE"])
        return runner(tmp_path, TZ="UTC", **settings), bridge

    def test_a_message_is_shown_until_its_end(self, calls: tuple[Run, Bridge]) -> None:
        run, bridge = calls
        with closing(bridge):
            message = self.sent(bridge, "calls.add")
            shown = run("status", message.id)
            assert re.fullmatch(
                rf"id +{message.id}\ntask +calls\.add\nqueue +default\nstate +queued\nsent +20\d\d-.*\n", shown.stdout
            ), shown.stdout
            self.record(bridge, message, Ending(state="done", at=time.time(), result_json='{"$":"tuple","v":[1]}'))
            lines = run("status", message.id).stdout.splitlines()
            assert lines[-2:] == [next(line for line in lines if line.startswith("attempt 1")), "result      (1,)"]
            found: Any = json.loads(run("status", message.id, "--json").stdout)
            assert (found["state"], found["result"], found["error"]) == ("done", "(1,)", None)
            assert found["attempts"][0]["worker"] == "host:1"

    def test_a_message_whose_result_could_not_be_recorded_is_shown(self, calls: tuple[Run, Bridge]) -> None:
        run, bridge = calls
        with closing(bridge):
            message = self.sent(bridge, "calls.add")
            self.record(bridge, message, Ending(state="done", at=time.time(), reason="it has 12 bytes\nof too many"))
            shown = run("status", message.id)
            assert "state       done (it has 12 bytes\n            of too many)\n" in shown.stdout
            assert "result " not in shown.stdout
            assert (shown.stderr, shown.returncode) == ("", 0)

    def test_a_failure_is_shown_with_its_traceback(self, calls: tuple[Run, Bridge]) -> None:
        run, bridge = calls
        with closing(bridge):
            message = self.sent(bridge, "calls.fail")
            error = ErrorInfo(type="ValueError", message="no")
            ending = Ending(state="dead", at=time.time(), reason="exhausted", error=error, traceback="Traceback: x\n")
            self.record(bridge, message, ending)
            shown = run("status", message.id).stdout
            assert "state       dead (exhausted)\n" in shown
            assert re.search(r"^attempt 1 .* on host:1: ValueError: no$", shown, re.MULTILINE), shown
            assert shown.endswith("\n\n  Traceback: x\n")
            late = run("cancel", message.id)
            assert (late.stdout, late.returncode) == (f"too late: message {message.id} is dead\n", 1)

    def test_errors_are_shown_as_the_redact_function_leaves_them(
        self, tmp_path: Path, redis_server: PrivateRedis
    ) -> None:
        (tmp_path / "safe.py").write_text(
            "from dataclasses import replace\nfrom taskbridge import ErrorInfo, default_bridge, task\n"
            "@task\ndef mail(): ...\n"
            "@default_bridge().dead.redact\n"
            "def hide(entry): return replace(entry, error=ErrorInfo(type='E', message='hidden'), traceback='')\n"
        )
        url, error = f"celery+{redis_server.url}", ErrorInfo(type="ValueError", message="s3cret")
        settings = {"TASKBRIDGE_URL": url, "TASKBRIDGE_NAMESPACE": tmp_path.name, "TASKBRIDGE_LISTING": "on"}
        with closing(Bridge(url, namespace=tmp_path.name, listing=True)) as bridge:
            vitals = Vitals(bridge, name=lambda: "host:1", queues=lambda: ["default"], slots=lambda: 1)
            vitals.attach()
            message = self.sent(bridge, "safe.mail")
            ending = Ending(state="dead", at=time.time(), reason="exhausted", error=error, traceback="s3cret")
            self.record(bridge, message, ending)
            bridge.ended[0].append(("safe.mail", message.id, Dead, error))
            vitals.tell(at_once=True)
        run = runner(tmp_path, TZ="UTC", **settings)
        for command in (
            ("failures", "safe"),
            ("failures", "safe", "--json"),
            ("messages", "ls", "safe", "--json"),
            ("status", message.id, "--app", "safe"),
            ("status", message.id, "--app", "safe", "--json"),
            ("cancel", message.id, "--app", "safe", "--json"),
            ("top", "safe", "--once"),
        ):
            shown = run(*command).stdout
            assert "hidden" in shown, command
            assert "s3cret" not in shown, command

    def test_what_waits_is_cancelled_and_what_runs_is_told(self, calls: tuple[Run, Bridge]) -> None:
        run, bridge = calls
        with closing(bridge):
            waiting, running = self.sent(bridge, "calls.add"), self.sent(bridge, "calls.add")
            assert bridge.records is not None
            bridge.records.started(running, worker="host:1", at=time.time())
            self.until_running(bridge, running)
            done = run("cancel", waiting.id)
            assert (done.stdout, done.returncode) == (f"message {waiting.id} is cancelled: it starts no more\n", 0)
            assert bridge.handle(waiting.id).status().state == "cancelled"
            told = run("cancel", running.id)
            text = f"message {running.id} runs, and was told to stop; there is no further attempt\n"
            assert (told.stdout, told.returncode) == (text, 0)
            assert json.loads(run("cancel", running.id, "--json").stdout)["cancel_asked"] is True
            ended = run("cancel", running.id, "--interrupt")
            assert ended.stdout == text.replace("was told to stop", "is interrupted")
            assert bridge.handle(running.id).status().interrupt_asked

    def test_how_far_a_run_has_come_is_shown_until_its_end(self, calls: tuple[Run, Bridge], tmp_path: Path) -> None:
        _, bridge = calls
        with closing(bridge):
            message = self.sent(bridge, "calls.add")
            records = bridge.records
            assert records is not None
            records.started(message, worker="host:1", at=time.time())
            records.report(message, 3, 4, "r\x1bows")
            self.until_running(bridge, message)
            self.until_reported(bridge, message)
            far = "[######################........]  75%  3/4  r\\x1bows"
            with watched(tmp_path, bridge, "status", message.id, "--watch") as watching:
                assert watching.stderr is not None
                assert watching.stdout is not None
                assert watching.stderr.readline() == f"running  {far}\n"
                self.record(bridge, message, Ending(state="done", at=time.time()))
                shown, rest = watching.stdout.read(), watching.stderr.read()
                assert watching.wait(60) == 0
            assert rest == f"done  {far}\n"
            assert f"progress    {far}\n" in shown

    @pytest.mark.parametrize("command", ["status", "cancel"])
    def test_an_id_that_nobody_knows_is_one_line(self, calls: tuple[Run, Bridge], command: str) -> None:
        done = calls[0](command, "3f2b")
        assert re.fullmatch(r"taskbridge: nothing is known of a message '3f2b': .*\n", done.stderr), done.stderr
        assert done.returncode == 2

    def sent(self, bridge: Bridge, task: str) -> Message:
        message = Message(
            id=new_id(), task=task, queue="default", args_json="[]", kwargs_json="{}", enqueued_at=time.time()
        )
        assert bridge.records is not None
        bridge.records.create([(message, 0.0)], timeout_s=5)
        return message

    def record(self, bridge: Bridge, message: Message, ending: Ending) -> None:
        assert bridge.records is not None
        bridge.records.started(message, worker="host:1", at=time.time())
        bridge.records.ended(message, ending, timeout_s=5)

    def until_running(self, bridge: Bridge, message: Message) -> None:
        deadline = time.monotonic() + 20
        while bridge.handle(message.id).status().state != "running":
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def until_reported(self, bridge: Bridge, message: Message) -> None:
        deadline = time.monotonic() + 20
        while bridge.handle(message.id).status().progress is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@contextmanager
def watched(folder: Path, bridge: Bridge, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """Run the command line on a bridge's servers, for what it writes to be read meanwhile, in three minutes at most."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}
    settings = {"TASKBRIDGE_URL": bridge.settings.url.safe_url, "TASKBRIDGE_NAMESPACE": bridge.settings.namespace}
    with subprocess.Popen(
        [sys.executable, "-m", "taskbridge", *arguments],
        cwd=folder,
        env={**env, **settings, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        killer = threading.Timer(180, process.kill)
        killer.start()
        try:
            yield process
        finally:
            killer.cancel()
            process.kill()


@pytest.mark.parametrize(
    ("command", "says"), [(["replay", "--all"], "replaying"), (["purge", "--all", "--yes"], "purging")]
)
def test_what_takes_long_shows_on_a_terminal_how_far_it_is(
    command: list[str], says: str, redis_server: PrivateRedis, tmp_path: Path
) -> None:
    settings = {"TASKBRIDGE_URL": f"celery+{redis_server.url}", "TASKBRIDGE_NAMESPACE": f"shown-{time.time_ns()}"}
    with closing(Bridge(settings["TASKBRIDGE_URL"], namespace=settings["TASKBRIDGE_NAMESPACE"])) as bridge:
        bury(bridge, 3)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}

    taskbridge = [sys.executable, "-m", "taskbridge", "dead", *command]
    written = on_a_terminal(taskbridge, env={**inherited, **settings}, cwd=tmp_path)

    assert re.match(rf"\r?{says} \[[#.]+\] [0-3] of 3", written), written
    assert written.endswith(f"\x1b[K{says.removesuffix('ing')}ed 3 dead letters\r\n"), written


def test_a_queue_and_tasks_are_paused_and_resumed(run: Run, redis_server: PrivateRedis) -> None:
    settings = {"TASKBRIDGE_URL": f"celery+{redis_server.url}", "TASKBRIDGE_NAMESPACE": f"cli-{time.time_ns()}"}
    settings["TASKBRIDGE_QUEUES"] = "email"
    assert run("pause", "email", **settings).stdout == "queue email is paused\n"
    shown = run("pause", "--task", "shop.\x1b*", "--until", "2h", **settings).stdout
    assert re.fullmatch(r"every task that matches shop.\\x1b\* is paused until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", shown)
    queues: Any = json.loads(run("queues", "--json", **settings).stdout)
    assert [(each["queue"], each["task"]) for each in queues["paused"]] == [("email", None), (None, "shop.\x1b*")]
    table = run("queues", **settings).stdout
    assert re.search(r"^email +0  paused$", table, re.MULTILINE)
    assert re.search(r"^tasks shop.\\x1b\* paused until 2", table, re.MULTILINE)
    assert re.search(r"^paused +note +queue email: ", run("check", **settings).stdout, re.MULTILINE)
    health = run("health", "--queues", "email", **settings)
    assert (health.stdout, health.returncode) == ("email: paused: nothing of it starts until it is resumed\n", 0)
    assert run("resume", "email", **settings).stdout == "queue email goes on\n"
    again = run("resume", "email", **settings)
    assert (again.stdout, again.returncode) == ("queue email was not paused\n", 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pause"], "pause: name either a QUEUE, or the tasks with --task GLOB"),
        (["resume", "email", "--task", "x"], "resume: name either a QUEUE, or the tasks with --task GLOB"),
        (["pause", "email", "--until", "soon"], "it must be a duration such as 90s, 30m, 2h or 1d, or a time"),
        (["pause", "email", "--until", "2001-01-01T00:00:00Z"], "until must be in the future"),
        (["pause", "email", "--until", "999999999d"], "pause: "),
        (["pause", "a b"], "queue name 'a b' must be"),
    ],
)
def test_what_can_not_be_paused_is_said(run: Run, redis_server: PrivateRedis, words: list[str], says: str) -> None:
    done = run(*words, TASKBRIDGE_URL=f"celery+{redis_server.url}")
    assert says in done.stderr
    assert (done.stdout, done.returncode) == ("", 2)


def test_what_a_command_does_is_told_to_the_hook_operated(tmp_path: Path, redis_server: PrivateRedis) -> None:
    told = """
from taskbridge import on

@on("operated")
def tell(event):
    print("told", event.action, event.target, event.operator)
"""
    (tmp_path / "shop.py").write_text(SHOP.replace("queue", "every=3600, queue").replace("user: int", "") + told)
    settings = {"TASKBRIDGE_URL": f"celery+{redis_server.url}", "TASKBRIDGE_NAMESPACE": f"told-{time.time_ns()}"}
    user = pwd.getpwuid(os.getuid()).pw_name
    call = runner(tmp_path, LOGNAME="mallory", USER="mallory", **settings)
    sent = Bridge(settings["TASKBRIDGE_URL"], namespace=settings["TASKBRIDGE_NAMESPACE"], queues=["email"])
    with closing(sent):
        waiting, late = sent.send("shop.mail").id, sent.send("shop.mail").id

        def tells(*arguments: str) -> list[str]:
            output = call(*arguments, "--app", "shop").stdout
            return [line for line in output.splitlines() if line.startswith("told")]

        assert tells("cancel", waiting) == [f"told cancel {waiting} {user}"]
        assert tells("dead", "replay", "--all") == []  # there is none
        message = Message(id="m1", task="shop.mail", queue="email", args_json="[]", kwargs_json="{}", enqueued_at=1.0)
        for action in ("replay", "purge"):
            letter = DeadLetter(message=message, reason="exhausted", died_at=time.time())
            sent.broker.bury(letter, timeout_s=5)
            more = ("--yes",) if action == "purge" else ("--per-second", "2")
            assert tells("dead", action, "m1", *more) == [f"told {action} m1 {user}"]
            sent.broker.bury(letter, timeout_s=5)
            assert tells("dead", action, "--all", "--task", "shop.*", *more) == [
                f"told {action}_all task=shop.* {user}"
            ]
        for verb in ("pause", "resume"):
            assert tells(verb, "email") == [f"told {verb} email {user}"]
            assert tells(verb, "--task", "shop.*") == [f"told {verb}_task shop.* {user}"]
        for verb in ("pause", "resume", "run"):
            assert tells("schedules", verb, "shop.mail") == [f"told {verb}_schedule shop.mail {user}"]
        assert tells("status", late) == []


def test_what_a_command_may_have_done_in_part_is_logged(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(f"import logging\nlogging.basicConfig(level='INFO')\n{SHOP}")
    done = runner(tmp_path, TASKBRIDGE_URL=AWAY)("dead", "replay", "--all", "--app", "shop")
    assert f"INFO:taskbridge.cli:{pwd.getpwuid(os.getuid()).pw_name} tried replay: " in done.stderr
    assert done.returncode == 2
