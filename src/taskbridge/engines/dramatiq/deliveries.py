"""Messages as they come from a queue, and what is done with them before a thread is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dramatiq import Message, MessageProxy
from dramatiq.errors import DecodeError as DramatiqDecodeError

from taskbridge.engines.base import Host
from taskbridge.engines.dramatiq import wire
from taskbridge.engines.settle import NotSettledError, bury_unreadable, later, suspect
from taskbridge.exceptions import DecodeError, NewerFormError

_log = logging.getLogger("taskbridge.dramatiq")


class Delivery(MessageProxy):
    """A message in this worker's hands.

    Attributes:
        queue: taskbridge's name of the queue it came from; None for a queue of the user's own.
        body: The bytes as they came.
        place: Where the broker holds it; what that is, its consumer knows.
        redelivered: Whether the broker says that it was delivered before.
        returns: Whether it goes back to its queue instead of being acknowledged.
        suspect: Whether, going back, it may have been started; its mark tells whoever takes it then.
        abandoned: Whether it has gone back while its thread still ran it.
        limit_s: How long its task may run; None is for ever.
        is_ours: Whether taskbridge decides about it; None until someone asks.
        is_plain: Whether it is known to be taskbridge's, and to have no options of Dramatiq's.
    """

    def __init__(
        self, parts: wire.Native, *, queue: str | None, body: bytes, place: Any, redelivered: bool = False
    ) -> None:
        # Not the base class's: it takes a message of Dramatiq's, which is rarely needed, and looks each part up in it.
        self.failed: bool = False
        self._exception: BaseException | None = None
        self._made: Message[Any] | None = None
        self.parts = parts
        self.queue_name: str = parts.queue_name
        self.actor_name: str = parts.actor_name
        self.args: tuple[Any, ...] = tuple(parts.args)
        self.kwargs: dict[str, Any] = dict(parts.kwargs)
        self.options: dict[str, Any] = dict(parts.options)
        self.message_id: str = parts.message_id
        self.message_timestamp: int = int(parts.message_timestamp)
        self.queue = queue
        self.body = body
        self.place = place
        self.redelivered = redelivered
        self.returns = False
        self.suspect = False
        self.abandoned = False
        self.limit_s: float | None = None
        self.is_ours: bool | None = None
        self.is_plain: bool = False

    @property
    def _message(self) -> Message[Any]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """The message as Dramatiq's own class, for what asks for more than its parts."""
        if self._made is None:
            self._made = Message(
                queue_name=self.queue_name,
                actor_name=self.actor_name,
                args=self.args,
                kwargs=self.kwargs,
                options=self.options,
                message_id=self.message_id,
                message_timestamp=self.message_timestamp,
            )
        return self._made

    def __str__(self) -> str:
        # Dramatiq logs it whenever a task fails, and arguments may be secret.
        return super().__str__() if self.queue is None else f"{self.actor_name}(...)"

    def __repr__(self) -> str:
        return super().__repr__() if self.queue is None else f"<Delivery {self.actor_name} {self.message_id}>"


class Reception:
    """Looks at each message before it is handed to a thread."""

    def __init__(self, host: Host, is_ordinary: Callable[[str], bool]) -> None:
        """Look at messages for a host.

        Args:
            host: The bridge.
            is_ordinary: Whether there is an actor of that name that the user has declared without taskbridge.
        """
        self._host = host
        self._is_ordinary = is_ordinary

    def admit(self, queue_name: str, body: bytes, *, place: Any, redelivered: bool = False) -> Delivery | None:
        """Return a message that is to be run, or None if it is done with and to be removed.

        Bytes that can't be read are buried (rule Q7); a plain client's delayed message is parked, for Dramatiq would
        hold it in this process's memory (rules D3 and D4). Whatever else goes wrong here ends this message only: it is
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
        delivery = Delivery(parts, queue=queue, body=body, place=place, redelivered=redelivered)
        if queue is None or self._is_ordinary(parts.actor_name):
            return delivery
        if "eta" in parts.options:
            return self._delayed(delivery, queue)
        delivery.is_ours = True
        delivery.is_plain = parts.options.keys() <= wire.OWN_OPTIONS
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

    def _delayed(self, delivery: Delivery, queue: str) -> Delivery | None:
        try:
            due_at = wire.due_at(delivery.options)
            message = wire.read(delivery.parts, queue=queue)
        except NewerFormError:
            return delivery  # put off by this engine; see Carrier
        except DecodeError as exc:
            self.undecodable(delivery.body, exc, message_id=delivery.message_id)
            return None
        wait_s = 0.0 if due_at is None else max(0.0, due_at - self._host.now())
        later(self._host, suspect(message) if delivery.redelivered else message, wait_s)
        return None


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
