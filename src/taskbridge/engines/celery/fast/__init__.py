"""Shortcuts through Celery, kombu and py-amqp: the only room that touches names of theirs that begin with `_`.

| module | what is shorter | for |
|---|---|---|
| `tasks` | a message goes from the main loop to a thread as it was read, past the tracer | pools of threads |
| `reader` | deliveries of RabbitMQ are read at once, and acknowledgements written together | each pool, without TLS |
| `gate` | nothing: it decides whether the others may be taken | |

All else is told nothing of it: without this room, Celery runs the same messages with the same outcome.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from taskbridge.engines.celery.fast import gate
from taskbridge.engines.celery.rabbitmq import Transport

if TYPE_CHECKING:
    from taskbridge.engines.celery.consumer import Way


_obstacle: Final = cache(gate.obstacle)


def way_of(task: Any, app: Any, consumer: Any, **_: Any) -> Way:
    """Return how a worker takes the messages of a task of taskbridge's; Celery calls it for its `Task.Strategy`.

    A pool of processes has nothing to be shortened here: Celery pickles each message for a child.
    """
    from taskbridge.engines.celery.consumer import Way  # here, for only workers need it

    settings = app.engine.settings
    if settings.url.broker == "amqp" and (why := _obstacle("reader", is_wanted=settings.fast)) is not None:
        gate.tell("messages from RabbitMQ take", why)  # only now, for the log is set up by now
    if consumer.slots is None or consumer.hub is None:
        return Way(task, consumer)
    why = _obstacle("tasks", is_wanted=settings.fast)
    if why is not None:
        gate.tell("tasks take", why)
        return Way(task, consumer)
    from taskbridge.engines.celery.fast import tasks  # here, for it needs the names that the gate has found

    if tasks.is_traced_by_celery_alone(task):
        return tasks.FastWay(task, consumer)
    gate.tell(f"task {task.name} takes", "a tool, or a class of tasks, has something of its own around runs")
    return Way(task, consumer)


def amqp_transport(*, is_wanted: bool) -> Any:
    """Return the transport class that reads RabbitMQ's deliveries, or the plain one."""
    if gate.obstacle("reader", is_wanted=is_wanted) is not None:
        return Transport
    from taskbridge.engines.celery.fast import reader  # here, as above

    return reader.Transport
