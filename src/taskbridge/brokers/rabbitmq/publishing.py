"""What is done on one connection: publish until everything has found its queue, declare what is missing, look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pika import spec

from taskbridge.brokers.rabbitmq.channel import Channel, ChannelClosedError, Outcome
from taskbridge.brokers.rabbitmq.connection import Connection, ConnectionLostError
from taskbridge.brokers.rabbitmq.deadline import Deadline, TimedOutError
from taskbridge.brokers.rabbitmq.publication import Parcel, Place
from taskbridge.brokers.rabbitmq.topology import existing_queue


class DeclarationRefusedError(Exception):
    """The server does not let us declare a queue or an exchange as it must be."""


FAILURES: Final = (ConnectionLostError, ChannelClosedError, TimedOutError, DeclarationRefusedError)
"""What can go wrong on a connection."""

_ROUNDS: Final = 3
"""How often a queue that is missing is declared before it is given up."""

NOT_FOUND: Final = 404
_PRECONDITION_FAILED: Final = 406


@dataclass(frozen=True, slots=True)
class QueueState:
    """How many messages a queue holds that nobody has been given, and how many consumers it has."""

    messages: int
    consumers: int


def publish(connection: Connection, parcels: Sequence[Parcel], outcome: Outcome, deadline: Deadline) -> None:
    """Publish parcels in order, pipelined; make the places that are missing, and publish again what they miss.

    Args:
        connection: Is used by nobody else meanwhile.
        parcels: What is published.
        outcome: Is told what became of each, whatever is raised.
        deadline: When the last confirm must be there.

    Raises:
        ConnectionLostError, ChannelClosedError, TimedOutError: Not all were answered.
        DeclarationRefusedError: A place can't be made.
    """
    outcome.problem = None
    outcome.refused.clear()
    todo = parcels
    for _ in range(_ROUNDS):
        connection.wait_unblocked(deadline)
        channel = main_channel(connection, deadline)
        for place in dict.fromkeys(parcel.place for parcel in todo if parcel.place.made_first):
            make(connection, place, deadline)
        outcome.returned.clear()
        channel.publish(todo, outcome, deadline)
        if outcome.refused:
            refusing = next(parcel.place.name for parcel in parcels if parcel.number in outcome.refused)
            outcome.problem = f"RabbitMQ at {connection.where} refused it: is queue {refusing!r} full?"
        if not outcome.returned:
            return
        todo = [parcel for parcel in todo if parcel.number in outcome.returned]
        for place in dict.fromkeys(parcel.place for parcel in todo):
            connection.declared.difference_update(place.with_all_below())
            make(connection, place, deadline)
    outcome.problem = f"RabbitMQ at {connection.where} does not find {todo[0].place.name!r}, just declared"


def main_channel(connection: Connection, deadline: Deadline) -> Channel:
    """Return the channel on which this connection publishes, declares and looks; opened again if it was closed."""
    channel: Channel | None = connection.channel
    if channel is None or channel.closed is not None:
        connection.declared.clear()
        channel = connection.channel = Channel(connection)
        channel.open(deadline, spec.Confirm.Select())
    return channel


def make(connection: Connection, place: Place, deadline: Deadline) -> None:
    """Declare a place, and what is below it, unless that is done on this connection.

    Raises:
        DeclarationRefusedError: There is another of the name, or it is not allowed.
        ConnectionLostError, TimedOutError: As for `Channel.call`.
    """
    channel = main_channel(connection, deadline)
    missing = [each for each in place.with_all_below() if each not in connection.declared]
    calls = [call for each in missing for call in each.calls(connection.server_version)]
    try:
        channel.call_all(calls, deadline)
    except ChannelClosedError as exc:
        raise DeclarationRefusedError(_declaration_problem(calls[len(exc.replies)], exc)) from exc
    connection.declared.update(missing)


def look(
    connection: Connection, queues: Sequence[str], deadline: Deadline, *, until_missing: bool = False
) -> dict[str, QueueState]:
    """Return the states of those of these queues that exist, or of those before the first that doesn't.

    Each that is missing is an error in the server's log.
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
    is_other = refusal.code == _PRECONDITION_FAILED
    remedy = "; if it may go, delete it and it will be made again" if is_other else ""
    return f"{kind} {name!r} can't be declared as it must be{remedy} (RabbitMQ says: {refusal})"
