"""What RabbitMQ delivers to a worker beyond its free slots (rule A6)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from taskbridge.logs import logger

if TYPE_CHECKING:
    from taskbridge.engines.celery.consumer import Consumer

_log = logger("taskbridge.celery")

_PATIENCE_S: Final = 0.5  # how long a message waits here for a slot before another worker may have it


class Surplus:
    """Messages that wait in a worker for a free slot. All is called in the main loop's thread.

    RabbitMQ 4, and quorum queues, limit what each queue's consumer is sent, and not what the worker is: with q queues,
    that may be q times its slots. What has waited here for long goes back to its queue, and until a slot is free,
    nothing is consumed. Without a store it stays: who gets it next could not tell that it was not started.
    """

    def __init__(self, consumer: Consumer, *, may_return: bool) -> None:
        self._consumer = consumer
        self._may_return = may_return
        self._waiting: deque[tuple[float, Any, Callable[[], object]]] = deque()
        self._is_looking = False  # whether a timer is set
        self._is_paused = False
        self._is_closed = False
        self.is_there: bool = False  # whether a slot that gets free is to be told of

    def forget(self) -> None:
        """Forget all, with its connection: RabbitMQ delivers it again."""
        self._waiting.clear()
        self.is_there = self._is_paused = False

    def close(self) -> None:
        """Give back all that waits and is yet to come, and consume no more: the worker takes nothing new."""
        self._is_closed = True
        self._give_back()
        self.is_there = False

    def keep(self, message: Any, hand_on: Callable[[], object]) -> None:
        """Keep a message until a slot is free for it, and all that came before it has one."""
        self._waiting.append((monotonic(), message, hand_on))
        if self._is_closed:
            self._give_back()
            return
        self.is_there = True
        self.go_on()
        if not self._is_looking:
            self._is_looking = True
            self._look_soon()

    def _look_soon(self) -> None:
        self._consumer.timer.call_after(_PATIENCE_S, self._consumer.call_soon, (self._look,))

    def _look(self) -> None:
        """Look now and then, for of some slots nobody tells that they are free, as of the user's own tasks."""
        self.go_on()
        if self._waiting and monotonic() - self._waiting[0][0] >= _PATIENCE_S:
            self._pause()
        self._is_looking = self.is_there
        if self._is_looking:
            self._look_soon()

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._consumer.task_consumer.cancel()
        if self._may_return:
            self._give_back()

    def _give_back(self) -> None:
        while self._waiting:
            self._waiting.popleft()[1].reject_log_error(_log, self._consumer.lost, requeue=True)

    def go_on(self) -> None:
        """Hand on what waits, as far as slots are free; and consume again if one still is."""
        while self._waiting and self._consumer.has_free_slot():
            _, message, hand_on = self._waiting.popleft()
            try:
                hand_on()
            except self._consumer.lost:
                raise  # the consumer connects again, and the broker delivers the message again
            except Exception as exc:  # it ends this message and nothing else (rule I1)
                self._consumer.failed(message, exc)
        if self._consumer.has_free_slot():
            self.is_there = False
            if self._is_paused and not self._is_closed:
                self._is_paused = False
                self._take_turns()
                self._consumer.task_consumer.consume()

    def _take_turns(self) -> None:
        """Let another queue be the first of which something comes, or it would be the same each time."""
        consumer = self._consumer.task_consumer
        consumer.queues = [*consumer.queues[1:], *consumer.queues[:1]]

    def renew(self) -> None:
        """Consume anew: what is held for other reasons counts no more for what the consumers may be sent."""
        consumer = self._consumer.task_consumer
        if consumer is not None and not (self._is_paused or self._is_closed):  # it is None after a connection is lost
            consumer.cancel()
            consumer.consume()
