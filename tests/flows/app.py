"""An application with flows whose processes are killed: its tasks note each of their runs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

from taskbridge import Bridge, Flow, FlowEnd, Results, RetryPolicy, become, current, group
from tests.flows.faults import Fault, Killer
from tests.mutants.of_kills import MUTANTS

FOLDER: Final = Path(os.environ["FLOWS_FOLDER"])
MEMBERS: Final = 3
_MEET_S: Final = 15.0

if mutant := os.environ.get("FLOWS_MUTANT"):
    MUTANTS[mutant].apply()
bridge = Bridge(
    os.environ["FLOWS_URL"],
    namespace=os.environ["FLOWS_NAMESPACE"],
    store=os.environ["FLOWS_STORE"],
    lease=float(os.environ["FLOWS_LEASE"]),
    retry=RetryPolicy(max_attempts=10, min_delay=0.1, factor=1, jitter=0),
    send_timeout=60,
)
if "FLOWS_FAULT" in os.environ:
    first, count = map(int, os.environ["FLOWS_NUMBERS"].split())
    Killer(bridge, Fault(*os.environ["FLOWS_FAULT"].split()), range(first, first + count), FOLDER)


def note(number: int, key: str) -> None:
    """Write down a run, in one write: the flow's number, what ran, its message, attempt and life, and the engine."""
    run = current()
    line = f"{number} {key} {run.id} {run.attempt} {run.message.replays} {bridge.settings.url.engine}\n"
    place = os.open(FOLDER / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(place, line.encode())
    finally:
        os.close(place)


@bridge.task(name="flows.first")
def first_step(number: int) -> int:
    note(number, "first")
    return number


@bridge.task(name="flows.second")
def second_step(given: int, add: int) -> int:
    note(given, "second")
    return given + add


@bridge.task(name="flows.member")
def member(number: int, index: int, sleep_s: float = 0.0) -> int:
    note(number, f"member{index}")
    time.sleep(sleep_s)
    return index


@bridge.task(name="flows.meeting")
def meeting(number: int, index: int) -> int:
    """Return when the other one of two is there, so that both end at once; alone, if it does not come."""
    note(number, f"member{index}")
    (FOLDER / f"meets-{number}-{index}").touch()
    deadline = time.monotonic() + _MEET_S
    while not (FOLDER / f"meets-{number}-{1 - index}").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    return index


@bridge.task(name="flows.failing", retry=RetryPolicy(max_attempts=1))
def failing(number: int, index: int) -> int:
    """Fail until it is replayed; an attempt that was lost is not run again."""
    note(number, f"member{index}")
    if not current().message.replays:
        raise ValueError("as the test says")
    return index


@bridge.task(name="flows.count")
def count_members(results: Results[int], number: int) -> int:
    note(number, "count")
    assert list(results) == list(range(len(results)))
    return len(results)


@bridge.task(name="flows.expand")
def expand(number: int) -> int:
    note(number, "expand")
    return become(group(member.call(number, index) for index in range(MEMBERS)).then(count_members, number))


@bridge.task(name="flows.failed")
def failed(end: FlowEnd, number: int) -> None:
    note(number, "failed")


@bridge.task(name="flows.ended")
def ended(end: FlowEnd, number: int) -> None:
    note(number, f"ended-{end.state}")


def flow(kind: str, number: int, members: int = MEMBERS) -> Flow[Any]:
    """Return a flow of a kind."""
    made: Flow[Any]
    match kind:
        case "steps":
            made = first_step.call(number).then(second_step, 0).on_end(ended, number)
        case "group":
            made = group(member.call(number, index) for index in range(members)).then(count_members, number)
        case "quick":
            calls = (member.call(number, index) for index in range(members))
            made = group(calls, at_once=50).then(count_members, number)
        case "slow":
            made = group(member.call(number, index, 0.3) for index in range(members)).then(count_members, number)
        case "meets":
            made = group(meeting.call(number, index) for index in range(2)).then(count_members, number)
        case "dies":
            three = [member.call(number, 0), failing.call(number, 1), member.call(number, 2)]
            made = group(three, on_error="wait").then(count_members, number).on_failure(failed, number)
        case _:
            made = expand.call(number).then_call(first_step.call(number))
    return made if kind == "steps" else made.on_end(ended, number)
