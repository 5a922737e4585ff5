"""The queues and exchanges that taskbridge makes for itself: the delays, what is due, and the dead letters.

A delay of n seconds travels through one queue for each bit of n that is 1, the highest first. Level k has a topic
exchange `{namespace}.delay.{k}` and a queue of the same name, where a message lives for 2**k seconds; then the server
hands it on to the exchange of level k - 1. The routing key is n in 28 bits, each a word, and then the engine's name:
level k's exchange looks at the bit of its level, and routes to its queue (1) or past it, to the next exchange (0).
Behind level 0 stands the topic exchange `{namespace}.due`, and the queue `{namespace}.due.{engine}` of each engine.
Patterns have exactly as many words as keys, so that none matches by accident.

The levels are quorum queues that hand messages on with confirms (`at-least-once`), for classic queues forget a
message before the next queue has it: one that fell due while the server was stopped or killed could be lost.
On one node of RabbitMQ 3.10.8 they cost no more than classic ones, in time or memory. Before 3.10, quorum queues have
no time to live; there the levels are classic queues.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pika import spec

LEVELS: Final = 28
LONGEST_S: Final = 2**LEVELS - 1
"""The longest delay, 8.5 years."""

LONGEST_EXPIRATION_S: Final = 10 * 365 * 86400
"""The longest time to live that RabbitMQ takes; see rabbit_misc:check_expiry."""

_QUORUM_SINCE: Final = (3, 10)


@dataclass(frozen=True, slots=True)
class Topology:
    """The names in one namespace, and how what bears them is declared."""

    namespace: str

    @property
    def dead(self) -> str:
        """The queue of the dead letters."""
        return f"{self.namespace}.dead"

    def due(self, engine: str) -> str:
        """The queue of what an engine's pumps publish."""
        return f"{self._due_exchange}.{engine}"

    @property
    def levels(self) -> list[str]:
        """The queues in which delayed messages wait."""
        return [self._level(level) for level in range(LEVELS)]

    @property
    def _due_exchange(self) -> str:
        return f"{self.namespace}.due"

    def _level(self, level: int) -> str:
        return f"{self.namespace}.delay.{level}" if level >= 0 else self._due_exchange

    def entrance(self, delay_s: float, engine: str) -> tuple[str, str]:
        """Return the exchange and the routing key for a delay, which is rounded up to whole seconds (rule D1)."""
        whole_s = min(LONGEST_S, max(0, math.ceil(delay_s)))
        bits = ".".join(format(whole_s, f"0{LEVELS}b"))
        return self._level(whole_s.bit_length() - 1), f"{bits}.{engine}"

    def delays(self, engine: str, server_version: tuple[int, ...]) -> Iterator[Any]:
        """Yield the calls that make the levels, and an engine's due queue."""
        yield _topic(self._due_exchange)
        yield queue(self.due(engine))
        yield _bind(self.due(engine), self._due_exchange, f"{'*.' * LEVELS}{engine}")
        for level in range(LEVELS):
            yield _topic(self._level(level))
            yield queue(self._level(level), self._level_arguments(level, server_version))
            before, behind = "*." * (LEVELS - 1 - level), ".*" * (level + 1)
            yield _bind(self._level(level), self._level(level), f"{before}1{behind}")
            yield spec.Exchange.Bind(
                destination=self._level(level - 1), source=self._level(level), routing_key=f"{before}0{behind}"
            )

    def _level_arguments(self, level: int, server_version: tuple[int, ...]) -> Mapping[str, Any]:
        arguments = {"x-message-ttl": 2**level * 1000, "x-dead-letter-exchange": self._level(level - 1)}
        if server_version < _QUORUM_SINCE:
            return arguments
        return {
            **arguments,
            "x-queue-type": "quorum",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",  # at-least-once asks for it
        }


def queue(name: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Return the call that declares a durable queue."""
    return spec.Queue.Declare(queue=name, durable=True, arguments=dict(arguments or {}))


def existing_queue(name: str) -> Any:
    """Return the call that looks at a queue, and fails if there is none."""
    return spec.Queue.Declare(queue=name, passive=True)


def _topic(name: str) -> Any:
    return spec.Exchange.Declare(exchange=name, type="topic", durable=True)


def _bind(queue_name: str, exchange: str, pattern: str) -> Any:
    return spec.Queue.Bind(queue=queue_name, exchange=exchange, routing_key=pattern)
