"""The actors by which Dramatiq knows taskbridge's tasks."""

from __future__ import annotations

from typing import Any, NoReturn

from dramatiq import Actor, Broker, Message
from dramatiq.errors import ActorNotFound
from dramatiq.logging import get_logger
from dramatiq.middleware import Middleware

from taskbridge import locks
from taskbridge.declaration import Declaration
from taskbridge.engines.dramatiq.carrier import Carrier
from taskbridge.engines.dramatiq.deliveries import Delivery


class Handover(Middleware):
    """Hands a worker thread's message to the actor that it is about to call: actors get only its arguments."""

    def __init__(self) -> None:
        self._local = locks.Local()

    def take(self) -> Delivery | None:
        """Return the message that this thread is about to run, once; None outside a worker's own call."""
        delivery: Delivery | None = self._local.__dict__.pop("delivery", None)
        return delivery

    def before_process_message(self, broker: Broker, message: Any) -> None:
        """Note the message."""
        self._local.delivery = message

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Forget the message."""
        self.take()

    def after_skip_message(self, broker: Broker, message: Any) -> None:
        """Forget the message."""
        self.take()


class Carried(Actor[Any, Any]):
    """An actor whose messages taskbridge decides about."""


class TaskActor(Carried):
    """A task, as Dramatiq knows it."""

    def __init__(
        self,
        declaration: Declaration,
        *,
        broker: Broker,
        queue: str,
        native_queue: str,
        carrier: Carrier,
        handover: Handover,
    ) -> None:
        self._queue = queue
        self._limit_s = declaration.time_limit_s
        self._carrier = carrier
        self._handover = handover
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
        delivery = self._handover.take()
        if delivery is None:
            return self.fn(*args, **kwargs)
        delivery.limit_s = self._limit_s
        return self._carrier.carry(delivery, self._queue if delivery.queue is None else delivery.queue)


class StrangerActor(Carried):
    """Stands in for a task that this worker does not know, so that its message waits (rule Q6); it can't be sent to."""

    def __init__(self, name: str, *, broker: Broker, carrier: Carrier, handover: Handover) -> None:
        # Not the base class's: that would declare it, and then it would be known.
        self.logger: Any = get_logger(__name__, name)
        self.fn: Any = self._refuse
        self.broker = broker
        self.actor_name = name
        self.queue_name = ""
        self.priority = 0
        self.options: dict[str, Any] = {}
        self._carrier = carrier
        self._handover = handover

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Put the message off; one on a queue of the user's own is dead at once, as Dramatiq has it."""
        delivery = self._handover.take()
        if delivery is not None and delivery.queue is not None:
            return self._carrier.carry(delivery, delivery.queue)
        if delivery is not None:
            delivery.fail()
        return self._refuse()

    def message_with_options(self, *args: Any, **options: Any) -> Message[Any]:
        """Refuse."""
        self._refuse()

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ActorNotFound(self.actor_name)


def is_ours(broker: Broker, message: Any) -> bool:
    """Return whether taskbridge decides about a message, and not Dramatiq's own middleware."""
    if isinstance(message, Delivery):
        if message.is_ours is None:
            message.is_ours = isinstance(broker.get_actor(message.actor_name), Carried)
        return message.is_ours
    return isinstance(broker.get_actor(message.actor_name), Carried)
