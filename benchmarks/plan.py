"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The sizes of all rows.

    Attributes:
        rounds: How often taskbridge, the engines and the controls have their turn in the short rows.
        long_rounds: The same in the rows that take long.
        peer_rounds: How often the peers have theirs in the short rows; in the long ones, once.
        sends: Messages sent one after another, in a round.
        batches: Batches of 100 messages sent, in a round.
        starts: How often a program is started in a round, of which the fastest counts.
        tasks: Tasks that a worker runs in a round; the first two fifths are not measured.
        marks: Tasks sent to an idle worker in a round.
        delayed: Tasks that are delayed by `delay_s` before the two that are measured.
        delay_s: For how long.
        most_parked: How many messages wait for their time at most, in the rows about that.
        lasting: Tasks that a worker runs, one after another, while its memory is watched.
    """

    rounds: int
    long_rounds: int
    peer_rounds: int
    sends: int
    batches: int
    starts: int
    tasks: int
    marks: int
    delayed: int
    delay_s: float
    most_parked: int
    lasting: int


FULL: Final = Plan(
    rounds=4,
    long_rounds=2,
    peer_rounds=2,
    sends=3000,
    batches=30,
    starts=3,
    tasks=8000,
    marks=250,
    delayed=10_000,
    delay_s=30.0,
    most_parked=1_000_000,
    lasting=200_000,
)

QUICK: Final = Plan(
    rounds=3,
    long_rounds=1,
    peer_rounds=1,
    sends=600,
    batches=6,
    starts=3,
    tasks=3000,
    marks=60,
    delayed=2000,
    delay_s=15.0,
    most_parked=100_000,
    lasting=20_000,
)
