"""The shop on taskbridge: on Celery or on Dramatiq, as TASKBRIDGE_URL says. See compose.yaml."""

from examples.from_celery_and_dramatiq import outside
from taskbridge import Event, RetryPolicy, configure, on, task

# Routing by globs of task names
bridge = configure(routes=[("shop.email.*", "email")])


# A welcome e-mail with retries
@task(
    name="shop.email.welcome",
    retry=RetryPolicy(max_attempts=5, min_delay=outside.PAUSE_S, max_delay=600, retry_on=ConnectionError),
)
def send_welcome_email(user_id: int) -> None:
    outside.deliver_mail(user_id)


# A reliable task with permanent and temporary errors
@task(
    name="shop.payments.charge",
    retry=RetryPolicy(max_attempts=5, min_delay=outside.PAUSE_S, give_up_on=outside.CardDeclined),
)
def charge(order_id: int) -> None:
    outside.charge_card(order_id)


# Tracking errors
@on("dead")
def track(event: Event) -> None:
    assert event.message is not None
    outside.track(event.error, event.message.task)


# A schedule
@task(name="shop.reports.nightly", cron="0 3 * * *", timezone="Europe/Rome")
def nightly_report() -> None:
    outside.write_report()
