"""Shortcuts through Celery, kombu and py-amqp: the only room that touches names of theirs that begin with `_`.

| module | what is shorter | for |
|---|---|---|
| `tasks` | a message goes from the main loop to a thread as it was read, past the tracer | pools of threads |
| `reader` | deliveries of RabbitMQ are read at once, and acknowledgements written together | each pool, without TLS |
| `gate` | nothing: it decides whether the others may be taken | |

All else is told nothing of it: without this room, Celery runs the same messages with the same outcome.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskbridge.engines.celery.fast import gate
from taskbridge.engines.celery.rabbitmq import Transport

if TYPE_CHECKING:
    from taskbridge.engines.celery.fast.tasks import Shortcuts


def shortcuts_of(consumer: Any, *, is_wanted: bool) -> Shortcuts | None:
    """Return the short ways of a worker's tasks; None if all take the plain one.

    A pool of processes has nothing to be shortened here: Celery pickles each message for a child.

    Args:
        consumer: The worker's consumer.
        is_wanted: The setting `fast`.
    """
    if consumer.app.engine.settings.url.broker == "amqp":
        why = gate.obstacle("reader", is_wanted=is_wanted)
        if why is not None:
            gate.tell("messages from RabbitMQ take", why)  # only now, for the log is set up by now
    if consumer.slots is None or consumer.hub is None:
        return None
    why = gate.obstacle("tasks", is_wanted=is_wanted)
    if why is not None:
        gate.tell("tasks take", why)
        return None
    from taskbridge.engines.celery.fast.tasks import Shortcuts  # here, for it needs the names that the gate has found

    return Shortcuts(consumer)


def amqp_transport(*, is_wanted: bool) -> Any:
    """Return the transport class that reads RabbitMQ's deliveries, or the plain one."""
    if gate.obstacle("reader", is_wanted=is_wanted) is not None:
        return Transport
    from taskbridge.engines.celery.fast import reader  # here, as above

    return reader.Transport
