"""Publishes on one connection, declares what is missing, and looks at queues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pika import spec

from taskbridge.brokers.rabbitmq.channel import Channel, ChannelClosedError, Outcome
from taskbridge.brokers.rabbitmq.connection import Connection, ConnectionLostError
from taskbridge.brokers.rabbitmq.deadline import Deadline, TimedOutError
from taskbridge.brokers.rabbitmq.publication import Destination, EncodedPublication
from taskbridge.brokers.rabbitmq.topology import existing_queue


class DeclarationRefusedError(Exception):
    """The server refused the declaration of a queue or an exchange."""


FAILURES: Final = (ConnectionLostError, ChannelClosedError, TimedOutError, DeclarationRefusedError)
"""The errors of this client."""

_ROUNDS: Final = 3
"""How often a missing queue is declared before the publication fails."""

NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class QueueState:
    """How many ready messages a queue holds, and how many consumers it has."""

    messages: int
    consumers: int


def publish(
    connection: Connection, publications: Sequence[EncodedPublication], outcome: Outcome, deadline: Deadline
) -> None:
    """Publish messages in order, pipelined; declare missing destinations, and publish again what was returned.

    Args:
        connection: Used by nobody else meanwhile.
        publications: What is published.
        outcome: Records what became of each, whatever is raised.
        deadline: When the last confirm must be there.

    Raises:
        ConnectionLostError, ChannelClosedError, TimedOutError: Not all were answered.
        DeclarationRefusedError: A destination can't be declared.
    """
    outcome.problem = None
    outcome.refused.clear()
    todo = publications
    for _ in range(_ROUNDS):
        connection.wait_unblocked(deadline)
        channel = main_channel(connection, deadline)
        for destination in dict.fromkeys(
            publication.destination for publication in todo if publication.destination.is_exchange
        ):
            declare(connection, destination, deadline)
        outcome.returned.clear()
        channel.publish(todo, outcome, deadline)
        if outcome.refused:
            refusing = next(
                publication.destination.name for publication in publications if publication.number in outcome.refused
            )
            outcome.problem = f"RabbitMQ at {connection.where} refused it: is queue {refusing!r} full?"
        if not outcome.returned:
            return
        todo = [publication for publication in todo if publication.number in outcome.returned]
        for destination in dict.fromkeys(publication.destination for publication in todo):
            connection.declared.difference_update(destination.with_all_below())
            declare(connection, destination, deadline)
    outcome.problem = f"RabbitMQ at {connection.where} does not find {todo[0].destination.name!r}, just declared"


def main_channel(connection: Connection, deadline: Deadline) -> Channel:
    """Return the connection's channel for publishing, declaring and looking; it is opened again if it was closed."""
    channel: Channel | None = connection.channel
    if channel is None or channel.closed is not None:
        connection.declared.clear()
        channel = connection.channel = Channel(connection)
        channel.open(deadline, spec.Confirm.Select())
    return channel


def declare(connection: Connection, destination: Destination, deadline: Deadline) -> None:
    """Declare a destination and those below it, unless this connection has declared them before.

    Raises:
        DeclarationRefusedError: It exists with other arguments, or is not permitted.
        ConnectionLostError, TimedOutError: As for `Channel.call`.
    """
    channel = main_channel(connection, deadline)
    missing = [each for each in destination.with_all_below() if each not in connection.declared]
    calls = [call for each in missing for call in each.calls(connection.server_version)]
    try:
        channel.call_all(calls, deadline)
    except ChannelClosedError as exc:
        raise DeclarationRefusedError(_declaration_problem(calls[len(exc.replies)], exc)) from exc
    connection.declared.update(missing)


def look(
    connection: Connection, queues: Sequence[str], deadline: Deadline, *, until_missing: bool = False
) -> dict[str, QueueState]:
    """Return the states of the queues that exist; with `until_missing`, of those before the first that does not.

    The server logs an error for each that is missing.
    """
    states: dict[str, QueueState] = {}
    left = list(queues)
    while left:
        try:
            replies = main_channel(connection, deadline).call_all([existing_queue(name) for name in left], deadline)
        except ChannelClosedError as exc:  # one is missing; those before it were answered
            if exc.code != NOT_FOUND:
                raise
            replies = exc.replies
            left = left[: len(replies) + 1] if until_missing else left
        for name, reply in zip(left, replies, strict=False):
            states[name] = QueueState(reply.message_count, reply.consumer_count)
        left = left[len(replies) + 1 :]
    return states


def _declaration_problem(call: Any, refusal: ChannelClosedError) -> str:
    name = getattr(call, "queue", None) or getattr(call, "exchange", None) or call.destination
    kind = "queue" if hasattr(call, "queue") else "exchange"
    is_other = "inequivalent" in str(refusal)  # rabbit_misc:assert_args_equivalence
    remedy = "; if it may go, delete it and it will be made again" if is_other else ""
    return f"{kind} {name!r} can't be declared as it must be{remedy} (RabbitMQ says: {refusal})"
