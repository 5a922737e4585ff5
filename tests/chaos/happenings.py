"""What a chaos run writes down: what was sent, what ran, what is dead, and what was done to the servers and workers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Literal

from taskbridge import DeadLetter
from taskbridge.contract.probe import END, START, Record
from tests.chaos.tasks import SUICIDE

Fate = Literal["sent", "unsure", "refused"]

PRODUCER: Final = "producer"

EVERYONE: Final = ""
"""The prefix of every participant's name."""


_DIES_WITHIN_S: Final = 1.0
"""How long a process may live on, on a busy machine, after it has noted that it kills itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Send:
    """One message that the producer sent, or tried to.

    Attributes:
        key: What tells it from all others; the task's first argument.
        kind: Its kind's name.
        at: When it was sent, in seconds since the epoch.
        due: When it may start.
        fate: `sent`; or `BrokerUnavailable` said that it may have been taken (`unsure`) or that it was not (`refused`).
    """

    key: str
    kind: str
    at: float
    due: float
    fate: Fate


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One start of a task.

    Attributes:
        key: The message's.
        attempt: The message's.
        pid: The process.
        session: The process in whose session that is: the stock worker's main one.
        worker: The name of the worker, such as `w1.2` for the second one in the place `w1`.
        start: In seconds since the epoch.
        end: None if it never ended.
        ending: `returned`, or the name of what was raised; empty if it never ended.
        delay_s: After which the next attempt was to start, if that is known.
    """

    key: str
    attempt: int
    pid: int
    session: int
    worker: str
    start: float
    end: float | None = None
    ending: str = ""
    delay_s: float | None = None

    @property
    def failed(self) -> bool:
        """Whether it ended in a way after which another attempt is due."""
        return self.ending not in ("", "returned", "Discard", "Interrupted")


@dataclass(frozen=True, kw_only=True, slots=True)
class Letter:
    """A dead letter; `error` is its error's type."""

    key: str
    reason: str
    error: str
    died_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Incident:
    """Something that was done to participants.

    Attributes:
        kind: `kill`: SIGKILL. `stop`: the worker was asked to end, or to start anew. `freeze`: SIGSTOP, and SIGCONT
            later. `outage`: the broker was away, for these participants.
        at: When it began, in seconds since the epoch.
        until: When it was over.
        who: The beginning of the participants' names: a place, a worker in it, or `EVERYONE`.
        pids: The processes that it hit; empty if all of the worker's.
    """

    kind: Literal["kill", "stop", "freeze", "outage"]
    at: float
    until: float = inf
    who: str = EVERYONE
    pids: frozenset[int] = frozenset()

    def hits(self, worker: str) -> bool:
        """Return whether a participant is among those it was done to."""
        return worker.startswith(self.who)

    def overlaps(self, start: float, end: float) -> bool:
        """Return whether it lasted at a moment of this time."""
        return self.at <= end and self.until >= start


def runs_of(records: Iterable[Record]) -> list[Run]:
    """Return the runs that a probe recorded, in the order of their starts."""
    open_runs: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    runs: list[dict[str, Any]] = []
    for record in records:
        place = record.id, record.attempt, record.pid
        if record.kind == START:
            run: dict[str, Any] = {
                "key": record.data["key"],
                "attempt": record.attempt,
                "pid": record.pid,
                "session": record.data["session"],
                "worker": record.data["worker"],
                "start": record.at,
            }
            open_runs.setdefault(place, []).append(run)
            runs.append(run)
        elif record.kind == END:
            mine = next(each for each in open_runs[place] if "end" not in each)
            mine |= {"end": record.at, "ending": record.data["ending"]}
        elif record.kind == "retrying" and place in open_runs:  # not so after `WorkerLost`
            open_runs[place][-1]["delay_s"] = record.data["delay_s"]
    return sorted((Run(**run) for run in runs), key=lambda run: run.start)


def suicides(records: Iterable[Record]) -> list[Incident]:
    """Return the kills that poisonous messages did.

    Each is noted just before it is done; other threads of the process may write something until it is. So it lasts
    until the last that its process wrote in the next second.
    """
    known = list(records)
    written: dict[int, list[float]] = {}
    for record in known:
        written.setdefault(record.pid, []).append(record.at)
    return [
        Incident(
            kind="kill",
            at=record.at,
            until=max(at for at in written[record.pid] if at <= record.at + _DIES_WITHIN_S),
            who=record.data["worker"],
            pids=frozenset({record.pid}),
        )
        for record in known
        if record.kind == SUICIDE
    ]


def letters_of(letters: Sequence[DeadLetter]) -> list[Letter]:
    """Return what is to be known of dead letters; one without a message has its id for a key."""
    return [
        Letter(
            key=letter.id if letter.message is None else json.loads(letter.message.args_json)[0],
            reason=letter.reason,
            error="" if letter.error is None else letter.error.type,
            died_at=letter.died_at,
        )
        for letter in letters
    ]
