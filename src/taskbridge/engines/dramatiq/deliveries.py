"""Messages as they come from a queue, and what is done with them before a thread is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from dramatiq import Broker, Message, MessageProxy
from dramatiq.errors import DecodeError as DramatiqDecodeError

from taskbridge.engines.base import Host
from taskbridge.engines.dramatiq import wire
from taskbridge.engines.settle import NotSettledError, begin, bury_unreadable, later, put_off_unknown, suspect
from taskbridge.exceptions import DecodeError, NewerFormError
from taskbridge.message import Message as TaskMessage
from taskbridge.probe import PROBE

_log = logging.getLogger("taskbridge.dramatiq")

_PAUSE_S: Final = 1.0
"""How long a thread waits before it tries again to keep a message that the broker did not take."""

_WAITS: Final = "taskbridge_waits"
"""The option that counts how often a message in a newer form was put off, and since when."""


class Delivery(MessageProxy):
    """A message in this worker's hands.

    Attributes:
        task_message: What it says, if taskbridge decides about it; None for a message of a user's own actor.
        has_options: Whether it has options of Dramatiq's, from a plain client.
        body: The bytes as they came.
        place: Where the broker holds it; what that is, its consumer knows.
        redelivered: Whether the broker says that it was delivered before.
        returns: Whether it goes back to its queue instead of being acknowledged.
        suspect: Whether, going back, it may have been started; its mark tells whoever takes it then.
        is_begun: Whether a thread has begun to run it.
        abandoned: Whether it has gone back while its thread still ran it.
    """

    def __init__(self, parts: wire.Native, *, body: bytes, place: Any, redelivered: bool = False) -> None:
        message: Message[Any] = Message(
            queue_name=parts.queue_name,
            actor_name=parts.actor_name,
            args=tuple(parts.args),
            kwargs=dict(parts.kwargs),
            options=dict(parts.options),
            message_id=parts.message_id,
            message_timestamp=int(parts.message_timestamp),
        )
        super().__init__(message)
        # Dramatiq asks for these several times a message, and the base class looks them up in the message each time.
        self.queue_name: str = message.queue_name
        self.actor_name: str = message.actor_name
        self.options: dict[str, Any] = message.options
        self.task_message: TaskMessage | None = None
        self.has_options: bool = True
        self.body = body
        self.place = place
        self.redelivered = redelivered
        self.returns = False
        self.suspect = False
        self.is_begun = False
        self.abandoned = False

    def __str__(self) -> str:
        # Dramatiq logs it whenever a task fails, and arguments may be secret.
        return super().__str__() if self.task_message is None else f"{self.actor_name}(...)"

    def __repr__(self) -> str:
        return super().__repr__() if self.task_message is None else f"<Delivery {self.actor_name} {self.message_id}>"


class Reception:
    """Looks at each message before it is handed to a thread."""

    def __init__(self, host: Host, broker: Broker, is_ordinary: Callable[[str], bool]) -> None:
        """Look at messages for a host.

        Args:
            host: The bridge.
            broker: Where messages in a newer form wait.
            is_ordinary: Whether there is an actor of that name that the user has declared without taskbridge.
        """
        self._host = host
        self._broker = broker
        self._is_ordinary = is_ordinary

    def admit(self, queue_name: str, body: bytes, *, place: Any, redelivered: bool = False) -> Delivery | None:
        """Return a message that is to be run, or None if it is done with and to be removed.

        Bytes that can't be read are buried (rule Q7); a plain client's delayed message is parked, for Dramatiq would
        hold it in this process's memory (rules D3 and D4); one for a task that is not known here, or in a newer form,
        waits (rules Q6 and S8). Whatever else goes wrong here ends this message only: it is
        buried as it came, with the reason `internal_error` (rule I1).

        Args:
            queue_name: Dramatiq's name of the queue it came from.
            body: The message's bytes.
            place: Where the broker holds it.
            redelivered: Whether the broker says that it was delivered before.

        Raises:
            NotSettledError: The broker was away until the worker stopped; it is to be left where it is.
        """
        try:
            return self._admit(queue_name, body, place=place, redelivered=redelivered)
        except NotSettledError:
            raise
        except Exception as exc:
            _log.exception("a message of %d bytes can't be taken and is dead", len(body))
            self.bury_raw(body, reason="internal_error", error=exc)
            return None

    def _admit(self, queue_name: str, body: bytes, *, place: Any, redelivered: bool) -> Delivery | None:
        queue = wire.own_queue(self._host.settings.namespace, queue_name.removesuffix(".DQ"))
        try:
            parts = _decoded(body, queue_name, ordinary=queue is None)
        except DecodeError as exc:
            self.undecodable(body, exc)
            return None
        delivery = Delivery(parts, body=body, place=place, redelivered=redelivered)
        if queue is None or self._is_ordinary(parts.actor_name):
            return delivery
        try:
            message = wire.read(parts, queue=queue)
            due_at = wire.due_at(parts.options)
        except NewerFormError as exc:
            if "eta" in parts.options:
                return delivery
            self._put_off_newer(delivery, exc)
            return None
        except DecodeError as exc:
            self.undecodable(body, exc, message_id=parts.message_id)
            return None
        if "eta" in parts.options:
            wait_s = 0.0 if due_at is None else max(0.0, due_at - self._host.now())
            later(self._host, suspect(message) if redelivered else message, wait_s)
            return None
        if message.task == PROBE:
            begin(self._host.bound(PROBE), message, redelivered=redelivered)
            return None
        if not self._host.knows(message.task):
            put_off_unknown(self._host, message, redelivered=redelivered)
            return None
        delivery.task_message = message
        delivery.has_options = not parts.options.keys() <= wire.OWN_OPTIONS
        return delivery

    def undecodable(self, body: bytes, error: Exception, *, message_id: object = None) -> None:
        """Bury bytes that can't be read.

        Raises:
            NotSettledError: The broker was away until the worker stopped.
        """
        _log.error("a message of %d bytes can't be read and is dead: %s", len(body), error)
        self.bury_raw(body, reason="undecodable", error=error, message_id=message_id)

    def bury_raw(self, body: bytes, *, reason: str, error: Exception, message_id: object = None) -> None:
        """Bury bytes as they came; `message_id` is what they call themselves, if that is known.

        Raises:
            NotSettledError: The broker was away until the worker stopped.
        """
        bury_unreadable(self._host, body, reason=reason, error=error, message_id=message_id)

    def _put_off_newer(self, delivery: Delivery, error: NewerFormError) -> None:
        """Make a message wait that only a newer release can read (rule S8), as unknown tasks do (rule Q6).

        It has to stay as it is, so it waits where Dramatiq's own delayed messages do.

        Raises:
            NotSettledError: The broker did not take it.
        """
        now = self._host.now()
        count, since = _waits(delivery.options.get(_WAITS), now)
        left_s = self._host.settings.unknown_task_grace_s - (now - since)
        if left_s <= 0:
            self.bury_raw(delivery.body, reason="unknown_task", error=error, message_id=delivery.message_id)
            return
        wait_s = min(left_s, 30.0, 2.0 ** min(count, 5))
        _log.warning("task %s id %s waits %.1f s: %s", delivery.actor_name, delivery.message_id, wait_s, error)
        waiting = delivery.copy(options={_WAITS: [count + 1, since]})
        try:
            self._broker.enqueue(waiting, delay=int(wait_s * 1000))
        except Exception as exc:
            self._host.stopping.wait(_PAUSE_S)
            raise NotSettledError(str(exc)) from exc


def _waits(option: Any, now: float) -> tuple[int, float]:
    match option:
        case [int() as count, int() | float() as since] if count >= 0 and 0 <= since <= now:
            return count, since
        case _:
            return 0, now


def _decoded(body: bytes, queue_name: str, *, ordinary: bool) -> wire.Native:
    """Return the parts of the Dramatiq message in these bytes.

    Args:
        body: The bytes.
        queue_name: Dramatiq's name of the queue it came from; that is its queue, whatever it says itself, for Dramatiq
            looks its consumer up by this name, and a thread dies of others.
        ordinary: Whether it is the user's own affair, so that the encoder that the user may have set applies; a
            message of taskbridge's is JSON, whatever encoder is set, for nothing is unpickled (rule S9).

    Raises:
        DecodeError: It can't be read.
    """
    if not ordinary:
        parts = wire.parse(body)
        return parts if parts.queue_name == queue_name else replace(parts, queue_name=queue_name)
    try:
        message: Message[Any] = Message.decode(body)
    except DramatiqDecodeError as exc:
        raise DecodeError(f"not a Dramatiq message: {exc.error!r}") from exc
    if not (isinstance(message.options, dict) and isinstance(message.kwargs, dict)):
        raise DecodeError("not a Dramatiq message")
    return wire.Native(
        queue_name=queue_name,
        actor_name=message.actor_name,
        args=message.args,
        kwargs=message.kwargs,
        options=message.options,
        message_id=message.message_id,
        message_timestamp=message.message_timestamp,
    )
