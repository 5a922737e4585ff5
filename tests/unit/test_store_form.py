"""The form in which stores keep records."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from taskbridge import ErrorInfo, Message
from taskbridge.stores import transitions
from taskbridge.stores.form import from_plain, plain_of_new, to_plain
from taskbridge.stores.records import Ending, State
from taskbridge.stores.transitions import Kept, Run

MESSAGE = Message(id="m", task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=1.5)


def ended(state: State) -> Kept:
    started = transitions.started(None, MESSAGE, Run(worker="w:1", at=2.0), writer="me")
    error = None if state == "done" else ErrorInfo(type="E", message="no \udc80")
    ending = Ending(state=state, at=3.0, due_at=9.0, result_json="[1]", reason="r", error=error, traceback="line\udcff")
    kept = transitions.ended(started, MESSAGE, ending, None, writer="me")
    assert kept is not None
    return kept


@pytest.mark.parametrize("state", ["done", "dead", "retrying", "queued", "discarded"])
def test_what_was_kept_comes_back_as_it_was(state: State) -> None:
    kept = ended(state)
    assert from_plain("m", json.loads(json.dumps(to_plain(kept)))) == kept


@pytest.mark.parametrize("delay_s", [0.0, 60.0])
@pytest.mark.parametrize("replays", [0, 2])
def test_the_short_way_for_new_records_says_the_same(delay_s: float, replays: int) -> None:
    message = replace(MESSAGE, replays=replays)
    kept = transitions.created(None, message, delay_s)
    assert kept is not None
    assert plain_of_new(message, delay_s) == to_plain(kept)
    assert from_plain("m", plain_of_new(message, delay_s)) == kept
