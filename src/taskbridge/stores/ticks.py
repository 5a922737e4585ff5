"""Ticks: which planned instants of which schedules have been sent (rule CR).

Every worker plans the same instants; the store lets one of them send each. A claim has a lease, for its claimant may be
killed before it has sent. Whoever claims the tick then sends it again with the same message id, marked as redelivered,
so that the attempt marks let one of the two run (rule A7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class TickClaim(Enum):
    """What may be done about a tick."""

    OURS = "ours"
    """Nobody has claimed it before: send it."""

    AGAIN = "again"
    """Who claimed it is past its lease and may have sent it or not: send it, marked as redelivered."""

    CLAIMED = "claimed"
    """Somebody else is about to send it: look again later."""

    SETTLED = "settled"
    """It was sent or skipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleState:
    """What the store knows of a schedule.

    Attributes:
        settled_until: Every tick planned up to this instant is settled, in seconds since the epoch.
        paused: Whether it is paused.
        last_id: The id of the message that was sent last; empty if none was.
        last_planned_at: The instant that message was planned for.
        missed: How many ticks were not sent because nobody was there, or by `overlap="skip"`.
    """

    settled_until: float
    paused: bool = False
    last_id: str = ""
    last_planned_at: float | None = None
    missed: int = 0


class Ticks(Protocol):
    """The ticks of a bridge's schedules. All calls raise `BrokerUnavailable` if the store doesn't answer."""

    def begin(self, schedule: str, *, at: float, timeout_s: float) -> ScheduleState:
        """Return what is known of a schedule; one that nobody knew of is settled until `at`. Atomic."""
        ...

    def states(self, schedules: Sequence[str], *, timeout_s: float) -> Mapping[str, ScheduleState]:
        """Return what is known of those of these schedules that are known."""
        ...

    def claim(
        self, schedule: str, planned_at: float, *, claimant: str, now: float, lease_s: float, timeout_s: float
    ) -> TickClaim:
        """Claim a tick, in one step; of any number that ask at once, one is told `OURS` or `AGAIN`.

        Ticks up to `settled_until` are `SETTLED`. A claim by the same claimant again is `AGAIN`.
        """
        ...

    def release(self, schedule: str, planned_at: float, *, claimant: str, timeout_s: float) -> None:
        """Take a claim back that came to nothing, if it is still this claimant's: the tick is as if never claimed.

        Only for one that was `OURS`, and whose message was surely not sent.
        """
        ...

    def settle(self, schedule: str, planned_at: float, *, message_id: str, missed: int, timeout_s: float) -> None:
        """Say that a tick, and all before it, are settled, and remove their claims; never goes back.

        Args:
            schedule: Its name.
            planned_at: The latest tick.
            message_id: The message that was sent for it; empty if it was skipped.
            missed: How many ticks up to it were not sent; added to the count, once for each settled tick.
            timeout_s: How long the store may take.
        """
        ...

    def pause(self, schedule: str, *, paused: bool, at: float, timeout_s: float) -> None:
        """Pause a schedule or let it go on; lasts until it is changed. Makes the schedule known, settled until `at`."""
        ...
