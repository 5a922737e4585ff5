"""The shop on Celery alone.

celery --app examples.from_celery_and_dramatiq.celery_before worker --queues email,default
celery --app examples.from_celery_and_dramatiq.celery_before beat
"""

import os
from typing import Any

from celery import Celery
from celery.schedules import crontab
from celery.signals import task_failure

from examples.from_celery_and_dramatiq import outside

app = Celery("shop", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))


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
