"""The shop on taskbridge: on Celery or on Dramatiq, as TASKBRIDGE_URL says. See compose.yaml."""

from collections.abc import Iterable

from examples.from_celery_and_dramatiq import outside
from taskbridge import Event, FlowEnd, Results, RetryPolicy, configure, group, on, task

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


# A pipeline, with a callback for failures
@task(name="shop.parcels.pick", retry=RetryPolicy.never())
def pick(order_id: int) -> int:
    return outside.pick(order_id)


@task(name="shop.parcels.label")
def label(grams: int, order_id: int) -> str:
    return f"order {order_id}, {grams} g"


@task(name="shop.parcels.hand_over")
def hand_over(text: str) -> None:
    outside.hand_over(text)


@task(name="shop.parcels.apologise")
def apologise(end: FlowEnd, order_id: int) -> None:
    outside.apologise(order_id)


def ship(order_id: int) -> None:
    pick.call(order_id).then(label, order_id).then(hand_over).on_failure(apologise, order_id).send()


# Many at once, then one
@task(name="shop.stock.count")
def count_shelf(shelf: int) -> int:
    return outside.count(shelf)


@task(name="shop.stock.add_up")
def add_up(counts: Results[int]) -> None:
    outside.write_stock(sum(counts))


def take_stock(shelves: Iterable[int]) -> None:
    group(count_shelf.call(shelf) for shelf in shelves).then(add_up).send()


# Tracking errors
@on("dead")
def track(event: Event) -> None:
    assert event.message is not None
    outside.track(event.error, event.message.task)


# A schedule
@task(name="shop.reports.nightly", cron="0 3 * * *", timezone="Europe/Rome")
def nightly_report() -> None:
    outside.write_report()
