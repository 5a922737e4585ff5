"""The application on Celery alone, with the settings that its documentation advises for tasks that matter."""

from __future__ import annotations

from typing import Any, Final

import pika
import redis
from celery import Celery, chord, signals

from benchmarks.guarantees.applications.setup import RETRY_DELAY_S, Setup
from benchmarks.guarantees.applications.work import EXPIRED, FOLLOWED, READY, TOLD, Work

_GARBAGE: Final = b"}{ this is no message"
_HEARTBEAT_S: Final = 10
_PRIORITIES: Final = 10

setup: Setup = Setup.load()
work: Work = Work(setup)
app: Any = Celery("guarantees", broker=setup.broker_url, backend=setup.groups_url)
app.conf.update(
    task_default_queue=setup.name, task_ignore_result=not setup.groups, broker_connection_retry_on_startup=True
)


def _careful() -> dict[str, Any]:
    return {
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_retry_on_worker_lost": True,  # counts what reject_on_worker_lost alone repeats for ever; Celery 5.7
        "worker_prefetch_multiplier": 1,
        "worker_soft_shutdown_timeout": setup.grace_s,
        "broker_channel_error_retry": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": setup.send_timeout_s,
        "broker_heartbeat": _HEARTBEAT_S,
        "broker_transport_options": _redis_options() if setup.on_redis else {"confirm_publish": True},
        "task_queue_max_priority": None if setup.on_redis else _PRIORITIES,
        "task_default_priority": _priority("normal"),
    }


def _redis_options() -> dict[str, Any]:
    visibility = {} if setup.lease_s is None else {"visibility_timeout": setup.lease_s}
    return {
        **visibility,
        "unacked_restore_interval": 1,  # look each second, not each 100 s, for what a dead worker held
        "unacked_restore_throttle": 1,
        "priority_steps": list(range(_PRIORITIES)),
        "queue_order_strategy": "priority",
        "socket_timeout": setup.send_timeout_s,
        "socket_connect_timeout": setup.send_timeout_s,
        "socket_keepalive": True,
    }


def _priority(level: str) -> int:
    high_first = {"low": 1, "normal": 5, "high": 9}[level]
    return 9 - high_first if setup.on_redis else high_first  # on Redis, 0 is the highest


if not setup.defaults:
    app.conf.update(_careful())

_RETRIES: Final[dict[str, Any]] = (
    {}
    if setup.defaults
    else {
        "autoretry_for": (Exception,),
        "max_retries": setup.attempts - 1,
        "default_retry_delay": RETRY_DELAY_S,
    }
)


def _perform(key: str, steps: list[dict[str, Any]]) -> None:
    work.perform(key, steps)


_perform_task: Any = app.task(name="guarantees.work", **_RETRIES)(_perform)
_late_task: Any = app.task(name="guarantees.late", **_RETRIES)(_perform) if setup.late else None


def _follow(key: str, kind: str) -> None:
    work.follow(key, kind)


_follow_task: Any = app.task(name="guarantees.follow", **_RETRIES)(_follow)


@signals.task_postrun.connect
def _settled(**_: Any) -> None:
    work.settled()  # results are stored and the chord has counted; the broker is told after this


@signals.worker_ready.connect
def _ready(**_: Any) -> None:
    work.probe.write(READY)


@signals.task_revoked.connect
def _revoked(expired: bool = False, **_: Any) -> None:
    if expired:
        work.probe.write(EXPIRED)


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
    task = _late_task if late else _perform_task
    task.apply_async((key, steps), countdown=delay_s, expires=expires_s, **_options(priority))


def _options(priority: str) -> dict[str, Any]:
    options: dict[str, Any] = {} if setup.defaults else {"priority": _priority(priority)}
    if not setup.defaults and not setup.on_redis:
        options["confirm_timeout"] = setup.send_timeout_s
    return options


def send_group(key: str, members: dict[str, list[dict[str, Any]]], expires_s: float | None = None) -> None:
    """Send a group, what follows when all its members are done, and what is told if one of them fails."""
    header = [_perform_task.si(member, steps).set(expires=expires_s) for member, steps in members.items()]
    body = _follow_task.si(key, FOLLOWED).on_error(_follow_task.si(key, TOLD))
    chord(header)(body)


def send_garbage() -> None:
    """Put bytes that are no message into the queue."""
    if setup.on_redis:
        with redis.Redis.from_url(setup.broker_url) as client:  # pyright: ignore[reportUnknownMemberType]
            client.lpush(setup.name, _GARBAGE)
        return
    connection: Any = pika.BlockingConnection(pika.URLParameters(setup.broker_url))
    properties = pika.BasicProperties(content_type="application/json", content_encoding="utf-8")
    connection.channel().basic_publish("", setup.name, _GARBAGE, properties)
    connection.close()


def dead_letters() -> int:
    """Return how many dead messages are kept: Celery keeps none."""
    return 0
