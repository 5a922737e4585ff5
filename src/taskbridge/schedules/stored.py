"""Schedules that are put at run time, as the store keeps them (rule CR8).

Each is in one of 32 texts, by a hash of its name: a line with the text's version, and JSON by name. Another, short text
has the versions of all: whoever follows the schedules reads that again and again, and then what was changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast
from zlib import crc32

from taskbridge import codec, locks
from taskbridge.exceptions import StoreUnavailable
from taskbridge.logs import logger
from taskbridge.message import END_OF_TIME, FORM
from taskbridge.schedules.plan import Every, Schedule, timing_of
from taskbridge.stores.backend import Backend, Write, head_of, next_of
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

_TIME: Final = ("cron", "every", "timezone")


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
            self._read_at = monotonic()
            get = store.backend.get
            versions = _versions(*get([_VERSIONS], timeout_s=timeout_s))
            changed = [part for part in range(_PARTS) if versions[part] != self._versions[part]]
            if changed:
                texts = get([_key(part) for part in changed], timeout_s=timeout_s)
                self._parts |= {part: _readable(text) for part, text in zip(changed, texts, strict=True)}
                self.known = {name: each for part in self._parts.values() for name, each in part.items()}
            self._versions = versions


def change(
    backend: Backend, name: str, decide: Callable[[Definition | None], Definition | None], *, timeout_s: float
) -> tuple[Definition | None, Definition | None]:
    """Put what is decided of a schedule in the place of what is there, and tell; None is none.

    `decide` may be called several times.

    Returns:
        The definition that was there, and the new one.
    """
    deadline, part = monotonic() + timeout_s, crc32(name.encode()) % _PARTS
    before: Definition | None = None
    after: Definition | None = None
    is_put = is_told = False
    while not (is_put and is_told):
        left_s = deadline - monotonic()
        if left_s <= 0:
            raise StoreUnavailable("others change schedules at the same time")
        text, told = backend.get([_key(part), _VERSIONS], timeout_s=left_s)
        versions, found = _versions(told), dict(_loads(text))
        versions[part] += 1
        writes = [Write(_VERSIONS, head_of(told), json.dumps(versions))]
        if not is_put:
            before = found.pop(name, None)
            after = decide(before)
            if after == before:
                break
            found |= {} if after is None else {name: after}
            writes.append(Write(_key(part), head_of(text), f"{next_of(head_of(text))}\n{json.dumps(found)}"))
        is_told, *done = backend.write(writes, timeout_s=deadline - monotonic())
        is_put = is_put or done == [True]
    return before, after


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


def revised(old: Definition | None, new: Definition, *, at: float, newest: int) -> Definition:
    """Return the definition of a schedule that is put at a time: as it was, if it is put as it was.

    Revisions grow by two, for a deletion takes the one in between, and with the time, for deletions are forgotten.
    `newest` is the one that is known beside the definition.
    """
    if old is None:
        return {**new, "revision": max(int(at * 1e6), newest + 2), "begins_at": at}
    if {**old, **new} == old:
        return old
    begins_at = old["begins_at"] if all(old.get(key) == new.get(key) for key in _TIME) else at
    return {**new, "revision": max(int(at * 1e6), newest + 2, old["revision"] + 2), "begins_at": begins_at}


def schedule_of(name: str, found: Definition) -> Schedule:
    """Return the schedule of a definition; raises whatever is wrong with it."""
    timing = timing_of(name=name, **{key: found.get(key) for key in (*_TIME, "catch_up", "overlap")})
    args_json, kwargs_json, form = found["encoded"]
    _ = codec.loads_array(args_json), codec.loads_object(kwargs_json)
    revision, begins_at = int(found["revision"]), float(found["begins_at"])
    if timing is None or not isinstance(found["task"], str) or revision < 1 or not 0 <= begins_at <= END_OF_TIME:
        raise ValueError("it has no time, task, revision or beginning")
    if not 1 <= int(form) <= FORM:
        raise ValueError(f"its arguments have form {form}; this release reads up to {FORM}")
    return Schedule(
        name=name,
        task=found["task"],
        timing=timing,
        using=asdict(SendOptions(**codec.loads(found["using"]))),
        encoded=(args_json, kwargs_json, int(form)),
        revision=revision,
        begins_at=begins_at,
    )


def _key(part: int) -> str:
    return f"{_VERSIONS}:{part}"


def _versions(text: str | None) -> list[int]:
    """Return the version of each part; 0 if that can't be read."""
    try:
        return [*map(int, [] if text is None else json.loads(text)), *[0] * _PARTS][:_PARTS]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return [0] * _PARTS


def _loads(text: str | None) -> Mapping[str, Definition]:
    """Return the definitions of a part by name; nothing if it can't be read."""
    try:
        found: Mapping[str, Any] = {} if text is None else json.loads(text.partition("\n")[2])
        return {str(name): cast("Definition", each) for name, each in found.items() if isinstance(each, dict)}
    except (ValueError, AttributeError, RecursionError) as exc:
        _log.warning("schedules that were put at run time can't be read: %s", type(exc).__name__)
        return {}


def _readable(text: str | None) -> Mapping[str, Schedule]:
    """Return the schedules of a part; what can't be read, whoever has put it there, holds up no other."""
    found: dict[str, Schedule] = {}
    for name, each in _loads(text).items():
        try:
            found[name] = schedule_of(name, each)
        except Exception as exc:
            _log.warning("schedule %s can't be read, nothing is sent by it: %s", name, exc)
    return found
