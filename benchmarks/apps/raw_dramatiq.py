"""Dramatiq alone, with confirms on RabbitMQ as taskbridge has them."""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

import dramatiq

from benchmarks.apps import work


def _broker() -> Any:
    if work.URL.startswith("amqp"):
        from dramatiq.brokers.rabbitmq import RabbitmqBroker  # here, for each broker's client costs an import

        return RabbitmqBroker(url=work.URL, confirm_delivery=work.CONFIRMS)
    from dramatiq.brokers.redis import RedisBroker

    return RedisBroker(url=work.URL)


def _count_groups() -> None:
    from dramatiq.middleware import GroupCallbacks
    from dramatiq.rate_limits.backends import RedisBackend

    broker.add_middleware(GroupCallbacks(RedisBackend(url=work.URL)))


def _keep_results() -> None:
    from dramatiq.results import Results
    from dramatiq.results.backends import RedisBackend

    broker.add_middleware(Results(backend=RedisBackend(url=work.URL), store_results=True))


broker: Final = _broker()
if work.RESULTS:
    _keep_results()
if work.GROUPS:
    _count_groups()
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="tick", queue_name=work.QUEUE)
def tick(payload: str) -> None:
    work.tick()


@dramatiq.actor(actor_name="mark", queue_name=work.QUEUE)
def mark_actor(label: str, due_at: float) -> None:
    work.mark(label, due_at)


@dramatiq.actor(actor_name="stamp", queue_name=work.QUEUE)
def stamp() -> float:
    return monotonic()


def tick_each(payload: str, count: int) -> None:
    for _ in range(count):
        tick.send(payload)


def tick_batches(payload: str, size: int, times: int) -> None:
    for _ in range(times):
        dramatiq.group([tick.message(payload) for _ in range(size)]).run()


@dramatiq.actor(actor_name="tick.last", queue_name=work.QUEUE)
def last_tick(payload: str) -> None:
    work.tick_last()


@dramatiq.actor(actor_name="followed", queue_name=work.QUEUE)
def followed() -> None:
    work.followed()


def tick_group(payload: str, count: int) -> None:
    group = dramatiq.group([last_tick.message(payload) for _ in range(count)])
    group.add_completion_callback(followed.message())
    group.run()


def mark(label: str, delay_s: float) -> None:
    args = (label, monotonic() + delay_s)
    mark_actor.send_with_options(args=args, delay=int(delay_s * 1000) or None)


def tick_later(payload: str, count: int, delay_s: float) -> None:
    for _ in range(count):
        tick.send_with_options(args=(payload,), delay=int(delay_s * 1000))


def wait_for_stamp() -> float:
    done_at: float = stamp.send().get_result(block=True, timeout=int(work.WAIT_S * 1000))
    return monotonic() - done_at


async def tick_async(payload: str) -> None:
    tick.send(payload)  # Dramatiq has no other way: it blocks the loop
