"""What is called of Celery and kombu, as Any, and what is subclassed: Celery has no types, and kombu's are few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from celery import Celery as _Celery
from celery.app.amqp import AMQP as _AMQP
from celery.app.task import Context as _Context
from celery.app.task import Task as _Task
from celery.concurrency.base import BasePool as _BasePool
from celery.concurrency.base import apply_target as _apply_target
from celery.concurrency.prefork import TaskPool as _PreforkPool
from celery.concurrency.solo import TaskPool as _SoloPool
from celery.concurrency.thread import TaskPool as _ThreadsPool
from celery.exceptions import Ignore as _Ignore
from celery.worker import WorkController as _WorkController
from celery.worker import state as _worker_state
from celery.worker.consumer import Consumer as _Consumer
from celery.worker.request import Request as _Request
from kombu.connection import Connection as _Connection
from kombu.entity import Exchange as _Exchange
from kombu.entity import Queue as _Queue
from kombu.transport import virtual as _virtual
from kombu.transport.pyamqp import Transport as _AmqpTransport
from kombu.utils import json as _json

AMQP: Final[Any] = _AMQP
CeleryTask: Final[Any] = _Task
apply_target: Final[Any] = _apply_target
PreforkPool: Final[Any] = _PreforkPool
SoloPool: Final[Any] = _SoloPool
ThreadsPool: Final[Any] = _ThreadsPool
WorkController: Final[Any] = _WorkController
worker_state: Final[Any] = _worker_state

KombuConnection: Final[Any] = _Connection
Exchange: Final[Any] = _Exchange
Queue: Final[Any] = _Queue
virtual: Final[Any] = _virtual
AmqpTransport: Final[Any] = _AmqpTransport
kombu_json: Final[Any] = _json

if TYPE_CHECKING:

    class Untyped:
        """Stands for a class of theirs: all that it has is Any."""

        def __init__(self, *args: Any, **options: Any) -> None: ...

        def __getattr__(self, name: str, /) -> Any: ...

    class Celery(Untyped):
        """Stands for `celery.Celery`."""

    class BasePool(Untyped):
        """Stands for `celery.concurrency.base.BasePool`."""

    class CeleryConsumer(Untyped):
        """Stands for `celery.worker.consumer.Consumer`."""

    class CeleryContext(Untyped):
        """Stands for `celery.app.task.Context`."""

    class CeleryRequest(Untyped):
        """Stands for `celery.worker.request.Request`."""

    class CeleryIgnore(Exception):
        """Stands for `celery.exceptions.Ignore`."""

    class VirtualMessage(Untyped):
        """Stands for `kombu.transport.virtual.Message`."""

    class VirtualQoS(Untyped):
        """Stands for `kombu.transport.virtual.QoS`."""

    class VirtualChannel(Untyped):
        """Stands for `kombu.transport.virtual.Channel`."""

    class VirtualTransport(Untyped):
        """Stands for `kombu.transport.virtual.Transport`."""
else:
    Celery = _Celery
    BasePool = _BasePool
    CeleryConsumer = _Consumer
    CeleryContext = _Context
    CeleryRequest = _Request
    CeleryIgnore = _Ignore
    VirtualMessage = _virtual.Message
    VirtualQoS = _virtual.QoS
    VirtualChannel = _virtual.Channel
    VirtualTransport = _virtual.Transport


def stock(found: object, /) -> Any:
    """Return what `super()` found, as Any."""
    return found
