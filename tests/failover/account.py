"""The account of a failover run: what was lost, what was early, and how long nothing was sent or run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from tests.chaos.account import outcome_of
from tests.chaos.happenings import Letter, Run
from tests.failover.load import Sent

_CLOCK_S: Final = 0.005
"""How much earlier a start may seem than it was: times are rounded to ms on their way."""

_SHOWN: Final = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Strike:
    """A server that was killed.

    Attributes:
        what: Which.
        at: When, in seconds since the epoch.
    """

    what: str
    at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """What a strike did, until the next.

    Attributes:
        strike: Which.
        sends_s: The longest time without a send that was accepted.
        runs_s: The longest time without a start of a task.
    """

    strike: Strike
    sends_s: float
    runs_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What must hold; None for what is only printed.

    Attributes:
        lost: How many accepted messages may be lost.
        sends_s: After how long sends are accepted again.
        runs_s: After how long tasks are started again.
    """

    lost: int | None
    sends_s: float | None
    runs_s: float | None


@dataclass(kw_only=True)
class Account:
    """What became of everything.

    Attributes:
        fates: Messages by what their senders were told.
        taken: How many of the unsure ones were taken.
        starts: Of tasks.
        repeated: How many messages had a run that returned started again.
        lost: Messages that were accepted and came to no end.
        early: Messages that started before their time.
        refused_but_run: Messages that ran, although `BrokerUnavailable` said that they were not taken.
        pauses: For each strike.
    """

    fates: Counter[str] = field(default_factory=Counter[str])
    taken: int = 0
    starts: int = 0
    repeated: int = 0
    lost: list[str] = field(default_factory=list[str])
    early: list[str] = field(default_factory=list[str])
    refused_but_run: list[str] = field(default_factory=list[str])
    pauses: list[Pause] = field(default_factory=list[Pause])

    def lines(self) -> list[str]:
        """Return it as text."""
        lines = [
            f"{each.strike.what} killed: {each.sends_s:.1f} s without a send, {each.runs_s:.1f} s without a start"
            for each in self.pauses
        ]
        lines.append(
            f"accepted {self.fates['sent']}, lost {len(self.lost)}; not sent, as BrokerUnavailable said: "
            f"{self.fates['refused']}; may have been taken: {self.fates['unsure']}, of which {self.taken} were"
        )
        return [*lines, f"starts {self.starts}; messages that were run again after they had returned: {self.repeated}"]

    def problems(self, limits: Limits) -> list[str]:
        """Return what must not be."""
        found = [f"started before its time (rule D1): {each}" for each in self.early[:_SHOWN]]
        found += [f"ran though it was refused (rule S2): {each}" for each in self.refused_but_run[:_SHOWN]]
        if limits.lost is not None and len(self.lost) > limits.lost:
            found += [f"lost: {each}" for each in self.lost[:_SHOWN]]
        for each in self.pauses:
            if limits.sends_s is not None and each.sends_s > limits.sends_s:
                found.append(f"{each.strike.what}: no send was accepted for {each.sends_s:.1f} s")
            if limits.runs_s is not None and each.runs_s > limits.runs_s:
                found.append(f"{each.strike.what}: no task was started for {each.runs_s:.1f} s")
        return found


def settle_up(
    sends: Sequence[Sent], runs: Sequence[Run], letters: Iterable[Letter], strikes: Sequence[Strike], *, until: float
) -> Account:
    """Return the account of a run that has come to rest.

    Args:
        sends: What was sent.
        runs: The starts of tasks.
        letters: The dead letters.
        strikes: What was killed, in the order of time.
        until: When the load ended, in seconds since the epoch.
    """
    by_run: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_run[run.key].append(run)
    by_letter: dict[str, list[Letter]] = defaultdict(list)
    for letter in letters:
        by_letter[letter.key].append(letter)
    account = Account(starts=len(runs))
    for send in sends:
        _enter(account, send, by_run[send.key], by_letter[send.key])
    accepted = sorted(send.until for send in sends if send.fate == "sent")
    started = sorted(run.start for run in runs)
    ends = [*(strike.at for strike in strikes[1:]), until]
    for strike, end in zip(strikes, ends, strict=True):
        sends_s, runs_s = longest_pause(accepted, strike.at, end), longest_pause(started, strike.at, end)
        account.pauses.append(Pause(strike=strike, sends_s=sends_s, runs_s=runs_s))
    return account


def _enter(account: Account, send: Sent, runs: Sequence[Run], letters: Sequence[Letter]) -> None:
    account.fates[send.fate] += 1
    outcome = outcome_of(runs, letters)
    if send.fate == "sent" and outcome is None:
        account.lost.append(f"{send.key}, sent at {send.at:.3f}, due at {send.due:.3f}, {len(runs)} starts")
    account.taken += send.fate == "unsure" and outcome is not None
    if send.fate == "refused" and (runs or letters):
        account.refused_but_run.append(send.key)
    account.early += [
        f"{send.key}, {send.due - run.start:.3f} s early" for run in runs[:1] if run.start < send.due - _CLOCK_S
    ]
    account.repeated += sum(run.ending == "returned" for run in runs) > 1


def longest_pause(moments: Sequence[float], begin: float, end: float) -> float:
    """Return the longest time between two neighbours among the beginning, the moments after it, and the end."""
    within = [begin, *(moment for moment in moments if begin < moment < end), end]
    return max(after - before for before, after in pairwise(within))
