"""Steps of flows: what a message says of its place in a flow, and how its end is counted (rules W3 and W4).

A step is counted in the act that makes its record final, so each counts once. What is to follow is decided by
`flows.running`: the same act has put an entry in the outbox by which any worker looks after the flow.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Literal, NamedTuple, cast

from taskbridge import codec
from taskbridge.retry import ErrorInfo
from taskbridge.stores.backend import Backend, Commit, Counted, Entry, Tally, Write
from taskbridge.stores.entries import LOOK, OF_FLOWS
from taskbridge.stores.states import Row

CALLBACKS: Final = ("failure", "end")

LOOKED_AFTER_S: Final = 2.0
"""For how long a flow is left to who has counted a step: after that any worker looks after it (rule W5)."""


class Place(NamedTuple):
    """The place of a step in its flow, as `Message.flow` says it.

    Attributes:
        flow: The flow's id.
        key: The stage, or stage and member as `1/17`; or `failure` or `end`.
        life: How often the flow had been reopened before.
        total: Of a group's member, how many members the group has; else 0.
        flags: `r` its result is kept for what follows; `b` one that ends badly ends the flow; `a` its end lets another
            one begin; `g` its first argument is what the stage before has returned, and is read as it starts.
        above: The flows of which this one is a step, by `become`, each by its id and its life.
    """

    flow: str
    key: str
    life: int = 0
    total: int = 0
    flags: str = ""
    above: tuple[Any, ...] = ()

    @property
    def stage(self) -> int:
        """The number of its stage; 0 is the first."""
        return int(self.key.partition("/")[0])

    @property
    def member(self) -> int | None:
        """Which member of a group it is; None for a single step or a callback."""
        index = self.key.partition("/")[2]
        return int(index) if index else None

    @property
    def is_callback(self) -> bool:
        """Whether it is called as the flow has ended, and so runs though the flow has."""
        return self.key in CALLBACKS

    def dumps(self) -> str:
        """Return the text that `place_of` reads."""
        flow, key, life, total, flags, above = self
        text = f"{key} {life} {total} {flags} {flow}"  # each tab would take four bytes of a message
        return "\t".join([text, *map(str, above)]) if above else text


def place_of(text: str) -> Place:
    """Return the place that a message's `flow` names."""
    key, life, total, flags, flows = text.split(" ", 4)
    flow, *above = flows.split("\t")
    return Place(flow, key, int(life), int(total), flags, tuple(above))


def life_of_flow(flow_id: str, life: int | str) -> str:
    """Return what is told in the list of cancellations if a flow is over: no life of a message has two tabs."""
    return f"{OF_FLOWS}{flow_id}\t{life}"


def step_lives(flow: str) -> list[str]:
    """Return those of the flows that a message's `flow` names; none if its step starts though the flow is over."""
    place = place_of(flow)
    pairs: list[Any] = [place.flow, place.life, *place.above]
    return [] if place.is_callback else [life_of_flow(*each) for each in zip(pairs[::2], pairs[1::2], strict=False)]


def entry_id(flow_id: str, what: str, life: int) -> str:
    """Return the id of an entry of the outbox that has a flow looked after; each reason for that has its own."""
    return f"{OF_FLOWS}{flow_id}\t{what}.{life}"


def flow_of_entry(id: str) -> str:
    """Return the flow that an entry of the outbox is about; its id begins with `OF_FLOWS`."""
    return id.split("\t")[1]


def named(flow_id: str) -> str:
    """Return a flow's id as keys hold it: what comes behind it begins with a colon."""
    return flow_id.replace("%", "%25").replace(":", "%3A")


def group_key(flow_id: str, stage: int) -> str:
    """Return the key by which a backend counts a group."""
    return f"flow:{named(flow_id)}:group:{stage}"


def bad_end(text: str | None) -> tuple[str, ErrorInfo | None]:
    """Return what a group has kept of a member that ended badly: why, and its last error."""
    try:
        reason, kind, message = codec.from_json(text or "")
        return str(reason), ErrorInfo(type=str(kind), message=str(message)) if kind else None
    except (ValueError, TypeError):  # anybody may have written it
        return "", None


def count(backend: Backend, write: Write, row: Row, due: deque[str], *, timeout_s: float) -> bool:
    """Do the write that makes a step's record final, and count the step; False if the write may not be done.

    What is to follow is decided by whoever finds the entry's id in `due`; or after 2 s by any worker.
    """
    place, ended = place_of(row.get("flow", "")), cast("Counted", row["state"])
    what, is_member, index = place.key.partition("/")
    entry = Entry(entry_id(place.flow, what, place.life), LOOK, LOOKED_AFTER_S)
    if not is_member:
        is_done = backend.commit([Commit([write], [entry])], timeout_s=timeout_s)[0]
        if is_done:
            due.append(entry.id)
        return is_done
    text = row.get("result", "null") if "r" in place.flags else None
    if ended != "done":
        text = codec.to_json([row.get("reason", ""), *row.get("error", ("", ""))])
    posts: Literal["last", "bad", "always"] = (
        "always" if "a" in place.flags else "bad" if "b" in place.flags else "last"
    )
    tally = Tally(group_key(place.flow, int(what)), place.total, int(index), ended, text, entry, posts)
    is_posted = backend.tally(write, tally, timeout_s=timeout_s)
    if is_posted:
        due.append(entry.id)
    return is_posted is not None
