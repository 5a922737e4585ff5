"""Where a process is killed: before or after a call to store or broker that is about a certain flow.

A flow's number says where, once for each flow: a marker file is made first, so a process that is started anew goes on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterable
from functools import wraps
from pathlib import Path
from typing import Any, Final, NamedTuple

from taskbridge import Bridge
from taskbridge.flows.plan import step_id
from taskbridge.message import Message
from taskbridge.observing import Observer
from taskbridge.retry import Verdict

CALLS: Final = {
    "store": ("get", "create", "write", "commit", "tally", "put", "note_sent", "end_groups", "remove_entries"),
    "broker": ("publish", "park", "bury", "take_dead"),
}
"""The methods of both that a flow may call; `settled` is a point too, when a run's end is recorded and marked."""

_KEYS: Final = ("0", "1", "2", "0/0", "0/1", "0/2", "1/0", "1/1", "1/2", "failure", "end")


class Fault(NamedTuple):
    """Where to be killed.

    Attributes:
        call: The method, or `settled`; `*` is any: the flow's number says before or after which one.
        when: `before`, `after`, or `last`: after a `tally` that has counted a group's last member.
        step: The key of the step that it must be about; empty for any, and the flow itself.
    """

    call: str
    when: str = "after"
    step: str = ""

    def dumps(self) -> str:
        return " ".join(self).strip()


def flow_id(number: int) -> str:
    """Return the id of a flow of these tests."""
    return f"killed-{number:05}"


class Killer(Observer):
    """Kills this process group at a fault.

    Args:
        bridge: Whose store and broker are watched.
        fault: Where.
        numbers: The flows that it is about.
        folder: Where the markers are.
    """

    def __init__(self, bridge: Bridge, fault: Fault, numbers: Iterable[int], folder: Path) -> None:
        self._fault = fault
        self._folder = folder
        self._names = {number: self._names_of(number) for number in numbers}
        self._counts: Counter[int] = Counter()
        self._lock = threading.Lock()
        assert bridge.store is not None
        for kind, target in (("store", bridge.store.backend), ("broker", bridge.broker)):
            for name in CALLS[kind]:
                if fault.call in (name, "*") and hasattr(target, name):
                    setattr(target, name, self._watched(name, getattr(target, name)))
        bridge.observers.append(self)

    def _names_of(self, number: int) -> set[str]:
        flow = flow_id(number)
        if self._fault.step:
            return {step_id(flow, self._fault.step)}
        return {flow, *(step_id(flow, key) for key in _KEYS)}

    def _watched(self, name: str, call: Any) -> Any:
        @wraps(call)
        def watched(*given: Any, **options: Any) -> Any:
            text = repr(given)
            about = [number for number, names in self._names.items() if any(each in text for each in names)]
            for number in about:
                self._die_if(number, "before")
            result = call(*given, **options)
            for number in about:
                self._die_if(number, "last" if self._fault.when == "last" and result is True else "after")
            return result

        return watched

    def settled(self, message: Message, verdict: Verdict) -> None:
        if self._fault.call == "settled":
            for number, names in self._names.items():
                if message.id in names:
                    self._die(number)

    def _die_if(self, number: int, when: str) -> None:
        if self._fault.call != "*":
            if when == self._fault.when:
                self._die(number)
            return
        with self._lock:
            self._counts[number] += 1
            is_here = self._counts[number] == number % 100 + 1
        if is_here:
            self._die(number)

    def _die(self, number: int) -> None:
        try:
            (self._folder / f"killed-{number}").touch(exist_ok=False)
        except FileExistsError:
            return
        os.killpg(0, signal.SIGKILL)
