"""Rules R1 to R3 and R7: policies and verdicts, by table."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskbridge import Discard, Retry, RetryPolicy
from taskbridge.retry import Dead, Discarded, ErrorInfo, GivenBack, Interrupted, RunAgain, Verdict, judge

ID = "7c0b5c4e-8f0e-4a53-9c86-0e3f3f1d2a11"


class PermanentError(Exception):
    pass


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


POLICY = RetryPolicy(max_attempts=3, min_delay=1, factor=2, jitter=0, give_up_on=PermanentError)


@pytest.mark.parametrize(
    ("policy", "attempt", "error", "kind", "says"),
    [
        (POLICY, 1, ValueError(), RunAgain, 1.0),
        (POLICY, 2, ValueError(), RunAgain, 2.0),
        (POLICY, 3, ValueError(), Dead, "exhausted"),
        (POLICY, 4, ValueError(), Dead, "exhausted"),
        (POLICY, 1, PermanentError(), Dead, "gave_up"),
        (POLICY, 1, SystemExit(0), Dead, "gave_up"),
        (POLICY, 1, KeyboardInterrupt(), Dead, "gave_up"),
        (RetryPolicy(retry_on=OSError, jitter=0), 1, ValueError(), Dead, "gave_up"),
        (RetryPolicy(retry_on=OSError, jitter=0), 1, ConnectionError(), RunAgain, 1.0),
        (RetryPolicy(retry_on=OSError, give_up_on=ConnectionError), 1, ConnectionError(), Dead, "gave_up"),
        (RetryPolicy(retry_on=(SystemExit, OSError), jitter=0), 1, SystemExit(1), RunAgain, 1.0),
        (RetryPolicy.never(), 1, ValueError(), Dead, "exhausted"),
        (RetryPolicy(max_attempts=None, jitter=0), 10_000, ValueError(), RunAgain, 600.0),
        (POLICY, 1, Discard("enough"), Discarded, "enough"),
        (POLICY, 3, Discard("enough"), Discarded, "enough"),
        (POLICY, 1, Retry(after=7), RunAgain, 7.0),
        (POLICY, 1, Retry(after=timedelta(days=1)), RunAgain, 86400.0),
        (POLICY, 1, Retry(after=0), RunAgain, 0.0),
        (POLICY, 2, Retry(), RunAgain, 2.0),
        (POLICY, 3, Retry(after=7), Dead, "exhausted"),
        (RetryPolicy(retry_on=()), 1, Retry(after=7), RunAgain, 7.0),
        (RetryPolicy(delays=[5, timedelta(seconds=9)], jitter=0), 1, ValueError(), RunAgain, 5.0),
        (RetryPolicy(delays=[5, 9], jitter=0), 4, ValueError(), RunAgain, 9.0),
    ],
)
def test_the_verdict_follows_from_policy_attempt_and_error(
    policy: RetryPolicy, attempt: int, error: BaseException, kind: type[Verdict], says: object
) -> None:
    verdict = judge(policy, attempt=attempt, message_id=ID, error=error)

    assert type(verdict) is kind
    assert getattr(verdict, "after_s" if kind is RunAgain else "reason") == says


def test_an_interrupted_run_is_given_back_whatever_the_policy() -> None:
    verdict = judge(RetryPolicy.never(), attempt=1, message_id=ID, error=Interrupted())

    assert verdict == GivenBack()


@pytest.mark.parametrize("attempt", [1, 3])
def test_a_retry_that_was_raised_from_an_error_has_that_error(attempt: int) -> None:
    asked = Retry(after=7)
    asked.__cause__ = ValueError("why")

    verdict = judge(POLICY, attempt=attempt, message_id=ID, error=asked)

    assert isinstance(verdict, RunAgain | Dead)
    assert verdict.error is asked.__cause__


@settings(deadline=None)
@given(
    attempt=st.integers(1, 10**6),
    jitter=st.floats(0, 1),
    factor=st.floats(1, 1e6),
    min_delay=st.floats(0, 1e6),
    message_id=st.uuids().map(str),
)
def test_delays_stay_within_their_bounds_and_are_the_same_for_the_same_message(
    attempt: int, jitter: float, factor: float, min_delay: float, message_id: str
) -> None:
    policy = RetryPolicy(min_delay=min_delay, factor=factor, jitter=jitter)

    wait_s = policy.wait_s(attempt, message_id=message_id)

    assert 0 <= wait_s <= policy.max_delay.total_seconds()
    assert wait_s == policy.wait_s(attempt, message_id=message_id)


def test_jitter_differs_between_messages_and_attempts_and_is_the_same_on_every_machine() -> None:
    policy = RetryPolicy(min_delay=100, factor=1, jitter=1)

    drawn = {policy.wait_s(attempt, message_id=f"{ID}{number}") for attempt in (1, 2) for number in range(50)}

    assert len(drawn) == 100
    assert min(drawn) < 15
    assert max(drawn) > 85
    assert policy.wait_s(1, message_id=ID) == pytest.approx(0.43115865, abs=1e-6)  # must never change


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": True}, "max_attempts"),
        ({"max_attempts": 2.0}, "max_attempts"),
        ({"min_delay": -1}, "min_delay"),
        ({"min_delay": float("nan")}, "min_delay"),
        ({"min_delay": 10, "max_delay": 5}, "max_delay"),
        ({"factor": 0.5}, "factor"),
        ({"factor": float("inf")}, "factor"),
        ({"jitter": 1.5}, "jitter"),
        ({"delays": []}, "delays"),
        ({"delays": [1, -1]}, r"delays\[1\]"),
        ({"retry_on": "ValueError"}, "retry_on"),
        ({"give_up_on": (ValueError, 5)}, "give_up_on"),
    ],
    ids=str,
)
def test_a_policy_out_of_bounds_is_refused_by_name(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RetryPolicy(**options)


def test_the_longest_delay_is_ten_minutes_unless_the_shortest_is_longer() -> None:
    assert RetryPolicy().max_delay == timedelta(minutes=10)
    assert RetryPolicy(min_delay=timedelta(hours=1)).max_delay == timedelta(hours=1)


def test_an_error_travels_as_its_name_and_text() -> None:
    assert ErrorInfo.of(ValueError("no")) == ErrorInfo(type="ValueError", message="no")
    assert ErrorInfo.of(PermanentError("no")).type == f"{__name__}.PermanentError"
    assert len(ErrorInfo.of(ValueError("x" * 10_000)).message) == 2000
    assert "can't be had" in ErrorInfo.of(UnreadableError()).message
