"""The actors by which Dramatiq knows taskbridge's tasks."""

from __future__ import annotations

from typing import Any

from dramatiq import Actor, Broker
from dramatiq.middleware import CurrentMessage

from taskbridge.declaration import Declaration
from taskbridge.engines.dramatiq.carrier import Carrier
from taskbridge.engines.dramatiq.deliveries import Delivery


class TaskActor(Actor[Any, Any]):
    """A task, as Dramatiq knows it."""

    def __init__(self, declaration: Declaration, *, broker: Broker, native_queue: str, carrier: Carrier) -> None:
        self._limit_s = declaration.time_limit_s
        self._carrier = carrier
        super().__init__(
            declaration.function,
            broker=broker,
            actor_name=declaration.name,
            queue_name=native_queue,
            priority=0,
            options={},
        )

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the message that this worker thread has in hand; elsewhere, call the function."""
        delivery: object = CurrentMessage.get_current_message()
        if not isinstance(delivery, Delivery) or delivery.task_message is None or delivery.is_begun:
            return self.fn(*args, **kwargs)
        delivery.is_begun = True  # a task may call another one, or itself
        return self._carrier.carry(delivery, delivery.task_message, limit_s=self._limit_s)
