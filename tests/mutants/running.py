"""A, T, H and C, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import importlib
import os
import threading
from contextlib import nullcontext
from contextvars import Context
from dataclasses import replace
from typing import Any

from tests.mutants.table import mutant, put

_INLINE = "taskbridge.engines.inline"
_HOOKS = "taskbridge.hooks"
_COROUTINES = "taskbridge.coroutines"
_LEASES = "taskbridge.engines.redis_leases"


@mutant("A1", "a_worker_of_threads_stops")
def a_message_is_acknowledged_as_it_starts() -> None:
    """What was interrupted is gone, for it was acknowledged before."""

    def make(run_and_settle: Any) -> Any:
        done = importlib.import_module("taskbridge.retry").Done
        given_back = importlib.import_module("taskbridge.retry").GivenBack

        def early(host: Any, message: Any, **given: Any) -> Any:
            verdict = run_and_settle(host, message, **given)
            return done() if isinstance(verdict, given_back) else verdict

        return early

    put(_INLINE, "run_and_settle", make)


@mutant("A2", "a_killed_worker_loses_nothing", "dramatiq+redis")
def the_dead_keep_what_they_held() -> None:
    """Nobody looks for workers that died."""
    put(_LEASES, "Leases._may_judge", lambda _: lambda self: False)


@mutant("A3", "a_long_task_runs_once", "dramatiq+redis")
def the_living_are_taken_for_dead() -> None:
    """A worker that gave no sign of life for a moment counts as dead."""

    def make(beat: Any) -> Any:
        def hasty(self: Any) -> None:
            own_sign = "ZREM", self.leases_key, self.worker  # whose age would keep it from judging others
            self._client.execute([own_sign], timeout_s=self._timeout_s)
            lease_s, self._lease_s = self._lease_s, 0.001
            try:
                beat(self)
            finally:
                self._lease_s = lease_s

        return hasty

    put(_LEASES, "Leases.beat", make)
    put(_LEASES, "Leases._may_judge", lambda _: lambda self: True)
    put("taskbridge.parts", "_open_store", lambda _: lambda *_: None)  # else rule A7 makes good for it


@mutant("A4", "a_worker_of_threads_stops")
def a_worker_has_no_grace() -> None:
    """A worker that is told to stop interrupts its tasks at once."""
    put(_INLINE, "_Workers.stop", lambda stop: lambda self, grace_s: stop(self, 0))


@mutant("A4", "a_worker_of_threads_stops")
def a_stopping_worker_goes_on_taking() -> None:
    """A worker that is told to stop takes messages until its grace is over."""

    def make(stop: Any) -> Any:
        def late(self: Any, grace_s: float) -> None:
            threading.Event().wait(grace_s)
            stop(self, 0)

        return late

    put(_INLINE, "_Workers.stop", make)


@mutant("A4", "a_stop_of_each_process_leaves_the_grace", "celery+redis")
def a_child_heeds_anybody() -> None:
    """A child of Celery's pool interrupts its task at SIGTERM, whoever has sent it."""

    def make(heed: Any) -> Any:
        def anybody(self: Any) -> None:
            heed(self)
            self._signalled = [os.getpid()]

        return anybody

    put("taskbridge.engines.celery.carrier", "ChildRuns.heed_signals", make)


@mutant("R8", "stuck_runs_of_threads_are_given_back", "dramatiq+amqp")
def what_cannot_be_interrupted_is_lost() -> None:
    """A run that its worker's end can't interrupt keeps its mark, and so counts as lost with its worker."""
    put("taskbridge.engines.worker_life", "WorkerLife.unmark_all", lambda _: lambda self: None)
    put("taskbridge.engines.worker_life", "unmark", lambda _: lambda host, messages: None)


@mutant("H", "worker_stopping_comes_last", "dramatiq+memory")
def a_worker_tells_early_that_it_stops() -> None:
    """The hook `worker_stopping` is called as a worker begins to stop, while its tasks still run."""

    def make(drain: Any) -> Any:
        def early(self: Any) -> None:
            if not self.draining:
                self._host.hooks.call(importlib.import_module("taskbridge.hooks").Event(name="worker_stopping"))
            drain(self)

        return early

    put("taskbridge.engines.worker_life", "WorkerLife.drain", make)
    put("taskbridge.engines.worker_life", "WorkerLife.stopping", lambda _: lambda self: None)


@mutant("A4", "interrupted_runs_of_threads_clean_up")
def nobody_may_clean_up() -> None:
    """A worker does not wait for what it has interrupted."""
    put(_INLINE, "AFTER_GRACE_S", lambda _: 0.05)


@mutant("C", "interrupted_runs_of_threads_clean_up")
def a_cancelled_coroutine_is_left() -> None:
    """A coroutine that the end of its worker cancels is not awaited."""

    def make(has_come: Any) -> Any:
        asked = set[Any]()

        def once(outcome: Any, left_s: Any) -> Any:
            is_first = outcome not in asked
            asked.add(outcome)
            return is_first and has_come(outcome, left_s)

        return once

    put(_COROUTINES, "has_come", make)


@mutant("A4", "interrupted_runs_of_threads_clean_up", "dramatiq+redis")
def a_thread_keeps_its_worker() -> None:
    """A worker's process goes on as long as threads do that its tasks have started."""
    put("taskbridge.engines.worker_life", "WorkerLife._leave_rest", lambda _: lambda self: None)


@mutant("N", "workers_differ_as_the_page_says", "celery+redis")
def one_thread_is_a_thread() -> None:
    """With one thread, a worker of Celery's runs tasks in a thread of its main process."""

    def make(worker_commands: Any) -> Any:
        def in_threads(self: Any, options: Any) -> Any:
            (command,) = worker_commands(self, options)
            return [replace(command, argv=tuple("threads" if word == "prefork" else word for word in command.argv))]

        return in_threads

    put("taskbridge.engines.celery.app", "CeleryEngine.worker_commands", make)


@mutant("N", "workers_differ_as_the_page_says", "dramatiq+redis")
def dramatiq_tells_it_again() -> None:
    """Of what taskbridge has run and logged, Dramatiq logs a second line."""
    put("taskbridge.engines.dramatiq.deliveries", "OncePerOutcome.filter", lambda _: lambda self, record: True)


@mutant("A6", "a_dead_process_stops_no_other", "dramatiq+redis")
def one_command_starts_all_processes() -> None:
    """One of Dramatiq's commands starts all processes; when one dies, it stops the others."""

    def make(worker_commands: Any) -> Any:
        def one(self: Any, options: Any) -> Any:
            command = worker_commands(self, options)[0]
            where = command.argv.index("--processes") + 1
            argv = (*command.argv[:where], str(options.processes), *command.argv[where + 1 :])
            return [replace(command, argv=argv)]

        return one

    put("taskbridge.engines.dramatiq.app", "DramatiqEngine.worker_commands", make)


@mutant("A6", "nothing_waits_behind_a_long_task")
def a_busy_thread_takes_another() -> None:
    """A thread takes its next message while it runs one."""
    hungry = [0]  # busy threads that have no message ahead yet, which go first, for else chance decides

    def make(_: Any) -> Any:
        def work(self: Any) -> None:
            engine = self._engine
            while not self._stop.wait(0.001):
                with engine.wire.changed:
                    message = None if hungry[0] or engine._driven else engine.wire.take(self._queues)
                    if message is None:
                        continue
                    engine._running += 1
                    hungry[0] += 1
                _run_with_one_ahead(engine, self._queues, message, hungry)

        return work

    put(_INLINE, "_Workers._work", make)


def _run_with_one_ahead(engine: Any, queues: Any, message: Any, hungry: list[int]) -> None:
    changed = engine.wire.changed
    ahead: list[Any] = []
    done: list[bool] = []

    def prefetch() -> None:
        with changed:
            another = None
            while not done and (another := engine.wire.take(queues)) is None:
                changed.wait(0.005)
            hungry[0] -= 1
            if not done:
                engine._running += 1
                ahead.append(another)

    thread = threading.Thread(target=prefetch)
    thread.start()
    engine.run(message)
    with changed:
        done.append(True)
    thread.join()
    for another in ahead:
        engine.run(another)


@mutant("T1", "a_run_over_its_limit_is_ended@ordinary")
def limits_are_not_kept() -> None:
    """A run may take any time."""
    put("taskbridge.runner", "limited", lambda _: lambda limit_s: nullcontext())


@mutant("T1", "a_run_over_its_limit_is_ended@ordinary")
def too_long_is_dead_at_once() -> None:
    """A run over its limit is no failed attempt but the end."""

    def make(judge: Any) -> Any:
        dead = importlib.import_module("taskbridge.retry").Dead
        exceeded = importlib.import_module("taskbridge").TimeLimitExceeded

        def strict(policy: Any, **given: Any) -> Any:
            error = given["error"]
            return dead("exhausted", error) if isinstance(error, exceeded) else judge(policy, **given)

        return strict

    put("taskbridge.runner", "judge", make)


@mutant("H", "hooks_are_called@ordinary")
def retries_are_not_told() -> None:
    """The hook `retrying` is never called."""

    def make(call: Any) -> Any:
        return lambda self, event: None if event.name == "retrying" else call(self, event)

    put(_HOOKS, "Hooks.call", make)


@mutant("H", "hooks_are_called@ordinary")
def hooks_are_called_elsewhere() -> None:
    """Hooks are called in a thread of their own."""

    def make(call: Any) -> Any:
        def elsewhere(self: Any, event: Any) -> None:
            thread = threading.Thread(target=call, args=(self, event))
            thread.start()
            thread.join()

        return elsewhere

    put(_HOOKS, "Hooks.call", make)


@mutant("H", "failing_hooks_change_nothing")
def a_failing_hook_fails_the_task() -> None:
    """An error of a hook before the run is one of the task."""

    def make(call: Any) -> Any:
        def strict(self: Any, event: Any) -> None:
            if event.name != "before_run":
                call(self, event)
                return
            for hook in self.of[event.name]:
                hook(event)

        return strict

    put(_HOOKS, "Hooks.call", make)


@mutant("H", "workers_tell_when_they_start_and_stop")
def the_end_of_a_worker_is_not_told() -> None:
    """The hook `worker_stopping` is never called."""

    def make(call: Any) -> Any:
        return lambda self, event: None if event.name == "worker_stopping" else call(self, event)

    put(_HOOKS, "Hooks.call", make)


@mutant("C", "coroutines_share_a_loop")
def each_run_has_a_loop() -> None:
    """Each coroutine runs on a loop of its own."""

    def run(coroutine: Any) -> Any:
        return asyncio.run(coroutine)

    put(_COROUTINES, "run", lambda _: run)


@mutant("C", "coroutines_share_a_loop")
def coroutines_have_no_context() -> None:
    """A coroutine does not see what was set before it."""
    put(_COROUTINES, "copy_context", lambda _: Context)


@mutant("C", "coroutines_share_a_loop")
def coroutines_wait_for_one_another() -> None:
    """One coroutine runs at a time."""
    lock = threading.Lock()

    def make(run: Any) -> Any:
        def alone(coroutine: Any) -> Any:
            with lock:
                return run(coroutine)

        return alone

    put(_COROUTINES, "run", make)
