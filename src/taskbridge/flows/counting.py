"""Counts a step as it ends, in the act that makes its record final: so each counts once (rule W4)."""

from __future__ import annotations

from collections import deque
from typing import Final, Literal, cast

from taskbridge.flows.plan import BadEnd, entry_id, group_key, place_of
from taskbridge.retry import ErrorInfo
from taskbridge.stores.backend import Backend, Commit, Counted, Entry, Tally, Write
from taskbridge.stores.states import Row

LOOKED_AFTER_S: Final = 2.0
"""For how long a flow is left to who has counted a step: after that any worker looks after it (rule W5)."""


def count(backend: Backend, write: Write, row: Row, due: deque[str], *, timeout_s: float) -> bool:
    """Do the write that makes a step's record final, and count the step; False if the write may not be done.

    What is to follow is decided by `Flows.advance`: by whoever finds the entry's id in `due`; or after 2 s by any
    worker, for the same act has put the entry in the outbox.
    """
    place, ended = place_of(row["flow"]), cast("Counted", row["state"])
    what = place.key if place.member is None else str(place.stage)
    entry = Entry(entry_id(place.flow, what, place.life), "flow", LOOKED_AFTER_S)
    if place.member is None:
        is_done = backend.commit([Commit([write], [entry])], timeout_s=timeout_s)[0]
        if is_done:
            due.append(entry.id)
        return is_done
    text = row.get("result", "null") if "r" in place.flags else None
    if ended != "done":
        error = row.get("error")
        info = None if error is None else ErrorInfo(type=error[0], message=error[1])
        text = BadEnd(ended, row.get("reason", ""), info).dumps()
    posts: Literal["last", "bad", "always"] = (
        "always" if "a" in place.flags else "bad" if "b" in place.flags else "last"
    )
    tally = Tally(group_key(place.flow, place.stage), place.total, place.member, ended, text, entry, posts)
    counts = backend.tally(write, tally, timeout_s=timeout_s)
    if counts is None:
        return False
    if posts == "always" or counts.ended >= place.total or (posts == "bad" and ended != "done"):
        due.append(entry.id)
    return True
