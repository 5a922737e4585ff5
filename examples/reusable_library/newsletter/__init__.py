"""A library with background tasks that knows no engine and no broker.

It depends on `taskbridge-queue` without extras. Its tasks belong to the default bridge, which the host application
configures; its queue, `newsletter`, can be moved by a route in the host's settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta

from taskbridge import Handle, RetryPolicy, task

Deliver = Callable[[str, str], None]

_deliver: list[Deliver] = []


def deliver_with(deliver: Deliver) -> None:
    """Say how the host application delivers a letter: a function of an address and a text."""
    _deliver[:] = [deliver]


def publish(text: str, subscribers: Iterable[str]) -> list[Handle[None]]:
    """Send a letter to every subscriber, in the background; returns when the broker has all of the messages."""
    return deliver_letter.send_many(deliver_letter.call(address, text) for address in subscribers)


@task(
    name="newsletter.deliver_letter",
    queue="newsletter",
    retry=RetryPolicy(max_attempts=10, min_delay=timedelta(seconds=0.5), max_delay=timedelta(hours=1)),
)
def deliver_letter(address: str, text: str) -> None:
    """Deliver one letter."""
    for deliver in _deliver:
        deliver(address, text)
