"""Dramatiq's default middleware, which leaves taskbridge's messages alone: retries, expiry and limits are not its own.

Actors that a user declares on the broker without taskbridge keep what Dramatiq does by default.
"""

from __future__ import annotations

from typing import Any

from dramatiq import Broker
from dramatiq.middleware import (
    AgeLimit,
    Callbacks,
    CurrentMessage,
    Middleware,
    Pipelines,
    Retries,
    ShutdownNotifications,
    TimeLimit,
)

from taskbridge.engines.dramatiq.actors import is_ours
from taskbridge.engines.dramatiq.broker import ForOthers
from taskbridge.engines.dramatiq.carrier import Returned


class OrdinaryAgeLimit(ForOthers, AgeLimit):
    """Expires messages of ordinary actors; taskbridge's expire by rule X1."""

    def before_process_message(self, broker: Broker, message: Any) -> None:
        """Check a message's age."""
        if not is_ours(broker, message):
            super().before_process_message(broker, message)


class OrdinaryTimeLimit(ForOthers, TimeLimit):
    """Limits the time of ordinary actors, by default to 10 minutes; taskbridge's tasks have rule T1."""

    def before_process_message(self, broker: Broker, message: Any) -> None:
        """Start the clock."""
        if not is_ours(broker, message):
            super().before_process_message(broker, message)


class OrdinaryShutdownNotifications(ForOthers, ShutdownNotifications):
    """Interrupts ordinary actors that ask for it as soon as the worker stops; taskbridge's tasks have rule A4."""

    def before_process_message(self, broker: Broker, message: Any) -> None:
        """Note the thread."""
        if not is_ours(broker, message):
            super().before_process_message(broker, message)


class OrdinaryRetries(ForOthers, Retries):
    """Retries ordinary actors; of taskbridge's messages the verdict is carried out before this is called."""

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Retry a message that failed."""
        if not is_ours(broker, message):
            super().after_process_message(broker, message, result=result, exception=exception)


class AttemptCallbacks(ForOthers, Callbacks):
    """Calls back as usual, but not for a message that only goes back to its queue."""

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Send to the actor that a message or its actor names."""
        if not isinstance(exception, Returned):
            super().after_process_message(broker, message, result=result, exception=exception)


class OptionalPipelines(ForOthers, Pipelines):
    """Goes on with pipelines as usual."""


def default_middleware() -> list[Middleware]:
    """Return what Dramatiq's brokers have by default, in the same order, and `CurrentMessage`."""
    return [
        OrdinaryAgeLimit(),
        OrdinaryTimeLimit(),
        OrdinaryShutdownNotifications(),
        AttemptCallbacks(),
        OptionalPipelines(),
        OrdinaryRetries(),
        CurrentMessage(),
    ]
