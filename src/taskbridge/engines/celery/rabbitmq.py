"""kombu's transport for RabbitMQ, which a message whose properties can't be read doesn't stop (rule I1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from taskbridge.engines.celery.bodies import BoundedMessage
from taskbridge.engines.celery.stock import (
    AmqpChannel,
    AmqpConnection,
    AmqpMessage,
    AmqpTransport,
    frame_handler,
    stock,
)

_HEADER: Final = 2
"""The kind of the frame that holds a message's properties, after 12 bytes."""


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
    """A transport that makes such connections."""

    Connection: Any = Connection
    engine: Any = None
