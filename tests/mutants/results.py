"""ST, RS and CA, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import importlib
import json
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from tests.mutants.table import mutant, put

_SETTLE = "taskbridge.engines.settle"
_RESULTS = "taskbridge.results"
_RUNNER = "taskbridge.runner"
_BRIDGE = "taskbridge.bridge"
_RECORDS = "taskbridge.stores.records"
_REDIS = "taskbridge.stores.redis.backend"
_KNOWN = "taskbridge.engines.cancellations"
_ENDS = "every_end_is_recorded"


@mutant("ST1", "a_record_is_there_without_a_worker")
def only_workers_make_records() -> None:
    """There is no record of a message before a worker has it."""
    put(_RECORDS, "Records.create", lambda _: lambda self, messages, *, timeout_s: None)


@mutant("ST1", "a_record_is_there_when_send_returns", "dramatiq+redis")
def records_come_after_their_messages() -> None:
    """A record is made when the message is in its queue, without anybody waiting for it."""

    def make(publish: Any) -> Any:
        def late(self: Any, messages: Any, *, along: Any = (), timeout_s: float) -> None:
            publish(self, messages, timeout_s=timeout_s)

        return late

    put("taskbridge.brokers.redis.broker", "RedisBroker.publish", make)


@mutant("ST1", "a_record_goes_along")
def starts_are_not_recorded() -> None:
    """A record says that a message is queued until it has ended."""
    put(_RECORDS, "Records.started", lambda _: lambda self, message, *, worker, at: None)


@mutant("ST2", _ENDS)
def what_expires_counts_as_run() -> None:
    """A message that expired is recorded as if it had been started."""
    put(_SETTLE, "_has_expired", lambda _: lambda host, message: False)


@mutant("ST2", "a_record_goes_along")
def errors_are_not_recorded() -> None:
    """A record does not tell why an attempt failed."""
    put(_SETTLE, "_ending_of", lambda ending_of: lambda *given: replace(ending_of(*given), error=None))


@mutant("ST2", "a_record_goes_along")
def an_error_outlives_its_attempt() -> None:
    """A message that is done shows the error of the attempt before."""

    def make(end: Any) -> Any:
        def kept(row: Any, *given: Any) -> Any:
            new = end(row, *given)
            return new | {"error": row["error"]} if "error" in row else new

        return kept

    put("taskbridge.stores.transitions", "_end", make)


@mutant("ST2", "a_replay_is_recorded")
def a_replay_is_recorded_when_it_starts() -> None:
    """A message that was replayed is recorded as dead until it starts."""
    put("taskbridge.dead", "DeadLetters._record", lambda _: lambda self, messages: None)


@mutant("ST3", "what_is_not_to_be_recorded_is_not")
def everything_is_recorded() -> None:
    """Nobody looks at results=False."""
    put(_BRIDGE, "Bridge.records_of", lambda _: lambda self, task: self.records)


@mutant("RS1", "results_come_back_as_they_were")
def results_are_plain_json() -> None:
    """A result is what JSON makes of it."""

    def make(outcome_of: Any) -> Any:
        def plain(record: Any, *rest: Any) -> Any:
            return json.loads(record.result_json) if record.state == "done" else outcome_of(record, *rest)

        return plain

    put(_RESULTS, "outcome_of", make)


@mutant("RS1", "a_handle_outlives_a_switch_of_engines", "dramatiq+amqp")
def each_engine_keeps_its_own_records() -> None:
    """Records belong to the engine that made them."""

    def make(init: Any) -> Any:
        def apart(self: Any, settings: Any, *given: Any) -> None:
            init(self, settings, *given)
            self._prefix = f"{settings.namespace}:{settings.url.engine}:"

        return apart

    put(_REDIS, "RedisBackend.__init__", make)


@mutant("RS2", "a_result_is_final")
def the_first_failure_is_the_result() -> None:
    """A failed attempt is recorded as if it had been the last one."""

    def make(ending_of: Any) -> Any:
        def hasty(message: Any, verdict: Any, now: float) -> Any:
            ending = ending_of(message, verdict, now)
            return replace(ending, state="dead") if ending.state == "retrying" else ending

        return hasty

    put(_SETTLE, "_ending_of", make)


@mutant("RS2", "a_kill_beside_the_record_leaves_none_open", "celery+redis")
def ends_are_recorded_after_the_mark() -> None:
    """An attempt is marked as ended before that is recorded: a worker that dies in between leaves its record open."""

    def make(ended: Any) -> Any:
        def swapped(task: Any, message: Any, verdict: Any) -> Any:
            if task.marks is not None:
                task.marks.ended(message)
            return ended(task, message, verdict)

        return swapped

    put(_SETTLE, "_ended", make)


@mutant("RS3", "what_returned_is_not_run_again")
def any_size_is_recorded() -> None:
    """Nobody looks at the size of a result."""
    put(_RUNNER, "Runner._done", lambda done: lambda self, value: done(replace(self, most_bytes=1 << 40), value))


@mutant("RS3", "what_returned_is_not_run_again")
def what_can_not_be_recorded_has_failed() -> None:
    """A result that can't be recorded is a failed attempt."""

    def make(run: Any) -> Any:
        judge = importlib.import_module("taskbridge.retry").judge

        def strict(self: Any, message: Any) -> Any:
            verdict = run(self, message)
            if not getattr(verdict, "problem", ""):
                return verdict
            error = ValueError(verdict.problem)
            return judge(self.policy, attempt=message.attempt, message_id=message.id, error=error)

        return strict

    put(_RUNNER, "Runner.run", make)


@mutant("RS4", "who_waits_is_told_when_nothing_is_known_any_more")
def nobody_looks_again() -> None:
    """Who waits for a result looks for it only when woken."""
    put(_RESULTS, "_WARNS_AFTER_S", lambda _: 3600.0)
    put(_RESULTS, "_LOOK_AGAIN_S", lambda _: (3600.0, 3600.0))


@mutant("RS5", "a_task_does_not_wait_for_a_result")
def tasks_may_wait() -> None:
    """Nobody looks whether it is a task that asks for a result."""
    put(_RESULTS, "running", lambda _: ContextVar("unset", default=None))


@mutant("RS4", "a_thousand_wait_at_once")
def each_holds_a_thread() -> None:
    """Who awaits a result waits in a thread of the event loop's pool."""

    def make(_: Any) -> Any:
        return lambda self, *given, **named: asyncio.to_thread(self.result, *given, **named)

    put(_RESULTS, "MessageResults.aresult", make)


@mutant("RS4", "a_thousand_wait_at_once")
def nobody_is_woken() -> None:
    """Who waits for a result is not told that it is there, and does not find it by looking again."""
    put("taskbridge.stores.notifications", "Watches.wake", lambda _: lambda self, key: None)
    put(_RESULTS, "_WARNS_AFTER_S", lambda _: 3600.0)
    put(_RESULTS, "_LOOK_AGAIN_S", lambda _: (3600.0, 3600.0))


@mutant("CA1", "what_is_cancelled_does_not_start", "celery+redis")
def cancelling_only_writes_it_down() -> None:
    """No worker looks whether what it starts was cancelled."""
    put(_KNOWN, "Cancellations.has", lambda _: lambda self, message, *, timeout_s=None: False)


@mutant("CA1", "a_busy_worker_knows_within_a_second", "dramatiq+redis")
def workers_learn_of_cancellations_as_they_begin() -> None:
    """A worker asks once what is cancelled, and never again."""

    def make(ask: Any) -> Any:
        def once(self: Any, *given: Any, **named: Any) -> None:
            if not self._cursor:
                ask(self, *given, **named)
                self._cursor = self._cursor or "0"

        return once

    put(_KNOWN, "Cancellations._ask", make)


@mutant("CA2", "a_running_task_sees_that_it_is_cancelled")
def a_cancelled_run_is_retried() -> None:
    """A task that was cancelled while it ran, and failed, is run again."""

    def deaf(record: Any) -> Any:
        def unheard(*given: Any) -> None:
            record(*given)

        return unheard

    put(_KNOWN, "Cancellations.has", lambda _: lambda self, message, *, timeout_s=None: False)
    put(_SETTLE, "_record", deaf)  # whose answer says it, too


@mutant("CA2", "a_running_task_sees_that_it_is_cancelled")
def a_running_task_is_not_told() -> None:
    """A task that runs is not told that it was cancelled."""
    put(_KNOWN, "Cancellations.knows", lambda _: lambda self, message: False)


@mutant("RS2", "what_cannot_be_read_is_recorded_as_dead", "dramatiq+redis")
def what_cannot_be_read_has_no_end() -> None:
    """A message that can't be read is buried, and its record never becomes final."""

    def make(bury: Any) -> Any:
        def unnamed(*args: Any, message_id: object = None, **given: Any) -> None:
            bury(*args, **given)

        return unnamed

    put(_SETTLE, "bury_unreadable", make)
