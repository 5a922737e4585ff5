"""The account of a chaos run: where every message ended, and why some tasks were started more often than that needs.

sent = done + dead + discarded, lost 0, every duplicate explained
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.chaos.causes import Causes, Conditions
from tests.chaos.happenings import Incident, Letter, Run, Send
from tests.chaos.kinds import KINDS, Outcome

_SHOWN: Final = 20

_CLOCK_S: Final = 0.005
"""How much earlier a start may seem than it was: times are rounded to ms on their way."""


@dataclass(kw_only=True)
class Account:
    """What became of everything.

    Attributes:
        sends: Messages by fate: `sent`, `unsure`, `refused`.
        outcomes: Messages that were sent, by outcome.
        taken: How many of the unsure ones were taken.
        starts: Of tasks.
        duplicates: Starts that no failure had asked for, by cause.
        losses: Outcomes that came of lost workers, by what they are and why.
        faults: What must not be: one line each.
        lost: The keys of messages without an outcome.
    """

    sends: Counter[str] = field(default_factory=Counter[str])
    outcomes: Counter[str] = field(default_factory=Counter[str])
    taken: int = 0
    starts: int = 0
    duplicates: Counter[str] = field(default_factory=Counter[str])
    losses: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])
    lost: list[str] = field(default_factory=list[str])

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, and nothing is unexplained."""
        return not self.faults and not self.lost

    def lines(self) -> list[str]:
        """Return it as text."""
        ends = ", ".join(f"{self.outcomes[name]} {name}" for name in ("done", "dead", "discarded"))
        lines = [
            f"sent {self.sends['sent']} = {ends}, lost {len(self.lost)}",
            f"not sent, as BrokerUnavailable said: {self.sends['refused']}; "
            f"may have been taken: {self.sends['unsure']}, of which {self.taken} were",
            f"starts {self.starts}, of which duplicates: {self.duplicates.total()}",
            *(f"  {count:5} {cause}" for cause, count in self.duplicates.most_common()),
        ]
        if self.losses:
            lines += ["outcomes that came of lost workers:"]
            lines += [f"  {count:5} {cause}" for cause, count in self.losses.most_common()]
        wrong = [f"LOST {key}" for key in self.lost] + self.faults
        lines += [f"FAULT {line}" for line in wrong[:_SHOWN]]
        if len(wrong) > _SHOWN:
            lines += [f"... and {len(wrong) - _SHOWN} more"]
        return lines


def outcome_of(runs: Sequence[Run], letters: Sequence[Letter]) -> Outcome | None:
    """Return what became of a message, as far as it is seen from outside; None if nothing did yet."""
    if letters:
        return "dead"
    endings = {run.ending for run in runs}
    if "returned" in endings:
        return "done"
    return "discarded" if "Discard" in endings else None


def settle_up(
    sends: Iterable[Send],
    runs: Iterable[Run],
    letters: Iterable[Letter],
    incidents: Iterable[Incident],
    conditions: Conditions,
) -> Account:
    """Return the account of a run that is over: nothing waits, runs or is parked any more."""
    by_run: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_run[run.key].append(run)
    by_letter: dict[str, list[Letter]] = defaultdict(list)
    for letter in letters:
        by_letter[letter.key].append(letter)
    book = _Book(Causes(conditions, incidents))
    keys: set[str] = set()
    for send in sends:
        keys.add(send.key)
        book.enter(send, by_run.get(send.key, []), by_letter.get(send.key, []))
    book.account.faults += [f"{key}: nobody has sent it" for key in sorted((by_run.keys() | by_letter.keys()) - keys)]
    return book.account


class _Book:
    """Enters one message after the other."""

    def __init__(self, causes: Causes) -> None:
        self.account = Account()
        self._causes = causes

    def enter(self, send: Send, runs: Sequence[Run], letters: Sequence[Letter]) -> None:
        account = self.account
        account.sends[send.fate] += 1
        account.starts += len(runs)
        outcome = outcome_of(runs, letters)
        if send.fate == "sent" and outcome is None:
            account.lost.append(f"{send.key} ({send.kind}): {_shown(runs)}")
        if send.fate == "sent" and outcome is not None:
            account.outcomes[outcome] += 1
        if send.fate == "refused" and (runs or letters):
            self._fault(send, runs, "it was taken, although BrokerUnavailable said that it was not")
        if send.fate == "unsure" and outcome is not None:
            account.taken += 1
        self._check_starts(send, runs)
        self._check_outcome(send, runs, letters)

    def _fault(self, send: Send, runs: Sequence[Run], problem: str) -> None:
        self.account.faults.append(f"{send.key} ({send.kind}): {problem}; sent at {send.at:.3f}; {_shown(runs)}")

    def _check_starts(self, send: Send, runs: Sequence[Run]) -> None:
        most = KINDS[send.kind].policy.max_attempts
        for index, run in enumerate(runs):
            if run.start < send.due - _CLOCK_S:
                self._fault(send, runs, f"it started {send.due - run.start:.3f} s too early (rule D1)")
            if most is not None and run.attempt > most:
                self._fault(send, runs, f"attempt {run.attempt} of at most {most} (rule R1)")
            if run.end is None and self._causes.of_end(run, float("inf")) is None:
                self._fault(send, runs, f"attempt {run.attempt} never ended, though nobody killed its worker")
            if not _is_due(run, runs[:index]):
                self._explain(send, run, runs, runs[:index])

    def _explain(self, send: Send, run: Run, runs: Sequence[Run], earlier: Sequence[Run]) -> None:
        cause = self._causes.of_start(run, earlier, send)
        if cause is None and run.attempt > 1 and not any(other.attempt == run.attempt - 1 for other in earlier):
            after = max((other.start for other in earlier), default=send.at)
            cause = self._causes.of_unseen(after, run.start)
        if cause is None:
            self._fault(send, runs, f"nothing explains the start of attempt {run.attempt} at {run.start:.3f}")
        else:
            self.account.duplicates[cause] += 1

    def _check_outcome(self, send: Send, runs: Sequence[Run], letters: Sequence[Letter]) -> None:
        kind = KINDS[send.kind]
        returned = any(run.ending == "returned" for run in runs)
        if returned and kind.outcome != "done":
            self._fault(send, runs, "it returned, which it never does")
        if len(letters) > 1:
            self._explain_letters(send, runs, letters)
        for letter in letters:
            if kind.outcome == "dead" and letter.reason == kind.reason:
                continue
            if letter.reason == "exhausted" and letter.error.endswith("WorkerLost") and self._spent(send, runs):
                self.account.losses["dead, as its attempts were lost with their workers"] += 1
                self.account.losses["... though one had returned before"] += returned
            else:
                self._fault(send, runs, f"dead, reason {letter.reason}, error {letter.error}")

    def _spent(self, send: Send, runs: Sequence[Run]) -> bool:
        """Return whether the last attempt's run came to nothing by an incident, so that the message may be dead."""
        most = KINDS[send.kind].policy.max_attempts
        last = [run for run in runs if run.attempt == most]
        if not last:
            return self._causes.of_unseen(send.at, float("inf")) is not None
        return any(self._causes.of_end(run, float("inf")) is not None for run in last)

    def _explain_letters(self, send: Send, runs: Sequence[Run], letters: Sequence[Letter]) -> None:
        cause = next((cause for run in runs if (cause := self._causes.of_end(run, float("inf")))), None)
        if cause is None:
            self._fault(send, runs, f"{len(letters)} dead letters (rule R6)")
        else:
            self.account.losses[f"second dead letter: {cause}"] += len(letters) - 1


def _is_due(run: Run, earlier: Sequence[Run]) -> bool:
    """Return whether a start is the first one, or the one that a failure before it has asked for."""
    starts = sum(other.attempt == run.attempt for other in earlier)
    asked = sum(
        other.attempt == run.attempt - 1 and other.failed and other.end is not None and other.end <= run.start
        for other in earlier
    )
    return starts < (1 if run.attempt == 1 else asked)


def _shown(runs: Sequence[Run]) -> str:
    if not runs:
        return "never started"
    return ", ".join(
        f"attempt {run.attempt} in {run.worker} pid {run.pid} {run.start:.3f}.."
        f"{'' if run.end is None else format(run.end, '.3f')} {run.ending or 'no end'}"
        for run in runs
    )
