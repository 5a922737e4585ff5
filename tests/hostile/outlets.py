"""Puts anything on a broker, past taskbridge, as somebody does who may write there."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import pika
import redis
from pika.exceptions import AMQPError

from taskbridge import Bridge
from taskbridge.engines.celery.wire import REDIS_STEPS, step_key
from taskbridge.engines.celery.wire import native_queue as celery_queue
from taskbridge.engines.dramatiq.wire import native_queue as dramatiq_queue
from taskbridge.message import new_id
from tests.hostile.forms import Payload, Place, sample

OTHER: Final = {"celery": "dramatiq", "dramatiq": "celery"}
DEAD_WORKER: Final = "gone"

_SEND_S: Final = 10.0


class Outlet(ABC):
    """A way to a bridge's broker."""

    def __init__(self, bridge: Bridge) -> None:
        settings = bridge.settings
        self._bridge = bridge
        self._namespace = settings.namespace
        self._engine = settings.url.engine
        self._native: Callable[[str, str], str] = celery_queue if self._engine == "celery" else dramatiq_queue

    def put(self, place: Place, payload: Payload, token: str, queue: str) -> None:
        """Put something where its form belongs.

        Args:
            place: Where.
            payload: What.
            token: The message's; for a record and a mark it is the message's that these are about, which is sent too.
            queue: taskbridge's name of the queue.
        """
        native = self._native(self._namespace, queue)
        match place:
            case "queue":
                self._enqueue(native, payload)
            case "delayed":
                self._enqueue(f"{native}.DQ", payload)
            case "parked":
                self._park(self._engine, payload, token)
            case "strangers":
                self._park(OTHER[self._engine], payload, token)
            case "control":
                self._command(payload)
            case "letters":
                self._bury(payload, token)
            case "record" | "mark" | "held":
                self._keep(place, payload, token, queue)

    @abstractmethod
    def _enqueue(self, native: str, payload: Payload) -> None:
        """Put a message on a queue."""

    @abstractmethod
    def _park(self, engine: str, payload: Payload, token: str) -> None:
        """Park a message, due now."""

    @abstractmethod
    def _command(self, payload: Payload) -> None:
        """Send to the control channel."""

    @abstractmethod
    def _bury(self, payload: Payload, token: str) -> None:
        """Put something among the dead letters."""

    def _keep(self, place: Place, payload: Payload, token: str, queue: str) -> None:
        """Put something among what a store keeps, or a dead worker held."""
        raise NotImplementedError

    @abstractmethod
    def forget_letters(self) -> int:
        """Forget all dead letters, and return how many there were."""

    @abstractmethod
    def forget_strangers(self) -> None:
        """Forget what another engine has parked."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


class RedisOutlet(Outlet):
    """A way to Redis."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge)
        self._client: Any = redis.Redis.from_url(bridge.settings.url.broker_url)

    def _enqueue(self, native: str, payload: Payload) -> None:
        if self._engine == "celery":
            self._client.lpush(step_key(native, REDIS_STEPS["normal"]), payload.body)
            return
        self._client.rpush(f"{self._namespace}:{native}", self._body(native, payload))

    def _body(self, native: str, payload: Payload) -> str:
        """Put a message of Dramatiq's beside its queue, and return the id that stands for it there."""
        redis_id = new_id()
        self._client.hset(f"{self._namespace}:{native}.msgs", redis_id, payload.body)
        return redis_id

    def _park(self, engine: str, payload: Payload, token: str) -> None:
        due, member = f"{self._namespace}:parked:{engine}", f"{token}:1"
        self._client.hset(f"{due}:messages", member, payload.body)
        self._client.zadd(due, {member: time.time() * 1000})
        self._client.sadd(f"{self._namespace}:engines", engine)

    def _command(self, payload: Payload) -> None:
        self._client.publish(f"/0.{self._namespace}.celery.pidbox", payload.body)

    def _bury(self, payload: Payload, token: str) -> None:
        dead = f"{self._namespace}:dead"
        self._client.zadd(dead, {token: time.time() * 1000})
        self._client.hset(f"{dead}:letters", token, payload.body)

    def _keep(self, place: Place, payload: Payload, token: str, queue: str) -> None:
        message = sample(token, queue)
        if place == "record":
            self._client.set(f"{self._namespace}:record:{token}", b"1\n" + payload.body)
        elif place == "mark":
            self._client.set(f"{self._namespace}:mark:{token}:1", payload.body)
            self._bridge.broker.publish([_suspect(message)], timeout_s=_SEND_S)
            return
        else:
            self._hold(payload, token, queue)
            return
        self._bridge.broker.publish([message], timeout_s=_SEND_S)

    def _hold(self, payload: Payload, token: str, queue: str) -> None:
        """Have a dead worker hold something odd, and a message under an odd tag; another one has an odd name."""
        prefix = f"{self._namespace}.{self._engine}"
        held = f"{prefix}.held.{DEAD_WORKER}"
        self._client.hset(held, f"{token}x", payload.body)
        self._client.hset(held, payload.body, self._entry(token, queue))
        self._client.zadd(f"{prefix}.leases", {DEAD_WORKER: 1, payload.body: 1})

    def _entry(self, token: str, queue: str) -> bytes:
        """Return a message as a worker holds it."""
        native = self._native(self._namespace, queue)
        wire: Any = self._bridge.wire
        commands = wire.encode(sample(token, queue))
        if self._engine == "celery":
            return f"{step_key(native, REDIS_STEPS['normal'])}\n{commands[0][-1]}".encode()
        key = f"{self._namespace}:{native}"
        return f"{key}\n{self._body(native, Payload(commands[0][-1]))}".encode()

    def forget_letters(self) -> int:
        dead = f"{self._namespace}:dead"
        with self._client.pipeline() as pipeline:
            pipeline.zcard(dead).delete(dead, f"{dead}:letters")
            count: int = pipeline.execute()[0]
        return count

    def forget_strangers(self) -> None:
        due = f"{self._namespace}:parked:{OTHER[self._engine]}"
        self._client.delete(due, f"{due}:messages")

    def close(self) -> None:
        self._client.close()


def _suspect(message: Any) -> Any:
    """Return a message that may have been started before, so that its mark is read."""
    return replace(message, redelivered=1)


class _Properties(pika.BasicProperties):  # type: ignore[misc]  # pika has no types
    """Properties whose headers are encoded already."""

    def __init__(self, table: bytes | None, **given: Any) -> None:
        super().__init__(**given, headers=None if table is None else {})
        self._table = table

    def encode(self) -> list[bytes]:
        pieces: list[bytes] = super().encode()
        if self._table is not None:
            pieces[pieces.index(bytes(4))] = len(self._table).to_bytes(4, "big") + self._table
        return pieces


class AmqpOutlet(Outlet):
    """A way to RabbitMQ."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge)
        self._open()

    def _open(self) -> None:
        parameters = pika.URLParameters(self._bridge.settings.url.broker_url)
        parameters.heartbeat = 0  # nobody answers any while this waits for workers
        self._connection: Any = pika.BlockingConnection(parameters)
        self._channel: Any = self._connection.channel()

    def _publish(self, exchange: str, key: str, payload: Payload) -> None:
        properties = _Properties(payload.table, **{n: v for n, v in payload.properties.items() if v is not None})
        self._channel.basic_publish(exchange, key, payload.body, properties)

    def _enqueue(self, native: str, payload: Payload) -> None:
        self._publish("", native, payload)

    def _park(self, engine: str, payload: Payload, token: str) -> None:
        self._publish("", f"{self._namespace}.due.{engine}", payload)

    def _command(self, payload: Payload) -> None:
        self._publish(f"{self._namespace}.celery.pidbox", "", payload)

    def _bury(self, payload: Payload, token: str) -> None:
        self._publish("", f"{self._namespace}.dead", payload)

    def forget_letters(self) -> int:
        try:
            count: int = self._channel.queue_purge(f"{self._namespace}.dead").method.message_count
        except AMQPError:  # nothing has died yet, so there is no such queue
            self._open()
            return 0
        return count

    def forget_strangers(self) -> None:
        self._channel.queue_purge(f"{self._namespace}.due.{OTHER[self._engine]}")

    def close(self) -> None:
        with suppress(AMQPError):
            self._connection.close()


def outlet_of(bridge: Bridge) -> Outlet:
    """Return a way to a bridge's broker."""
    return RedisOutlet(bridge) if bridge.settings.url.broker == "redis" else AmqpOutlet(bridge)
