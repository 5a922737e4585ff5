"""Celery's request for a task of taskbridge's."""

from __future__ import annotations

from typing import Any

from celery.exceptions import TaskRevokedError

from taskbridge.engines.celery.attempts import Attempts
from taskbridge.engines.celery.carrier import PutOff
from taskbridge.engines.celery.stock import CeleryRequest, stock


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
