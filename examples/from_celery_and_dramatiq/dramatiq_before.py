"""The shop on Dramatiq alone.

dramatiq examples.from_celery_and_dramatiq.dramatiq_before --queues email default
"""

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from examples.from_celery_and_dramatiq import outside

broker = RedisBroker(url=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
dramatiq.set_broker(broker)


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


# A schedule: Dramatiq has none. `0 3 * * *` stands in a crontab that sends this, or in APScheduler
@dramatiq.actor(actor_name="shop.reports.nightly")
def nightly_report() -> None:
    outside.write_report()
