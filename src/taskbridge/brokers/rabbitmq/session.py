"""A connection for publishing with confirms, declaring what is missing, and looking at queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pika import spec

from taskbridge.brokers.rabbitmq.channel import NOT_FOUND, Channel, Outcome
from taskbridge.brokers.rabbitmq.connection import ClientError, Connection
from taskbridge.brokers.rabbitmq.deadline import Deadline
from taskbridge.brokers.rabbitmq.publication import Destination, EncodedPublication
from taskbridge.brokers.rabbitmq.topology import existing_queue

_ROUNDS = 3
"""How often a missing queue is declared before the publication fails."""


class Session(Connection):
    """A connection with one channel, which one thread at a time uses; its methods raise as those of a `Channel`.

    Attributes:
        used_at: When it was last used, by the monotonic clock.
    """

    def __init__(self, parameters: Any, *, heartbeat_s: float | None = None) -> None:
        super().__init__(parameters, heartbeat_s=heartbeat_s)
        self.used_at: float = 0.0
        self._channel: Channel | None = None
        self._declared: set[Destination] = set()

    def channel(self, deadline: Deadline) -> Channel:
        """Return the channel; it is opened again if it was closed."""
        channel = self._channel
        if channel is None or channel.closed is not None:
            self._declared.clear()
            channel = self._channel = Channel(self)
            channel.open(deadline, spec.Confirm.Select())
        return channel

    def publish(self, publications: Mapping[int, EncodedPublication], outcome: Outcome, deadline: Deadline) -> None:
        """Publish messages in order, pipelined; declare missing destinations, and publish again what was returned.

        Args:
            publications: What is published, by number.
            outcome: Records what became of each, whatever is raised.
            deadline: When the last confirm must be there.
        """
        outcome.problem = None
        outcome.refused.clear()
        todo = publications
        for _ in range(_ROUNDS):
            self.wait_unblocked(deadline)
            channel = self.channel(deadline)
            for destination in dict.fromkeys(each.destination for each in todo.values() if each.destination.exchange):
                self.declare(destination, deadline)
            outcome.returned.clear()
            channel.publish(todo, outcome, deadline)
            if outcome.refused:
                name = publications[min(outcome.refused)].destination.name
                outcome.problem = f"RabbitMQ at {self.where} refused it: is queue {name!r} full?"
            if not outcome.returned:
                return
            todo = {number: publications[number] for number in sorted(outcome.returned)}
            destinations = dict.fromkeys(each.destination for each in todo.values())
            self._declared.difference_update(destinations)
            for destination in destinations:
                self.declare(destination, deadline)
        name = publications[min(outcome.returned)].destination.name
        outcome.problem = f"RabbitMQ at {self.where} does not find {name!r}, just declared"

    def declare(self, destination: Destination, deadline: Deadline) -> None:
        """Declare a destination and what it needs, unless this has been done on this channel.

        Raises:
            ClientError: It exists with other arguments, or is not permitted; or as for a `Channel`.
        """
        channel = self.channel(deadline)
        if destination in self._declared:
            return
        calls = list(destination.calls())
        try:
            channel.call_all(calls, deadline)
        except ClientError as exc:
            if not exc.code:
                raise
            raise ClientError(_declaration_problem(calls[len(channel.replies)], exc)) from exc
        self._declared.add(destination)

    def look(self, queues: Sequence[str], deadline: Deadline, *, until_missing: bool = False) -> dict[str, Any]:
        """Return what RabbitMQ says of the queues that exist: `message_count` (ready ones) and `consumer_count`.

        The server logs an error for each that is missing.

        Args:
            queues: Their names.
            deadline: When the replies must be there.
            until_missing: Whether to look only at those before the first that is missing.
        """
        found: dict[str, Any] = {}
        left = list(queues)
        while left:
            channel = self.channel(deadline)
            try:
                channel.call_all([existing_queue(name) for name in left], deadline)
            except ClientError as exc:  # one is missing; those before it were answered
                if exc.code != NOT_FOUND:
                    raise
            number = len(channel.replies)
            found.update(zip(left, channel.replies, strict=False))
            left = [] if until_missing else left[number + 1 :]
        return found


def _declaration_problem(call: Any, refusal: ClientError) -> str:
    name = getattr(call, "queue", None) or getattr(call, "exchange", None) or call.destination
    kind = "queue" if hasattr(call, "queue") else "exchange"
    is_other = "inequivalent" in str(refusal)  # rabbit_misc:assert_args_equivalence
    remedy = "; if it may go, delete it and it will be made again" if is_other else ""
    return f"{kind} {name!r} can't be declared as it must be{remedy} (RabbitMQ says: {refusal})"
