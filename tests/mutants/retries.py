"""R, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import importlib
import random
from dataclasses import replace
from traceback import format_exception
from typing import Any

from tests.mutants.table import mutant, put

_RETRY = "taskbridge.retry"
_RUNNER = "taskbridge.runner"
_MEMORY = "taskbridge.brokers.memory"
_SETTLE = "taskbridge.engines.settle"


def _judge_otherwise(make: Any) -> None:
    """Put another judge in the place of the one whom the runner asks."""
    put(_RUNNER, "judge", make)


@mutant("R1", "it_always_fails@ordinary")
def the_first_run_is_not_counted() -> None:
    """`max_attempts` counts retries, not runs."""
    _judge_otherwise(lambda judge: lambda policy, **given: judge(policy, **{**given, "attempt": given["attempt"] - 1}))


@mutant("R1", "it_always_fails@ordinary")
def attempts_are_never_spent() -> None:
    """A message is retried for ever."""
    unlimited = {"max_attempts": None, "min_delay": 0.1, "factor": 1}
    endless = importlib.import_module(_RETRY).RetryPolicy(**unlimited)
    _judge_otherwise(lambda judge: lambda policy, **given: judge(endless, **given))


@mutant("R1", "it_is_retried_without_limit")
def no_limit_is_the_default_limit() -> None:
    """`max_attempts=None` means five."""

    def make(judge: Any) -> Any:
        dead = importlib.import_module(_RETRY).Dead

        def limited(policy: Any, *, attempt: int, message_id: str, error: BaseException) -> Any:
            if policy.max_attempts is None and attempt >= 5:
                return dead("exhausted", error)
            return judge(policy, attempt=attempt, message_id=message_id, error=error)

        return limited

    _judge_otherwise(make)


@mutant("R2", "the_table_decides@ordinary")
def nothing_is_given_up() -> None:
    """`give_up_on` is not looked at."""
    put(_RETRY, "RetryPolicy.retries", lambda _: lambda self, error: isinstance(error, self.retry_on))


@mutant("R2", "the_table_decides@ordinary")
def an_exit_is_like_an_error() -> None:
    """`SystemExit` is retried where only `Exception` is to be."""

    def make(retries: Any) -> Any:
        return lambda self, error: isinstance(error, SystemExit) or retries(self, error)

    put(_RETRY, "RetryPolicy.retries", make)


@mutant("R2", "the_table_decides@ordinary")
def an_exit_ends_the_worker() -> None:
    """`SystemExit` is not caught."""

    def make(judge: Any) -> Any:
        def escaping(policy: Any, **given: Any) -> Any:
            if isinstance(given["error"], SystemExit):
                raise given["error"]
            return judge(policy, **given)

        return escaping

    _judge_otherwise(make)


@mutant("R2", "the_table_decides@ordinary")
def discarding_is_failing() -> None:
    """`Discard` is an error like any other."""

    def make(judge: Any) -> Any:
        discard = importlib.import_module(_RETRY).Discard

        def strict(policy: Any, **given: Any) -> Any:
            error = given["error"]
            return judge(policy, **{**given, "error": ValueError(str(error)) if isinstance(error, discard) else error})

        return strict

    _judge_otherwise(make)


@mutant("R2", "a_changed_policy_decides")
def the_first_policy_is_kept() -> None:
    """The policy under which a message was first run goes on to decide."""
    kept: dict[str, Any] = {}

    def make(judge: Any) -> Any:
        def stubborn(policy: Any, **given: Any) -> Any:
            return judge(kept.setdefault(given["message_id"], policy), **given)

        return stubborn

    _judge_otherwise(make)


@mutant("R3", "delays_are_the_same_everywhere")
def jitter_is_random() -> None:
    """The jitter is drawn anew each time."""
    put(_RETRY, "_draw", lambda _: lambda message_id, attempt: random.random())


@mutant("R3", "delays_grow")
def delays_do_not_grow() -> None:
    """Every delay is the first one."""
    put(_RETRY, "RetryPolicy._base_s", lambda base_s: lambda self, attempt: base_s(self, 1))


@mutant("R3", "it_always_fails@ordinary")
def delays_are_skipped() -> None:
    """A retry starts at once, whatever the policy says."""

    def make(later: Any) -> Any:
        return lambda host, message, delay_s: later(host, message, 0)

    put(_SETTLE, "later", make)


def _next_attempt_otherwise(**changes: Any) -> None:
    def make(next_attempt: Any) -> Any:
        return lambda self, error: replace(next_attempt(self, error), **changes)

    put("taskbridge.message", "Message.next_attempt", make)


@mutant("R4", "a_retry_is_the_same_message@ordinary")
def a_retry_loses_its_headers() -> None:
    """A retry has no headers."""
    _next_attempt_otherwise(headers={})


@mutant("R4", "a_retry_is_the_same_message@ordinary")
def a_retry_loses_its_error() -> None:
    """A retry does not know the last error."""
    _next_attempt_otherwise(error=None)


@mutant("R4", "a_retry_is_the_same_message@ordinary")
def a_retry_was_sent_at_another_time() -> None:
    """A retry's time of sending is another one."""
    _next_attempt_otherwise(enqueued_at=1.0)


@mutant("R5", "an_outage_loses_nothing", "dramatiq+redis")
def a_retry_is_let_go_unparked() -> None:
    """A message is acknowledged though the broker did not take its retry, or its dead letter."""

    def make(_: Any) -> Any:
        unavailable = importlib.import_module("taskbridge").BrokerUnavailable

        def careless(host: Any, act: Any, *given: Any) -> Any:
            try:
                return act(*given, timeout_s=host.settings.send_timeout_s)
            except unavailable:
                return None

        return careless

    put(_SETTLE, "_persist", make)


@mutant("R6", "it_always_fails@ordinary")
def the_dead_are_buried_twice() -> None:
    """There are two letters of each dead message."""

    def make(bury: Any) -> Any:
        def twice(self: Any, letter: Any, *, timeout_s: float) -> None:
            bury(self, letter, timeout_s=timeout_s)
            bury(self, letter, timeout_s=timeout_s)

        return twice

    put(_MEMORY, "MemoryBroker.bury", make)


@mutant("R6", "it_always_fails@ordinary")
def the_dead_vanish() -> None:
    """There is no letter of a dead message."""
    put(_MEMORY, "MemoryBroker.bury", lambda _: lambda self, letter, *, timeout_s: None)


@mutant("R6", "it_always_fails@ordinary")
def every_failure_is_told_as_a_death() -> None:
    """The dead hook is called for each failed attempt."""
    event = importlib.import_module("taskbridge.hooks").Event

    def make(call: Any) -> Any:
        def loud(self: Any, told: Any) -> None:
            call(self, told)
            if told.name == "retrying":
                call(self, event(name="dead", message=told.message, error=told.error, reason="exhausted"))

        return loud

    put("taskbridge.hooks", "Hooks.call", make)


@mutant("R7", "an_asked_delay_is_kept")
def max_delay_caps_what_is_asked() -> None:
    """A delay that a task asks for is cut to the policy's longest."""

    def make(judge: Any) -> Any:
        run_again = importlib.import_module(_RETRY).RunAgain

        def capped(policy: Any, **given: Any) -> Any:
            verdict = judge(policy, **given)
            if isinstance(verdict, run_again):
                return replace(verdict, after_s=min(verdict.after_s, policy.max_delay.total_seconds()))
            return verdict

        return capped

    _judge_otherwise(make)


@mutant("R7", "a_retry_keeps_what_it_was_raised_from@ordinary")
def a_retry_forgets_its_cause() -> None:
    """A retry that is raised from an error says nothing of that error."""
    put("taskbridge.failures", "cause_of", lambda _: lambda error: None)


@mutant("R7", "an_asked_delay_is_kept")
def asking_costs_no_attempt() -> None:
    """A task that asks for a retry may ask for ever."""

    def make(judge: Any) -> Any:
        retry = importlib.import_module(_RETRY).Retry

        def generous(policy: Any, **given: Any) -> Any:
            return judge(policy, **{**given, "attempt": 1 if isinstance(given["error"], retry) else given["attempt"]})

        return generous

    _judge_otherwise(make)


@mutant("R8", "a_worker_of_threads_stops")
def an_interrupted_run_is_an_attempt() -> None:
    """A run that a shutdown interrupts counts as failed."""

    def make(judge: Any) -> Any:
        module = importlib.import_module(_RETRY)

        def strict(policy: Any, **given: Any) -> Any:
            if isinstance(given["error"], module.Interrupted):
                return module.RunAgain(0.0, given["error"])
            return judge(policy, **given)

        return strict

    _judge_otherwise(make)


@mutant("R2", "odd_errors_are_judged_like_others@ordinary")
def errors_are_formatted_by_the_traceback_module() -> None:
    """What is kept of an error is what Python's own module makes of it, whatever that raises."""
    put(
        "taskbridge.failures", "traceback_of", lambda _: lambda error: "".join(format_exception(error)) if error else ""
    )
