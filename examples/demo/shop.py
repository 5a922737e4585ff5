"""A small shop, the model application of `./scripts/demo`: it declares and sends tasks, and knows no engine.

What is set from outside, with environment variables here: TASKBRIDGE_URL (the engine and broker),
TASKBRIDGE_ROUTES='*.send_*=email' (where mail waits) and TASKBRIDGE_QUEUES=vip (a queue that no task names).
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from decimal import Decimal

from taskbridge import Discard, RetryPolicy, current, task


class BankOffline(Exception):
    """It may answer the next time."""


class CardExpired(Exception):
    """Trying again would not help."""


class PrinterJammed(Exception):
    """Somebody has to look at it."""


# Without jitter, which draws each delay from the message's id, so that the demo can compare two runs.
PATIENT = RetryPolicy(max_attempts=5, min_delay=timedelta(milliseconds=250), jitter=0, give_up_on=CardExpired)


@task(queue="payments", retry=PATIENT)
def charge_card(order: int, amount: Decimal, card: str) -> str:
    """Charge a card; the bank doesn't answer before the third attempt."""
    if card == "expired":
        raise CardExpired("valid until last month")
    if current().attempt < 3:
        raise BankOffline("no answer from the bank")
    return f"{amount} paid"


@task
def send_receipt(order: int) -> str:
    """Mail a receipt; the route '*.send_*=email' says where it waits."""
    return f"receipt {order} mailed"


@task
def send_newsletter(customer: str) -> None:
    """Mail news, but not to who doesn't want them."""
    raise Discard(f"{customer} has unsubscribed")


@task(queue="warehouse")
def pack(order: int) -> str:
    """Pack a parcel; the more urgent ones first."""
    time.sleep(0.02)
    return f"parcel {order} packed"


@task(queue="warehouse", retry=RetryPolicy(max_attempts=3, min_delay=0.2, jitter=0))
def print_label(order: int) -> None:
    """Print a label, on a printer that is jammed: after the third attempt the message is a dead letter."""
    raise PrinterJammed(f"no label for order {order}")


@task
async def ask_for_review(order: int) -> str:
    """Ask for a review, some time later."""
    await asyncio.sleep(0.01)
    return f"asked about order {order}"


def take_orders() -> None:
    """Send one of everything."""
    charge_card.send(1001, Decimal("19.90"), card="visa")  # fails twice, then succeeds
    charge_card.send(1002, Decimal("5.00"), card="expired")  # fails for good at once
    send_receipt.send(1001)  # goes where the route says
    send_receipt.using(queue="vip").send(1002)  # goes where this call says
    send_newsletter.send("Ada")
    ask_for_review.schedule(timedelta(seconds=3), 1001)
    print_label.send(1001)
    pack.using(priority="low").send(1001)
    pack.send(1002)
    pack.using(priority="high").send(1003)
    pack.using(priority="critical").send(1004)
