"""Celery's request for a task of taskbridge's, and what a worker knows of the attempts that it was asked to run."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from celery.exceptions import TaskRevokedError

from taskbridge import locks
from taskbridge.engines.celery.carrier import PutOff
from taskbridge.engines.celery.stock import CeleryRequest, stock
from taskbridge.message import Message

_REMEMBERED: Final = 10_000

RUNNING: Final = "running"
ENDED: Final = "ended"


class Attempts:
    """The attempts that this worker runs, and those that it ended lately.

    Each is known with how often it had been put off when it was last seen. Without a store, a message that may have
    been started elsewhere is sent once more before it is run, counted in `Message.redelivered`: that is another one.
    """

    def __init__(self) -> None:
        self._lock = locks.Lock()
        self._running: dict[tuple[str, int], int] = {}
        self._ended: OrderedDict[tuple[str, int], int] = OrderedDict()

    def begin(self, message: Message) -> None:
        """Note that an attempt is handed to the pool."""
        key = message.life, message.attempt
        with self._lock:
            self._running[key] = message.redelivered
            self._ended.pop(key, None)  # a dead letter that was replayed

    def comes_again(self, message: Message) -> None:
        """Note that another message of a running attempt is on its way, put off as often as this one."""
        key = message.life, message.attempt
        with self._lock:
            if key in self._running:
                self._running[key] = max(self._running[key], message.redelivered)

    def end(self, message: Message) -> None:
        """Note that an attempt's verdict has been carried out."""
        key = message.life, message.attempt
        with self._lock:
            self._ended[key] = self._running.pop(key, message.redelivered)
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)

    def forget(self, message: Message) -> None:
        """Note that an attempt was given back."""
        with self._lock:
            self._running.pop((message.life, message.attempt), None)

    def state_of(self, message: Message) -> str | None:
        """Return what is known of an attempt: `running`, `ended`, or None for nothing."""
        key = message.life, message.attempt
        with self._lock:
            if key in self._running:
                return RUNNING
            return ENDED if message.redelivered <= self._ended.get(key, -1) else None


class Request(CeleryRequest):
    """A request for a task of taskbridge's; the worker remembers which attempts it has begun and ended."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_put_off = False
        self._attempts().begin(self.message.taskbridge)

    def execute_using_pool(self, pool: Any, **options: Any) -> Any:
        """Have the pool run the task; whatever hinders it buries this message and ends nothing else (rule I1).

        A slot that gets free may call this in the main loop, far from where the message was received.
        """
        try:
            return stock(super()).execute_using_pool(pool, **options)
        except (TaskRevokedError, MemoryError, OSError):  # not this message's fault
            raise
        except Exception as exc:
            self.app.engine.consumer.refuse_request(self, exc)
            raise TaskRevokedError(self.id) from exc  # which tells Celery to free the slot

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> None:
        """Deal with what the task raised."""
        error = exc_info.exception
        self._is_put_off = isinstance(getattr(error, "exc", error), PutOff)  # pools wrap what comes from a child
        stock(super()).on_failure(exc_info, *args, **options)

    def acknowledge(self) -> None:
        """Acknowledge the message: its verdict has been carried out, or another one of its attempt is on its way."""
        if self._is_put_off:
            self._attempts().forget(self.message.taskbridge)  # else that one would be taken for a run that has ended
        else:
            self._attempts().end(self.message.taskbridge)
        stock(super()).acknowledge()
        self.app.engine.consumer.ended(self)

    def reject(self, requeue: bool = False) -> None:
        """Return the message: the attempt has not happened."""
        self._attempts().forget(self.message.taskbridge)
        stock(super()).reject(requeue)
        self.app.engine.consumer.ended(self)

    def _attempts(self) -> Attempts:
        attempts: Attempts = self.app.engine.life.attempts
        return attempts
