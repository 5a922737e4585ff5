"""The tasks of the FastAPI example. They belong to the default bridge, and name no engine."""

import asyncio
import logging
from datetime import timedelta

from taskbridge import Discard, RetryPolicy, current, task

log = logging.getLogger(__name__)

sent: list[str] = []
"""What was sent by this process; stands for a mail server."""


@task(queue="email", retry=RetryPolicy(max_attempts=5, min_delay=timedelta(seconds=2)))
async def send_welcome_email(address: str) -> None:
    await asyncio.sleep(0.01)  # stands for an SMTP client; all coroutines of a worker process share one event loop
    sent.append(address)
    log.info("welcome email sent to a new user, attempt %d", current().attempt)


@task(queue="email", expires=timedelta(days=4))  # counted from the sending, not from the time it is scheduled for
def send_reminder(address: str) -> None:
    sent.append(f"reminder: {address}")


@task(queue="reports")
def make_report(year: int) -> dict[str, int]:
    months: dict[str, int] = {}
    for month in range(1, 13):
        if current().cancelled:  # nobody wants it any longer; a fact that costs nothing to look at
            raise Discard("cancelled")
        months[f"{year}-{month:02}"] = month * year  # stands for what takes a while
    return months
