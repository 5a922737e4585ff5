"""Carries a delivery out: reads it, runs it, settles it, and then tells Dramatiq what to do with its message.

Dramatiq acknowledges a message whose actor returned or raised, unless the message was marked as failed; then it moves
it to its own dead-letter queue. What a verdict needs is in the broker before that (rules A1 and R5).
"""

from __future__ import annotations

import logging
from typing import Any, Final

import dramatiq
from dramatiq import Broker
from dramatiq.middleware import SkipMessage
from dramatiq.results import Results

from taskbridge import failures
from taskbridge.engines.base import Host
from taskbridge.engines.dramatiq import wire
from taskbridge.engines.dramatiq.deliveries import Delivery, Reception
from taskbridge.engines.dramatiq.worker import DramatiqLife
from taskbridge.engines.settle import NotSettledError, begin, finish, not_settled, put_off_unknown
from taskbridge.exceptions import DecodeError, NewerFormError, TaskBridgeError
from taskbridge.message import Message
from taskbridge.retry import Cancelled, Dead, Discarded, Done, GivenBack, RunAgain, Verdict

_log = logging.getLogger("taskbridge.dramatiq")

_PAUSE_S: Final = 1.0
"""How long a thread waits before a message goes back that could not be settled for a reason nobody thought of."""

_WAITS: Final = "taskbridge_waits"
"""The option that counts how often a message in a newer form was put off, and since when."""


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

    def __init__(self, host: Host, broker: Broker, life: DramatiqLife, reception: Reception) -> None:
        self._host = host
        self._broker = broker
        self._life = life
        self._reception = reception

    def carry(self, delivery: Delivery, queue: str) -> Any:
        """Run a delivery and settle it.

        Args:
            delivery: The message.
            queue: taskbridge's name of its queue.

        Returns:
            What the task returned, if one of Dramatiq's middleware makes use of it.

        Raises:
            Again, Returned, SkipMessage: It did not end well, and nobody is to be alarmed.
            BaseException: The error of which it is dead.
        """
        if self._life.draining:
            raise _going_back(delivery, "the worker stops")
        try:
            return self._carry(delivery, queue)
        except NotSettledError as exc:
            raise _going_back(delivery, "the worker stops before the broker took the verdict", suspect=True) from exc

    def _carry(self, delivery: Delivery, queue: str) -> Any:
        try:
            message = wire.read(delivery.parts, queue=queue)
        except NewerFormError as exc:
            return self._put_off_newer(delivery, exc)
        except DecodeError as exc:
            self._reception.undecodable(delivery.body, exc, message_id=delivery.message_id)
            delivery.fail()
            raise
        try:
            verdict = self._settled(delivery, message)
        except (NotSettledError, Returned):
            raise
        except BaseException as exc:  # Dramatiq acknowledges whatever is raised
            if not_settled(self._host, message, exc):
                raise Returned("it could not be settled: it waits") from None
            raise _going_back(delivery, "it could not be settled", suspect=True) from None
        return self._show(delivery, verdict)

    def _settled(self, delivery: Delivery, message: Message) -> Verdict:
        """Run a message, unless there is a reason not to, and return the verdict, carried out."""
        if not self._host.knows(message.task):
            verdict = put_off_unknown(self._host, message, redelivered=delivery.redelivered)
            if isinstance(verdict, GivenBack):
                raise Returned("no such task here: it waits")
            return verdict
        task = self._host.bound(message.task)
        known = begin(task, message, redelivered=delivery.redelivered)
        if isinstance(known, Discarded) and not isinstance(known, Cancelled):
            raise Returned(f"it was delivered again: {known.reason}")
        if known is not None:
            return known
        verdict = self._life.runs.run(message, limit_s=delivery.limit_s, holder=delivery)
        if delivery.abandoned:
            raise Returned("the worker has given it back meanwhile")
        return finish(task, message, verdict)

    def _show(self, delivery: Delivery, verdict: Verdict) -> Any:
        """Make Dramatiq, its middleware and dashboards see a verdict that was carried out."""
        match verdict:
            case Done(value):
                return value if self._is_wanted(value, delivery) else None
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

    def _is_wanted(self, value: object, delivery: Delivery) -> bool:
        """Return whether any middleware uses a result: Dramatiq warns of those that none does."""
        if value is None or delivery.options.get("pipe_target") is not None:
            return True
        stores = (found for found in self._broker.middleware if isinstance(found, Results))
        return any(delivery.options.get("store_results", found.store_results) for found in stores)

    def _put_off_newer(self, delivery: Delivery, error: NewerFormError) -> Any:
        """Make a message wait that only a newer release can read (rule S8), as unknown tasks do (rule Q6).

        It has to stay as it is, so it waits where Dramatiq's own delayed messages do.
        """
        now = self._host.now()
        count, since = _waits(delivery.options.get(_WAITS), now)
        left_s = self._host.settings.unknown_task_grace_s - (now - since)
        if left_s <= 0:
            self._reception.bury_raw(delivery.body, reason="unknown_task", error=error, message_id=delivery.message_id)
            delivery.fail()
            raise error
        wait_s = min(left_s, 30.0, 2.0 ** min(count, 5))
        _log.warning("task %s id %s waits %.1f s: %s", delivery.actor_name, delivery.message_id, wait_s, error)
        later = delivery.copy(options={_WAITS: [count + 1, since]})
        try:
            self._broker.enqueue(later, delay=int(wait_s * 1000))
        except Exception as exc:
            self._host.stopping.wait(_PAUSE_S)
            raise NotSettledError(str(exc)) from exc
        raise Returned("it is in a newer form: it waits")


def _waits(option: Any, now: float) -> tuple[int, float]:
    match option:
        case [int() as count, int() | float() as since] if count >= 0 and 0 <= since <= now:
            return count, since
        case _:
            return 0, now


def _going_back(delivery: Delivery, reason: str, *, suspect: bool = False) -> Returned:
    delivery.returns = True
    delivery.suspect = suspect
    return Returned(reason)
