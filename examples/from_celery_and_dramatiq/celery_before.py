"""The shop on Celery alone.

celery --app examples.from_celery_and_dramatiq.celery_before worker --queues email,default
celery --app examples.from_celery_and_dramatiq.celery_before beat
"""

import os
from collections.abc import Iterable
from typing import Any

from celery import Celery, chain, chord
from celery.schedules import crontab
from celery.signals import task_failure

from examples.from_celery_and_dramatiq import outside

URL = os.environ.get("BROKER_URL", "redis://localhost:6379/0")
app = Celery("shop", broker=URL, backend=URL)


# A welcome e-mail with retries
@app.task(
    name="shop.email.welcome",
    autoretry_for=(ConnectionError,),
    max_retries=4,
    retry_backoff=int(outside.PAUSE_S),
    retry_backoff_max=600,
)
def send_welcome_email(user_id: int) -> None:
    outside.deliver_mail(user_id)


# Routing by globs of task names
app.conf.update(task_default_queue="default", task_routes={"shop.email.*": {"queue": "email"}})


# A reliable task with permanent and temporary errors
@app.task(name="shop.payments.charge", bind=True, acks_late=True, reject_on_worker_lost=True, max_retries=4)
def charge(self: Any, order_id: int) -> None:
    try:
        outside.charge_card(order_id)
    except outside.BankUnavailable as exc:
        raise self.retry(exc=exc, countdown=outside.PAUSE_S * 2**self.request.retries) from exc


# A pipeline, with a callback for failures
@app.task(name="shop.parcels.pick")
def pick(order_id: int) -> int:
    return outside.pick(order_id)


@app.task(name="shop.parcels.label")
def label(grams: int, order_id: int) -> str:
    return f"order {order_id}, {grams} g"


@app.task(name="shop.parcels.hand_over")
def hand_over(text: str) -> None:
    outside.hand_over(text)


@app.task(name="shop.parcels.apologise")
def apologise(request: Any, error: Any, traceback: Any, order_id: int) -> None:
    outside.apologise(order_id)


def ship(order_id: int) -> None:
    parcel = chain(pick.s(order_id), label.s(order_id), hand_over.s())
    parcel.on_error(apologise.s(order_id)).apply_async()


# Many at once, then one
@app.task(name="shop.stock.count")
def count_shelf(shelf: int) -> int:
    return outside.count(shelf)


@app.task(name="shop.stock.add_up")
def add_up(counts: list[int]) -> None:
    outside.write_stock(sum(counts))


def take_stock(shelves: Iterable[int]) -> None:
    chord(count_shelf.s(shelf) for shelf in shelves)(add_up.s())


# Tracking errors
@task_failure.connect
def track(sender: Any, exception: Exception, **_: Any) -> None:
    outside.track(exception, sender.name)


# A schedule
@app.task(name="shop.reports.nightly")
def nightly_report() -> None:
    outside.write_report()


app.conf.update(
    timezone="Europe/Rome",
    beat_schedule={"nightly": {"task": "shop.reports.nightly", "schedule": crontab(hour=3, minute=0)}},
)
