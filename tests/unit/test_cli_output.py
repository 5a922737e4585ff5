"""What commands print: bars of progress, tables, and what shells complete."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from taskbridge import cli
from taskbridge.cli.output import bar, columns, cut, table
from tests.unit.command_line import runner
from tests.unit.terminals import on_a_terminal


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        *((0, 10, "[..........]"), (5, 10, "[#####.....]"), (9.99, 10, "[#########.]"), (10, 10, "[##########]")),
        *((0, 0, "[##########]"), (11, 10, "[##########]")),
    ],
)
def test_a_bar_is_full_only_at_the_end(done: float, total: float, shown: str) -> None:
    assert bar(done, total, width=10) == shown


def test_columns_of_a_table_stand_below_one_another_whatever_their_characters() -> None:
    rows = [("\u4f1a\u8a08", "1"), ("e\u0301t\u00e9", "20"), ("plain", "300")]

    assert table(("task", "count"), rows, right="count").split("\n") == [
        "task   count",
        "\u4f1a\u8a08       1",
        "e\u0301t\u00e9       20",
        "plain    300",
    ]


@pytest.mark.parametrize(
    ("text", "width", "left"),
    [
        *(("plain", 5, "plain"), ("plain", 4, "plai"), ("", 3, ""), ("e\u0301e", 1, "e\u0301")),
        *(("\u4f1a\u8a08", 4, "\u4f1a\u8a08"), ("\u4f1a\u8a08", 3, "\u4f1a"), ("a\u4f1a\u8a08", 3, "a\u4f1a")),
    ],
)
def test_a_line_is_cut_at_the_columns_that_a_terminal_has(text: str, width: int, left: str) -> None:
    assert cut(text, width) == left
    assert columns(left) <= width


PROGRAM = """
import time
from taskbridge.cli.output import progress
with progress("replaying", lambda: 3) as tell:
    for number in range(1, 4):
        time.sleep(0.12)
        if tell is not None:
            tell(number)
print("replayed 3")
"""


def test_progress_is_shown_on_a_terminal_and_vanishes() -> None:
    lines = on_a_terminal([sys.executable, "-c", PROGRAM], env=os.environ).split("\r")

    assert "replaying [##########....................] 1 of 3" in lines[1]
    assert lines[-2].endswith("\x1b[Kreplayed 3")


def test_no_progress_is_shown_where_nobody_looks() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=90, check=True)

    assert (done.stdout, done.stderr) == ("replayed 3\n", "")


def completed(folder: Path, line: str) -> list[str]:
    """Return what the shell is told may come next on a line."""
    words = folder / "words"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(words),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    env = {**{name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}, **asked}
    subprocess.run([sys.executable, "-m", "taskbridge"], env=env, timeout=90, check=True, capture_output=True)
    return words.read_text().split()


def test_shells_complete_commands_options_and_choices(tmp_path: Path) -> None:
    assert {"worker", "dead", "schedules"} <= set(completed(tmp_path, "taskbridge "))
    assert set(completed(tmp_path, "taskbridge sched")) == {"schedules", "scheduler"}
    assert {"--watch", "--queues"} <= set(completed(tmp_path, "taskbridge worker --"))
    assert set(completed(tmp_path, "taskbridge dead ")) >= {"list", "show", "replay", "purge"}
    for shell, word in (("bash", "complete "), ("zsh", "#compdef taskbridge"), ("fish", "complete ")):
        script = runner(tmp_path)("completion", shell).stdout
        assert word in script
        assert "taskbridge" in script
    checked = subprocess.run(
        ["bash", "-n"], input=runner(tmp_path)("completion", "bash").stdout, text=True, check=False
    )
    assert checked.returncode == 0


@pytest.mark.parametrize(
    ("library", "command", "extra"),
    [("argcomplete", ["completion", "fish"], "completion"), ("watchfiles", ["worker", "shop", "--watch"], "watch")],
)
def test_what_is_not_installed_is_named_with_its_extra(
    library: str,
    command: list[str],
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "shop.py").write_text("from taskbridge import Bridge\nbridge = Bridge()\n@bridge.task\ndef f(): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TASKBRIDGE_URL", "dramatiq+redis://127.0.0.1:1/0")
    monkeypatch.setitem(sys.modules, library, None)
    former = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.main(command) == 2
    finally:
        signal.signal(signal.SIGTERM, former)
        sys.modules.pop("shop", None)

    said = capsys.readouterr().err
    assert f"{library}, which" in said
    assert f"pip install 'taskbridge-queue[{extra}]'" in said
