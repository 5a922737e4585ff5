"""An application whose pages the tests look at; what its tasks do, their arguments say."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from taskbridge import Bridge, DeadEntry, Flow, Results, RetryPolicy, current, group

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"&"
"""What tries to run in a browser."""

SETTINGS: Final[dict[str, Any]] = {
    "queues": ["email", "bulk", "vip"],
    "routes": [("shop.mail.*", "email"), ("shop.import_*", "bulk")],
    "listing": True,
}
bridge = Bridge(os.environ.get("TASKBRIDGE_URL", "inline://?threads=0"), **SETTINGS)
BROKEN: Final = 13
"""An order that can't be packed until all is fixed."""

ONCE = RetryPolicy(max_attempts=1)
TWICE = RetryPolicy(max_attempts=2, min_delay=0.05, max_delay=0.05, jitter=0)


class Unreachable(Exception):
    """A mail server is away."""


@bridge.task(name="shop.order")
def order(number: int) -> str:
    return f"order {number} is on its way"


@bridge.task(name="shop.mail.receipt", retry=TWICE)
def receipt(address: str, *, secret: str = "") -> str:
    if not is_fixed():
        raise Unreachable(f"smtp.example.org does not answer, for {address}")
    return f"sent to {address}"


def is_fixed() -> bool:
    """Tell whether what was away is there again."""
    return Path(os.environ.get("SHOP_FIXED", "/nowhere")).exists()


@bridge.task(name="shop.import_products", retry=ONCE)
def import_products(until: str) -> int:
    """Run until a file is there, or the run is cancelled."""
    done = 0
    while not (Path(until).exists() or current().cancelled):
        done += 1
        current().progress(done=min(done, 90), total=100, note="reading <b>products</b>")
        time.sleep(0.05)
    return done


@bridge.task(name="shop.pack", retry=ONCE)
def pack(number: int) -> int:
    if number == BROKEN and not is_fixed():
        raise Unreachable(f"nobody packs order {number}")
    return number


@bridge.task(name="shop.ship")
def ship(packed: Results[int], carrier: str) -> str:
    return f"{len(packed)} parcels go by {carrier}"


def parcels(*numbers: int) -> Flow[str]:
    """Return a flow that packs each, and then ships all; it fails if one is `BROKEN`."""
    return group(pack.call(number) for number in numbers).then(ship, carrier="bike")


@bridge.task(name="shop.newsletter", results=False, retry=ONCE)
def newsletter(number: int) -> None:
    raise Unreachable


@bridge.task(name=f"shop.{HOSTILE}", retry=ONCE)
def hostile(text: str) -> None:
    raise ValueError(HOSTILE + text)


@bridge.task(name="shop.report", cron="0 3 * * *", timezone="Europe/Rome")
def report() -> str:
    return "nothing was sold"


@bridge.dead.redact
def without_secrets(entry: DeadEntry) -> DeadEntry:
    return replace(entry, kwargs={name: "***" if name == "secret" else value for name, value in entry.kwargs.items()})
