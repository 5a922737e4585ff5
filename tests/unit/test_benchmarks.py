"""The benchmark shows what it found, compares round with round, and judges by its goals; no figure is measured here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.__main__ import PAGES, main
from benchmarks.contenders import CELERY, CELERY_BRIDGE
from benchmarks.goals import GOALS, C, D, Goal, judge
from benchmarks.machine import servers
from benchmarks.measuring import measure
from benchmarks.place import Place
from benchmarks.plan import QUICK
from benchmarks.processes import MeasuringFailed, WorkerProcess, held, worker
from benchmarks.readings import Reading, _cpu_s, counted, from_info
from benchmarks.render import BEGIN, END, markdown, replaced, shown, text
from benchmarks.results import Measurement, Result, loads, ratio
from benchmarks.rows.base import Row
from benchmarks.rows.table import ROWS
from benchmarks.scaling import SUMS, TABLES, sums, tables

DOCS = Path(__file__).parents[2] / "docs"
PATIENCE_S = 60.0


def measured(contender: str, *values: float, row: str = "send-redis", metric: str = "us") -> Measurement:
    return Measurement(row=row, contender=contender, metric=metric, values=values)


def result(*measurements: Measurement, missing: Mapping[str, str] | None = None) -> Result:
    return Result(
        date="2026-01-02",
        machine={"processors": "2 x Fast"},
        versions={"Python": "3.13.1"},
        plan={"rounds": 2},
        measurements=measurements,
        missing=missing or {},
    )


def row(key: str = "send-redis", *, family: str = "", size: str = "") -> Row:
    return Row(
        key=key,
        title="send, Redis",
        contenders=(CELERY_BRIDGE, CELERY),
        measure=lambda *_: {},
        metrics=("us", "cpu_us"),
        family=family,
        size=size,
    )


FOUND = result(
    measured(C, 20, 30),
    measured(C, 10, 12, metric="cpu_us"),
    measured("Celery", 200, 400),
    measured("Celery", 150, 170, metric="cpu_us"),
    missing={"send-redis: RQ": "it failed:\nno such package"},
)


class TestResults:
    def test_a_result_is_the_same_after_it_was_written_and_read(self) -> None:
        left_out = replace(FOUND, left_out=("peers",))

        assert loads(FOUND.dumps()) == FOUND
        assert loads(left_out.dumps()) == left_out

    def test_a_result_of_before_there_was_something_to_leave_out_can_be_read(self) -> None:
        older = json.loads(FOUND.dumps())
        del older["left_out"]

        assert loads(json.dumps(older)) == FOUND

    def test_a_figure_is_the_median_of_its_rounds_and_its_spread_a_part_of_that(self) -> None:
        one = measured("x", 1, 2, 4)

        assert (one.median, one.spread) == (2, 1.5)

    def test_rounds_are_compared_with_one_another_so_that_a_slow_round_falls_out(self) -> None:
        ours, theirs = measured("a", 10, 100, 12), measured("b", 20, 200, 20)

        assert ratio(ours, theirs) == 0.5


class TestGoals:
    @pytest.mark.parametrize(
        ("found", "met", "passes"),
        [(0.09, True, True), (0.1, True, True), (0.11, False, True), (0.13, False, False)],
    )
    def test_less_is_better_up_to_the_goal_and_its_tolerance(self, found: float, met: bool, passes: bool) -> None:
        goal = Goal(row="send-redis", metric="us", ours=C, theirs="Celery", most=0.1, tolerance=0.2)
        (judged,) = judge(result(measured(C, found), measured("Celery", 1)), [goal])

        assert (judged.met, judged.passes) == (met, passes)

    @pytest.mark.parametrize(
        ("found", "met", "passes"), [(5, True, True), (4, True, True), (3.5, False, True), (3.2, False, False)]
    )
    def test_more_is_better_down_to_the_goal_and_its_tolerance(self, found: float, met: bool, passes: bool) -> None:
        goal = Goal(row="w", metric="tasks/s", ours=D, theirs="Dramatiq", least=4, tolerance=0.2)
        ours = measured(D, found, row="w", metric="tasks/s")
        (judged,) = judge(result(ours, measured("Dramatiq", 1, row="w", metric="tasks/s")), [goal])

        assert (judged.met, judged.passes) == (met, passes)

    def test_a_goal_is_not_judged_of_which_one_side_was_not_measured(self) -> None:
        goal = Goal(row="send-redis", metric="us", ours=C, theirs="Dramatiq", most=0.1)

        assert judge(FOUND, [goal]) == []

    @pytest.mark.parametrize(("found", "met"), [(-0.5, True), (10, True), (10.1, False)])
    def test_a_figure_may_have_to_reach_a_goal_by_itself(self, found: float, met: bool) -> None:
        goal = Goal(row="lasting-redis", metric="MB more", ours=C, theirs=None, most=10)
        (judged,) = judge(result(measured(C, found, row="lasting-redis", metric="MB more")), [goal])

        assert (judged.met, judged.found, judged.at_best) == (met, found, found)
        assert judge(FOUND, [goal]) == []

    def test_every_goal_is_about_a_figure_that_is_measured(self) -> None:
        figures = {
            (row.key, contender.name, metric) for row in ROWS for contender in row.contenders for metric in row.metrics
        }

        for goal in GOALS:
            for who in (goal.ours, *([] if goal.theirs is None else [goal.theirs])):
                assert (goal.row, who, goal.metric) in figures


class TestShowing:
    def test_the_text_has_medians_spreads_and_ratios_to_the_first(self) -> None:
        lines = text(FOUND, [row()], []).splitlines()

        assert [line.split() for line in lines if "Celery " in line] == [
            ["taskbridge", "on", "Celery", "25.0", "40%", "1.00", "11.0"],
            ["Celery", "300", "67%", "12.00", "160"],
        ]
        assert lines[-2:] == ["not measured: send-redis: RQ: it failed:", "no such package"]

    def test_the_page_has_a_table_for_each_row_with_settings_and_goals(self) -> None:
        goal = Goal(row="send-redis", metric="us", ours=C, theirs="Celery", most=0.05, tolerance=2)
        page = markdown(FOUND, [row(), row("other", family="others")], judge(FOUND, [goal]))

        assert page.startswith(BEGIN)
        assert page.endswith(END)
        assert "Measured on 2026-01-02. Machine: processors 2 x Fast. Versions: Python 3.13.1." in page
        assert "| Celery | 300 | 67% | 12.00 | 160 |" in page
        assert f"Celery: {CELERY.settings}" in page
        assert "| send-redis | µs | taskbridge on Celery | Celery | <= 0.05 | 0.0875 | near |" in page
        assert "Not measured: send-redis: RQ: no such package." in page
        assert "environment" not in page

    def test_the_page_says_which_environments_were_not_there(self) -> None:
        found = replace(FOUND, left_out=("taskferry",))

        assert "Not measured, for there was no environment for it: taskferry." in markdown(found, [row()], [])
        assert text(found, [row()], []).endswith("no such package")
        assert "no environment: taskferry" in text(found, [row()], [])

    def test_a_goal_that_compares_with_nobody_is_shown_as_such(self) -> None:
        goal = Goal(row="send-redis", metric="us", ours=C, theirs=None, most=10)

        assert "| send-redis | µs | taskbridge on Celery | itself | <= 10 | 25 | MISSED |" in markdown(
            FOUND, [row()], judge(FOUND, [goal])
        )

    def test_only_the_generated_part_of_a_page_is_replaced(self) -> None:
        assert replaced(f"before\n{BEGIN}\nold\n{END}\nafter", f"{BEGIN}\nnew\n{END}") == (
            f"before\n{BEGIN}\nnew\n{END}\nafter"
        )
        with pytest.raises(ValueError, match="no generated part"):
            replaced("before", f"{BEGIN}\nnew\n{END}")

    @pytest.mark.parametrize(
        ("value", "expected"), [(0.1234, "0.12"), (-0.001, "0.00"), (12.34, "12.3"), (1234.5, "1,234")]
    )
    def test_a_figure_has_three_digits_or_all_before_the_point(self, value: float, expected: str) -> None:
        assert shown(value) == expected


def test_no_two_rows_and_no_two_contenders_of_a_row_have_one_name() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
    for each in ROWS:
        assert len({contender.name for contender in each.contenders}) == len(each.contenders), each.key


def grown(contender: str, key: str, **metrics: float) -> list[Measurement]:
    return [measured(contender, value, row=key, metric=metric) for metric, value in metrics.items()]


class TestScaling:
    """The page about growth: figures read downwards, and sums that show where they come from."""

    def test_rows_of_a_family_are_one_table_with_a_line_for_each_size(self) -> None:
        rows = [
            row(),
            row("few", family="queues known", size="1"),
            row("stall", family="stall"),
            row("many", family="queues known", size="1,000"),
        ]
        found = result(
            *grown(C, "few", us=10, cpu_us=5),
            *grown("Celery", "few", us=100, cpu_us=50),
            *grown(C, "many", us=11),
            *grown(C, "stall", us=1, cpu_us=2),
        )

        lines = tables(found, rows).splitlines()

        assert (lines[0], lines[-1]) == TABLES
        start = lines.index("### Queues known")
        assert lines[start + 2 : start + 7] == [
            "|  |  | µs | own CPU µs |",
            "| --- | --: | --: | --: |",
            "| taskbridge on Celery | 1 | 10.0 | 5.00 |",
            "| taskbridge on Celery | 1,000 | 11.0 | - |",
            "| Celery | 1 | 100 | 50.0 |",
        ]
        assert lines.index("### Stall") > start
        assert "|  | µs | own CPU µs |" in lines
        assert sum(line.startswith("Settings:") for line in lines) == 1

    def test_sums_are_worked_out_from_the_figures(self) -> None:
        found = result(
            measured(C, 20, row="server-redis", metric="sent: server µs"),
            measured(C, 2, row="server-redis", metric="sent 100 at once: server µs"),
            measured(C, 50, row="server-redis", metric="run: server µs"),
            measured(C, 600, row="server-redis", metric="waiting: bytes"),
            measured(C, 30, row="idle-workers-redis", metric="commands/s"),
            measured(C, 0.05, row="idle-workers-redis", metric="server CPU %"),
        )

        redis, _, rabbitmq = sums(found).partition("### RabbitMQ")
        cells = {line.split(" | ")[0]: line.split(" | ")[2] for line in redis.splitlines() if " | " in line}

        assert cells["| messages/s of one processor"] == "10,000", "0.7 s / (20 + 50) µs"
        assert cells["| processors of servers at the peak"] == "4", "34,722 x 70 µs / 0.7 s = 3.47"
        assert cells["| the same, sent 100 at once"] == "3", "34,722 x 52 µs / 0.7 s = 2.58"
        assert cells["| memory: an hour that waits, GB"] == "25.0", "3,600 x 11,574 x 600"
        assert cells["| 1,000 idle workers: commands/s"] == "30,000"
        assert cells["| 1,000 idle workers: processors of the server"] == "0.50"
        assert "10,000" not in rabbitmq

    def test_what_was_not_measured_is_a_dash_and_no_error(self) -> None:
        lines = sums(FOUND).splitlines()

        assert (lines[0], lines[-1]) == SUMS
        assert "| *c*: server µs, run | measured | - | - | - | - |" in lines
        assert [line for line in lines if "1,000 idle workers: channels" in line] == [
            "| 1,000 idle workers: channels | 1,000 x *channels* | - | - |"
        ]

    def test_the_sums_are_about_rows_that_are_measured(self) -> None:
        everything = result(
            *(
                measured(contender.name, 1, row=each.key, metric=metric)
                for each in ROWS
                for contender in each.contenders
                for metric in each.metrics
            )
        )

        assert [line for line in sums(everything).splitlines() if "| -" in line.replace("| --", "")] == []


class TestReadings:
    def test_what_redis_says_of_itself_is_read(self) -> None:
        info = "\r\n".join(
            [
                *("# Memory", "used_memory:1048576", "used_memory_human:1.00M", "# Clients", "connected_clients:3"),
                *("total_commands_processed:70", "total_net_input_bytes:100", "total_net_output_bytes:20"),
                *("used_cpu_sys:0.5", "used_cpu_user:1.25", "executable:/usr/bin/redis-server"),
            ]
        )

        assert from_info(info) == Reading(cpu_s=1.75, held=1048576, kept=1048576, commands=70, connections=3, moved=120)

    def test_the_time_of_a_process_is_that_of_its_threads(self) -> None:
        """Here, of a process of its own, whose threads neither come nor go."""
        code = (
            "import sys, threading, time\n"
            "def spin(until_s, end):\n"
            "    while time.process_time() < until_s: pass\n"
            "    end()\n"
            "def tell():\n"
            "    print(time.process_time(), flush=True)\n"
            "    sys.stdin.read()\n"
            "threading.Thread(target=spin, args=(0.4, threading.Event().wait), daemon=True).start()\n"
            "spin(0.5, tell)\n"
        )
        argv = [sys.executable, "-c", code]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told_s = float(process.stdout.readline())

            assert _cpu_s(process.pid) == pytest.approx(told_s, abs=0.1)

    def test_lines_of_numbers_are_told_from_the_names_of_their_columns(self) -> None:
        assert counted("channels\trecv_oct\tsend_oct\n2\t512\t1024\n1\t7\t8\n") == [(2, 512, 1024), (1, 7, 8)]
        assert counted("channels\trecv_oct\tsend_oct\n") == []

    def test_servers_tell_their_versions(self) -> None:
        told = servers()

        assert list(told) == ["Redis", "RabbitMQ", "Erlang"]
        assert all(each[:1].isdigit() for each in told.values()), told


class TestPages:
    """The pages are what the last run of the benchmark wrote, as `--render` would write them now."""

    def test_their_generated_parts_are_up_to_date(self) -> None:
        found, grown = (loads((DOCS / f"{page}.json").read_text()) for page in PAGES)
        performance, scaling = (DOCS / "performance.md").read_text(), (DOCS / "scaling.md").read_text()

        assert replaced(performance, markdown(found, ROWS, judge(found, GOALS))) == performance
        assert replaced(replaced(scaling, sums(grown)), tables(grown, ROWS)) == scaling

    def test_the_rows_of_a_page_are_all_that_it_is_made_of(self) -> None:
        grown = loads((DOCS / "scaling.json").read_text())
        keys = {row.key for row in PAGES["scaling"]}
        measured = replace(grown, measurements=tuple(each for each in grown.measurements if each.row in keys))

        assert sums(measured) == sums(grown)
        assert {row for rows in PAGES.values() for row in rows} == set(ROWS)

    def test_a_page_is_not_written_from_some_of_its_rows(self) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["--write", "--only", "send-redis"])

        assert ended.value.code == 2


def test_who_lives_in_an_environment_that_is_not_there_is_left_out() -> None:
    figures = {"us": 1.0, "cpu_us": 2.0}
    other = CELERY.like("other", home="elsewhere")
    one = replace(row(), contenders=(CELERY_BRIDGE, other), measure=lambda *_: figures)
    with Place({}) as without, Place({"elsewhere": "/usr/bin/python3"}) as with_it:
        names = [
            {each.contender for each in measure(place, [one], QUICK, lambda line: None)[0]}
            for place in (without, with_it)
        ]

    assert names == [{C}, {C, "other"}]


@contextmanager
def started(folder: Path, code: str) -> Generator[tuple[WorkerProcess, Path]]:
    output = folder / "out"
    argv = [sys.executable, "-c", code]
    with worker(argv, dict(os.environ), output=output, log=folder / "log") as running:
        yield running, output


class TestProcesses:
    def test_programs_are_held_until_the_block_ends(self, tmp_path: Path) -> None:
        code = (
            f"import pathlib, sys; print('here', flush=True); sys.stdin.read(); pathlib.Path('{tmp_path}/end').touch()"
        )
        with held([[sys.executable, "-c", code]], dict(os.environ)):
            assert not (tmp_path / "end").exists()

        assert (tmp_path / "end").exists()

    def test_a_program_that_ends_at_once_is_told(self) -> None:
        programs = [[sys.executable, "-c", "print('here', flush=True); input()"], [sys.executable, "-c", "pass"]]
        with pytest.raises(MeasuringFailed, match="ended"), held(programs, dict(os.environ)):
            pytest.fail("the block began")

    def test_a_frozen_worker_does_nothing_and_goes_on_after_that(self, tmp_path: Path) -> None:
        code = "import os, time\nwhile True: os.write(1, b'x'); time.sleep(0.01)"
        with started(tmp_path, code) as (running, output):
            grows_beyond(output, 0)
            with running.frozen():
                until_stopped(running)
                size = output.stat().st_size
                time.sleep(0.3)
                assert output.stat().st_size == size
            grows_beyond(output, size)

    def test_a_worker_is_idle_when_it_has_started_and_uses_next_to_no_time(self, tmp_path: Path) -> None:
        code = "import time\nwhile time.process_time() < 0.1: pass\nprint('started', flush=True); time.sleep(60)"
        with started(tmp_path, code) as (running, output):
            running.wait_until_idle(timeout_s=PATIENCE_S)
            assert output.read_text() == "started\n"

    @pytest.mark.parametrize("used_s", [0.0, 0.2])
    def test_a_worker_that_ends_is_not_waited_for(
        self, tmp_path: Path, used_s: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However much it had used by then: it ends between two looks, and uses nothing after that."""
        spin = f"import signal, time\nwhile time.process_time() < {used_s}: pass"
        code = f"{spin}\nprint('no such module', flush=True); signal.pause()"
        with started(tmp_path, code) as (running, output):
            grows_beyond(output, 0)

            def let_it_end(_: float) -> None:
                os.kill(running._process.pid, signal.SIGKILL)
                os.waitid(os.P_PID, running._process.pid, os.WEXITED | os.WNOWAIT)  # nobody has asked for its end yet

            clock = SimpleNamespace(monotonic=time.monotonic, sleep=let_it_end)
            monkeypatch.setattr("benchmarks.processes.time", clock)
            with pytest.raises(MeasuringFailed, match="no such module"):
                running.wait_until_idle(timeout_s=PATIENCE_S)


def until_stopped(running: WorkerProcess) -> None:
    """Wait until it stands still: what it is in the midst of, such as a write, it does before that."""
    deadline = time.monotonic() + PATIENCE_S
    while {stat[0] for stat in running._stats()} != {"T"}:
        assert time.monotonic() < deadline, "it does not stop"
        time.sleep(0.01)


def grows_beyond(file: Path, size: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not file.exists() or file.stat().st_size <= size:
        assert time.monotonic() < deadline, f"{file} stays at {size} bytes"
        time.sleep(0.01)
