"""What is said of an exception is safe and bounded, whatever the exception is."""

from __future__ import annotations

import logging
import traceback

import pytest

from taskbridge import Bridge, Event, RetryPolicy, failures
from taskbridge.contract.odd_errors import ODD_ERRORS
from taskbridge.logs import logger


def _raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as exc:
        return exc


def _raised_while_handling() -> BaseException:
    try:
        try:
            try:
                raise LookupError("first")
            except LookupError as exc:
                raise KeyError("second") from exc
        except KeyError:
            raise ValueError("third")  # noqa: B904 - its context is meant
    except ValueError as exc:
        return exc


def own_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what this test logged, and no thread of another one."""
    return [record for record in caplog.records if record.name == "taskbridge.test"]


def own_text(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(map(caplog.handler.format, own_records(caplog)))


@pytest.mark.parametrize("name", ODD_ERRORS)
def test_an_odd_error_is_described_within_bounds(name: str, caplog: pytest.LogCaptureFixture) -> None:
    error = _raised(ODD_ERRORS[name]())

    assert len(failures.text_of(error)) <= failures.MOST_TEXT
    assert 0 < len(failures.traceback_of(error)) <= failures.MOST_TRACEBACK
    assert failures.is_ordinary(error) == (name == "Commands")
    assert (failures.presentable(error) is error) == (name == "Commands")
    logger("taskbridge.test").error("task %s failed", "t", exc_info=failures.exc_info(error))
    logged = own_text(caplog)
    assert "task t failed" in logged
    assert type(error).__name__ in logged
    assert len(logged) < 2 * failures.MOST_TRACEBACK


def test_an_ordinary_one_is_printed_as_python_prints_it() -> None:
    for error in (_raised(ValueError("no")), _raised_while_handling()):
        assert failures.traceback_of(error) == "".join(traceback.format_exception(error))
        assert failures.is_ordinary(error)
        assert failures.presentable(error) is error


def test_an_ordinary_one_is_logged_with_the_exception_and_its_traceback_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = _raised(ValueError("no"))
    logger("taskbridge.test").error("it failed", exc_info=failures.exc_info(error))
    [record] = own_records(caplog)
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert record.filename == "test_failures.py"
    assert own_text(caplog).count("Traceback") == 1


def test_one_that_much_is_said_of_is_printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prints: list[BaseException] = []

    def prints_it(kind: type[BaseException], error: BaseException, *_: object) -> list[str]:
        prints.append(error)
        return [repr(error)]

    monkeypatch.setattr(failures, "format_exception", prints_it)
    error, other = ValueError("one"), ValueError("other")
    with failures.printed_once(error):
        assert failures.traceback_of(error) == failures.traceback_of(error) == "ValueError('one')"
        assert failures.is_ordinary(error)
        assert failures.traceback_of(other) == "ValueError('other')"
    assert prints == [error, other]
    failures.traceback_of(error)
    assert prints == [error, other, error]


def test_while_one_is_told_another_one_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    error, other = ValueError("one"), ValueError("other")
    with failures.printed_once(error):
        with failures.printed_once(other):
            assert failures.traceback_of(other) == "ValueError: other\n"
        monkeypatch.setattr(failures, "format_exception", lambda *_: ["printed anew"])
        assert failures.traceback_of(error) == "ValueError: one\n"
    assert failures.traceback_of(error) == "printed anew"


def test_of_a_deep_stack_the_beginning_and_the_end_are_kept() -> None:
    def fall(left: int) -> None:
        if not left:
            raise ValueError("deep")
        if left % 2:
            fall(left - 1)
        else:
            fall(left - 1)

    with pytest.raises(ValueError, match="deep") as caught:
        fall(400)
    text = failures.traceback_of(caught.value)
    assert "\n  ...\n" in text
    assert "test_of_a_deep_stack" in text
    assert text.endswith("ValueError: deep\n")


def test_a_long_traceback_keeps_its_beginning_and_its_end() -> None:
    error = ValueError("x")
    for _ in range(9):
        following = ValueError("y" * 5_000)
        following.__cause__ = error
        error = following
    error.__notes__ = ["z" * 5_000] * 9  # type: ignore[attr-defined]
    text = failures.traceback_of(error)
    assert len(text) <= failures.MOST_TRACEBACK
    assert text.startswith("ValueError: x\n")
    assert text.endswith("zzz\n")


def test_text_that_a_store_could_not_keep_is_escaped() -> None:
    assert failures.text_of(ValueError("a\ud800b\0c")) == "a\\ud800b\\x00c"


def test_a_hook_about_one_death_may_run_what_dies_too() -> None:
    bridge = Bridge("inline://?threads=0", retry=RetryPolicy.never())
    told: list[str] = []

    @bridge.task(name="t")
    def fail(name: str) -> None:
        raise ValueError(name)

    @bridge.on("dead")
    def tell(event: Event) -> None:
        told.append(str(event.error))
        if len(told) == 1:
            fail.send("second")
            bridge.run_until(lambda: False)

    fail.send("first")
    bridge.run_until_idle()
    assert told == ["first", "second"]
    assert [entry.attempts for entry in bridge.dead.list().entries] == [1, 1]
    bridge.close()
