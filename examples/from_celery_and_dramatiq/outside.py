"""What the shop talks to: a mail server, a bank, an error tracker. Each writes down what it was asked, in one file.

Odd users' mail servers are busy the first time. The bank declines orders that end in 3, is away the first time for
those that end in 7, and always for those that end in 9.
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


def deliver_mail(user_id: int) -> None:
    if _note(f"mail {user_id}") == 1 and user_id % 2:
        raise ConnectionError("the mail server is busy")


def charge_card(order_id: int) -> None:
    times = _note(f"charge {order_id}")
    if order_id % 10 == 3:
        raise CardDeclined(order_id)
    if order_id % 10 == 9 or (order_id % 10 == 7 and times == 1):
        raise BankUnavailable(order_id)


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
