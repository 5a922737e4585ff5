"""The benchmark shows what it found, compares round with round, and judges by its goals; no figure is measured here."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from benchmarks.contenders import CELERY, CELERY_BRIDGE
from benchmarks.goals import GOALS, C, D, Goal, judge
from benchmarks.render import BEGIN, END, markdown, replaced, shown, text
from benchmarks.results import Measurement, Result, loads, ratio
from benchmarks.rows.base import Row
from benchmarks.rows.table import ROWS


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


def row(key: str = "send-redis", *, is_extra: bool = False) -> Row:
    return Row(
        key=key,
        title="send, Redis",
        contenders=(CELERY_BRIDGE, CELERY),
        measure=lambda *_: {},
        metrics=("us", "cpu_us"),
        is_extra=is_extra,
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
        assert loads(FOUND.dumps()) == FOUND

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

    def test_every_goal_is_about_a_figure_that_is_measured(self) -> None:
        figures = {
            (row.key, contender.name, metric) for row in ROWS for contender in row.contenders for metric in row.metrics
        }

        for goal in GOALS:
            assert {(goal.row, goal.ours, goal.metric), (goal.row, goal.theirs, goal.metric)} <= figures


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
        page = markdown(FOUND, [row(), row("other", is_extra=True)], judge(FOUND, [goal]))

        assert page.startswith(BEGIN)
        assert page.endswith(END)
        assert "Measured on 2026-01-02. Machine: processors 2 x Fast. Versions: Python 3.13.1." in page
        assert "| Celery | 300 | 67% | 12.00 | 160 |" in page
        assert f"Celery: {CELERY.settings}" in page
        assert "| send-redis | µs | taskbridge on Celery | Celery | <= 0.05 | 0.0875 | near |" in page
        assert "Not measured: send-redis: RQ: no such package." in page

    def test_only_the_generated_part_of_a_page_is_replaced(self) -> None:
        assert replaced(f"before\n{BEGIN}\nold\n{END}\nafter", f"{BEGIN}new{END}") == f"before\n{BEGIN}new{END}\nafter"
        with pytest.raises(ValueError, match="no generated part"):
            replaced("before", "new")

    @pytest.mark.parametrize(("value", "expected"), [(0.1234, "0.12"), (12.34, "12.3"), (1234.5, "1,234")])
    def test_a_figure_has_three_digits_or_all_before_the_point(self, value: float, expected: str) -> None:
        assert shown(value) == expected


def test_no_two_rows_and_no_two_contenders_of_a_row_have_one_name() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
    for each in ROWS:
        assert len({contender.name for contender in each.contenders}) == len(each.contenders), each.key
