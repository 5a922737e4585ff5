"""R5, A4, S7 and O1 while the broker is in trouble or workers are, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import importlib
from typing import Any

from tests.mutants.table import mutant, put

_SETTLE = "taskbridge.engines.settle"


@mutant("R5", "workers_outlive_lost_connections", "dramatiq+redis")
def what_the_broker_does_not_take_is_let_go() -> None:
    """A retry that the broker does not take at once is given up, and the message acknowledged."""
    unavailable = importlib.import_module("taskbridge").BrokerUnavailable

    def once(host: Any, act: Any, *given: Any) -> Any:
        try:
            return act(*given, timeout_s=host.settings.send_timeout_s)
        except unavailable:
            return None

    put(_SETTLE, "_persist", lambda _: once)


@mutant("R5", "workers_outlive_a_broker_in_trouble", "celery+redis")
def a_refusal_ends_the_worker() -> None:
    """A worker ends when the broker refuses a command, as Celery's does by default."""

    def end(self: Any, error: Exception) -> None:
        raise SystemExit(1) from error

    put("taskbridge.engines.celery.transport", "Channel._rest", lambda _: end)


@mutant("A4", "workers_stop_without_their_broker", "celery+redis")
def a_stopping_worker_waits_for_its_broker() -> None:
    """A worker that is told to stop waits until its broker answers."""
    put("taskbridge.engines.worker_life", "LAST_S", lambda _: 60.0)


@mutant("O1", "health_tells_who_consumes", "dramatiq+redis")
def being_connected_is_enough() -> None:
    """A queue counts as consumed as soon as the broker answers."""
    put(
        "taskbridge.brokers.redis.broker",
        "RedisBroker.see_signs",
        lambda _: lambda self, names, *, timeout_s: set(names),
    )


@mutant("O1", "health_tells_who_consumes", "dramatiq+redis")
def busy_workers_say_nothing() -> None:
    """A worker whose slots are all taken looks like one that hangs."""
    put("taskbridge.engines.pump", "BusySigns.start", lambda _: lambda self: None)


@mutant("O1", "children_answer_probes", "celery+redis")
def children_are_never_all_taken() -> None:
    """A worker of processes never says that it is busy."""
    put("taskbridge.engines.celery.life", "CeleryLife.full_queues", lambda _: lambda self: [])


@mutant("O1", "children_answer_probes", "celery+redis")
def a_worker_that_stops_is_busy() -> None:
    """A worker that takes nothing any more says that it is busy."""
    put("taskbridge.engines.worker_life", "WorkerLife._queues_if_full", lambda _: lambda self: self.full_queues())


@mutant("S7", "a_connection_that_died_idle_is_made_again", "dramatiq+redis")
def idle_connections_are_taken_for_living() -> None:
    """Nobody looks whether a connection that was idle has been closed."""
    put("taskbridge.brokers.redis.client", "Client._is_fit", lambda _: lambda self, link: True)
    put("taskbridge.brokers.redis.client", "Client.execute", _silent)


@mutant("HA1", "another_host_takes_over", "dramatiq+redis")
def only_the_first_host_is_tried() -> None:
    """Of several hosts, all but the first are ignored."""
    put("taskbridge.brokers.redis.places", "Place._addresses", lambda found: lambda self: self._hosts[:1])


@mutant("HA2", "so_many_replicas_have_a_message", "dramatiq+redis")
def replicas_are_not_waited_for() -> None:
    """A message counts as sent before a replica has it."""
    put("taskbridge.brokers.redis.client", "Client._wait", lambda _: lambda self, link, replicas: None)


def _silent(execute: Any) -> Any:
    def lossy(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return execute(self, *args, **kwargs)
        except ConnectionError:
            return None

    return lossy
