"""Carries a delivery out: runs it, settles it, and then tells Dramatiq what to do with its message.

Dramatiq acknowledges a message whose actor returned or raised, unless the message was marked as failed; then it moves
it to its own dead-letter queue. What a verdict needs is in the broker before that (rules A1 and R5).
"""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq import Broker
from dramatiq.middleware import SkipMessage
from dramatiq.results import Results

from taskbridge import failures
from taskbridge.engines.base import Host
from taskbridge.engines.dramatiq.deliveries import FOR_OPTIONS, Delivery
from taskbridge.engines.dramatiq.worker import DramatiqLife
from taskbridge.engines.settle import NotSettledError, begin, finish, not_settled
from taskbridge.exceptions import TaskBridgeError
from taskbridge.message import Message
from taskbridge.retry import Cancelled, Dead, Discarded, Done, GivenBack, RunAgain, Verdict


class Again(dramatiq.Retry):
    """Shows an attempt that failed and is run again; Dramatiq does not log it as an error.

    It is already parked, and Dramatiq acknowledges what it ran.
    """


class Returned(dramatiq.Retry):
    """Shows a message that was not run: it waits, or goes back to its queue."""


class Buried(TaskBridgeError):
    """Shows a message that is dead without any error having been raised; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the message is dead: {reason}")
        self.reason = reason


class Carrier:
    """Carries out deliveries for one bridge, in the worker's threads."""

    def __init__(self, host: Host, broker: Broker, life: DramatiqLife) -> None:
        self._host = host
        self._broker = broker
        self._life = life

    def carry(self, delivery: Delivery) -> Any:
        """Run a delivery of a task's and settle it.

        Returns:
            What the task returned, if one of Dramatiq's middleware makes use of it.

        Raises:
            Again, Returned, SkipMessage: It did not end well, and nobody is to be alarmed.
            BaseException: The error of which it is dead.
        """
        message = delivery.task_message
        assert message is not None
        if self._life.draining:
            raise _going_back(delivery, "the worker stops")
        try:
            verdict = self._settled(delivery, message)
        except Returned:
            raise
        except NotSettledError as exc:
            raise _going_back(delivery, "the worker stops before the broker took the verdict", suspect=True) from exc
        except BaseException as exc:  # Dramatiq acknowledges whatever is raised
            if not_settled(self._host, message, exc):
                raise _elsewhere(delivery, "it could not be settled: it waits") from None
            raise _going_back(delivery, "it could not be settled", suspect=True) from None
        return self._show(delivery, verdict)

    def _settled(self, delivery: Delivery, message: Message) -> Verdict:
        """Run a message, unless there is a reason not to, and return the verdict, carried out."""
        task = self._host.bound(message.task)
        known = begin(task, message, redelivered=delivery.redelivered)
        if isinstance(known, Discarded) and not isinstance(known, Cancelled):
            raise _elsewhere(delivery, f"it was delivered again: {known.reason}")
        if known is not None:
            return known
        verdict = self._life.runs.run(task, message, holder=delivery)
        if delivery.abandoned:
            raise _elsewhere(delivery, "the worker has given it back meanwhile")
        return finish(task, message, verdict)

    def _show(self, delivery: Delivery, verdict: Verdict) -> Any:
        """Make Dramatiq, its middleware and dashboards see a verdict that was carried out."""
        match verdict:
            case Done(value):
                return value if value is None or self._is_wanted(delivery) else None
            case RunAgain(after_s, error):
                retries = delivery.options.get("retries")
                count = retries + 1 if isinstance(retries, int) else 1
                # What Dramatiq's own retry would call: Prometheus counts retries by it.
                self._broker.emit_after("enqueue", delivery.copy(options={"retries": count}), int(after_s * 1000))
                raise Again(f"next attempt in {after_s:.3f} s") from failures.presentable(error)
            case Dead(reason, error):
                delivery.fail()
                raise Buried(reason) if error is None else failures.presentable(error)
            case Discarded(reason):
                raise SkipMessage(reason)
            case GivenBack():
                raise _going_back(delivery, "the worker stops")

    def _is_wanted(self, delivery: Delivery) -> bool:
        """Return whether any middleware uses a result: Dramatiq warns of those that none does."""
        if delivery.options.get("pipe_target") is not None:
            return True
        stores = (found for found in self._broker.middleware if isinstance(found, Results))
        return any(delivery.options.get("store_results", found.store_results) for found in stores)


def _elsewhere(delivery: Delivery, reason: str) -> Returned:
    """Return what to raise for a message whose outcome is not this one; nobody is called back for it."""
    delivery.unheard = FOR_OPTIONS
    return Returned(reason)


def _going_back(delivery: Delivery, reason: str, *, suspect: bool = False) -> Returned:
    delivery.returns = True
    delivery.suspect = suspect
    return _elsewhere(delivery, reason)
