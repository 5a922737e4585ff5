"""A5, A7, A8, R9 and T2, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import importlib
from typing import Any

from tests.mutants.table import mutant, put

_SETTLE = "taskbridge.engines.settle"
_MARKS = "taskbridge.stores.marks"
_RUNS = "taskbridge.runner"
_KILLED = "a_killed_run_is_a_failed_attempt"


@mutant("A5", _KILLED, "dramatiq+redis")
def a_lost_run_is_no_attempt() -> None:
    """What was lost with its worker is run again as if it had never been started."""

    def make(claimed: Any) -> Any:
        claim = importlib.import_module("taskbridge.stores.base").Claim

        def forgetful(*given: Any, **named: Any) -> Any:
            found = claimed(*given, **named)
            return claim.RUN if found is claim.LOST else found

        return forgetful

    put(_MARKS, "Marks.claim", make)


@mutant("R9", _KILLED, "celery+redis")
def a_lost_run_is_always_repeated() -> None:
    """What was lost with its worker is run again, whatever its policy says."""

    def make(_: Any) -> Any:
        run_again = importlib.import_module("taskbridge.retry").RunAgain
        lost = importlib.import_module("taskbridge.exceptions").WorkerLost
        return lambda self, message: run_again(0.1, lost("its worker is gone"))

    put("taskbridge.runner", "Runner.judge_lost", make)


@mutant("A7", "a_second_delivery_is_not_run", "dramatiq+memory")
def every_delivery_is_run() -> None:
    """Nobody looks at what a mark says."""

    def make(_: Any) -> Any:
        run = importlib.import_module("taskbridge.stores.base").Claim.RUN
        return lambda *given, **named: run

    put(_MARKS, "Marks.claim", make)


@mutant("A7", "what_is_held_runs_once_without_a_store", "dramatiq+amqp")
def a_process_forgets_what_it_runs() -> None:
    """Without a store, a Dramatiq process doesn't know what it runs itself."""
    put("taskbridge.engines.dramatiq.deliveries", "TaskActor._came_back", lambda _: lambda self, *_: False)


@mutant("A7", "a_worker_that_stood_still_decides_nothing", "dramatiq+redis")
def the_dead_still_decide() -> None:
    """A worker that was taken for dead carries out its verdicts all the same."""
    put(_MARKS, "Marks.still_ours", lambda _: lambda *given, **named: True)


@mutant("A8", "a_kill_between_any_two_steps_loses_nothing", "celery+redis")
def a_message_is_let_go_as_it_comes() -> None:
    """A message is acknowledged as it is handed over, as Celery does by default."""

    def make(hand_over: Any) -> Any:
        def early(self: Any, taken: Any) -> None:
            self.queues.end(taken.tag)
            hand_over(self, taken)

        return early

    put("taskbridge.engines.celery.transport", "Channel._hand_over", make)


@mutant("A6", "nothing_waits_behind_a_long_task", "celery+redis")
def a_worker_takes_more_than_it_has_slots_for() -> None:
    """A script that takes messages takes three more than there are slots free."""
    put("taskbridge.engines.celery.transport", "Channel.room", lambda room: lambda self: room(self) + 3)


@mutant("T2", "a_stuck_run_ends_its_worker", "celery+redis")
def stuck_runs_are_left_alone() -> None:
    """A worker waits for a stuck run, however long it takes."""
    put(_RUNS, "Runs.stuck", lambda _: lambda self: [])
    put(_RUNS, "Runs._arm", lambda _: lambda self: None)


@mutant("T2", "what_was_stuck_is_tried_again_at_once", "celery+redis")
def a_dead_child_seems_alive() -> None:
    """Nobody tells the store that a child of Celery's pool is gone, so its run lasts as long as its lease."""
    put("taskbridge.stores.marks", "Marks.gone", lambda _: lambda self, message, pid, *, timeout_s: None)


@mutant("T2", "a_run_that_stops_its_worker_is_ended", "dramatiq+redis")
def only_threads_of_python_watch() -> None:
    """A worker looks for stuck runs by itself, which it can't while one has the interpreter's lock."""
    put(_RUNS, "Runs._arm", lambda _: lambda self: None)


@mutant("A7", "a_kill_while_it_promotes_starts_nothing_twice", "dramatiq+amqp")
def what_was_promoted_may_be_promoted_again() -> None:
    """What a pump published before it died is published again as if nobody had it."""
    put("taskbridge.brokers.rabbitmq.pump", "_read", lambda _: lambda delivery: _loads(delivery.body))


def _loads(body: bytes) -> Any:
    return importlib.import_module("taskbridge.message").loads(body)
