"""The form in which flows are stored: a state row, the plan, and the calls of large groups.

| text | holds |
|---|---|
| `flow:ID` | the row (`FlowRow`), and what the stage before has returned |
| `flow:ID:plan` | the stages and the callbacks (`Plan`); it never changes |
| `flow:ID:calls:SENDING:STAGE:PAGE` | calls of a group of more than `PAGE`, until they are published (`calls_of`) |

What a group has counted is the backend's: `flow:ID:group:STAGE`. The ids of steps are hashes of the flow's id and the
step's key, so that whoever publishes one again makes the same message (rule W3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypedDict, cast

from typing_extensions import Required

from taskbridge import codec
from taskbridge.durations import moment
from taskbridge.exceptions import DecodeError
from taskbridge.flows.states import STATES, FlowEnd, FlowState, OnError
from taskbridge.message import FLOW_FORM, LONGEST_ID, Message
from taskbridge.stores.backend import row_of_text, text_of_row
from taskbridge.stores.steps import Place, named
from taskbridge.unique import blake2b

PAGE: Final = 100
"""How many calls are kept in one text; those of a group of at most as many are in its plan."""

LONGEST_FLOW_ID: Final = LONGEST_ID - 5  # bytes: flows are listed by `flow:ID`, as messages are by their ids


def row_key(flow_id: str) -> str:
    """Return the key of a flow's row."""
    return f"flow:{named(flow_id)}"


def plan_key(flow_id: str) -> str:
    """Return the key of a flow's plan."""
    return f"flow:{named(flow_id)}:plan"


def calls_key(flow_id: str, pages: str, stage: int, page: int) -> str:
    """Return the key of some calls of a group; `pages` tells those of one sending from those of another one."""
    return f"flow:{named(flow_id)}:calls:{pages}:{stage}:{page}"


def step_id(flow_id: str, key: str, life: int = 0) -> str:
    """Return the message id of a step; of a callback, in each life of the flow another one."""
    digits = blake2b()(f"{flow_id}\t{key}\t{life}".encode(), digest_size=16).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"  # RFC 9562, version 8


# What is called


class Spec(TypedDict, total=False):
    """A call as a plan has it: its arguments are JSON, as in a message, and `takes` says that one comes first."""

    task: Required[str]
    args: Required[str]
    kwargs: Required[str]
    home: Required[str]  # the queue of the task, as its sender knows it
    queue: str
    priority: str
    expires_s: float
    expires_at: float
    headers: dict[str, Any]
    takes: bool


class Group(TypedDict):
    """A group as a plan has it; the `calls` of a large one are in pages. `calls_of` reads either."""

    total: int
    at_once: int | None
    on_error: OnError
    wants: bool  # whether something gets its results, or asks for them
    calls: str | None


class Plan(TypedDict):
    """The stages of a flow, and what is called at its end."""

    stages: list[Spec | Group]
    failure: Spec | None
    end: Spec | None
    text: str  # of which this was read


def is_group(stage: Spec | Group) -> bool:
    """Return whether a stage is a group."""
    return "total" in stage


class FlowRow(TypedDict, total=False):
    """What a flow is doing.

    `stage` is the one that it is at. `sending`: not all steps of it that may be are surely published. `bad`: how many
    members of its group had ended badly as it was reopened. `reopened`: what was given up is to be published again;
    with `again`, all that has ended badly. `left`: from which member on, and up to which, that waits for `at_once`; and
    whether it is all that has ended badly. `callback`: which callback it waits for. `given` is what the stage before
    has returned, as JSON, or the flow itself, and `lost` why there is none. `above` is as in `Place`. `parent` is the
    message whose task returned it, and its life. `closed`: nothing of it is left to do. `pages` is in the keys
    of the calls of large groups.
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
    left: list[int]
    callback: Literal["", "failure", "end"]
    ended_at: float
    end: list[str]  # of the first step that ended badly: id, task, how, reason, error's type and text
    parent: list[Any]
    closed: bool
    given: str
    lost: str
    pages: str
    above: list[Any]
    version: int


def packed(row: FlowRow, version: int) -> str:
    """Return a row as a text, whose head is its version."""
    return text_of_row({**row, "version": version}, "given")


def unpacked(text: str | None) -> FlowRow | None:
    """Return the row of a text; None if there is none, or it can't be read."""
    if (row := row_of_text(text, "given")) is None:
        return None
    try:
        left = row.get("left", (0, 0, 0))
        above, parent, numbers = row.get("above", []), row.get("parent", ["", 0]), [*row["totals"], *row["groups"]]
        numbers += row["stage"], *left
        sound = all(type(each) is int and each >= 0 for each in numbers) and row["state"] in STATES
        sound = sound and row["stage"] < len(row["totals"]) and isinstance(row["name"], str)
        sound = sound and len(above) % 2 == 0 and len(parent) == 2 and len(left) == 3
        sound = sound and moment(row["created_at"]) is not None
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):  # anybody may have written it
        return None
    return cast("FlowRow", row) if sound else None


def plan_text(stages: Sequence[str], failure: str | None, end: str | None) -> str:
    """Return a plan as a text; its parts are JSON already."""
    return f'1\n{{"stages":[{",".join(stages)}],"failure":{failure or "null"},"end":{end or "null"}}}'


def plan_of(text: str | None) -> Plan:
    """Return the plan of a text; `DecodeError` if there is none."""
    try:
        found: Any = codec.from_json((text or "").partition("\n")[2])
        if isinstance(found["stages"], list):
            found["text"] = text
            return cast("Plan", found)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise DecodeError("the plan of a flow is gone, or can't be read")


def call_line(args: str, kwargs: str) -> str:
    """Return the line of a call; the line before the first of some calls is a `Spec` without arguments."""
    return args if kwargs == "{}" else f"{args}\t{kwargs}"  # JSON in ASCII has neither tabs nor line breaks


def calls_of(text: str) -> list[Spec]:
    """Return the calls of a group, or of a page of one; `DecodeError` if they can't be read.

    A line that begins with a brace says what the calls in the lines after it have in common.
    """
    calls, common = list[Spec](), dict[str, Any]()
    try:
        for line in text.split("\n") if text else ():
            if line[0] == "{":
                common = codec.from_json(line)
            else:
                args, _, kwargs = line.partition("\t")
                calls.append(cast("Spec", {**common, "args": args, "kwargs": kwargs or "{}"}))
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError) as exc:  # anybody may have written them
        raise DecodeError("the calls of a group can't be read") from exc
    return calls


def end_of(flow_id: str, row: FlowRow) -> FlowEnd:
    """Return how a flow ended."""
    step, task, ended, reason, kind, text = [*row.get("end", ()), *[""] * 6][:6]
    head = {"id": flow_id, "name": row["name"], "state": row["state"]}
    return FlowEnd(**head, step=step, task=task, ended=ended, reason=reason, error_type=kind, error=text)


def made(
    spec: Spec, place: Place, *, queue: str, priority: Any, expires_at: float | None, now: float, given: str | None
) -> Message:
    """Return the message of a step; `given` is its first argument as JSON, None if it takes none.

    Raises `DecodeError` if the plan can't be read.
    """
    try:
        args = spec["args"]
        if given is not None:
            args = f"[{given}]" if args == "[]" else f"[{given},{args[1:]}"
        return Message(
            id=step_id(place.flow, place.key, place.life if place.is_callback else 0),
            task=spec["task"],
            queue=queue,
            priority=priority,
            args_json=args,
            kwargs_json=spec["kwargs"],
            form=FLOW_FORM,
            enqueued_at=now,
            expires_at=expires_at,
            headers=dict(cast("Mapping[str, Any]", spec.get("headers") or {})),
            flow=place.dumps(),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise DecodeError(f"the plan of flow {place.flow} can't be read: {exc!r}") from exc
