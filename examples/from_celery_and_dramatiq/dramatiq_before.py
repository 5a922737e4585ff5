"""The shop on Dramatiq alone.

dramatiq examples.from_celery_and_dramatiq.dramatiq_before --queues email default
"""

import os
from collections.abc import Iterable
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend as Barriers
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from examples.from_celery_and_dramatiq import outside

URL = os.environ.get("BROKER_URL", "redis://localhost:6379/0")
broker = RedisBroker(url=URL)
dramatiq.set_broker(broker)
broker.add_middleware(GroupCallbacks(Barriers(url=URL)))
broker.add_middleware(Results(backend=RedisBackend(url=URL)))  # last, so that callbacks find results


# Tracking errors
class ErrorTracking(dramatiq.Middleware):
    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if exception is not None:  # after each attempt that failed
            outside.track(exception, message.actor_name)


broker.add_middleware(ErrorTracking())


# A welcome e-mail with retries, in a queue of its own
@dramatiq.actor(
    actor_name="shop.email.welcome",
    queue_name="email",
    max_retries=4,
    min_backoff=int(outside.PAUSE_S * 1000),
    max_backoff=600_000,
)
def send_welcome_email(user_id: int) -> None:
    outside.deliver_mail(user_id)


# A reliable task with permanent and temporary errors
@dramatiq.actor(
    actor_name="shop.payments.charge",
    max_retries=4,
    min_backoff=int(outside.PAUSE_S * 1000),
    throws=outside.CardDeclined,
)
def charge(order_id: int) -> None:
    outside.charge_card(order_id)


# A pipeline, with a callback for failures
@dramatiq.actor(actor_name="shop.parcels.pick", max_retries=0, on_failure="shop.parcels.apologise")
def pick(order_id: int) -> int:
    return outside.pick(order_id)


@dramatiq.actor(actor_name="shop.parcels.label")
def label(order_id: int, grams: int) -> str:
    return f"order {order_id}, {grams} g"


@dramatiq.actor(actor_name="shop.parcels.hand_over")
def hand_over(text: str) -> None:
    outside.hand_over(text)


@dramatiq.actor(actor_name="shop.parcels.apologise")
def apologise(message: dict[str, Any], error: dict[str, str]) -> None:
    outside.apologise(message["args"][0])


def ship(order_id: int) -> None:
    parcel = [pick.message(order_id), label.message(order_id), hand_over.message()]  # type: ignore[call-arg]
    dramatiq.pipeline(parcel).run()


# Many at once, then one
@dramatiq.actor(actor_name="shop.stock.count", store_results=True)
def count_shelf(shelf: int) -> int:
    return outside.count(shelf)


@dramatiq.actor(actor_name="shop.stock.add_up")
def add_up(counts: list[dict[str, Any]]) -> None:
    outside.write_stock(sum(dramatiq.Message(**each).get_result() for each in counts))


def take_stock(shelves: Iterable[int]) -> None:
    counts = [count_shelf.message(shelf) for shelf in shelves]
    stock = dramatiq.group(counts)
    stock.add_completion_callback(add_up.message([each.asdict() for each in counts]))
    stock.run()


# A schedule: Dramatiq has none. `0 3 * * *` stands in a crontab that sends this, or in APScheduler
@dramatiq.actor(actor_name="shop.reports.nightly")
def nightly_report() -> None:
    outside.write_report()
