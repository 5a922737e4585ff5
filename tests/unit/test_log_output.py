"""The formats in which workers log, as text and as JSON."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taskbridge import Bridge, Message, RetryPolicy, SettingsError, log_output
from taskbridge.contract.odd_errors import COMMANDS, FORGED
from taskbridge.dead import DeadEntry
from taskbridge.engines import settle
from taskbridge.log_output import JsonFormatter, TextFormatter
from taskbridge.logs import OncePerMinute, logger
from taskbridge.retry import ErrorInfo

BAD = set("\x1b\x07\x9b\r\u2028\u202e")


class Lines(logging.Handler):
    """Keeps what it formats."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def last(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.lines[-1])
        return found


@pytest.fixture
def as_json() -> Iterator[Lines]:
    yield from _attached(JsonFormatter())


@pytest.fixture
def as_text() -> Iterator[Lines]:
    yield from _attached(TextFormatter())


def _attached(formatter: logging.Formatter) -> Iterator[Lines]:
    handler = Lines(formatter)
    loggers = [logging.getLogger("taskbridge.worker"), logging.getLogger("own")]
    for each in loggers:
        each.addHandler(handler)
    yield handler
    for each in loggers:
        each.removeHandler(handler)


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    made = Bridge("inline://?threads=0", retry=RetryPolicy(max_attempts=2, min_delay=60, jitter=0))
    yield made
    made.close()


def run_one(bridge: Bridge) -> None:
    bridge.engine.run(bridge.wire.take(None))  # type: ignore[attr-defined]


def raise_commands() -> None:
    raise ValueError(COMMANDS)


def test_a_record_of_the_application_tells_which_run_has_logged_it(
    bridge: Bridge, as_json: Lines, as_text: Lines
) -> None:
    own = logging.getLogger("own")
    sent = bridge.task(name="t")(lambda: own.error("hello %s", 1)).send()
    run_one(bridge)
    told = as_json.last()
    assert (told["message"], told["task"], told["id"], told["attempt"], told["queue"]) == (
        "hello 1",
        "t",
        sent.id,
        1,
        "default",
    )
    assert as_text.lines[-1].endswith(f" ERROR {os.getpid()} own: hello 1 [task t id {sent.id} attempt 1]")


def test_what_does_not_apply_is_left_out(as_json: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_output.process, "engine", None)  # as in a process that has loaded no application
    logging.getLogger("own").error("hello")
    assert set(as_json.last()) == {"time", "level", "logger", "message", "worker"}


def test_a_failed_attempt_says_what_where_and_when_it_runs_again(bridge: Bridge, as_json: Lines) -> None:
    bridge.task(name="t")(raise_commands).send()
    run_one(bridge)
    told = as_json.last()
    line = raise_commands.__code__.co_firstlineno + 1
    assert told["message"].endswith(f" ({__file__}:{line} in raise_commands), runs again in 60.000 s")
    assert "attempt 1 failed: ValueError: " in told["message"]
    assert "exception" not in told
    assert told["level"] == "WARNING"


def test_a_dead_message_says_it_with_the_traceback(bridge: Bridge, as_json: Lines, as_text: Lines) -> None:
    bridge.task(name="t", retry=RetryPolicy.never())(raise_commands).send()
    run_one(bridge)
    told = as_json.last()
    assert "attempt 1 is dead: exhausted: ValueError: " in told["message"]
    assert told["exception"].startswith("Traceback (most recent call last):\n  File ")
    assert not BAD & set(as_text.lines[-1])
    first, *more = as_text.lines[-1].split("\n")
    assert " taskbridge.worker: task t id " in first
    assert len(more) > 3
    assert all(line.startswith("  ") for line in more)
    assert not [line for line in more if line.startswith(FORGED)]


def test_a_text_is_cut_and_what_stands_behind_it_stays(bridge: Bridge, as_json: Lines) -> None:
    def long() -> None:
        raise ValueError("x" * 100_000)

    bridge.task(name="t")(long).send()
    run_one(bridge)
    text = as_json.last()["message"]
    assert 490 <= text.count("x") <= 501
    assert text.endswith("in long), runs again in 60.000 s")


@pytest.mark.parametrize("attempts", [1, 2])
def test_what_is_redacted_is_in_no_line(bridge: Bridge, as_json: Lines, as_text: Lines, attempts: int) -> None:
    @bridge.dead.redact
    def redact(entry: DeadEntry) -> DeadEntry:
        return replace(entry, error=ErrorInfo(type="ValueError", message="(hidden)"), traceback="(no traceback)")

    def secret() -> None:
        raise ValueError("4111 1111 1111 1111")

    bridge.task(name="t", retry=RetryPolicy(max_attempts=attempts, min_delay=60))(secret).send()
    run_one(bridge)
    assert ": ValueError: (hidden) (" in as_json.last()["message"]
    assert as_json.last().get("exception") == ("(no traceback)" if attempts == 1 else None)
    assert not [line for line in (*as_json.lines, *as_text.lines) if "4111" in line]


def test_no_line_of_an_application_forges_another_one(as_text: Lines, as_json: Lines) -> None:
    try:
        raise_commands()
    except ValueError:
        logging.getLogger("own").exception("it failed: %s", COMMANDS)
    assert not BAD & set(as_text.lines[-1])
    assert not [line for line in as_text.lines[-1].split("\n")[1:] if not line.startswith("  ")]
    assert "\n" not in as_json.lines[-1]
    assert as_json.last()["message"] == f"it failed: {COMMANDS}"
    assert COMMANDS in as_json.last()["exception"]


def test_a_message_that_does_not_fit_its_arguments_makes_a_line_too() -> None:
    record = logging.makeLogRecord({"msg": "%d of %d", "args": ("x",)})
    assert json.loads(JsonFormatter().format(record))["message"].startswith("%d of %d (its arguments don't fit: ")


@pytest.mark.parametrize(
    "given", ["x", {"task": object()}, {"message": "forged", "time": 1}, {(1, 2): 3, "id": {(1,): 2}}]
)
def test_what_an_application_gives_by_our_name_makes_a_line_too(as_json: Lines, as_text: Lines, given: object) -> None:
    logging.getLogger("own").error("hello", extra={"taskbridge": given})
    assert as_json.last()["message"] == "hello"
    assert isinstance(as_json.last()["time"], str)
    assert as_text.lines[-1].endswith(" own: hello")


def test_half_a_surrogate_pair_is_written_as_an_escape() -> None:
    record = logging.makeLogRecord({"name": "own", "levelname": "ERROR", "msg": "a\ud800b"})
    assert json.loads(JsonFormatter().format(record))["message"] == "a\\ud800b"


def test_an_unknown_task_is_said_once_a_minute_and_then_counted(
    bridge: Bridge, as_json: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("taskbridge.logs.monotonic", lambda: now[0])
    monkeypatch.setattr(settle, "_unknown", OncePerMinute())
    bridge.task(name="shop.mail")(print)
    fields: dict[str, Any] = {"task": "shop.mial", "queue": "default", "args_json": "[]", "kwargs_json": "{}"}
    messages = [Message(**fields, id=f"{number}", enqueued_at=time.time()) for number in range(4)]
    for message in messages[:3]:
        settle.put_off_unknown(bridge, message)
    now[0] += 61
    settle.put_off_unknown(bridge, messages[3])
    said = [json.loads(line)["message"] for line in as_json.lines]
    assert len(said) == 2
    assert "is not known here; did you mean 'shop.mail'?: this worker knows 1 tasks; it waits" in said[0]
    assert said[0].endswith(" up to 600 s")
    assert said[1].endswith(" up to 600 s ... and 2 more since")


def test_names_of_unknown_tasks_do_not_fill_the_memory() -> None:
    said = OncePerMinute()
    for number in range(5000):
        assert said.due(f"{number}", is_new=True) == 0
    assert said.due("4999", is_new=True) is None
    assert said.due("0", is_new=True) == 0, "it was forgotten"


def test_an_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKBRIDGE_LOG_FORMAT", "xml")
    with pytest.raises(SettingsError, match="it must be text or json, not 'xml'"), log_output.set_up("INFO"):
        pass


def test_loggers_that_exist_stay_enabled_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"version": 1}')
    (tmp_path / "b.json").write_text('{"version": 1, "disable_existing_loggers": true}')
    assert not log_output.read_config(str(tmp_path / "a.json"))["disable_existing_loggers"]
    assert log_output.read_config(str(tmp_path / "b.json"))["disable_existing_loggers"]


def test_a_file_may_be_toml(tmp_path: Path) -> None:
    pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    (tmp_path / "a.toml").write_text('version = 1\n[root]\nlevel = "INFO"\n')
    assert log_output.read_config(str(tmp_path / "a.toml"))["root"] == {"level": "INFO"}


def test_uncaught_exceptions_and_warnings_are_lines_too(tmp_path: Path) -> None:
    code = """
import threading, warnings
from taskbridge import log_output
with log_output.set_up("INFO"):
    pass
warnings.warn("look here")
thread = threading.Thread(target=lambda: 1 / 0, name="mine")
thread.start()
thread.join()
[][0]
"""
    env = {**os.environ, "TASKBRIDGE_LOG_FORMAT": "json"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    warned, thread, main = map(json.loads, done.stderr.splitlines())
    assert "look here" in warned["message"]
    assert (thread["message"], main["message"]) == ("uncaught exception in thread mine", "uncaught exception")
    assert "ZeroDivisionError" in thread["exception"]
    assert "IndexError" in main["exception"]


def test_the_formatters_can_be_named_in_a_set_up_of_ones_own() -> None:
    code = """
import logging.config
logging.config.dictConfig({
    "version": 1,
    "formatters": {"json": {"()": "taskbridge.log_output.JsonFormatter"}},
    "handlers": {"it": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["it"]},
})
logging.warning("hello")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stderr)["message"] == "hello"


def test_a_logger_of_the_process_itself_is_that_of_standard_error_alone() -> None:
    own = log_output.own_lines()
    assert own is not logger("taskbridge")
    assert own.isEnabledFor(logging.INFO)
