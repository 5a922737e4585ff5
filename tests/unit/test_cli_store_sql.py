"""`taskbridge store init`, and what the other commands say of a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.command_line import Run, runner


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "shop.py").write_text(
        "from taskbridge import Bridge\n"
        "bridge = Bridge('inline://', store='sqlite:///shop.db')\n\n@bridge.task\ndef greet() -> None: ...\n"
    )
    return runner(tmp_path)


def test_init_makes_tables_once(run: Run, tmp_path: Path) -> None:
    assert run("store", "init", "shop").stdout == "sqlite:///shop.db: made the tables, of version 4\n"
    assert (tmp_path / "shop.db").exists()
    for arguments, variables in (
        (["shop"], {}),
        (["--url", "sqlite:///shop.db"], {}),
        ([], {"TASKBRIDGE_STORE": "sqlite:///shop.db"}),
    ):
        done = run("store", "init", *arguments, **variables)
        assert (done.stdout, done.returncode) == ("sqlite:///shop.db: the tables are there, of version 4\n", 0)


def test_init_needs_a_store_that_answers(run: Run) -> None:
    done = run("store", "init", "--url", "sqlite:///nowhere/shop.db")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("taskbridge: the store does not answer: ")
    assert done.stderr.count("\n") == 1
    assert "did you mean 'sqlite'" in run("store", "init", "--url", "sqlit:///shop.db").stderr
    done = run("store", "init", TASKBRIDGE_URL="celery+amqp://localhost")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "there is no store" in done.stderr


def test_store_needs_a_verb(run: Run) -> None:
    done = run("store")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "init" in run("store", "--help").stdout


def test_check_says_whether_the_store_answers(run: Run) -> None:
    line = next(line for line in run("check", "shop").stdout.splitlines() if line.startswith("store"))
    assert "ok" in line
    done = run("check", TASKBRIDGE_STORE="sqlite:///nowhere/shop.db")
    line = next(line for line in done.stdout.splitlines() if line.startswith("store"))
    assert "error" in line
    assert done.returncode == 2
