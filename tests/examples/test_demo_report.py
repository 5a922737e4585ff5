"""The demo compares what two engines did, and finds what differs."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from examples.demo.events import Note
from examples.demo.report import Paint, Run, comparison, is_identical, line, run_of

PLAIN = Paint(io.StringIO())


def note(at: float, what: str, *, attempt: int = 1, **more: object) -> Note:
    base = Note(at=at, what=what, id="1", task="charge", subject="7", queue="q", priority="normal", attempt=attempt)
    return replace(base, **more)  # type: ignore[arg-type]


NOTES: Sequence[Note] = (
    note(10.05, "after_send", delay_s=1.0, sent_at=10.0),
    note(11.01, "before_run"),
    note(11.02, "retrying", delay_s=0.5, text="ValueError: x"),
    note(11.52, "before_run", attempt=2),
    note(11.53, "succeeded", attempt=2, text="paid"),
    note(12.0, "closed", left=(0, 0, 0)),
)


def other(change: Callable[[list[Note]], object]) -> Run:
    notes = list(NOTES)
    change(notes)
    return run_of("dramatiq+memory", notes)


def changed(index: int, **more: object) -> Callable[[list[Note]], object]:
    return lambda notes: notes.__setitem__(index, replace(notes[index], **more))  # type: ignore[arg-type]


ONE = run_of("celery+memory", NOTES)


def test_two_runs_that_did_the_same_at_other_times_are_identical() -> None:
    later = run_of(
        "dramatiq+memory", [replace(each, at=each.at + 100.25, sent_at=each.sent_at + 100.25) for each in NOTES]
    )
    assert is_identical(ONE, later)
    table = comparison(ONE, later, width=120, paint=PLAIN)
    assert re.search(r"charge 7 +q +2 +1\+0\.5 s +done +2 +1\+0\.5 s +done +identical\n", table)
    assert "0.01 s late at most" in table
    assert "on time" in table


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda notes: notes.insert(3, note(11.4, "before_run")), "differs: attempts"),
        (changed(2, delay_s=0.4), "differs: delays"),
        (changed(3, queue="other"), "differs: queue"),
        (changed(0, priority="high"), "differs: priority"),
        (changed(4, what="dead", reason="exhausted"), "differs: end, result"),
        (changed(4, text="paid twice"), "differs: result"),
        (lambda notes: notes.insert(5, note(11.6, "succeeded", attempt=2, text="paid")), "differs: end"),
        (lambda notes: notes.pop(4), "differs: end, result"),
        (changed(5, left=(1, 0, 0)), "differs: rest"),
        (changed(1, at=10.99), "too early"),
        (changed(3, at=11.50), "too early"),
    ],
)
def test_what_differs_is_named(change: Callable[[list[Note]], object], verdict: str) -> None:
    two = other(change)
    assert not is_identical(ONE, two)
    for width in (120, 80):
        assert verdict in comparison(ONE, two, width=width, paint=PLAIN)


def test_another_order_of_priorities_differs() -> None:
    low, high = note(10.0, "after_send", task="pack", priority="low"), note(10.0, "after_send", task="pack", id="2")
    runs = [replace(each, at=11.0, what="before_run") for each in (low, high)]
    one, two = run_of("a", [low, high, *runs]), run_of("b", [low, high, *reversed(runs)])
    assert not is_identical(one, two)
    assert "differs: order" in comparison(one, two, width=120, paint=PLAIN)


def test_a_message_that_one_run_did_not_send_differs() -> None:
    assert not is_identical(ONE, run_of("b", []))


def test_a_late_start_is_shown_but_is_no_difference() -> None:
    two = other(changed(3, at=14.0))
    assert is_identical(ONE, two)
    assert re.search(r"2\.49 s late at most +late", comparison(ONE, two, width=120, paint=PLAIN))


def test_a_narrow_terminal_gets_a_narrow_table() -> None:
    lines = comparison(ONE, ONE, width=80, paint=PLAIN).splitlines()
    assert max(map(len, lines)) <= 80


def test_each_event_is_one_line() -> None:
    assert [line(each, 10.0, PLAIN) for each in NOTES] == [
        " 0.050 s  charge 7                        sent to queue q, due in 1 s",
        None,
        " 1.020 s  charge 7             attempt 1  failed: ValueError, again in 0.5 s",
        None,
        " 1.530 s  charge 7             attempt 2  done: paid",
        None,
    ]
