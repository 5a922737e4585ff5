"""Fills the shop of `examples/django_shop` with what its admin shows; run in its folder. Prints ids as JSON."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import django

django.setup()

from django.contrib.auth.models import Permission, User  # noqa: E402 - Django is set up now

from taskbridge import default_bridge  # noqa: E402
from taskbridge.failures import traceback_of  # noqa: E402
from taskbridge.message import DeadLetter, Message  # noqa: E402
from taskbridge.retry import ErrorInfo  # noqa: E402

HOSTILE = "<script>document.title = 'pwned'</script>"
LAST = 7


def refused(number: int) -> Exception:
    bank: Any = import_module("shop.bank")
    try:
        bank.pay_back(90_000 + number, reference=f"order {number}{HOSTILE if number == LAST else ''}")
    except Exception as exc:
        return exc
    raise AssertionError("the bank has paid")


def bury(number: int) -> str:
    bridge, error = default_bridge(), refused(number)
    message = Message(
        id=f"0b5e5a4e-2f6b-4c53-9b2c-00000000{number:04}",
        task="shop.tasks.refund" if number % 3 else "shop.tasks.send_receipt",
        queue="payments" if number % 3 else "email",
        args_json=f"[{number}]",
        kwargs_json="{}",
        enqueued_at=bridge.now() - 7200 + number,
        headers={"from": HOSTILE if number == LAST else "the shop"},
        attempt=2,
    )
    letter = DeadLetter(
        message=message,
        reason="gave_up",
        died_at=bridge.now() - 3600 + number,
        error=ErrorInfo.of(error),
        traceback=traceback_of(error),
        worker="shop-1:4711",
    )
    bridge.broker.bury(letter, timeout_s=60)
    return letter.id


def fill() -> dict[str, Any]:
    tasks: Any = import_module("shop.tasks")
    User.objects.create_superuser("boss", password="secret")
    clerk = User.objects.create_user("clerk", password="secret", is_staff=True)
    views = Permission.objects.filter(content_type__app_label="taskbridge", codename__startswith="view_")
    clerk.user_permissions.set(views.exclude(codename="view_arguments"))
    default_bridge().schedules.put(
        "remind-owner", tasks.send_receipt.call(4242), cron="0 8 * * mon-fri", timezone="Europe/Rome"
    )
    return {"dead": [bury(number) for number in range(1, LAST + 1)], "delayed": tasks.refund.schedule(3600, 7).id}


if __name__ == "__main__":
    print(json.dumps(fill()))
