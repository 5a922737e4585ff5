"""AR, H, A9, CA3, PG, RC, S10, S11 and T3, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import importlib
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from math import inf
from typing import Any

from tests.mutants.table import mutant, put

_AROUND = "taskbridge.surroundings"
_RUNNER = "taskbridge.runner"
_CANCELLATIONS = "taskbridge.engines.cancellations"
_LIFE = "taskbridge.engines.worker_life"
_RECORDS = "taskbridge.stores.records"


@mutant("AR", "what_is_around_runs_is_entered_and_left@ordinary")
def what_is_around_is_entered_the_other_way_round() -> None:
    """The one that is declared last is the outermost."""
    put(_AROUND, "call", lambda call: lambda around, *given, **named: call(around[::-1], *given, **named))


@mutant("AR", "what_is_around_runs_is_entered_and_left@ordinary")
def an_async_one_keeps_its_context_variables() -> None:
    """What an async generator sets of context variables does not reach the task."""

    def make(entered: Any) -> Any:
        @contextmanager
        def apart(manager: Any) -> Any:
            context, held = copy_context(), entered(manager)
            context.run(held.__enter__)
            try:
                yield
            except BaseException as exc:
                if not context.run(held.__exit__, type(exc), exc, exc.__traceback__):
                    raise
            else:
                context.run(held.__exit__, None, None, None)

        return apart

    put("taskbridge.coroutines", "entered", make)


@mutant("AR", "what_is_around_runs_decides_about_errors@ordinary")
def what_is_around_is_no_part_of_the_attempt() -> None:
    """An error of what is around a run is logged, and the run goes on without it."""

    def make(call: Any) -> Any:
        def forgiving(around: Any, function: Any, *, is_coroutine: bool) -> Any:
            try:
                return call(around, function, is_coroutine=is_coroutine)
            except importlib.import_module("taskbridge.contract.program").PermanentError:
                return call((), function, is_coroutine=is_coroutine)

        return forgiving

    put(_AROUND, "call", make)


@mutant("H", "hooks_are_for_the_tasks_they_name")
def hooks_are_for_all_tasks() -> None:
    """A hook is called for messages of all tasks, whatever it names."""
    put("taskbridge.bridge", "for_tasks", lambda _: lambda glob, hook: hook)


@mutant("A9", "a_task_sees_that_its_worker_stops", "celery+redis")
def children_are_not_told_that_their_worker_stops() -> None:
    """A child of Celery's pool doesn't learn that its worker was told to stop."""
    put("taskbridge.engines.celery.life", "CeleryLife.is_stopping", lambda _: lambda self: self._drained.is_set())


@mutant("A9", "a_task_sees_that_its_worker_stops", "dramatiq+redis")
def a_worker_stops_only_after_its_grace() -> None:
    """A task sees that its worker stops when its grace is over."""
    put(_LIFE, "WorkerLife.is_stopping", lambda _: lambda self: self._host.stopping.is_set())


@mutant("CA3", "a_run_is_interrupted@recorded")
def nothing_is_interrupted() -> None:
    """A run goes on, however its message is cancelled."""
    put(_RUNNER, "Runs.cancel", lambda _: lambda self, run: None)


@mutant("CA3", "a_run_is_interrupted@recorded processes", "celery+redis")
def each_cancellation_interrupts() -> None:
    """A run is interrupted whenever its message is cancelled."""

    def make(get: Any) -> Any:
        def asked(self: Any, *given: Any, **named: Any) -> Any:
            record = get(self, *given, **named)
            return None if record is None else replace(record, interrupt_asked=True)

        return asked

    put(_RECORDS, "Records.get", make)


@mutant("CA3", "a_run_is_interrupted@recorded", "dramatiq+redis")
def an_interrupted_run_has_failed() -> None:
    """A run that was interrupted is a failed attempt."""
    put("taskbridge.retry", "Cancelled", lambda _: importlib.import_module("taskbridge.exceptions").WorkerLost)


@mutant("PG", "a_run_tells_how_far_it_has_come")
def only_the_end_tells_how_far_a_run_has_come() -> None:
    """How far a run has come is written with its end, and not before."""
    put(_RECORDS, "Records._write_starts", lambda _: lambda self, starts: None)


@mutant("PG", "the_last_progress_of_a_failed_attempt_is_kept", "celery+redis")
def what_is_told_too_soon_is_dropped() -> None:
    """What a run tells within a second after it has told something is dropped."""

    def make(report: Any) -> Any:
        def once(self: Any, message: Any, *told: Any) -> None:
            start = self._starts.get().get(message)
            if start is not None and start.run.progress is None:
                report(self, message, *told)

        return once

    put(_RECORDS, "Records.report", make)


@mutant("PG", "a_run_that_is_not_recorded_can_not_tell")
def nobody_hears_of_progress() -> None:
    """What a run that is not recorded tells is dropped."""

    def make(bind: Any) -> Any:
        return lambda host, task: replace(bind(host, task), report=lambda *told: None)

    put("taskbridge.engines.settle", "bind", make)


@mutant("RC", "a_process_ends_after_so_many_tasks", "dramatiq+redis")
def a_worn_out_process_interrupts_its_tasks() -> None:
    """A process that has run enough tasks ends like one that is told to stop."""
    put(_LIFE, "WorkerLife.holds_nothing", lambda _: lambda self: True)
    put("taskbridge.engines.dramatiq.worker", "DramatiqLife.holds_nothing", lambda _: lambda self: True)


@mutant("RC", "a_process_ends_with_so_much_memory", "celery+redis")
def memory_is_counted_in_bytes() -> None:
    """What is given in MB is handed to Celery as if it were in bytes."""

    def make(command: Any) -> Any:
        def much(self: Any, options: Any, pool: str, slots: int) -> Any:
            memory = (options.max_memory_per_child or 1) << 20
            return command(self, replace(options, max_memory_per_child=memory), pool, slots)

        return much

    put("taskbridge.engines.celery.app", "CeleryEngine._command", make)


@mutant("S10", "a_task_is_sent_by_its_name", "celery+redis")
def only_what_is_declared_is_sent() -> None:
    """What a process does not declare is sent under a name that nobody knows."""
    put("taskbridge.bridge", "undeclared", lambda undeclared: lambda name: undeclared(f"{name}.unknown"))


@mutant("S11", "headers_keep_their_types")
def headers_become_text() -> None:
    """Headers arrive as text."""

    def make(message: Any) -> Any:
        def texts(self: Any, way: Any, call: Any, *given: Any) -> Any:
            made = message(self, way, call, *given)
            return replace(made, headers={name: str(value) for name, value in made.headers.items()})

        return texts

    put("taskbridge.sending", "Sending._message", make)


@mutant("T3", "a_hard_limit_ends_the_process", "dramatiq+redis")
def hard_limits_are_not_kept() -> None:
    """A run that goes on after its hard limit has the grace as well."""
    put("taskbridge.engines.settle", "longest_s", lambda longest_s: lambda declaration, grace_s: inf)
