"""RQ, and what holds of quorum queues alone, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

from tests.mutants.table import mutant, put

_ALL = "quorum_queues_do_what_classic_ones_do"


@mutant("RQ1", _ALL, "celery+amqp")
def all_queues_are_classic() -> None:
    """Engines declare classic queues, whatever is set."""
    put("taskbridge.settings", "Settings.type_of", lambda _: lambda self, queue: "classic")


@mutant("RQ1", _ALL, "dramatiq+amqp")
def dead_letters_are_in_classic_queues() -> None:
    """What is due and what is dead is in classic queues, whatever is set."""

    def make(init: Any) -> Any:
        return lambda self, namespace, kind: init(self, namespace)

    put("taskbridge.brokers.rabbitmq.topology", "Topology.__init__", make)


@mutant("A5", "a_quorum_queue_counts_what_came_back", "celery+amqp")
def redeliveries_are_not_counted() -> None:
    """What a quorum queue says of earlier deliveries counts for nothing on Celery."""
    put("taskbridge.engines.settle", "counted", lambda _: lambda host, message, times: message)


@mutant("A5", "a_quorum_queue_counts_what_came_back", "dramatiq+amqp")
def redeliveries_are_not_counted_on_dramatiq() -> None:
    """What a quorum queue says of earlier deliveries counts for nothing on Dramatiq."""
    put("taskbridge.engines.settle", "counted", lambda _: lambda host, message, times: message)


@mutant("RQ2", "a_quorum_queue_keeps_priorities_or_refuses_them", "dramatiq+amqp")
def priorities_are_ignored() -> None:
    """Every priority is taken, whether or not its queue keeps it."""
    put("taskbridge.brokers.rabbitmq.broker", "RabbitMQBroker.keeps_priorities", lambda _: lambda *given, **named: True)


@mutant("A6", "nothing_waits_behind_a_long_task_on_another_quorum_queue", "celery+amqp")
def a_worker_keeps_what_each_queue_sends() -> None:
    """A worker takes what each queue sends it for its own, whether or not it has a slot for it."""
    put("taskbridge.engines.celery.consumer", "Consumer.has_free_slot", lambda _: lambda self: True)
