"""The rows that stores keep of records, and how a worker shows that it is alive."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from typing import Any, cast

import pytest

from taskbridge import ErrorInfo, Message
from taskbridge.durations import moment
from taskbridge.message import loads
from taskbridge.settings import load
from taskbridge.stores import transitions
from taskbridge.stores.marks import Worker
from taskbridge.stores.memory import MemoryBackend
from taskbridge.stores.states import Ending, Row, State, Status, is_row, status_of
from taskbridge.stores.transitions import Run

MESSAGE = Message(id="m", task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=1.5)


def ended(state: State) -> Row:
    error = None if state == "done" else ErrorInfo(type="E", message="no \udc80")
    ending = Ending(state=state, at=3.0, due_at=9.0, result_json="[1]", reason="r", error=error, traceback="line\udcff")
    row = transitions.ended(None, MESSAGE, ending, Run("w:1", 2.0), writer="me")
    assert row is not None
    return row


@pytest.mark.parametrize("state", ["done", "dead", "retrying", "queued", "discarded"])
def test_what_was_kept_as_json_comes_back_as_it_was(state: State) -> None:
    row = ended(state)
    assert status_of("m", cast("Row", json.loads(json.dumps(row)))) == status_of("m", row)


def test_what_a_newer_release_tells_beside_what_is_known_here_is_left_out() -> None:
    row = json.loads(json.dumps(ended("dead")))
    newer: Any = {**row, "mood": [1, 2], "error": [*row["error"], "more"]}
    newer["attempts"] = [[*each, {"host": "w"}] for each in row["attempts"]]
    assert is_row(newer)
    assert status_of("m", newer) == status_of("m", row)


def test_a_row_holds_what_is_there() -> None:
    row = transitions.created(None, MESSAGE, 0.0)
    assert row is not None
    assert row == {"task": "t", "queue": "q", "state": "queued", "enqueued_at": 1.5}
    assert status_of("m", row) == Status(id="m", task="t", queue="q", state="queued", enqueued_at=moment(1.5))


CALL = replace(MESSAGE, args_json="[1]", kwargs_json='{"a":2}', headers={"h": "v"}, keeps_call=True)


def test_a_record_keeps_the_call_of_a_message_that_asks_for_it_until_its_end() -> None:
    made = transitions.created(None, CALL, 0.0)
    begun = transitions.started(made, CALL, Run("w:1", 2.0), writer="me")
    row = transitions.ended(begun, CALL, Ending(state="done", at=3.0, result_json="1"), None, writer="me")

    read = json.loads(json.dumps(row))
    assert is_row(read)
    assert status_of("m", read).sent == ("[1]", '{"a":2}', {"h": "v"})


@pytest.mark.parametrize("sent", [7, ["[1]"], ["[1]", 2, {}], ["[1]", "{}", []]])
def test_a_row_with_an_odd_call_is_none(sent: Any) -> None:
    assert not is_row({**ended("done"), "sent": sent})


def test_a_record_of_a_message_that_does_not_ask_for_it_keeps_no_call() -> None:
    assert status_of("m", ended("done")).sent is None


def test_a_release_that_does_not_keep_calls_leaves_a_message_readable() -> None:
    text = json.loads(CALL.dumps())

    assert loads(json.dumps(text)) == CALL
    assert loads(json.dumps({name: value for name, value in text.items() if name != "keeps_call"})) == replace(
        CALL, keeps_call=False
    )


def test_a_worker_says_that_it_is_alive_however_much_there_is_to_remove() -> None:
    said: list[float] = []
    is_known = threading.Event()

    class Old(MemoryBackend):
        is_shared = True

        def put(self, key: str, text: str, *, kept_s: float, timeout_s: float) -> None:
            said.append(time.monotonic())
            if len(said) > 12:
                is_known.set()

        def purge(self, *, timeout_s: float) -> bool:
            time.sleep(min(timeout_s, 0.01))
            return True

    settings, _ = load({"url": "inline://", "lease": 1.0}, environ={})
    worker = Worker(settings, Old(time.time))
    try:
        assert is_known.wait(20), said
        assert worker.lived_since(said[0])
    finally:
        worker.stop()
