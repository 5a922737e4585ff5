"""The form in which flows are stored: a state row, the plan, and the calls of large groups.

| text | holds |
|---|---|
| `flow:ID` | the row (`FlowRow`), and what the stage before has returned |
| `flow:ID:plan` | the stages and the callbacks (`Plan`); it never changes |
| `flow:ID:calls:STAGE:PAGE` | calls of a group of more than `PAGE`, until they are published |

What a group has counted is the backend's: `flow:ID:group:STAGE`. The ids of steps are hashes of the flow's id and the
step's key, so that whoever publishes one again makes the same message (rule W3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypedDict, cast

from typing_extensions import Required

from taskbridge import codec
from taskbridge.durations import moment, seconds, timestamp
from taskbridge.exceptions import DecodeError
from taskbridge.flows.states import Bad, FlowEnd, FlowState, OnError
from taskbridge.locks import no_fork
from taskbridge.message import FLOW_FORM, LONGEST_ID, Message
from taskbridge.retry import ErrorInfo
from taskbridge.stores.backend import Counted
from taskbridge.stores.entries import OF_FLOWS

if TYPE_CHECKING:
    from taskbridge.tasks import Call

PAGE: Final = 100
"""How many calls are kept in one text; those of a group of at most as many are in its plan."""

CALLBACKS: Final = ("failure", "end")
LONGEST_FLOW_ID: Final = LONGEST_ID - 5  # bytes: flows are listed by `flow:ID`, as messages are by their ids


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
        return "\t".join(map(str, (*self[:5], *self.above)))


def place_of(text: str) -> Place:
    """Return the place that a message's `flow` names."""
    flow, key, life, total, flags, *above = text.split("\t")
    return Place(flow, key, int(life), int(total), flags, tuple(above))


def life_of_flow(flow_id: str, life: int | str) -> str:
    """Return what is told in the list of cancellations if a flow is over: no life of a message has two tabs."""
    return f"{OF_FLOWS}{flow_id}\t{life}"


def step_lives(flow: str) -> list[str]:
    """Return those of the flows that a message's `flow` names; none if its step starts though the flow is over."""
    place = place_of(flow)
    pairs = [place.flow, place.life, *place.above]
    return [] if place.is_callback else [life_of_flow(*each) for each in zip(pairs[::2], pairs[1::2], strict=False)]


def entry_id(flow_id: str, what: str, life: int) -> str:
    """Return the id of an entry of the outbox that has a flow looked after; each reason for that has its own."""
    return f"{OF_FLOWS}{flow_id}\t{what}.{life}"


def flow_of_entry(id: str) -> str | None:
    """Return the flow that an entry of the outbox is about; None if it is about a message."""
    return id.split("\t")[1] if id.startswith(OF_FLOWS) else None


def row_key(flow_id: str) -> str:
    """Return the key of a flow's row."""
    return f"flow:{flow_id}"


def plan_key(flow_id: str) -> str:
    """Return the key of a flow's plan."""
    return f"flow:{flow_id}:plan"


def group_key(flow_id: str, stage: int) -> str:
    """Return the key by which a backend counts a group."""
    return f"flow:{flow_id}:group:{stage}"


def calls_key(flow_id: str, stage: int, page: int) -> str:
    """Return the key of some calls of a group."""
    return f"flow:{flow_id}:calls:{stage}:{page}"


def step_id(flow_id: str, key: str, life: int = 0) -> str:
    """Return the message id of a step; of a callback, in each life of the flow another one."""
    with no_fork():
        from hashlib import blake2b  # here, for it loads OpenSSL

    digits = blake2b(f"{flow_id}\t{key}\t{life}".encode(), digest_size=16).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"  # RFC 9562, version 8


# What is called


class Spec(TypedDict, total=False):
    """A call as a plan has it: its arguments are JSON in the codec's form, and `takes` says that one comes first."""

    task: Required[str]
    args: Required[list[Any]]
    kwargs: Required[dict[str, Any]]
    home: Required[str]  # the queue of the task, as its sender knows it
    queue: str
    priority: str
    expires_s: float
    expires_at: float
    headers: dict[str, Any]
    takes: bool


def spec_of(call: Call[Any], home: str, *, takes: bool = False) -> str:
    """Return a call as JSON: a `Spec`."""
    args, kwargs, _ = call.encoded()
    options, text = call.options, ""
    more: dict[str, Any] = {"queue": options.queue, "priority": options.priority, "takes": takes or None}
    more |= {"headers": dict(options.headers) or None}
    if options.expires is not None:
        at = isinstance(options.expires, datetime)
        its: Any = options.expires
        value = timestamp(its, name="expires") if at else seconds(its, name="expires")
        more["expires_at" if at else "expires_s"] = value
    given = {name: value for name, value in more.items() if value is not None}
    if given:
        text = f",{codec.to_json(given)[1:-1]}"
    head = f'{{"task":{codec.to_json(call.declaration.name)},"home":{codec.to_json(home)}'
    return f'{head},"args":{args},"kwargs":{kwargs}{text}}}'


class Group(TypedDict):
    """A group as a plan has it; the `calls` of a large one are in pages."""

    total: int
    at_once: int | None
    on_error: OnError
    wants: bool  # whether something gets its results, or asks for them
    calls: list[Spec] | None


class Plan(TypedDict):
    """The stages of a flow, and what is called at its end."""

    stages: list[Spec | Group]
    failure: Spec | None
    end: Spec | None


def is_group(stage: Spec | Group) -> bool:
    """Return whether a stage is a group."""
    return "total" in stage


class FlowRow(TypedDict, total=False):
    """What a flow is doing.

    `stage` is the one that it is at. `sending`: not all steps of it that may be are surely published. `bad`: how many
    members of its group had ended badly as it was reopened. `reopened`: what was given up is to be published again;
    with `again`, all that has ended badly. `callback`: which callback it waits for. `given` is what the stage before
    has returned, as JSON, or the flow itself, and `lost` why there is none. `above` is as in `Place`. `parent` is the
    message whose task returned it, and its life. `closed`: nothing of it is left to do.
    """

    name: Required[str]
    state: Required[FlowState]
    created_at: Required[float]
    stage: Required[int]
    totals: Required[list[int]]
    groups: Required[list[int]]  # which stages are groups
    life: int
    delay_s: float
    digest: str
    sending: bool
    reopened: Literal["given up", "again"]
    bad: int
    callback: Literal["", "failure", "end"]
    ended_at: float
    end: list[str]  # of the first step that ended badly: id, task, how, reason, error's type and text
    parent: list[Any]
    closed: bool
    given: str
    lost: str
    above: list[Any]
    version: int


def packed(row: FlowRow, version: int) -> str:
    """Return a row as a text, whose head is its version."""
    plain = dict(cast("dict[str, Any]", row))
    plain.pop("version", None)
    given = plain.pop("given", None)
    text = f"{version}\n{codec.to_json(plain)}"
    return text if given is None else f"{text}\n{given}"


def unpacked(text: str | None) -> FlowRow | None:
    """Return the row of a text; None if there is none, or it can't be read."""
    if text is None:
        return None
    try:
        version, rest, *given = text.split("\n", 2)
        row: Any = codec.from_json(rest)
        row["version"] = int(version)
        if given:
            row["given"] = given[0]
        sound = isinstance(row["totals"], list) and 0 <= row["stage"] < len(row["totals"]) and row["state"] in _STATES
        sound = sound and isinstance(row["name"], str) and moment(row["created_at"]) is not None
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):  # anybody may have written it
        return None
    return cast("FlowRow", row) if sound else None


_STATES: Final = ("running", "done", "failed", "cancelled")


def plan_text(stages: Sequence[str], failure: str | None, end: str | None) -> str:
    """Return a plan as a text; its parts are JSON already."""
    return f'1\n{{"stages":[{",".join(stages)}],"failure":{failure or "null"},"end":{end or "null"}}}'


def plan_of(text: str | None) -> Plan:
    """Return the plan of a text; `DecodeError` if there is none."""
    try:
        found: Any = codec.from_json((text or "").partition("\n")[2])
        if isinstance(found["stages"], list):
            return cast("Plan", found)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise DecodeError("the plan of a flow is gone, or can't be read")


def end_of(flow_id: str, row: FlowRow) -> FlowEnd:
    """Return how a flow ended."""
    step, task, ended, reason, kind, text = [*row.get("end", ()), *[""] * 6][:6]
    head = {"id": flow_id, "name": row["name"], "state": row["state"]}
    return FlowEnd(**head, step=step, task=task, ended=ended, reason=reason, error_type=kind, error=text)


@dataclass(frozen=True, slots=True)
class BadEnd:
    """How a step ended badly, and what is kept of that."""

    ended: Bad
    reason: str = ""
    error: ErrorInfo | None = None

    def dumps(self) -> str:
        """Return what a group keeps of it."""
        return codec.to_json([self.reason, *((self.error.type, self.error.message) if self.error else ("", ""))])


def bad_end(ended: Counted, text: str | None) -> BadEnd:
    """Return what a group has kept of a member that ended badly."""
    try:
        reason, kind, message = codec.from_json(text or "")
        error = ErrorInfo(type=str(kind), message=str(message)) if kind else None
        return BadEnd(cast("Bad", ended), str(reason), error)
    except (ValueError, TypeError):
        return BadEnd(cast("Bad", ended))


def made(
    spec: Spec, place: Place, *, queue: str, priority: Any, expires_at: float | None, now: float, given: str | None
) -> Message:
    """Return the message of a step; `given` is its first argument as JSON, None if it takes none.

    Raises `DecodeError` if the plan can't be read.
    """
    try:
        args, kwargs = codec.rewritten(spec["args"]), codec.rewritten(spec["kwargs"])
        if given is not None:
            args = f"[{given}]" if args == "[]" else f"[{given},{args[1:]}"
        return Message(
            id=step_id(place.flow, place.key, place.life if place.is_callback else 0),
            task=spec["task"],
            queue=queue,
            priority=priority,
            args_json=args,
            kwargs_json=kwargs,
            form=FLOW_FORM,
            enqueued_at=now,
            expires_at=expires_at,
            headers=dict(cast("Mapping[str, Any]", spec.get("headers") or {})),
            keeps_call=place.member is not None,
            flow=place.dumps(),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise DecodeError(f"the plan of flow {place.flow} can't be read: {exc!r}") from exc
