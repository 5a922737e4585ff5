"""The queues and exchanges that taskbridge makes for itself: the delays, what is due, and the dead letters.

A delay of n seconds travels through one queue for each bit of n that is 1, the highest first. Level k has a topic
exchange `{namespace}.delay.{k}` and a queue of the same name, where a message lives for 2**k seconds; then the server
hands it on to the exchange of level k - 1. The routing key is n in 28 bits, each a word, and then the engine's name:
level k's exchange looks at the bit of its level, and routes to its queue (1) or past it, to the next exchange (0).
Behind level 0 stands the topic exchange `{namespace}.due`, and the queue `{namespace}.due.{engine}` of each engine.
Patterns have exactly as many words as keys, so that none matches by accident. A message enters at the level of its
highest bit, so levels are made when a delay first needs them, and 600 s need ten.

The levels are quorum queues that hand messages on with confirms (`at-least-once`). Classic queues forget a message
before the next queue has it: with 5,000 messages on their way, killing RabbitMQ 3.10.8 lost 2,000 of them, and stopping
it lost up to 13, where quorum queues lost none. They cost as much to make, less to enter (0.56 to 1.03 ms of the
server's CPU a message) and more to travel (0.5 to 0.3 ms a level). A node that starts may be slow to go on: what falls
due before the next queue is there is tried again after `dead_letter_worker_publisher_confirm_timeout`, 3 minutes.
Before RabbitMQ 3.10, quorum queues have no time to live.

A queue that is new takes messages a moment before it has its settings (rabbit_quorum_queue:start_cluster, up to
RabbitMQ 4.0): where several processes made a level at once, what one of them sent could enter it without a time to
live, and stayed there for good, with all that came behind it. So each message that is sent to a level has an expiration
of its own, too; the server takes that off when it hands the message on (rabbit_dead_letter), and by then the level
below has its settings.

What is due, and the dead letters, are in queues of the type that the setting `queue_type` says, whatever is the default
of the virtual host.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from pika import spec

from taskbridge.brokers.base import typed
from taskbridge.routing import QueueType

LEVELS: Final = 28
LONGEST_S: Final = 2**LEVELS - 1  # the longest delay, 8.5 years
LONGEST_EXPIRATION_S: Final = 10 * 365 * 86400
"""The longest time to live that RabbitMQ takes; see rabbit_misc:check_expiry."""

_BUILT_IN: Final = ("celery", "dramatiq")

_TRACE: Final = "trace?"
"""What stands in the place of an engine in the routing key of a message that shows which levels are there."""

_SIGN_EXPIRES_MS: Final = 120_000  # how long the queue of a sign is there that nobody looks at


class Topology:
    """The names in one namespace, and how what bears them is declared."""

    def __init__(self, namespace: str, kind: QueueType = "classic") -> None:
        self.dead: str = f"{namespace}.dead"  # the queue of the dead letters
        self._namespace = namespace
        self.kind: QueueType = kind  # of that queue, and of those of what is due
        self.trace_key: str = self.route(0.0, _TRACE)[1]  # by which each level passes a message on to the one below it

    def due(self, engine: str) -> str:
        """The queue of what an engine's pumps publish."""
        return f"{self.level(-1)}.{engine}"

    def own_queue(self, name: str) -> Any:
        """Return the call that declares the queue of the dead letters, or one of what is due."""
        return queue(name, typed(self.kind))

    def level(self, level: int) -> str:
        """The exchange of a level, and its queue; -1 is the exchange of what is due, below level 0."""
        return f"{self._namespace}.due" if level < 0 else f"{self._namespace}.delay.{level}"

    def sign(self, name: str) -> str:
        """The queue of a sign, which holds one message while it can be seen."""
        return f"{self._namespace}.sign.{name}"

    def route(self, delay_s: float, engine: str) -> tuple[int, str]:
        """Return a delay's highest level, and its routing key; it is rounded up to whole seconds (rule D1)."""
        whole_s = min(LONGEST_S, max(0, math.ceil(delay_s)))
        bits = ".".join(format(whole_s, f"0{LEVELS}b"))
        return whole_s.bit_length() - 1, f"{bits}.{engine}"

    def calls(self, level: int, engines: Iterable[str]) -> Iterator[Any]:
        """Yield the calls that make a level and all below it; -1 is the due exchange with these engines' queues.

        The next level's queue is made too, for the quorum queue that was declared last is not yet safe: RabbitMQ 3.10.8
        writes its name down within a second, or when another one is declared. Killed before that, it begins anew with
        an empty queue ("Starting member as a new one"; rabbitmq/rabbitmq-server#15725), though it had confirmed
        messages: in 16 of 16 kills within 0.8 s the queue declared last was empty, and no other one in any.
        """
        yield _topic(self.level(-1))
        for engine in engines:
            yield self.own_queue(self.due(engine))
            yield _bind(self.due(engine), self.level(-1), f"{'*.' * LEVELS}{engine}")
        for each in range(level + 1):
            name = self.level(each)
            before, behind = "*." * (LEVELS - 1 - each), ".*" * (each + 1)
            yield _topic(name)
            yield self._level_queue(each)
            yield _bind(name, name, f"{before}1{behind}")
            below = self.level(each - 1)
            yield spec.Exchange.Bind(destination=below, source=name, routing_key=f"{before}0{behind}")
        if level >= 0:
            yield self._level_queue(level + 1)

    def trace_calls(self, level: int) -> Iterator[Any]:
        """Yield the calls after which a message with `trace_key` shows whether a level is there.

        It is routed to the queue of a sign, if from this level's exchange down each is bound to the one below. A level
        is bound last of all, when its queue is there.
        """
        sign = self.sign("levels")
        yield _topic(self.level(-1))
        yield sign_queue(sign)
        yield _bind(sign, self.level(-1), f"{'*.' * LEVELS}{_TRACE}")
        yield _topic(self.level(level))

    def _level_queue(self, level: int) -> Any:
        arguments = {
            "x-message-ttl": life_ms(level),
            "x-dead-letter-exchange": self.level(level - 1),
            "x-queue-type": "quorum",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",  # at-least-once asks for it
        }
        return queue(self.level(level), arguments)


def life_ms(level: int) -> int:
    """Return how long a message lives in the queue of a level, in milliseconds."""
    return 1000 << level


def queue(name: str, arguments: Mapping[str, Any]) -> Any:
    """Return the call that declares a durable queue."""
    return spec.Queue.Declare(queue=name, durable=True, arguments=dict(arguments))


def sign_queue(name: str) -> Any:
    """Return the call that declares the queue of a sign."""
    return queue(name, {**typed("classic"), "x-max-length": 1, "x-expires": _SIGN_EXPIRES_MS})


@lru_cache(maxsize=8)
def all_engines(first: str) -> Sequence[str]:
    """Return the names of all engines, built-in or installed as entry points, beginning with one of them."""
    from importlib.metadata import entry_points  # here, for it takes 20 ms to import, and a process may only send

    installed = (each.name for each in entry_points(group="taskbridge.engines"))
    return tuple(dict.fromkeys((first, *_BUILT_IN, *installed)))


def _topic(name: str) -> Any:
    return spec.Exchange.Declare(exchange=name, type="topic", durable=True)


def _bind(queue_name: str, exchange: str, pattern: str) -> Any:
    return spec.Queue.Bind(queue=queue_name, exchange=exchange, routing_key=pattern)
