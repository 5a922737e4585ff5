"""The application on Dramatiq alone, with the settings that its documentation advises for tasks that matter."""

from __future__ import annotations

import uuid
from typing import Any, Final

import dramatiq
import pika
import redis
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend

from benchmarks.guarantees.applications.setup import RETRY_DELAY_S, Setup
from benchmarks.guarantees.applications.work import EXPIRED, FOLLOWED, READY, TOLD, Work

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

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Hear of a run's end after those that were added later: `GroupCallbacks` has counted it then."""
        work.settled()


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
if setup.groups_url is not None:
    broker.add_middleware(GroupCallbacks(RedisBackend(url=setup.groups_url)))
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


def _follow(key: str, kind: str) -> None:
    work.follow(key, kind)


def _exhausted(message: dict[str, Any], retries: dict[str, Any]) -> None:
    work.follow(message["args"][0].partition("/")[0], TOLD)  # a member's own callback: a group has none for failures


_follow_actor: Any = dramatiq.actor(actor_name="follow", queue_name=setup.name, **_RETRIES)(_follow)
dramatiq.actor(actor_name="exhausted", queue_name=setup.name, **_RETRIES)(_exhausted)


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


def send_group(key: str, members: dict[str, list[dict[str, Any]]], expires_s: float | None = None) -> None:
    """Send a group, what follows when all its members are done, and what is told if one of them fails."""
    options: dict[str, Any] = {"on_retry_exhausted": "exhausted"}
    if expires_s is not None:
        options["max_age"] = round(expires_s * 1000)
    actor = _actors["normal"]
    group = dramatiq.group([actor.message_with_options(args=each, **options) for each in members.items()])
    group.add_completion_callback(_follow_actor.message(key, FOLLOWED))
    group.run()


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
