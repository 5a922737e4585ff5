"""A message on its way through a worker: as it comes from a queue, as it is run, and what Dramatiq is told then.

Dramatiq acknowledges a message whose actor returned or raised, unless the message was marked as failed; then it moves
it to its own dead-letter queue. What a verdict needs is in the broker before that (rules A1 and R5).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import dramatiq
from dramatiq import Actor, Broker, MessageProxy
from dramatiq import Message as NativeMessage
from dramatiq.errors import DecodeError as NativeDecodeError
from dramatiq.middleware import (
    AgeLimit,
    Callbacks,
    CurrentMessage,
    Middleware,
    Pipelines,
    Retries,
    ShutdownNotifications,
    SkipMessage,
    TimeLimit,
)
from dramatiq.results import Results

from taskbridge import failures
from taskbridge.declaration import Declaration
from taskbridge.engines import settle
from taskbridge.engines.base import Host
from taskbridge.engines.dramatiq import wire
from taskbridge.engines.worker_life import WorkerLife
from taskbridge.exceptions import DecodeError, NewerFormError, TaskBridgeError
from taskbridge.logs import logger
from taskbridge.message import Message
from taskbridge.pauses import Pauses
from taskbridge.probe import PROBE
from taskbridge.retry import Dead, Discarded, Done, GivenBack, RunAgain, Verdict

_log = logger("taskbridge.dramatiq")

FOR_ACTORS: Final[tuple[type[Middleware], ...]] = (AgeLimit, TimeLimit, ShutdownNotifications, Retries)
"""The middleware that is told nothing about a task's message: taskbridge has rules X1, T1, A4 and R for these."""

FOR_OPTIONS: Final[tuple[type[Middleware], ...]] = (*FOR_ACTORS, Callbacks, Pipelines)
"""The same, for a task's message that has no options of Dramatiq's, as those of plain clients may have."""

_WAITS_SINCE: Final = "taskbridge_waits_since"
"""The option that says since when a message in a newer form has been put off, in seconds since the epoch."""


class Delivery(MessageProxy):
    """A message in this worker's hands."""

    def __init__(
        self,
        message: NativeMessage[Any],
        *,
        body: bytes,  # the bytes as they came
        place: Any,  # where the broker holds it; what that is, its consumer knows
        redelivered: bool = False,  # whether the broker says that it was delivered before
        times: Callable[[], object] | None = None,  # returns how often; None where nobody counts that
    ) -> None:
        super().__init__(message)
        # Dramatiq asks for these several times a message, and the base class looks them up in the message each time.
        self.queue_name: str = message.queue_name
        self.actor_name: str = message.actor_name
        self.options: dict[str, Any] = message.options
        # What it says, if taskbridge decides about it; None for a message of a user's own actor.
        self.task_message: Message | None = None
        self.body = body
        self.place = place
        self.redelivered = redelivered
        self.times = times
        self.unheard: tuple[type[Middleware], ...] = ()  # the middleware that is told nothing about it
        self.returns = False  # whether it goes back to its queue instead of being acknowledged
        self.suspect = False  # whether, going back, it may have been started; its mark tells whoever takes it then
        self.is_begun = False  # whether a thread has begun to run it
        self.abandoned = False  # whether it has gone back while its thread still ran it
        self.result: object = None  # what the task returned
        self.keeps_error = False  # whether what was raised is kept after the message's end, for tests that ask for it

    def clear_exception(self) -> None:
        """Let go of what was raised."""
        if not self.keeps_error:
            super().clear_exception()

    def __str__(self) -> str:
        # Dramatiq logs it whenever a task fails, and arguments may be secret.
        return super().__str__() if self.task_message is None else f"{self.actor_name}(...)"

    def __repr__(self) -> str:
        return super().__repr__() if self.task_message is None else f"<Delivery {self.actor_name} {self.message_id}>"


class OncePerOutcome(logging.Filter):
    """Drops what Dramatiq's threads say of a message that is dead or discarded: taskbridge's own log says it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is kept."""
        about = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if record.levelno <= logging.INFO or not isinstance(about, Delivery) or not about.is_begun:
            return True
        return not about.failed and record.levelno > logging.WARNING


class Returned(dramatiq.Retry):
    """Shows a message that was not run: it waits, or goes back to its queue."""


class Buried(TaskBridgeError):
    """Shows a message that is dead without any error having been raised."""


class TaskActor(Actor[Any, Any]):
    """A task, as Dramatiq knows it: runs its deliveries in the worker's threads, and settles them."""

    def __init__(
        self, declaration: Declaration, host: Host, broker: Broker, *, native_queue: str, life: WorkerLife
    ) -> None:
        self._host = host
        self._life = life
        super().__init__(
            declaration.function,
            broker=broker,
            actor_name=declaration.name,
            queue_name=native_queue,
            priority=0,
            options={},
        )

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the message that this worker thread has in hand; elsewhere, call the function.

        It returns nothing where a message is run: `EngineBroker.emit_after` tells the middleware what the task
        returned, while Dramatiq would warn that nobody stores it. It raises the error of which a message is dead; or
        `Retry`, `Returned` or `SkipMessage` if it did not end well and nobody is to be alarmed.
        """
        delivery: object = CurrentMessage.get_current_message()
        if not isinstance(delivery, Delivery) or delivery.task_message is None or delivery.is_begun:
            return self.fn(*args, **kwargs)
        delivery.is_begun = True  # a task may call another one, or itself
        self._show(delivery, self._settled(delivery, delivery.task_message))
        return None

    def _settled(self, delivery: Delivery, message: Message) -> Verdict:
        if self._life.draining:
            return GivenBack()
        try:
            task = self._host.bound(message.task)
            if task.marks is None and self._came_back(delivery, message):
                return settle.NotRun("its attempt runs here, or has ended here")
            found = settle.begin(task, message, redelivered=delivery.redelivered)
            if isinstance(found, Message):
                message = found
                return self._run(task, delivery, message)
            return found
        except settle.NotSettledError:
            verdict: Verdict = GivenBack()
        except BaseException as exc:  # Dramatiq acknowledges whatever is raised
            verdict = settle.not_settled(self._host, message, exc)
        delivery.suspect = True  # if it goes back
        return verdict

    def _run(self, task: settle.BoundTask, delivery: Delivery, message: Message) -> Verdict:
        """Run a message and settle it; where there is no store its attempt is remembered, from before that on."""
        key, has_ended = None if task.marks is not None else message.attempt_key, False
        if key is not None:
            self._life.attempts.here[key] = delivery
        try:
            verdict = self._life.runs.run(task, message, holder=delivery)
            if delivery.abandoned:
                return settle.NotRun("the worker has given it back meanwhile")
            verdict = settle.finish(task, message, verdict)
            has_ended = not isinstance(verdict, GivenBack)
            return verdict
        finally:
            if key is not None:
                self._life.attempts.ends(key, has_ended=has_ended)

    def _came_back(self, delivery: Delivery, message: Message) -> bool:
        """Return whether a message came back whose attempt is known here; it is sent again if that goes on."""
        is_suspect = delivery.redelivered or message.redelivered
        state = self._life.attempts.state_of(message.attempt_key) if is_suspect else None
        if state == settle.RUNNING:
            settle.later(self._host, settle.suspect(message), settle.LOOK_AGAIN_S)
        return state is not None

    def _show(self, delivery: Delivery, verdict: Verdict) -> None:
        """Make Dramatiq, its middleware and dashboards see a verdict that was carried out."""
        match verdict:
            case Done(value):
                delivery.result = value
                if value is not None and self._would_warn(delivery):
                    delivery.unheard = (*delivery.unheard, Results)
            case RunAgain(after_s, error):
                retries = delivery.options.get("retries")
                count = retries + 1 if isinstance(retries, int) else 1
                # What Dramatiq's own retry would call: Prometheus counts retries by it.
                delay_ms = int(after_s * 1000)
                self.broker.emit_after("enqueue", delivery.copy(options={"retries": count}), delay_ms)
                raise dramatiq.Retry(f"next attempt in {after_s:.3f} s", delay_ms) from failures.presentable(error)
            case Dead(reason, error):
                delivery.fail()
                raise Buried(f"the message is dead: {reason}") if error is None else failures.presentable(error)
            case settle.NotRun(reason):
                raise _elsewhere(delivery, reason)
            case Discarded(reason):
                raise SkipMessage(reason)
            case GivenBack():
                delivery.returns = True
                raise _elsewhere(delivery, "it goes back to its queue")

    def _would_warn(self, delivery: Delivery) -> bool:
        """Return whether Dramatiq's own `Results` would warn of a result that it is not to store."""
        stores = [found for found in self.broker.middleware if isinstance(found, Results)]
        return not all(delivery.options.get("store_results", found.store_results) for found in stores)


def _elsewhere(delivery: Delivery, reason: str) -> Returned:
    """Return what to raise for a message whose outcome is not this one; nobody is called back for it."""
    delivery.unheard = FOR_OPTIONS
    return Returned(reason)


class Reception:
    """Looks at each message before it is handed to a thread; those in a newer form wait in the broker."""

    def __init__(self, host: Host, broker: Broker, attempts: settle.Attempts) -> None:
        self._host = host
        self._broker = broker
        self._attempts = attempts
        self._namespace = host.settings.namespace
        self.pauses: Pauses | None = None  # what is paused; None without a store, and while no worker runs

    def own_queue(self, queue_name: str) -> str | None:
        """Return taskbridge's name of a queue of Dramatiq's; None if it is the user's own affair."""
        return wire.own_queue(self._namespace, queue_name)

    def admit(self, queue_name: str, body: bytes, **about: Any) -> Delivery | None:
        """Return a message that is to be run, or None if it is done with and to be removed.

        Bytes that can't be read are buried (rule Q7); a plain client's delayed message is parked, for Dramatiq would
        hold it in this process's memory (rules D3 and D4); one for a task that is not known here, or in a newer form,
        waits (rules Q6 and S8). Whatever else goes wrong here ends this message only (rule I1): it is requeued if it
        could be read (rule I2), or else buried as it came, with the reason `internal_error`.

        `about` is `place`, `redelivered` and `times`, as a `Delivery` has them. Raises `NotSettledError` if the
        broker was away until the worker stopped: the message is to be left where it is.
        """
        try:
            return self._admit(queue_name, body, **about)
        except settle.NotSettledError:
            raise
        except Exception as exc:
            settle.bury_unreadable(self._host, body, reason="internal_error", error=exc)
            return None

    def _admit(self, queue_name: str, body: bytes, **about: Any) -> Delivery | None:
        queue = wire.own_queue(self._namespace, queue_name.removesuffix(".DQ"))
        try:
            parts = _foreign(body) if queue is None else wire.parse(body)
        except DecodeError as exc:
            settle.bury_unreadable(self._host, body, error=exc)
            return None
        # Its queue is the one it came from, whatever it says itself: Dramatiq looks its consumer up by this name.
        parts["queue_name"] = queue_name
        native: NativeMessage[Any] = NativeMessage(**parts)
        delivery = Delivery(native, body=body, **about)
        actor = self._broker.actors.get(native.actor_name)
        if queue is None or (actor is not None and not isinstance(actor, TaskActor)):
            return delivery
        message: Message | None = None
        try:
            message = wire.read(parts, queue=queue)
            return self._decided(delivery, message, actor)
        except NewerFormError as exc:
            if "eta" in native.options and queue_name.endswith(".DQ"):
                return delivery
            self._put_off_newer(delivery, exc)
        except DecodeError as exc:
            settle.bury_unreadable(self._host, body, error=exc, message_id=native.message_id)
        except Exception as exc:
            if message is None or isinstance(exc, settle.NotSettledError):
                raise
            if isinstance(settle.not_settled(self._host, message, exc), GivenBack):
                raise settle.NotSettledError("a message could not be settled") from exc
        return None

    def _decided(self, delivery: Delivery, message: Message, actor: TaskActor | None) -> Delivery | None:
        """Return a message that is to be run now; None if something else was done with it."""
        host, options, redelivered = self._host, delivery.options, delivery.redelivered
        is_from_elsewhere = redelivered and self._attempts.state_of(message.attempt_key) is None
        told = settle.counted(host, message, delivery.times) if is_from_elsewhere and host.marks is None else None
        if told is not None:
            message, delivery.redelivered = told, False  # else it would be counted once more
        if "eta" in options:
            due_at_ms = wire.milliseconds(options, "eta")
            wait_s = 0.0 if due_at_ms is None else max(0.0, due_at_ms / 1000 - host.now())
            settle.later(host, settle.suspect(message) if redelivered else message, wait_s)
        elif message.task == PROBE:
            settle.begin(host.bound(PROBE), message, redelivered=redelivered)
        elif self.pauses is not None and self.pauses.holds(message):
            settle.put_off_paused(host, message, redelivered=redelivered)
        elif actor is None:
            settle.put_off_unknown(host, message, redelivered=redelivered)
        elif is_from_elsewhere and (act := settle.taken_again(host, message, is_counted=told is not None)):
            act()
        else:
            delivery.task_message = message
            delivery.unheard = FOR_OPTIONS if options.keys() <= wire.OWN_OPTIONS else FOR_ACTORS
            return delivery
        return None

    def _put_off_newer(self, delivery: Delivery, error: NewerFormError) -> None:
        """Make a message wait that only a newer release can read (rule S8), as unknown tasks do (rule Q6).

        It has to stay as it is, so it waits where Dramatiq's own delayed messages do: each time for as long as it has
        waited so far, within 1 s and 30 s. Raises `NotSettledError` if the broker did not take it.
        """
        now, since = self._host.now(), delivery.options.get(_WAITS_SINCE)
        if not isinstance(since, (int, float)) or not 0 <= since <= now:
            since = now
        left_s = self._host.settings.unknown_task_grace_s - (now - since)
        if left_s <= 0:
            reason, message_id = "unknown_task", delivery.message_id
            settle.bury_unreadable(self._host, delivery.body, reason=reason, error=error, message_id=message_id)
            return
        wait_s = min(left_s, 30.0, max(1.0, now - since))
        _log.warning("task %s id %s waits %.1f s: %s", delivery.actor_name, delivery.message_id, wait_s, error)
        try:
            self._broker.enqueue(delivery.copy(options={_WAITS_SINCE: since}), delay=int(wait_s * 1000))
        except Exception as exc:
            self._host.stopping.wait(self._host.settings.requeue_pause_s)
            raise settle.NotSettledError(str(exc)) from exc


def _foreign(body: bytes) -> dict[str, Any]:
    """Return the parts of a message on a queue of the user's own, by the encoder that the user may have set.

    Our own messages are JSON, whatever encoder is set, for nothing is unpickled (rule S9). Raises `DecodeError`.
    """
    try:
        message: NativeMessage[Any] = NativeMessage.decode(body)
    except NativeDecodeError as exc:
        raise DecodeError(f"not a Dramatiq message: {exc.error!r}") from exc
    if not (isinstance(message.options, dict) and isinstance(message.kwargs, dict)):
        raise DecodeError("not a Dramatiq message")
    return message.asdict()
