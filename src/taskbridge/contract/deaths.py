"""Places in a worker at which scenarios kill it (rule A8) or raise an unexpected error (rule I2).

The product has no such places: a worker of the contract puts them around its functions before it starts, as its
`Variant` says. So this module knows the product from inside, as the mutants do, and no other module of the contract.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Literal

from taskbridge.contract.target import Target
from taskbridge.stores.records import FINAL
from taskbridge.stores.steps import place_of

UNEXPECTED: Final = "unexpected"
"""The place at which an error is raised for each message with a header of this name, after its run."""

ADMITTED: Final = "admitted"
"""The place at which the same happens before such a message is handed to a slot."""

CRASHING: Final = "crashing"
"""The place at which the worker is killed for each such message, before its attempt is marked."""

BY_ITSELF: Final = "counted by itself"
"""The place at which a step of a chain that is done was counted without what follows it; the worker is killed there."""


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise() -> None:
    raise RuntimeError("an error that nobody expected")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A function of the product, and what happens as it is called or as it has returned.

    Attributes:
        at: Its module, and the way to it from there, such as `taskbridge.runner:Runner.run`.
        when: Before or after the call.
        matters: Says of a call's arguments whether it is one that counts.
        returns: Says of what a call has returned whether it counts, where that is after it.
        act: What happens there.
    """

    at: str
    when: Literal["before", "after"]
    matters: Callable[[tuple[Any, ...]], bool] = lambda _: True
    returns: Callable[[Any], bool] = lambda _: True
    act: Callable[[], None] = _kill


def _something_is_due(args: tuple[Any, ...]) -> bool:
    return bool(args[-1])


def _ends_a_step(args: tuple[Any, ...]) -> bool:
    row: Any = args[4]
    return "flow" in row and row["state"] in FINAL


def _is_done_in_a_chain(args: tuple[Any, ...]) -> bool:
    row: Any = args[2]
    place = place_of(row["flow"])
    return row["state"] == "done" and place.member is None and not place.is_callback


def _asks_for_it(args: tuple[Any, ...]) -> bool:
    return any(UNEXPECTED in (getattr(each, "headers", None) or ()) for each in args)


_PLACES: Final[Mapping[str, Place]] = {
    "fetched celery+redis": Place(at="taskbridge.engines.celery.transport:Channel._hand_over", when="before"),
    "fetched celery+amqp": Place(at="taskbridge.engines.celery.consumer:Consumer._admit", when="before"),
    "fetched dramatiq": Place(at="taskbridge.engines.dramatiq.deliveries:Reception.admit", when="before"),
    "taken": Place(at="taskbridge.engines.settle:begin", when="before"),
    "marked": Place(at="taskbridge.runner:Runner.run", when="before"),
    "ran": Place(at="taskbridge.runner:Runner.run", when="after"),
    UNEXPECTED: Place(at="taskbridge.runner:Runner.run", when="after", matters=_asks_for_it, act=_raise),
    f"{ADMITTED} celery": Place(
        at="taskbridge.engines.celery.consumer:Consumer._came_back", when="before", matters=_asks_for_it, act=_raise
    ),
    f"{ADMITTED} dramatiq": Place(
        at="taskbridge.engines.dramatiq.deliveries:Reception._decided", when="before", matters=_asks_for_it, act=_raise
    ),
    CRASHING: Place(at="taskbridge.engines.settle:begin", when="before", matters=_asks_for_it),
    "parked": Place(at="taskbridge.engines.settle:later", when="after"),
    "buried": Place(at="taskbridge.engines.settle:bury", when="after"),
    "unrecorded": Place(at="taskbridge.engines.settle:_record", when="before"),
    "recorded": Place(at="taskbridge.engines.settle:_record", when="after"),
    "uncounted": Place(at="taskbridge.stores.records:Records._is_done", when="before", matters=_ends_a_step),
    "counted": Place(at="taskbridge.stores.records:Records._is_done", when="after", matters=_ends_a_step, returns=bool),
    BY_ITSELF: Place(at="taskbridge.stores.steps:count", when="after", matters=_is_done_in_a_chain, returns=bool),
    "not begun": Place(at="taskbridge.flows.running:Flows.become", when="before"),
    "begun": Place(at="taskbridge.flows.running:Flows.become", when="after"),
    "unrelayed": Place(at="taskbridge.flows.running:Flows.begin_kept", when="before"),
    "relayed": Place(at="taskbridge.flows.running:Flows.begin_kept", when="after"),
    "settled": Place(at="taskbridge.engines.settle:finish", when="after"),
    "due redis": Place(at="taskbridge.brokers.redis.pump:Pump._settle", when="before", matters=_something_is_due),
    "promoted redis": Place(at="taskbridge.brokers.redis.pump:Pump._settle", when="after", matters=_something_is_due),
    "due amqp": Place(at="taskbridge.brokers.rabbitmq.pump:Pump._deliver", when="before"),
    "claimed": Place(at="taskbridge.schedules.listing:Schedules.send", when="before"),
    "ticked": Place(at="taskbridge.schedules.listing:Schedules.send", when="after"),
    "promoted amqp": Place(at="taskbridge.brokers.rabbitmq.pump:Pump._deliver", when="after"),
}

RUNNING: Final = ("fetched", "taken", "marked", "ran", "parked", "buried", "settled")
"""The places that a message comes through, in order: from its queue to just before it is acknowledged."""

RECORDING: Final = ("unrecorded", "recorded")
"""The places beside the recording of what became of an attempt."""

COUNTING: Final = ("uncounted", "counted")
"""The places beside the counting of a step of a flow."""

BECOMING: Final = ("not begun", "begun")
"""The places beside the beginning of a flow that a task has returned."""

RELAYING: Final = ("unrelayed", "relayed")
"""The places beside the beginning of a flow that an application's outbox holds."""

PROMOTING: Final = ("due", "promoted")
"""The places that a parked message comes through."""

SCHEDULING: Final = ("claimed", "ticked")
"""The places that what a schedule plans comes through: between claiming it and settling it."""


def named(place: str, target: Target) -> str:
    """Return the full name of one of these places on a target."""
    address = target.address
    ends = ("", f" {address.target}", f" {address.broker}", f" {address.engine}")
    return next(name for end in ends if (name := place + end) in _PLACES)


def prepare(name: str) -> None:
    """Have this process killed, or an error raised in it, when it comes to a place.

    Raises:
        LookupError: There is no such place.
    """
    if name not in _PLACES:
        raise LookupError(f"there is no place {name!r}")
    place = _PLACES[name]
    module, _, path = place.at.partition(":")
    owner: Any = import_module(module)
    *way, last = path.split(".")
    for step in way:
        owner = getattr(owner, step)
    setattr(owner, last, _acting(getattr(owner, last), place))


def _acting(function: Callable[..., Any], place: Place) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        counts = place.matters(args)
        if counts and place.when == "before":
            place.act()
        result = function(*args, **kwargs)
        if counts and place.when == "after" and place.returns(result):
            place.act()
        return result

    return call
