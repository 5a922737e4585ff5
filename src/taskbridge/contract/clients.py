"""The engines' own clients: what an application sends that does not know taskbridge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from taskbridge import Bridge


def _celery(bridge: Bridge, task: str, steps: list[dict[str, Any]], queue: str) -> str:
    sent: str = bridge.native.send_task(task, (steps,), queue=queue).id
    return sent


def _dramatiq(bridge: Bridge, task: str, steps: list[dict[str, Any]], queue: str) -> str:
    broker = bridge.native
    message = broker.get_actor(task).message(steps)
    sent: str = broker.enqueue(message.copy(queue_name=f"{bridge.settings.namespace}.dramatiq.{queue}")).message_id
    return sent


_CLIENTS: Final[Mapping[str, Callable[[Bridge, str, list[dict[str, Any]], str], str]]] = {
    "celery": _celery,
    "dramatiq": _dramatiq,
}


def has_own_client(engine: str) -> bool:
    """Return whether an engine has a client of its own that is known here."""
    return engine in _CLIENTS


def send_by_own_client(bridge: Bridge, task: str, steps: list[dict[str, Any]], *, queue: str) -> str:
    """Send a task by the means of the engine alone, and return the message's id."""
    return _CLIENTS[bridge.settings.url.engine](bridge, task, steps, queue)
