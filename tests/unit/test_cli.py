"""The command line: what it shows, and one clear line with exit code 2 for what can't be done."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mutants.applying import RULE, environment
from tests.unit.command_line import Run, runner

SHOP = """
from datetime import timedelta
from taskbridge import RetryPolicy, task

class PermanentError(Exception): ...

@task(queue="email", retry=RetryPolicy(max_attempts=5, min_delay=30, give_up_on=PermanentError))
def mail(user: int) -> None: ...

@task(priority="high", time_limit=5, expires=timedelta(hours=1), retry=RetryPolicy(delays=[1, 5, 30], jitter=0))
def pack(order: int) -> None: ...

@task
def count() -> None: ...
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the command line in a folder with `shop.py` and a few broken modules."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return runner(tmp_path, COLUMNS="100")


HINTED = """
from __future__ import annotations
from typing import TYPE_CHECKING
from taskbridge import task

if TYPE_CHECKING:
    from decimal import Decimal

@task
def pay(amount: Decimal) -> None: ...
"""

FILES = {
    "shop.py": SHOP,
    "hinted.py": HINTED,
    "one.py": "from taskbridge import task\n\n@task(unique=True)\ndef one() -> None: ...\n",
    "empty.py": "import taskbridge\n",
    "broken.py": "import no_such_module\n",
    "typo.py": "from taskbridge import task\n\n@task(que='email')\ndef mail() -> None: ...\n",
}

REDIS = "celery+redis://localhost:1/0"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        # The command line itself.
        (["wroker"], r"there is no 'wroker'; did you mean 'worker'\? \(see taskbridge --help\)"),
        (["worker"], r"worker: which MODULE declares the tasks\? Such as: taskbridge worker shop\.tasks"),
        (["worker", "shop", "--proceses", "2"], r"unrecognized arguments: --proceses 2 \(see taskbridge --help\)"),
        (["worker", "shop", "--threads", "0"], r"worker: argument --threads: .* at least 1, not '0' \(see .* --help\)"),
        (["worker", "shop", "--log-level", "loud"], r"worker: argument --log-level: there is no 'LOUD' \(see .*"),
        (["dead"], r"dead: the following arguments are required: COMMAND \(see taskbridge dead --help\)"),
        (["dead", "show"], r"dead show: the following arguments are required: ID \(see .*"),
        # The application.
        (["worker", "shopp"], r"there is no module 'shopp' in .*; did you mean 'shop'\?"),
        (["check", "broken"], r"module 'broken' .*: No module named 'no_such_module' \(broken\.py, line 1\)"),
        (
            ["worker", "typo"],
            r"module 'typo' .*option 'que' is unknown; did you mean 'queue'\? \(typo\.py, line [34]\)",
        ),
        (["worker", "shop:mail"], r"'mail' in module 'shop' is not a Bridge but of type Task"),
        (["worker", "empty", "--url", REDIS], r"'empty' declares no task on this bridge; .*"),
        (["routes", "empty"], r"'empty' declares no task on this bridge; .*"),
        (["verify"], r"verify: which URL\? Such as: taskbridge verify celery\+redis://.*"),
        (["verify", "inline://", "--rule", "R99"], r"there is no rule 'R99' .*"),
        # The target.
        (["worker", "shop"], r"inline:// \(the default\) keeps its messages .* set TASKBRIDGE_URL or --url .*"),
        (["worker", "shop", "--url", "celery+memory://"], r"celery\+memory:// keeps its messages .*"),
        (["queues", "shop", "--url", "dramatiq+memory://"], r"dramatiq\+memory:// keeps its messages .*"),
        (["dead", "list"], r"inline:// \(the default\) keeps its messages .*"),
        (["worker", "shop", "--url", "celry+redis://x"], r"setting 'url': there is no engine 'celry'; did you mean .*"),
        (["check", "--url", "celery+kafka://x"], r"setting 'url': there is no broker 'kafka'.*"),
        (["check", "shop", "--url", "redis"], r"setting 'url': it must look like 'celery\+redis://.*"),
        (["worker", "shop", "--url", "celery+redis://u:secret@x:y/0"], r"setting 'url': its port is not a number .*"),
        (
            ["worker", "shop", "--url", REDIS, "--queues", "emial"],
            r"queue 'emial' is not known; did you mean 'email'.*",
        ),
    ],
)
def test_what_can_not_be_done_is_one_clear_line_and_exit_code_2(run: Run, arguments: list[str], says: str) -> None:
    done = run(*arguments)

    assert re.fullmatch(f"taskbridge: {says}\n", done.stderr), done.stderr
    assert done.stdout == ""
    assert done.returncode == 2
    assert "secret" not in done.stderr


def test_a_wrong_variable_is_named(run: Run) -> None:
    done = run("check", "shop", TASKBRIDGE_LEESE="5")
    assert done.stderr == "taskbridge: setting 'TASKBRIDGE_LEESE': there is no such setting; did you mean 'lease'?\n"
    assert done.returncode == 2


def test_the_module_may_come_from_the_environment(run: Run) -> None:
    done = run("routes", TASKBRIDGE_APP="shop")
    assert done.returncode == 0
    assert "shop.mail" in done.stdout


def test_routes_shows_where_each_task_goes_and_why(run: Run) -> None:
    done = run("routes", "shop", TASKBRIDGE_ROUTES="shop.c*=vip, shop.cou*=hidden, shpo.*=typo")

    assert done.stderr == ""
    assert done.returncode == 0
    assert [re.split(r"  +", line) for line in done.stdout.splitlines()] == [
        ["task", "queue", "why", "priority", "retry", "limits"],
        ["shop.count", "vip", "route shop.c*=vip", "normal", DEFAULT_POLICY, "-"],
        ["shop.mail", "email", "@task(queue='email')", "normal", MAIL_POLICY, "-"],
        ["shop.pack", "default", "default_queue", "high", PACK_POLICY, "expires after 1 h, runs up to 5 s"],
        [""],
        ["route shop.cou*=hidden decides about no task: mistyped, or behind a wider one"],
        ["route shpo.*=typo decides about no task: mistyped, or behind a wider one"],
    ]


DEFAULT_POLICY = "5 attempts, 1 s x 2 up to 10 min, jitter 50% (default)"
MAIL_POLICY = "5 attempts, 30 s x 2 up to 10 min, jitter 50%, not on PermanentError"
PACK_POLICY = "5 attempts, 1 s then 5 s then 30 s"


def test_routes_can_be_read_by_a_program(run: Run) -> None:
    data: Any = json.loads(run("routes", "shop", "--json", TASKBRIDGE_ROUTES="x.*=vip").stdout)
    assert [(task["task"], task["queue"], task["priority"]) for task in data["tasks"]] == [
        ("shop.count", "default", "normal"),
        ("shop.mail", "email", "normal"),
        ("shop.pack", "default", "high"),
    ]
    assert data["tasks"][2]["expires_s"] == 3600
    assert data["routes_without_task"] == ["x.*=vip"]


def test_check_tells_what_there_is(run: Run) -> None:
    done = run("check", "shop", TASKBRIDGE_GRACE="10")

    assert done.returncode == 0
    assert done.stderr == ""
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines["url"].endswith("inline://")
    assert lines["settings"].endswith("  grace 10 s")
    assert lines["tasks"].endswith("3: shop.count, shop.mail, shop.pack")
    assert lines["queues"].endswith("default, email")


def test_check_warns_of_a_route_that_matches_no_task(run: Run) -> None:
    done = run("check", "shop", "--json", TASKBRIDGE_ROUTES="shop.mail=vip,shpo.*=typo")

    data: Any = json.loads(done.stdout)
    warnings = [finding["text"] for finding in data["findings"] if finding["outcome"] == "warning"]
    assert len(warnings) == 1
    assert warnings[0].startswith("shpo.*=typo ")
    assert data["exit_code"] == done.returncode == 1


def test_check_names_hints_that_cannot_be_resolved(run: Run) -> None:
    done = run("check", "hinted")

    [line] = [line for line in done.stdout.splitlines() if line.startswith("hints ")]
    assert line.split()[1:3] == ["note", "hinted.pay:"]
    assert "the hint 'Decimal' of 'amount' can't be resolved" in line
    assert done.returncode == 0


def test_check_names_unique_tasks_that_nobody_can_send(run: Run) -> None:
    done = run("check", "one", "--json", TASKBRIDGE_URL="dramatiq+amqp://localhost:1//")

    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["unique"]["outcome"] == "error"
    assert findings["unique"]["text"].startswith("one.one: unique, which needs a store")
    assert done.returncode == 2


def test_verify_prints_a_matrix(run: Run) -> None:
    done = run("verify", "inline://", "--rule", "Q2,S6")
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[:3]] == [["inline"], ["Q2", "ok"], ["S6", "ok"]]
    assert "2/2 inline" in done.stderr


def test_verify_ends_with_1_if_a_cell_fails(run: Run) -> None:
    done = run("verify", "inline://", "--rule", "Q2,S6", **environment(RULE, "any_queue_is_known"))
    assert done.returncode == 1, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:3]] == [["Q2", "FAIL"], ["S6", "ok"]]
    assert "UnknownQueue should be raised, but" in done.stdout
    assert "inline: unknown_queues_are_refused" in done.stdout


def test_verify_lists_what_proves_each_rule(run: Run) -> None:
    done = run("verify", "--list", "--rule", "R1")
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.startswith("R1 ")
    kinds = {line.split()[0] for line in lines}
    assert kinds == {"scenario"}
    data: Any = json.loads(run("verify", "--list", "--json").stdout)
    assert {"R1", "D2", "A1"} <= {proof["rule"] for proof in data}


def test_no_command_shows_the_help(run: Run) -> None:
    done = run()
    assert done.returncode == 0
    assert "Start here:" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "command",
    [
        "worker",
        "scheduler",
        "check",
        "routes",
        "queues",
        "schedules",
        "health",
        "status",
        "cancel",
        "dead",
        "dead list",
        "dead show",
        "dead replay",
        "dead purge",
        "flow ls",
        "flow show",
        "flow cancel",
        "flow retry",
        "store",
        "store init",
        "verify",
    ],
)
def test_help_teaches_with_an_example_and_fits_the_terminal(run: Run, command: str) -> None:
    done = run(*command.split(), "--help", COLUMNS="120")
    assert done.returncode == 0
    assert f"\n  taskbridge {command}" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 120


def test_a_reader_that_stops_reading_is_no_error(run: Run, tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m taskbridge routes shop | true",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""


def test_the_command_line_starts_fast(run: Run) -> None:
    done = run("--version", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {"celery", "kombu", "dramatiq", "redis", "pika", "asyncio", "subprocess", "taskbridge.contract"}
    assert not imported & heavy
    assert done.stdout.startswith("taskbridge ")
