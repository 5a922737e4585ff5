"""What came with a message forges no line of a log and commands no terminal (rule I4)."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from taskbridge import DecodeError, ResultNotEncodable, codec
from taskbridge.contract.odd_errors import COMMANDS, FORGED, TextRaises
from taskbridge.logs import escaped, logger

CONTROLS = [chr(number) for number in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x202E, 0x2066, 0xD800)]

_log = logger("taskbridge.test")

Logged = Callable[[], list[logging.LogRecord]]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Logged:
    """Return what returns the records of this file's logger alone: threads of other tests may log at any time."""
    return lambda: [record for record in caplog.records if record.name == _log.name]


def test_every_control_character_is_escaped() -> None:
    for control in CONTROLS:
        assert escaped(f"a{control}b") == f"a{ascii(control)[1:-1]}b"


@pytest.mark.parametrize("text", ["shop.note", "caf\u00e9 \u65e5\u672c", "\U0001f469\u200d\U0001f680", "a\u00a0b", ""])
def test_other_text_stays(text: str) -> None:
    assert escaped(text) == text


def test_what_is_to_be_kept_stays() -> None:
    assert escaped("a\tb\nc\x1bd", keep="\n\t") == "a\tb\nc\\x1bd"


def test_a_logged_line_stays_one_line(logged: Logged) -> None:
    _log.error("task %s id %s: %s", COMMANDS, 7, ValueError(COMMANDS))
    _log.error("task %(name)s", {"name": COMMANDS})
    assert [record.getMessage() for record in logged()] == [
        f"task {escaped(COMMANDS)} id 7: {escaped(COMMANDS)}",
        f"task {escaped(COMMANDS)}",
    ]


def test_no_line_of_an_exception_looks_like_one_of_the_log(caplog: pytest.LogCaptureFixture, logged: Logged) -> None:
    try:
        raise ValueError(COMMANDS)
    except ValueError:
        _log.exception("it failed")
    written = "".join(f"{caplog.handler.format(record)}\n" for record in logged())
    assert not set("\x1b\x07\x9b\r\u2028") & set(written)
    assert "\n  Traceback (most recent call last):\n    File " in written
    assert f"\n  {FORGED}" in written
    assert not [line for line in written.splitlines() if line.startswith(FORGED)]


def test_values_that_have_no_text_are_logged_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    _log.error("it failed: %s", TextRaises())
    assert "it failed: <its text can't be had: RuntimeError>" in caplog.text


def test_an_ordinary_record_is_left_as_it_is(logged: Logged) -> None:
    _log.warning("task %s id %s attempt %d", "shop.note", "a-b", 1)
    assert logged()[-1].args == ("shop.note", "a-b", 1)
    assert logged()[-1].msg == "task %s id %s attempt %d"


def test_asking_for_a_logger_twice_escapes_once() -> None:
    assert len(logger("taskbridge.test").filters) == 1
    assert logger("taskbridge.test") is logging.getLogger("taskbridge.test")


def test_errors_about_what_was_read_are_escaped() -> None:
    with pytest.raises(DecodeError) as caught:
        codec.loads('{"$":"datetime","v":"2026-01-01","zone":"\\u001b]0;owned\\u0007"}')
    not_kept = ResultNotEncodable(id="m", task="t", problem=f'result["{COMMANDS}"]: object')
    for error in (caught.value, DecodeError(COMMANDS), not_kept):
        assert not set("\x1b\x07\x9b\u202e\r\n\u2028") & set(str(error))
    assert escaped(COMMANDS) in str(not_kept)
    assert COMMANDS in not_kept.problem


def test_long_texts_are_cut_and_what_stands_behind_them_stays(logged: Logged) -> None:
    _log.error("task %s id %s waits %.1f s", "t" * 10_000, "an-id", 1.0)
    _log.error("it failed: %s", ValueError("x" * 10_000))
    named, failed = (record.getMessage() for record in logged())
    assert named == f"task {'t' * 500} id an-id waits 1.0 s"
    assert failed == f"it failed: {'x' * 500}"


def test_a_line_keeps_its_template_whatever_its_values_are(logged: Logged) -> None:
    """Sentry, say, groups lines by it."""
    _log.error("task %s failed: %s, %s of %d", COMMANDS, ValueError("no"), None, 1)
    assert logged()[-1].msg == "task %s failed: %s, %s of %d"
    assert logged()[-1].getMessage() == f"task {escaped(COMMANDS)} failed: no, None of 1"


def test_control_characters_make_no_longer_a_line(logged: Logged) -> None:
    _log.error("task %s", "\u202e" * 10_000)
    assert len(logged()[-1].getMessage()) == len("task ") + 500
