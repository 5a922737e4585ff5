"""Words for scenarios of flows: what is sent, what became of it, and what that cost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Any, Final

from taskbridge import Call, Flow, FlowHandle, FlowStatus, Message, NoSuchRecord, TaskBridgeError
from taskbridge.contract.flow_model import Expected, differences
from taskbridge.contract.flow_plan import FlowPlan, Part, Stage, told
from taskbridge.contract.harness import Harness
from taskbridge.contract.probe import END, Record
from taskbridge.contract.program import RETURN, Step


class Followed:
    """A flow that was sent, and what must become of it.

    Attributes:
        handle: Its handle.
        plan: Its plan.
    """

    def __init__(
        self, h: Harness, plan: FlowPlan, *, when_s: float | None = None, handle: FlowHandle[Any] | None = None
    ) -> None:
        self._h = h
        self.plan = plan
        self._expected = Expected()
        if handle is None:
            handle = built(h, plan).send() if when_s is None else built(h, plan).schedule(when_s)
        self.handle: FlowHandle[Any] = handle

    def ends(self, *, healed: Collection[str] = (), within_s: float | None = None) -> FlowStatus:
        """Wait until it is at its end and its callbacks have run; fail if it went another way than the model's."""
        h, plan = self._h, self.plan
        state, value = self._expected.live(plan, healed=healed)

        def over() -> list[FlowStatus]:
            status = status_of(h, self.handle)
            return [status] if status.is_final else []

        status = h.until(over, f"the end of {plan}", within_s=within_s)[0]
        h.equal(f"the end of {plan} ({status.end})", status.state, state)
        if state == "done":
            h.equal("its result", told(result_of(h, self.handle)), value)
        else:
            h.refused(TaskBridgeError, self.handle.result, 0)
        for callback in filter(None, (plan.failure, plan.end)):
            if least := self._expected.least[callback.mark]:
                begun(h, callback.mark, times=least)
        self.went()
        return status

    def went(self) -> None:
        """Fail if it went another way than the model's until now."""
        if broken := differences(self.plan, self._expected, self._h.environment.runs()):
            self._h.fail("\n".join([*broken, str(self.plan)]))


def built(h: Harness, plan: FlowPlan) -> Flow[Any]:
    """Return the flow of a plan of more than one call."""
    flow = plan.built(h.tasks.parts)
    if isinstance(flow, Call):
        raise TypeError("a single call is sent as a message")
    return flow


def status_of(h: Harness, handle: FlowHandle[Any]) -> FlowStatus:
    """Return what is known of a flow, which must be something."""
    try:
        return handle.status()
    except NoSuchRecord as exc:
        h.fail(f"there should be a flow, but: {exc}")


def result_of(h: Harness, handle: FlowHandle[Any], *, within_s: float | None = None) -> Any:
    """Wait for a flow's result, and return it; there must be one."""
    try:
        return handle.result(h.patience_s if within_s is None else within_s)
    except TaskBridgeError as exc:
        h.fail(f"{handle.id} should have a result, but: {exc}")


def starts_of(h: Harness, *marks: str) -> list[Record]:
    """Return the starts of these parts so far."""
    return [record for record in h.environment.runs() if record.data.get("mark") in marks]


def ends_of(h: Harness, mark: str) -> list[Record]:
    """Return the ends of a part's runs so far."""
    return [each for each in h.environment.records.all() if each.kind == END and each.data.get("mark") == mark]


def begun(h: Harness, mark: str, *, times: int = 1, within_s: float | None = None) -> Record:
    """Wait for a start of a part, and return it."""
    return h.until(lambda: starts_of(h, mark)[times - 1 : times], f"start {times} of {mark}", within_s=within_s)[0]


def parts(prefix: str, count: int, *steps: Step, **more: Any) -> list[Part]:
    """Return parts that do the same."""
    return [Part(mark=f"{prefix}{number}", steps=steps or (RETURN,), **more) for number in range(count)]


def chain(name: str, *stages: Stage) -> FlowPlan:
    """Return a plan with both callbacks, whose marks begin with a name."""
    return FlowPlan(stages=stages, failure=Part(mark=f"{name} failure"), end=Part(mark=f"{name} end"))


@contextmanager
def sent_by(h: Harness) -> Generator[list[Message]]:
    """Yield the messages that this thread sends while the block runs."""
    wire: Any = h.bridge.wire
    encode, thread, sent = wire.encode, threading.get_ident(), list[Message]()

    def copy(message: Message) -> Any:
        if threading.get_ident() == thread:
            sent.append(message)
        return encode(message)

    wire.encode = copy
    try:
        yield sent
    finally:
        wire.encode = encode


_READS: Final = ("get", "counts_of", "members", "first_open", "listed", "count_listed")
_WRITES: Final = ("create", "write", "commit", "tally", "put", "remove", "note_sent", "end_groups")


@contextmanager
def counting(h: Harness) -> Generator[Counter[str]]:
    """Count what this thread asks of the store while the block runs: `calls`, and how many `reads` and `writes`."""
    backend: Any = None if h.bridge.store is None else h.bridge.store.backend
    made: Counter[str] = Counter()
    thread = threading.get_ident()

    def counted(name: str) -> Any:
        stock, kind = getattr(backend, name), "reads" if name in _READS else "writes"

        def count(*given: Any, **named: Any) -> Any:
            if threading.get_ident() == thread:
                made["calls"] += 1
                made[kind] += len(given[0]) if isinstance(given[0], list | tuple) else 1
            return stock(*given, **named)

        return count

    names = (*_READS, *_WRITES)
    for name in names:
        setattr(backend, name, counted(name))
    try:
        yield made
    finally:
        for name in names:
            delattr(backend, name)
