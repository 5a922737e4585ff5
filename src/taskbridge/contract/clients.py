"""The engines' own clients: what an application sends that does not know taskbridge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from taskbridge import Bridge
from taskbridge.contract.target import Target

_Steps = list[dict[str, Any]]


def _celery(bridge: Bridge, task: str, steps: _Steps, queue: str, odd: Mapping[str, Any]) -> str:
    headers = {_CELERY_NAMES[name]: value for name, value in odd.items()}
    sent: str = bridge.native.send_task(task, (steps,), queue=queue, headers=headers).id
    return sent


def _dramatiq(bridge: Bridge, task: str, steps: _Steps, queue: str, odd: Mapping[str, Any]) -> str:
    broker = bridge.native
    message = broker.get_actor(task).message(steps)
    there = message.copy(queue_name=f"{bridge.settings.namespace}.dramatiq.{queue}", options=dict(odd))
    sent: str = broker.enqueue(there).message_id
    return sent


_CELERY_NAMES: Final = {"eta": "eta", "max_age": "expires"}

_CLIENTS: Final[Mapping[str, Callable[[Bridge, str, _Steps, str, Mapping[str, Any]], str]]] = {
    "celery": _celery,
    "dramatiq": _dramatiq,
}


def with_own_client(target: Target) -> str:
    """Keep out targets whose engine has no client that is known here."""
    return "" if target.address.engine in _CLIENTS else "its engine has no client of its own"


def send_by_own_client(
    bridge: Bridge, task: str, steps: _Steps, *, queue: str, odd: Mapping[str, Any] | None = None
) -> str:
    """Send a task by the means of the engine alone, and return the message's id.

    Args:
        bridge: Names the engine and the broker.
        task: The task's name.
        steps: What it does.
        queue: taskbridge's name of the queue.
        odd: What the message says of `eta` and `max_age`, by Dramatiq's names, whatever that is.
    """
    return _CLIENTS[bridge.settings.url.engine](bridge, task, steps, queue, {} if odd is None else odd)
