"""Measuring a guarantee can find it broken, and can find it kept; the whole matrix is measured by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.guarantees import rows
from benchmarks.guarantees.columns import column_of
from benchmarks.guarantees.measuring import measure
from benchmarks.guarantees.results import Cell
from benchmarks.guarantees.rows import messages
from benchmarks.guarantees.table import row_of
from benchmarks.guarantees.trial import Trial

assert rows.__all__  # fills the table


def wait_done_or_ended(t: Trial, keys: Sequence[str], within_s: float) -> bool:
    """Wait as a trial does, but no longer than until a worker ends, for that decides what these tests look at."""

    def are_done() -> bool:
        return all(t.is_done(key) for key in keys)

    t.until(lambda: t.ends or are_done(), within_s)
    return are_done()


@pytest.fixture(scope="module")
def cells() -> dict[str, Cell]:
    columns = [column_of("celery+redis:raw"), column_of("celery+redis:taskbridge")]
    seen: list[Cell] = []
    with pytest.MonkeyPatch.context() as patient:  # a worker may take long to start beside other tests
        patient.setattr(messages, "_PATIENCE_S", 75.0)
        patient.setattr(Trial, "wait_done", wait_done_or_ended)
        measured = measure([row_of("garbage-in-the-queue")], columns, done=seen.append)
    assert {cell.column for cell in seen} == {column.name for column in columns}
    return {cell.column: cell for cell in measured}


def test_celery_alone_is_ended_by_an_item_that_is_no_message(cells: dict[str, Cell]) -> None:
    outcome = cells["celery+redis:raw"].outcome

    assert not outcome.kept, outcome.figure
    assert "the worker ended" in outcome.remark


def test_taskbridge_stays_and_runs_the_messages_around_it(cells: dict[str, Cell]) -> None:
    outcome = cells["celery+redis:taskbridge"].outcome

    assert outcome.kept, outcome.figure
    assert (outcome.sent, outcome.lost, outcome.twice) == (3, 0, 0)


def test_taskbridge_runs_what_was_on_its_way_to_a_slot_as_the_connection_was_lost() -> None:
    rows_, columns = [row_of("connection-lost-as-messages-arrive")], [column_of("celery+redis:taskbridge")]
    (cell,) = measure(rows_, columns, done=lambda _: None)

    assert cell.outcome.kept, cell.outcome.figure


def test_a_cell_says_what_it_was_measured_with_and_how_to_repeat_it(cells: dict[str, Cell]) -> None:
    cell = cells["celery+redis:taskbridge"]

    assert {"python", "celery", "kombu", "redis", "redis-server", "taskbridge-queue"} <= cell.versions.keys()
    assert all(cell.versions.values())
    assert cell.command == "python -m benchmarks.guarantees --row garbage-in-the-queue --column celery+redis:taskbridge"
