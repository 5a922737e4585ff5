"""Rows about what follows a group of tasks."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from benchmarks.guarantees.applications.work import FOLLOWED, TOLD, Step
from benchmarks.guarantees.outcome import Outcome
from benchmarks.guarantees.table import Issue, row
from benchmarks.guarantees.trial import Trial
from benchmarks.guarantees.workers import KeptWorker
from taskbridge.contract.probe import END

_LEASE_S: Final = 5.0
_WATCHED_S: Final = 60.0
_AFTERWARDS_S: Final = 40.0
_LINGER_S: Final = 5.0
_GROUPS: Final = 20
_MEMBERS: Final = 10
_KILLS: Final = 10
_RUN_S: Final = 0.2
_READY_S: Final = 60.0

_HANGS: Final = Issue(
    engine="celery",
    place="celery/celery#2911",
    says="a chord whose member is killed neither runs its body nor calls its error callback",
)
_NEVER_FIRES: Final = Issue(
    engine="dramatiq",
    place="Bogdanp/dramatiq#868",
    says="the completion callback never runs if a member fails for good or is skipped",
)


def _times(t: Trial, key: str, kind: str) -> list[float]:
    """Return when something followed a group, each time that it did."""
    return [record.at for record in t.records.of(key) if record.kind == kind]


def _is_early(t: Trial, key: str, members: Sequence[str]) -> bool:
    """Return whether something followed a group before each of its members had ended well."""
    firsts = [min((record.at for record in t.records.of(each) if record.kind == END), default=None) for each in members]
    return any(first is None or first > at for first in firsts for at in _times(t, key, FOLLOWED))


@row(
    "Workers are killed again and again while groups run; each group is followed by a callback",
    kept="each callback runs, and none before all members of its group are done",
    lease_s=_LEASE_S,
    attempts=10,
    groups=True,
    issues=(_HANGS,),
)
def killed_workers_in_groups(t: Trial) -> Outcome:
    """Twenty groups of ten members of 0.2 s, two workers; ten times one that has begun a member is killed (`kill -9`).

    Watched until 60 s after the last kill. Counted are the callbacks; "run again" are those that ran twice. That may
    happen: a callback is a message, and its worker may be killed, too.
    """
    workers = [t.start_worker(), t.start_worker()]
    groups: Mapping[str, list[str]] = dict(t.send_group([[Step(sleep_s=_RUN_S)]] * _MEMBERS) for _ in range(_GROUPS))
    chance = random.Random(17)
    kills = 0

    def are_followed() -> bool:
        return all(_times(t, key, FOLLOWED) for key in groups)

    def has_begun(worker: KeptWorker, seen: int) -> bool:
        return any(worker.owns(record.pid) for record in t.records.all()[seen:]) or are_followed()

    while kills < _KILLS and not are_followed():
        worker = workers[kills % 2]
        if not t.until(partial(has_begun, worker, len(t.records.all())), _READY_S):
            break  # it finds nothing to do: what is left waits for something else
        time.sleep(chance.uniform(0, 2 * _RUN_S))
        worker.crash()
        kills += 1
    t.until(are_followed, _WATCHED_S)
    runs = {key: len(_times(t, key, FOLLOWED)) for key in groups}
    early = sum(_is_early(t, key, members) for key, members in groups.items())
    lost = sum(not count for count in runs.values())
    return Outcome(
        kept=not lost and not early,
        sent=_GROUPS,
        lost=lost,
        twice=sum(count > 1 for count in runs.values()),
        remark=f"{early} too early, {kills} kills",
    )


@row(
    "A worker is killed when a member of a group has ended, before the broker is told (so it is delivered again)",
    kept="the callback runs once, when all members are done",
    lease_s=_LEASE_S,
    groups=True,
)
def group_member_delivered_again(t: Trial) -> Outcome:
    """A group of four; the worker is killed when the run of the first one is counted, and that of the last one.

    One worker, which is started again. Watched until 40 s after the callback's first run, or for 60 s.
    """
    t.start_worker()
    once = Step(ending="ends unacknowledged")
    key, members = t.send_group([[once, Step()], [Step(sleep_s=1)], [Step(sleep_s=1)], [once, Step()]])
    t.wait_start(members[0])
    followed = t.until(lambda: _times(t, key, FOLLOWED), _WATCHED_S)
    if followed:
        t.until(lambda: False, _AFTERWARDS_S)
    times, is_early = _times(t, key, FOLLOWED), _is_early(t, key, members)
    count = len(times)
    return Outcome(
        kept=count == 1 and not is_early,
        sent=1,
        lost=0 if followed else 1,
        twice=1 if count > 1 else 0,
        remark=f"callback ran {'once' if count == 1 else f'{count} times'}{', first too early' if is_early else ''}",
    )


def _told(t: Trial, key: str, within_s: float, *, lingers_s: float = _LINGER_S) -> Outcome:
    """Watch what is told of a group that can't end well."""
    began = time.time()
    is_told = t.until(lambda: _times(t, key, TOLD), within_s)
    t.until(lambda: False, lingers_s)
    told, followed = _times(t, key, TOLD), _times(t, key, FOLLOWED)
    words = f"told {'once' if len(told) == 1 else f'{len(told)} times'}"
    return Outcome(
        kept=len(told) == 1 and not followed,
        sent=1,
        lost=0 if is_told or followed else 1,
        twice=1 if len(told) > 1 else 0,
        seconds=told[0] - began if told else None,
        remark=words + (", and the callback ran" if followed else ""),
    )


@row(
    "Two of three members of a group fail for good",
    kept="the application is told once within a minute that the group failed, and its callback does not run",
    lease_s=_LEASE_S,
    attempts=2,
    groups=True,
    issues=(_NEVER_FIRES,),
)
def failed_members_of_a_group(t: Trial) -> Outcome:
    """Two attempts each. Celery tells by the error callback of the chord's body, Dramatiq by `on_retry_exhausted`.

    "Lost" is a group of which nothing is told. The seconds are those until the application is told.
    """
    t.start_worker()
    key, members = t.send_group([[Step(ending="fails")], [Step()], [Step(ending="fails")]])
    t.wait_start(members[0])
    return _told(t, key, _WATCHED_S)


@row(
    "A member of a group expires before a worker takes it",
    kept="the application is told once within a minute that the group failed, and its callback does not run",
    groups=True,
    issues=(_NEVER_FIRES,),
)
def expired_member_of_a_group(t: Trial) -> Outcome:
    """A group of two whose members may wait for 2 s; the worker is started 4 s after it was sent.

    "Lost" is a group of which nothing is told. The seconds are those until the application is told.
    """
    key, _ = t.send_group([[Step()], [Step()]], expires_s=2)
    time.sleep(4)
    t.start_worker()
    return _told(t, key, _WATCHED_S)


@row(
    "A member of a group takes its whole worker down, each time; three attempts are allowed",
    kept="the application is told once within 80 s that the group failed, and its callback does not run",
    lease_s=_LEASE_S,
    attempts=3,
    groups=True,
    issues=(_HANGS, _NEVER_FIRES),
)
def deadly_member_of_a_group(t: Trial) -> Outcome:
    """A group of three; one of them kills all processes of its worker, which is started again whenever it ends.

    "Lost" is a group of which nothing is told. The seconds are those until the application is told.
    """
    t.start_worker()
    key, members = t.send_group([[Step()], [Step(ending="kills worker")], [Step()]])
    t.wait_start(members[1])
    return _told(t, key, 80.0)
