"""kombu's transport for RabbitMQ, which a message whose properties can't be read doesn't stop (rule I1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from taskbridge.engines.celery.reading import BoundedMessage
from taskbridge.engines.celery.stock import (
    AmqpChannel,
    AmqpConnection,
    AmqpMessage,
    AmqpTransport,
    Queue,
    frame_handler,
    stock,
)
from taskbridge.engines.celery.wire import queue_arguments

_HEADER: Final = 2  # the kind of the frame that holds a message's properties, after 12 bytes


def _careful(connection: Any, callback: Any) -> Callable[[tuple[int, int, bytes]], object]:
    """Return what handles frames as py-amqp does, but takes properties that it can't read for none.

    Lists in one another that are deeper than calls may be, say, would end the worker; the consumer buries the message.
    """
    handle = frame_handler(connection, callback)

    def on_frame(frame: tuple[int, int, bytes]) -> object:
        kind, channel, payload = frame
        try:
            return handle(frame)
        except Exception:
            if kind != _HEADER:
                raise
            return handle((kind, channel, payload[:12] + bytes(2)))

    return on_frame


class Message(AmqpMessage, BoundedMessage):
    """A message that was delivered."""


class Channel(AmqpChannel):
    """A channel that leaves bodies as bytes."""

    Message = Message

    def __init__(self, *args: Any, **options: Any) -> None:
        stock(super()).__init__(*args, **{**options, "auto_decode": False})


class Connection(AmqpConnection):
    """A connection that hands on each message."""

    Channel: Any = Channel

    def __init__(self, *args: Any, **options: Any) -> None:
        stock(super()).__init__(*args, frame_handler=_careful, **options)


class Transport(AmqpTransport):
    """A transport that makes such connections, to whichever of several hosts."""

    Connection: Any = Connection
    engine: Any = None

    def establish_connection(self) -> Any:
        """Connect; the certificate is to be for this host, and not for the one that was tried before."""
        tls = self.engine.tls
        if tls is not None:
            self.client.ssl = {**tls, "server_hostname": tls["server_hostname"] or self.client.hostname}
        return stock(super()).establish_connection()

    def qos_semantics_matches_spec(self, connection: Any) -> bool:
        """Return whether each queue's consumer has a limit of its own.

        RabbitMQ 4 knows no other, or is about not to, and quorum queues know none.
        """
        is_newer = not str(connection.server_properties.get("version")).startswith("3.")
        return is_newer or self.engine.settings.has_quorum


class QuorumQueue(Queue):
    """A quorum queue, which says so to RabbitMQ alone.

    If Celery knew, it would have queues of its own for what is delayed (celery/app/base.py, worker/consumer).
    """

    def queue_declare(self, nowait: bool = False, passive: bool = False, channel: Any = None) -> Any:
        on = channel or self.channel
        arguments = queue_arguments("quorum")
        return on.queue_declare(
            self.name, passive=passive, durable=True, auto_delete=False, nowait=nowait, arguments=arguments
        )
