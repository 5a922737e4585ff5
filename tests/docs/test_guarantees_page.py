"""The page of guarantees says what was measured, all of it, and no taskbridge cell is broken."""

from __future__ import annotations

import pytest

from benchmarks.guarantees.columns import COLUMNS
from benchmarks.guarantees.page import FILE, page
from benchmarks.guarantees.results import FILE as RESULTS
from benchmarks.guarantees.results import load, places
from benchmarks.guarantees.table import ROWS
from tests.docs.pages import DOCS

CELLS = load(DOCS / RESULTS)

# How the engines alone lose, double or stop, as it was found before this library was written; each by a row.
KNOWN = {
    "a retry that meets an outage is lost": ("retry-in-an-outage", "dramatiq+redis:raw"),
    "what is sent after a dropped connection is lost": (
        "send-after-a-dropped-connection-defaults",
        "dramatiq+amqp:raw",
    ),
    "a delay over the consumer timeout ends the worker": ("delay-over-consumer-timeout-defaults", "celery+amqp:raw"),
    "delayed tasks are in limbo after a lost connection (Celery)": ("connection-lost-with-delays", "celery+redis:raw"),
    "delayed tasks are in limbo after a lost connection (Dramatiq)": (
        "connection-lost-with-delays",
        "dramatiq+redis:raw",
    ),
    "a full Redis ends the consumer of delayed tasks": ("full-broker-with-delays", "dramatiq+redis:raw"),
    "a message that kills its worker is repeated for ever": ("deadly-message-for-the-worker", "celery+amqp:raw"),
    "an item that is no message ends the worker": ("garbage-in-the-queue", "celery+redis:raw"),
    "an expired task vanishes": ("expired-tasks", "celery+amqp:raw"),
    "a queue of the other engine is refused": ("same-queue-name", "celery+amqp:raw"),
    "a delay over the visibility timeout is run again": ("delay-over-visibility-timeout", "celery+redis:raw"),
    "what follows a group runs again as one of its members does": (
        "group-member-delivered-again",
        "dramatiq+redis:raw",
    ),
    "a group whose member kills its worker never ends (Celery)": ("deadly-member-of-a-group", "celery+redis:raw"),
    "a group whose member expires never ends (Dramatiq)": ("expired-member-of-a-group", "dramatiq+redis:raw"),
    "a task over the visibility timeout is run again": ("task-over-visibility-timeout", "celery+redis:raw"),
}


def test_the_page_is_what_the_results_say() -> None:
    written = (DOCS / FILE).read_text(encoding="utf-8")

    assert written == page(CELLS), "run python -m benchmarks.guarantees --no-measuring --write docs"


def test_every_row_was_measured_in_every_column() -> None:
    assert [place for place in places() if place not in CELLS] == []
    assert [place for place in CELLS if place not in places()] == []
    assert len(ROWS) >= 20
    assert len(COLUMNS) == 8


def test_no_taskbridge_cell_is_broken() -> None:
    broken = [cell.command for cell in CELLS.values() if not cell.column.endswith(":raw") and not cell.outcome.kept]

    assert broken == []


@pytest.mark.parametrize("known", KNOWN)
def test_what_is_known_of_the_engines_was_measured(known: str) -> None:
    assert not CELLS[KNOWN[known]].outcome.kept


def test_every_cell_has_its_figures_versions_and_date() -> None:
    for cell in CELLS.values():
        assert cell.outcome.figure
        assert cell.versions
        assert cell.measured_at
        assert cell.outcome.sent, f"{cell.command} measured nothing: {cell.outcome.remark}"
