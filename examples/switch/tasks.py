"""A small shop. Which engine and broker run its tasks is one environment variable, TASKBRIDGE_URL.

From the repository's root:

    taskbridge worker examples.switch.tasks
"""

from datetime import timedelta

from examples.switch import orders
from taskbridge import RetryPolicy, current, task


@task(queue="payments", priority="high", retry=RetryPolicy(max_attempts=4, min_delay=timedelta(seconds=0.2)))
def charge(order_id: str) -> None:
    if current().attempt < 2:
        raise TimeoutError("the payment service did not answer")
    orders.record(order_id, f"paid on attempt {current().attempt}")
    remind.schedule(timedelta(seconds=orders.REMIND_AFTER_S), order_id)


@task
def remind(order_id: str) -> None:
    orders.record(order_id, "reminded")
