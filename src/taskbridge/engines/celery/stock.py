"""What is subclassed or called of Celery and kombu, as Any: Celery has no types, and most of kombu's are missing."""

from __future__ import annotations

from typing import Any, Final

from celery import Celery as _Celery
from celery import _state
from celery.app.amqp import AMQP as _AMQP
from celery.concurrency.base import BasePool as _BasePool
from celery.concurrency.base import apply_target as _apply_target
from celery.concurrency.prefork import TaskPool as _PreforkPool
from celery.concurrency.solo import TaskPool as _SoloPool
from celery.worker import WorkController as _WorkController
from celery.worker import state as _worker_state
from celery.worker.consumer import Consumer as _Consumer
from kombu.connection import Connection as _Connection
from kombu.entity import Exchange as _Exchange
from kombu.entity import Queue as _Queue
from kombu.transport import virtual as _virtual
from kombu.utils import json as _json

Celery: Final[Any] = _Celery
AMQP: Final[Any] = _AMQP
BasePool: Final[Any] = _BasePool
apply_target: Final[Any] = _apply_target
PreforkPool: Final[Any] = _PreforkPool
SoloPool: Final[Any] = _SoloPool
WorkController: Final[Any] = _WorkController
CeleryConsumer: Final[Any] = _Consumer
worker_state: Final[Any] = _worker_state
celery_state: Final[Any] = _state

KombuConnection: Final[Any] = _Connection
Exchange: Final[Any] = _Exchange
Queue: Final[Any] = _Queue
virtual: Final[Any] = _virtual
kombu_json: Final[Any] = _json
