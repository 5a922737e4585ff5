"""Schedules that are put at run time, as the store keeps them (rule CR8).

Each is in one of 32 texts, by a hash of its name: a line with the text's version, and JSON by name. Another, short text
has the versions of all: whoever follows the schedules reads that again and again, and then what was changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import islice, takewhile
from math import inf
from random import uniform
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from zlib import crc32

from taskbridge import codec, locks
from taskbridge.exceptions import StoreUnavailable
from taskbridge.logs import logger
from taskbridge.message import END_OF_TIME, FORM
from taskbridge.schedules.plan import Every, Schedule, timing_of
from taskbridge.stores.backend import Backend, Commit, Write, head_of, next_of
from taskbridge.stores.ticks import Plan, key_of, loads
from taskbridge.tasks import SendOptions

if TYPE_CHECKING:
    from taskbridge.stores.base import Store

Definition: TypeAlias = Mapping[str, Any]
"""A schedule, as JSON holds it."""

_log = logger("taskbridge.scheduler")

_PARTS: Final = 32
"""How many texts they are in: enough that a change of one of 10,000 schedules writes a few hundred."""

_VERSIONS: Final = "planned"
"""The key of the versions of all parts."""

_LOOK_S: Final = 2.0
"""How often workers look for what was put or deleted; rule CR8 gives 5 s."""

MOST_CUT_OFF: Final = 10_000
"""How many ticks an edit counts at most: going through them takes 0.2 s, each time that others edit meanwhile."""

_PAUSE_S: Final = 0.02
"""How long is waited at most where others have changed schedules first, for they all write one text."""

_TIME: Final = ("cron", "every", "timezone")

_UNREADABLE: Final = (ValueError, AttributeError, RecursionError)
"""What is raised by a text that is no JSON, or no object."""


class StoredSchedules:
    """The schedules that were put at run time, as they were read last. Threads share it.

    Attributes:
        known: Those that can be read, by name.
    """

    def __init__(self) -> None:
        self._lock = locks.Lock()
        self._forget(None)

    def _forget(self, store: Store | None) -> None:
        """Know nothing of a store yet."""
        self._store = store
        self._versions = [0] * _PARTS
        self._parts: dict[int, Mapping[str, Schedule]] = {}
        self.known: Mapping[str, Schedule] = {}
        self._read_at = -inf

    def follow(self, store: Store, *, at_once: bool, timeout_s: float) -> None:
        """Read what was changed, if that was not done for 2 s, or `at_once`; raises `StoreUnavailable`."""
        if not at_once and store is self._store and monotonic() - self._read_at < _LOOK_S:
            return
        with self._lock:
            if store is not self._store:
                self._forget(store)
            read_at, get = monotonic(), store.backend.get
            versions = _versions(*get([_VERSIONS], timeout_s=timeout_s))
            changed = [part for part in range(_PARTS) if versions[part] != self._versions[part]]
            if changed:
                texts = get([_key(part) for part in changed], timeout_s=timeout_s)
                self._parts |= {part: _part(text) for part, text in zip(changed, texts, strict=True)}
                self.known = {name: each for part in self._parts.values() for name, each in part.items()}
            self._versions, self._read_at = versions, read_at


def change(
    backend: Backend,
    name: str,
    decide: Callable[[Definition | None, Plan], tuple[Definition | None, Plan, float | None]],
    *,
    timeout_s: float,
) -> Definition | None:
    """Put what is decided of a schedule in the place of what is there, and tell, wholly or not at all.

    `decide` is given the definition that is there, if it can be read, and the plan. It returns those that are to be
    there, and for how many seconds the plan is kept, None for ever. It may be called several times.

    Returns:
        The definition that was there, whether it can be read or not.

    Raises:
        StoreUnavailable: It doesn't answer, or what it has beside the schedule can't be read.
    """
    deadline, part = monotonic() + timeout_s, crc32(name.encode()) % _PARTS
    while True:
        left_s = deadline - monotonic()
        if left_s <= 0:
            raise StoreUnavailable("others change schedules at the same time")
        text, told, known = backend.get([_key(part), _VERSIONS, key_of(name)], timeout_s=left_s)
        try:
            found = _loads(text)
        except _UNREADABLE as exc:
            raise StoreUnavailable(f"the schedules under {_key(part)!r} can't be read: remove that key") from exc
        before: Definition | None = found.pop(name, None)
        plan = loads(known)
        old = before if before is not None and _readable({name: before}) else None
        after, planned, kept_s = decide(old, plan)
        if before is None and after is None:
            return None
        writes: list[Write] = []
        if after != before:
            found |= {} if after is None else {name: after}
            versions, number = _versions(told), next_of(head_of(text))
            versions[part] = max(versions[part] + 1, number)  # never one that was told before, if that text was lost
            writes.append(Write(_VERSIONS, head_of(told), json.dumps(versions)))
            writes.append(Write(_key(part), head_of(text), f"{number}\n{json.dumps(found)}"))
        if planned != plan:
            writes.append(Write(key_of(name), head_of(known), planned.dumps(), kept_s))
        if not writes or backend.commit([Commit(writes)], timeout_s=deadline - monotonic())[0]:
            return before
        sleep(uniform(0.0, _PAUSE_S))


def using_of(options: SendOptions) -> dict[str, Any]:
    """Return what a schedule keeps of options: all but `commit`, for a worker that sends has no transaction."""
    return {key: value for key, value in asdict(options).items() if key != "commit"}


def definition_of(schedule: Schedule) -> Definition:
    """Return how a schedule is kept, without what `revised` adds."""
    timing = schedule.timing
    return {
        "task": schedule.task,
        **({"every": timing.interval_s} if isinstance(timing, Every) else {"cron": timing.spec}),
        **({} if isinstance(timing, Every) else {"timezone": str(timing.zone)}),
        "catch_up": timing.catch_up,
        "overlap": timing.overlap,
        "using": codec.dumps(schedule.using, "options"),
        "encoded": list(schedule.encoded or ()),
    }


def revised(old: Definition | None, new: Definition, plan: Plan, *, at: float) -> Definition:
    """Return the definition of a schedule that is put at a time: as it was, if it is put as it was.

    Revisions grow by two, for a deletion takes the one in between, and with the time, for deletions are forgotten.
    """
    if old is not None and {**old, **new} == old:
        return old
    goes_on = old is not None and all(old.get(key) == new.get(key) for key in _TIME)
    begins_at = old["begins_at"] if old is not None and goes_on else at
    return {**new, "revision": max(int(at * 1e6), newest(old, plan) + 2), "begins_at": begins_at}


def newest(old: Definition | None, plan: Plan) -> int:
    """Return the newest revision of a schedule that is known; 0 is none."""
    return max(0 if old is None else old["revision"], 0 if plan.state is None else plan.state.revision)


def cut_off(name: str, old: Definition | None, plan: Plan, until: float) -> list[float]:
    """Return what was due of a schedule by then, and is neither settled nor about to be sent: an edit cuts that off.

    Of what nobody has sent for long, these are the first `MOST_CUT_OFF`.
    """
    if old is None or plan.state is None or plan.state.paused:
        return []
    schedule = schedule_of(name, old)
    due = takewhile(lambda tick: tick <= min(until, schedule.ends_at), schedule.timing.ticks(plan.state.settled_until))
    return [tick for tick in islice(due, MOST_CUT_OFF) if tick not in plan.claims]


def schedule_of(name: str, found: Definition) -> Schedule:
    """Return the schedule of a definition; raises whatever is wrong with it."""
    timing = timing_of(name=name, **{key: found.get(key) for key in (*_TIME, "catch_up", "overlap")})
    args_json, kwargs_json, form = found["encoded"]
    _ = codec.loads_array(args_json), codec.loads_object(kwargs_json)
    revision, begins_at = int(found["revision"]), found["begins_at"]
    is_sound = 1 <= revision == found["revision"] and 0 <= begins_at <= END_OF_TIME
    if timing is None or not isinstance(found["task"], str) or not is_sound:
        raise ValueError("it has no time, task, revision or beginning")
    if not 1 <= int(form) <= FORM:
        raise ValueError(f"its arguments have form {form}; this release reads up to {FORM}")
    return Schedule(
        name=name,
        task=found["task"],
        timing=timing,
        using=using_of(SendOptions(**codec.loads(found["using"]))),
        encoded=(args_json, kwargs_json, int(form)),
        revision=revision,
        begins_at=float(begins_at),
    )


def _key(part: int) -> str:
    return f"{_VERSIONS}:{part}"


def _versions(text: str | None) -> list[int]:
    """Return the version of each part; 0 if that can't be read."""
    try:
        return [*map(int, [] if text is None else json.loads(text)), *[0] * _PARTS][:_PARTS]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return [0] * _PARTS


def _loads(text: str | None) -> dict[str, Any]:
    """Return the definitions of a part by name; raises `_UNREADABLE`."""
    return {} if text is None else dict(json.loads(text.partition("\n")[2]).items())


def _readable(found: Mapping[str, Any]) -> dict[str, Schedule]:
    """Return the schedules of definitions; what can't be read, whoever has put it there, holds up no other."""
    schedules: dict[str, Schedule] = {}
    for name, each in found.items():
        try:
            schedules[name] = schedule_of(name, each)
        except Exception as exc:
            _log.warning("schedule %s can't be read, nothing is sent by it: %s", name, exc)
    return schedules


def _part(text: str | None) -> Mapping[str, Schedule]:
    """Return the schedules of a part that can be read."""
    try:
        return _readable(_loads(text))
    except _UNREADABLE as exc:
        _log.warning("schedules that were put at run time can't be read: %s", type(exc).__name__)
        return {}
