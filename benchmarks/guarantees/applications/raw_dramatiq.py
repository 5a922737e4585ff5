"""The application on Dramatiq alone, with the settings that its documentation advises for tasks that matter."""

from __future__ import annotations

import uuid
from typing import Any, Final

import dramatiq
import pika
import redis
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from benchmarks.guarantees.applications.setup import RETRY_DELAY_S, Setup
from benchmarks.guarantees.applications.work import EXPIRED, READY, Work

_GARBAGE: Final = b"}{ this is no message"
_HEARTBEAT_S: Final = 10
_MAINTENANCE_CHANCE: Final = 50_000
"""In a million commands: by default 1,000, and what a dead worker held then waits for minutes."""

_PRIORITIES: Final = {"low": 1, "normal": 5, "high": 9}

setup: Setup = Setup.load()
work: Work = Work(setup)


class Watch(dramatiq.Middleware):
    """Writes down when the worker is ready, and what it skipped."""

    def after_worker_boot(self, broker: Any, worker: Any) -> None:
        """Write down that the worker is ready."""
        work.probe.write(READY)

    def after_skip_message(self, broker: Any, message: Any) -> None:
        """Write down that a message had expired."""
        work.probe.write(EXPIRED)


def _broker() -> Any:
    if setup.on_redis:
        return RedisBroker(url=setup.broker_url) if setup.defaults else _careful_redis()
    return RabbitmqBroker(url=setup.broker_url) if setup.defaults else _careful_rabbitmq()


def _careful_redis() -> Any:
    lease: dict[str, Any] = {} if setup.lease_s is None else {"heartbeat_timeout": round(setup.lease_s * 1000)}
    limits = f"socket_timeout={setup.send_timeout_s}&socket_connect_timeout={setup.send_timeout_s}"
    return RedisBroker(url=f"{setup.broker_url}?{limits}", maintenance_chance=_MAINTENANCE_CHANCE, **lease)


def _careful_rabbitmq() -> Any:
    limit = setup.send_timeout_s
    limits = f"heartbeat={_HEARTBEAT_S}&blocked_connection_timeout={limit}&socket_timeout={limit}&stack_timeout={limit}"
    return RabbitmqBroker(url=f"{setup.broker_url}?{limits}", confirm_delivery=True, max_priority=10)


broker: Any = _broker()
broker.add_middleware(Watch())
dramatiq.set_broker(broker)

_RETRIES: Final[dict[str, Any]] = (
    {}
    if setup.defaults
    else {
        "max_retries": setup.attempts - 1,
        "min_backoff": round(RETRY_DELAY_S * 1000),
        "max_backoff": round(RETRY_DELAY_S * 1000),
    }
)


def _actor(name: str, **options: Any) -> Any:
    def perform(key: str, steps: list[dict[str, Any]]) -> None:
        work.perform(key, steps)

    return dramatiq.actor(actor_name=name, queue_name=setup.name, **options, **_RETRIES)(perform)


# An actor's own priority orders what its worker holds; it is the only one on Redis. The lower is the more urgent.
_actors: dict[str, Any] = {
    "normal": _actor("work"),
    "low": _actor("work_low", priority=10),
    "high": _actor("work_high", priority=-10),
}
_late: Any = _actor("late") if setup.late else None


# What a clerk calls


def send(
    key: str,
    steps: list[dict[str, Any]],
    delay_s: float | None = None,
    expires_s: float | None = None,
    priority: str = "normal",
    late: bool = False,
) -> None:
    """Send a task."""
    options: dict[str, Any] = {} if setup.defaults else {"broker_priority": _PRIORITIES[priority]}
    if expires_s is not None:
        options["max_age"] = round(expires_s * 1000)
    actor = _late if late else _actors[priority]
    actor.send_with_options(args=(key, steps), delay=None if delay_s is None else round(delay_s * 1000), **options)


def send_garbage() -> None:
    """Put bytes that are no message into the queue."""
    if setup.on_redis:
        with redis.Redis.from_url(setup.broker_url) as client:  # pyright: ignore[reportUnknownMemberType]
            message_id = str(uuid.uuid4())
            client.hset(f"dramatiq:{setup.name}.msgs", message_id, _GARBAGE)
            client.rpush(f"dramatiq:{setup.name}", message_id)
        return
    connection: Any = pika.BlockingConnection(pika.URLParameters(setup.broker_url))
    connection.channel().basic_publish("", setup.name, _GARBAGE)
    connection.close()


def dead_letters() -> int:
    """Return how many dead messages are kept."""
    if setup.on_redis:
        with redis.Redis.from_url(setup.broker_url) as client:  # pyright: ignore[reportUnknownMemberType]
            return int(client.zcard(f"dramatiq:{setup.name}.XQ"))
    connection: Any = pika.BlockingConnection(pika.URLParameters(setup.broker_url))
    try:
        declared = connection.channel().queue_declare(f"{setup.name}.XQ", passive=True)
        return int(declared.method.message_count)
    finally:
        connection.close()
