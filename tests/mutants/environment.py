"""E, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import multiprocessing
from typing import Any

from tests.mutants.table import mutant, put


def _inherit(name: str) -> None:
    def make(dropped: Any) -> Any:
        return lambda self, inherited: [found for found in dropped(self, inherited) if found != name]

    put("taskbridge.engines.base", "Command.dropped", make)


@mutant("E", "the_environment_changes_nothing", "celery+redis")
def a_variable_deletes_what_waits() -> None:
    """Celery's worker inherits the variable by which it deletes its queues as it starts."""
    _inherit("CELERY_WORKER_PURGE")


@mutant("E", "the_environment_changes_nothing", "celery+redis")
def a_variable_limits_every_run() -> None:
    """Celery's worker inherits a time limit for all tasks."""
    _inherit("CELERY_WORKER_SOFT_TIME_LIMIT")


@mutant("E", "the_environment_changes_nothing", "dramatiq+amqp")
def a_variable_changes_a_queue() -> None:
    """Dramatiq's worker inherits a variable by which it declares a queue that RabbitMQ has with other arguments."""
    _inherit("dramatiq_dead_message_ttl")


@mutant("E", "a_workers_process_is_the_applications", "celery+redis")
def the_engine_takes_over_logging() -> None:
    """Celery removes the application's handlers and puts its own in their place."""

    def make(conf: Any) -> Any:
        return lambda self: {**conf(self), "worker_hijack_root_logger": True}

    put("taskbridge.engines.celery.app", "CeleryEngine._conf", make)
    put("celery.signals", "setup_logging.connect", lambda _: lambda receiver, **options: None)


@mutant("E", "a_workers_process_is_the_applications", "celery+redis")
def children_may_start_no_process() -> None:
    """A child of Celery's pool stays a daemon, which may have no children."""

    def make(started: Any) -> Any:
        def as_a_daemon(self: Any, **given: Any) -> None:
            started(self, **given)
            multiprocessing.current_process().daemon = self._is_child()

        return as_a_daemon

    put("taskbridge.engines.celery.app", "CeleryEngine._on_child_started", make)


@mutant("E", "a_workers_process_is_the_applications", "dramatiq+redis")
def the_engines_streams_stay() -> None:
    """What Dramatiq puts in the place of the standard streams stays there."""
    put("taskbridge.engines.worker_life", "_own_streams", lambda _: lambda: None)


@mutant("E", "a_workers_process_is_the_applications", "dramatiq+redis")
def forked_processes_heed_as_workers_do() -> None:
    """A process that a task forks takes SIGTERM for its worker's end, and goes on."""
    put("taskbridge.engines.worker_life", "_reset_sigterm_in_forked_processes", lambda _: lambda: None)
