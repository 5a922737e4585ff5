"""What the shop talks to: a mail server, a bank, a warehouse, an error tracker. Each writes down what it was asked.

Odd users' mail servers are busy the first time. The bank declines orders that end in 3, is away the first time for
those that end in 7, and always for those that end in 9. What is in orders that end in 3 is also sold out.
"""

from __future__ import annotations

import os
from pathlib import Path

PAUSE_S = float(os.environ.get("SHOP_PAUSE", "30"))
"""How long the shop waits before it tries something again, at first."""

LOG = Path(os.environ.get("SHOP_LOG", "shop.log"))


class CardDeclined(Exception):
    """Trying again won't help."""


class BankUnavailable(Exception):
    """Trying again may help."""


class SoldOut(Exception):
    """Trying again won't help."""


def deliver_mail(user_id: int) -> None:
    if _note(f"mail {user_id}") == 1 and user_id % 2:
        raise ConnectionError("the mail server is busy")


def charge_card(order_id: int) -> None:
    times = _note(f"charge {order_id}")
    if order_id % 10 == 3:
        raise CardDeclined(order_id)
    if order_id % 10 == 9 or (order_id % 10 == 7 and times == 1):
        raise BankUnavailable(order_id)


def pick(order_id: int) -> int:
    """Return the weight of what is in an order, in grams."""
    if order_id % 10 == 3:
        raise SoldOut(order_id)
    return order_id * 100


def hand_over(label: str) -> None:
    _note(f"parcel: {label}")


def apologise(order_id: int) -> None:
    _note(f"sorry for {order_id}")


def count(shelf: int) -> int:
    return shelf * 10


def write_stock(number: int) -> None:
    _note(f"stock {number}")


def write_report() -> None:
    _note("report")


def track(error: object, task: str) -> None:
    """Tell the error tracker."""
    _note(f"tracked {type(error).__name__} in {task}")


def _note(line: str) -> int:
    """Write a line down, and return how often it is there by now."""
    with LOG.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    return LOG.read_text(encoding="utf-8").splitlines().count(line)
