"""The kinds of messages that a chaos run mixes, and what is to become of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from taskbridge import RetryPolicy

Outcome = Literal["done", "dead", "discarded"]

MANY: Final = 40
"""Attempts enough: no message of this run uses them up by losing workers alone."""


class NotNow(Exception):
    """It may go well the next time."""


class NeverMore(Exception):
    """Trying again would not help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of message.

    Attributes:
        name: The task is called `chaos.NAME`.
        weight: How often it occurs, relative to the others.
        outcome: What becomes of it, if no worker is lost.
        policy: Its task's.
        reason: Why it is dead, if that is its outcome.
    """

    name: str
    weight: float
    outcome: Outcome
    policy: RetryPolicy
    reason: str = ""


def _patient() -> RetryPolicy:
    return RetryPolicy(max_attempts=MANY, min_delay=0.2, max_delay=2)


KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind(name="plain", weight=36, outcome="done", policy=_patient()),
        Kind(name="delayed", weight=15, outcome="done", policy=_patient()),
        Kind(name="flaky", weight=14, outcome="done", policy=_patient()),
        Kind(name="coroutine", weight=4, outcome="done", policy=_patient()),
        Kind(name="slow", weight=8, outcome="done", policy=_patient()),
        Kind(name="long", weight=1, outcome="done", policy=_patient()),
        Kind(name="late", weight=4, outcome="done", policy=_patient()),
        Kind(name="once", weight=6, outcome="done", policy=RetryPolicy.never()),
        Kind(name="discarding", weight=5, outcome="discarded", policy=_patient()),
        Kind(
            name="hopeless",
            weight=4,
            outcome="dead",
            policy=RetryPolicy(max_attempts=3, min_delay=0.3),
            reason="exhausted",
        ),
        Kind(
            name="given_up",
            weight=2.95,
            outcome="dead",
            policy=RetryPolicy(max_attempts=MANY, min_delay=0.3, give_up_on=(NeverMore,)),
            reason="gave_up",
        ),
        Kind(
            name="poison",
            weight=0.05,
            outcome="dead",
            policy=RetryPolicy(max_attempts=2, min_delay=0.3),
            reason="exhausted",
        ),
    )
}
