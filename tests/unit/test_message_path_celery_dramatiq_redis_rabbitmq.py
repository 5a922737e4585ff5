"""One message passes through few files of taskbridge, and moves between them seldom."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.message_path import MESSAGES, RUNS, SENDS, measured, trace_runs, trace_send

MOST_FILES_AND_MOVES = {
    "send, Redis": (13, 38),
    "send, recorded": (15, 46),
    "send, RabbitMQ": (18, 62),
    "run, Celery + Redis": (29, 110),
    "run, Celery + RabbitMQ": (23, 72),
    "run, Dramatiq + Redis": (25, 92),
    "run, Dramatiq + RabbitMQ": (22, 75),
}
"""These bounds fall; the aims are 9 files and 25 moves for a send on Redis, and 15 files for each run. Moves of a run
differ by a tenth from one run to the next, for what a worker does in batches depends on the moment."""

Urls = Callable[[str], str]


@pytest.mark.parametrize("name", SENDS)
def test_a_send_passes_through_few_files(name: str, url_of: Urls) -> None:
    engine, broker, recorded = SENDS[name]
    passed = measured(trace_send(url_of(f"{engine}+{broker}"), results=recorded), 1)
    files, moves = MOST_FILES_AND_MOVES[name]
    assert (passed.files <= files, passed.moves <= moves) == (True, True), passed


@pytest.mark.parametrize("name", RUNS)
def test_a_run_passes_through_few_files(name: str, url_of: Urls) -> None:
    engine, broker = RUNS[name]
    passed = measured(trace_runs(url_of(f"{engine}+{broker}")), MESSAGES)
    files, moves = MOST_FILES_AND_MOVES[name]
    assert (passed.files <= files, passed.moves <= moves) == (True, True), passed
