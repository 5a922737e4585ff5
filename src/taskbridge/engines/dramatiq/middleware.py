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

from taskbridge.engines.dramatiq.broker import ForActors, ForOptions
from taskbridge.engines.dramatiq.carrier import Returned


class ActorAgeLimit(ForActors, AgeLimit):
    """Expires messages of ordinary actors; taskbridge's expire by rule X1."""


class ActorTimeLimit(ForActors, TimeLimit):
    """Limits the time of ordinary actors, by default to 10 minutes; taskbridge's tasks have rule T1."""


class ActorShutdownNotifications(ForActors, ShutdownNotifications):
    """Interrupts ordinary actors that ask for it as soon as the worker stops; taskbridge's tasks have rule A4."""


class ActorRetries(ForActors, Retries):
    """Retries ordinary actors; of taskbridge's messages the verdict is carried out before this would be called."""


class OptionalCallbacks(ForOptions, Callbacks):
    """Calls back as usual, but not for a message that only goes back to its queue."""

    def after_process_message(
        self, broker: Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Send to the actor that a message or its actor names."""
        if not isinstance(exception, Returned):
            super().after_process_message(broker, message, result=result, exception=exception)


class OptionalPipelines(ForOptions, Pipelines):
    """Goes on with pipelines as usual."""


def default_middleware() -> list[Middleware]:
    """Return what Dramatiq's brokers have by default, in the same order, and `CurrentMessage`."""
    return [
        ActorAgeLimit(),
        ActorTimeLimit(),
        ActorShutdownNotifications(),
        OptionalCallbacks(),
        OptionalPipelines(),
        ActorRetries(),
        CurrentMessage(),
    ]
