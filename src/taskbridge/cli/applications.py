"""Which applications have had workers in a namespace: two that share one take each other's messages (rule Q9).

The store keeps a text `applications`, JSON below a first line that says nothing: by the module that a worker was
started for, its tasks, its queues, and when that was, in seconds since the epoch. Of two that write at the same time,
one is lost until a worker of its application starts again: all that comes of it is a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any, Final

from taskbridge import Bridge
from taskbridge.cli.output import local_time

_KEY: Final = "applications"
_KEPT_S: Final = 7 * 86400.0


def others(bridge: Bridge, app: str, queues: Iterable[str], *, is_started: bool, timeout_s: float) -> list[str]:
    """Return what is to be said of others who consume these queues, and have no task that this application has.

    Names are not compared: two applications may both be called `tasks`, and one may have several modules. If its
    workers start now, the store remembers that for a week. Raises `BrokerUnavailable` if the store doesn't answer.
    """
    mine: dict[str, Any] = {"tasks": sorted(each.name for each in bridge.declarations()), "queues": sorted(queues)}
    if bridge.store is None or not mine["tasks"]:
        return []
    backend, mine["at"] = bridge.store.backend, bridge.now()
    [text] = backend.get([_KEY], timeout_s=timeout_s)
    known = {name: its for name, its in _read(text, mine["at"]).items() if mine["at"] - its["at"] < _KEPT_S}
    if is_started:
        new = f"1\n{json.dumps({**known, app: mine})}"
        backend.put(_KEY, new, kept_s=_KEPT_S, timeout_s=timeout_s)
    return [said for name, its in known.items() if (said := _said(bridge, name, its, mine))]


def _read(text: str | None, now: float) -> Mapping[str, Mapping[str, Any]]:
    """Return what is known of each application; nothing of a text that says anything else."""
    with suppress(Exception):  # whatever anybody has written
        known = json.loads((text or "").partition("\n")[2])
        return {
            name: {"at": min(now, float(its["at"])), **{each: [*map(str, its[each])] for each in ("tasks", "queues")}}
            for name, its in known.items()
        }
    return {}


def _said(bridge: Bridge, name: str, its: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    shared = [queue for queue in mine["queues"] if queue in its["queues"]]
    if not shared or not set(mine["tasks"]).isdisjoint(its["tasks"]):
        return ""
    since = local_time(datetime.fromtimestamp(its["at"], timezone.utc))
    what = f"a worker of {name}, which has none of this application's tasks, consumes its queue {shared[0]!r}"
    does = "each takes messages that it can't run. Give one of the two a namespace of its own (TASKBRIDGE_NAMESPACE)"
    return f"{what} in namespace {bridge.settings.namespace!r}, since {since}: {does}; after 7 days it is forgotten"
