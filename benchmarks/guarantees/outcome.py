"""What came of a cell: a verdict and the figures that it rests on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What was measured.

    Attributes:
        kept: Whether the row's guarantee was kept.
        sent: How many messages it is about.
        lost: How many of them were never done while they were watched.
        twice: How many of them ran more often than they should.
        seconds: The row's own time, such as from a kill to the next start; None if it has none, or it never came.
        remark: What else was seen.
    """

    kept: bool
    sent: int
    lost: int = 0
    twice: int = 0
    seconds: float | None = None
    remark: str = ""

    @property
    def figure(self) -> str:
        """The figures, in a line."""
        parts = [f"lost {self.lost} of {self.sent}", f"run again {self.twice}"]
        if self.seconds is not None:
            parts.append(f"{max(0.0, self.seconds):.1f} s")  # a due time is known to a few milliseconds
        if self.remark:
            parts.append(self.remark)
        return ", ".join(parts)
