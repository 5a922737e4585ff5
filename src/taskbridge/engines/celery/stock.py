"""What is called of Celery and kombu, as Any, and what is subclassed: Celery has no types, and kombu's are few."""

# ruff: noqa: F401 - what is imported here is for other modules

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...  # of all that is imported below and not named here

    class Untyped:
        """Stands for a class of theirs: all that it has is Any."""

        def __init__(self, *args: Any, **options: Any) -> None: ...

        def __getattr__(self, name: str, /) -> Any: ...

    class AmqpMessage(Untyped):
        """Stands for a subclass of `KombuMessage`."""

    VirtualMessage = AmqpMessage

    class CeleryIgnore(Exception):
        """Stands for `celery.exceptions.Ignore`."""

    ThreadsPool = Untyped
    AmqpChannel = Untyped
    AmqpConnection = Untyped
    AmqpTransport = Untyped
    Celery = Untyped
    CeleryConsumer = Untyped
    CeleryControl = Untyped
    CeleryContext = Untyped
    CeleryRequest = Untyped
    ControlMailbox = Untyped
    ControlNode = Untyped
    KombuConnection = Untyped
    KombuMessage = Untyped
    Queue = Untyped
    TCPTransport = Untyped
    VirtualChannel = Untyped
    VirtualTransport = Untyped
else:
    from amqp.method_framing import frame_handler
    from amqp.transport import TCPTransport
    from billiard.einfo import ExceptionInfo
    from celery import Celery
    from celery.app.amqp import AMQP
    from celery.app.control import Control as CeleryControl
    from celery.app.task import Context as CeleryContext
    from celery.app.task import Task as CeleryTask
    from celery.concurrency.prefork import TaskPool as PreforkPool
    from celery.concurrency.solo import TaskPool as SoloPool
    from celery.concurrency.thread import TaskPool as ThreadsPool
    from celery.exceptions import Ignore as CeleryIgnore
    from celery.worker import WorkController
    from celery.worker import state as worker_state
    from celery.worker.consumer import Consumer as CeleryConsumer
    from celery.worker.control import Panel as ControlPanel
    from celery.worker.request import Request as CeleryRequest
    from kombu.compression import get_decoder
    from kombu.connection import Connection as KombuConnection
    from kombu.entity import Exchange, Queue
    from kombu.message import Message as KombuMessage
    from kombu.pidbox import Mailbox as ControlMailbox
    from kombu.pidbox import Node as ControlNode
    from kombu.transport.pyamqp import Channel as AmqpChannel
    from kombu.transport.pyamqp import Connection as AmqpConnection
    from kombu.transport.pyamqp import Message as AmqpMessage
    from kombu.transport.pyamqp import Transport as AmqpTransport
    from kombu.transport.virtual import Channel as VirtualChannel
    from kombu.transport.virtual import Message as VirtualMessage
    from kombu.transport.virtual import Transport as VirtualTransport
    from kombu.utils import json as kombu_json


def stock(found: object, /) -> Any:
    """Return what `super()` found, as Any."""
    return found
