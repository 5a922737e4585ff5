"""Runs flows: sends them, and does what is due when a step has ended (rules W). `Bridge.flows` is one.

What is due is decided by `advance`, from what is stored alone: the flow's row, its plan, the records of its steps and
what its groups have counted. It changes the row only if it is as it was read, in one commit with the records of what is
published by that. So anybody may call it, any number of times, and killing whoever does loses nothing: a step is counted
in one act with an entry of the outbox, by which any worker calls it after 2 s, and that entry is removed last of all.

Where store and broker are one Redis, that commit publishes, too. Elsewhere it puts what it publishes in the outbox, and
these messages are suspect from the first time that they are published (rule A7).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from taskbridge import codec, locks
from taskbridge.context import running
from taskbridge.durations import Duration, When, moment
from taskbridge.exceptions import (
    BrokerUnavailable,
    DecodeError,
    IdempotencyConflict,
    MessageTooLarge,
    NoSuchRecord,
    ResultTimeout,
    StoreUnavailable,
    TaskCancelled,
    TaskDiscarded,
    TaskFailed,
    UnsupportedError,
)
from taskbridge.flows.counting import LOOKED_AFTER_S
from taskbridge.flows.handle import FlowHandle
from taskbridge.flows.plan import (
    CALLBACKS,
    PAGE,
    FlowRow,
    Group,
    Place,
    Plan,
    Spec,
    bad_end,
    calls_key,
    end_of,
    entry_id,
    flow_of_entry,
    group_key,
    is_group,
    life_of_flow,
    made,
    packed,
    place_of,
    plan_key,
    plan_of,
    plan_text,
    row_key,
    spec_of,
    step_id,
    unpacked,
)
from taskbridge.flows.results import Results
from taskbridge.flows.states import FINAL, FlowState, FlowStatus, Outcome
from taskbridge.hooks import Event
from taskbridge.logs import logger
from taskbridge.message import Message, new_id
from taskbridge.observing import sending
from taskbridge.results import deadline_of, value_of
from taskbridge.retry import ErrorInfo
from taskbridge.stores import records as stored
from taskbridge.stores import states, transitions
from taskbridge.stores.backend import ABSENT, Commit, Entry, Listed, Write, head_of
from taskbridge.stores.claims import OWN_S
from taskbridge.stores.entries import Held, held
from taskbridge.stores.records import Ending, head_of_row, key_of
from taskbridge.stores.states import Attempt, Status, status_of

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge
    from taskbridge.brokers.redis import RedisBroker
    from taskbridge.flows.building import Flow, Stage
    from taskbridge.sending import Sending
    from taskbridge.stores.backend import Backend
    from taskbridge.stores.base import Store
    from taskbridge.stores.records import Records
    from taskbridge.tasks import Call

R = TypeVar("R")

_log = logger("taskbridge.flows")

_BATCH: Final = 1000  # how many members are published at a time
_PAGES: Final = 10  # how many pages of calls are written at a time
_SENDING_S: Final = 10.0  # for how long the sending of a group is left to who does it
_PLANNED_S: Final = 3600.0  # for how long a plan may be in the making
_TRAVELS: Final = 65_536  # bytes: what is passed on in the next message; more is read as that starts
_MOST_STAGES: Final = 100
_STALLED_S: Final = 60.0  # how long nothing is heard of a step that is looked for
_LOOK_AGAIN_S: Final = 2.0  # how often who waits for a flow looks, though nobody tells
_STATES: Final[tuple[FlowState, ...]] = ("running", "done", "failed", "cancelled")


class Flows:
    """The flows of a bridge. Threads share it.

    Its methods raise `UnsupportedError` if the bridge has no store (rule W15), `StoreUnavailable` if that does not
    answer within `send_timeout`, and `NoSuchRecord` for a flow that is not known.
    """

    def __init__(self, bridge: Bridge, sender: Sending) -> None:
        self._bridge = bridge
        self._sender = sender

    # Sending

    def send(self, flow: Flow[R], *, when: When | None = None) -> FlowHandle[R]:
        """Send a flow, its first stage now or later, or when the open transaction is committed; see `Flow.send`."""
        delay_s = 0.0 if when is None else self._sender.wait_s(when)
        flow_id = new_id() if flow.id is None else flow.id
        first = flow.stages[0].call
        if self._sender.holds(lambda: self._begin(flow, flow_id, delay_s)):
            return FlowHandle(id=flow_id, bridge=self._bridge)
        is_new = self._begin(flow, flow_id, delay_s, name="" if first is None else first.declaration.name)
        return FlowHandle(id=flow_id, is_new=is_new, bridge=self._bridge)

    async def asend(self, flow: Flow[R], *, when: When | None = None) -> FlowHandle[R]:
        """Do as `send` without blocking the event loop."""
        return await self._sender.aside(lambda: self.send(flow, when=when))

    def _begin(self, flow: Flow[Any], flow_id: str, delay_s: float, *, name: str = "") -> bool:
        """Store a flow and publish its first stage; return whether it is new."""
        deadline, now = self._deadline(), self._bridge.now()
        if flow.id is not None and (found := self._row(flow_id)) is not None:
            return self._is_same(found, flow, flow_id)
        text, row = self._planned(flow, flow_id, now, deadline)
        if delay_s > 0:
            row["delay_s"] = delay_s
        if self._created(flow_id, row, text, (), deadline):
            return True
        found = self._row(flow_id)
        return found is not None and self._is_same(found, flow, flow_id)

    def _is_same(self, found: FlowRow, flow: Flow[Any], flow_id: str) -> bool:
        """Return that a flow of this id is not new; raise `IdempotencyConflict` if it is another one."""
        if found.get("digest", "") != _digest(flow):
            raise IdempotencyConflict(id=flow_id, task=found["name"])
        return False

    def _planned(self, flow: Flow[Any], flow_id: str, now: float, deadline: float) -> tuple[str, FlowRow]:
        """Return a flow's plan as a text, and its row; the calls of its large groups are stored."""
        stages, totals, groups, name = list[str](), list[int](), list[int](), ""
        for number, stage in enumerate(flow.stages):
            following = flow.stages[number + 1] if number + 1 < len(flow.stages) else None
            if stage.call is not None:
                stages.append(self._spec(stage.call, takes=stage.takes_result))
                totals.append(1)
                name = name or stage.call.declaration.name
                continue
            wants = following is None or following.takes_result
            text, total, first = self._group(flow_id, number, stage, len(flow.stages), wants=wants, deadline=deadline)
            stages.append(text)
            totals.append(total)
            groups.append(number)
            name = name or first
        callbacks = (None if each is None else self._spec(each, takes=True) for each in (flow.failure, flow.end))
        row: FlowRow = {
            "name": name or "group",
            "state": "running",
            "created_at": now,
            "stage": 0,
            "totals": totals,
            "groups": groups,
        }
        if flow.id is not None:
            row["digest"] = _digest(flow)
        if 0 in groups:
            row["sending"] = True
        return plan_text(stages, *callbacks), row

    def _group(
        self, flow_id: str, number: int, stage: Stage, stages: int, *, wants: bool, deadline: float
    ) -> tuple[str, int, str]:
        """Return a group as JSON, how many members it has, and the task of the first; a large one's calls are stored."""
        backend, pages, total, name = self._backend, list[str](), 0, ""
        waiting: list[tuple[str, str, float | None]] = []
        for page in _pages(stage.members or ()):
            if pages and not total % PAGE and total == PAGE:  # this one is the second
                entry = Entry(entry_id(flow_id, "planned", 0), "flow", _PLANNED_S)
                backend.commit([Commit((), [entry])], timeout_s=deadline - monotonic())
                waiting.append((calls_key(flow_id, number, 0), pages[0], None))
            name = name or page[0].declaration.name
            text = f"[{','.join(self._spec(each) for each in page)}]"
            total += len(page)
            if total <= PAGE:
                pages.append(text)
                continue
            waiting.append((calls_key(flow_id, number, (total - 1) // PAGE), text, None))
            if len(waiting) >= _PAGES:
                backend.create(waiting, timeout_s=self._timeout_s)
                waiting = []
        if waiting:
            backend.create(waiting, timeout_s=self._timeout_s)
        head = {"total": total, "at_once": stage.at_once, "on_error": stage.on_error, "wants": wants}
        calls = "null" if total > PAGE else pages[0] if pages else "[]"
        return f'{codec.to_json(head)[:-1]},"calls":{calls}}}', total, name

    def _spec(self, call: Call[Any], *, takes: bool = False) -> str:
        """Return a call as JSON; raise if it can't be a step here."""
        bridge, name = self._bridge, call.declaration.name
        if not call.declaration.results:
            problem = f"task {name!r} is declared with results=False, and a flow needs its records; leave that out"
            raise UnsupportedError("W1", bridge.settings.url.target, problem)
        text = spec_of(call, bridge.queue_of(name), takes=takes)
        if len(text) > bridge.settings.max_message_bytes:
            size = sum(map(len, call.encoded()[:2]))
            if size > bridge.settings.max_message_bytes:
                raise MessageTooLarge(name, size, bridge.settings.max_message_bytes)
        return text

    def _created(self, flow_id: str, row: FlowRow, text: str, more: Sequence[Write], deadline: float) -> bool:
        """Store a flow with its first step, and publish that; False if there is a flow of this id."""
        plan = plan_of(text)
        writes = [
            *more,
            Write(row_key(flow_id), ABSENT, packed(row, 1)),
            Write(plan_key(flow_id), ABSENT, text),
        ]
        messages = [] if row.get("sending") else [self._step(flow_id, row, plan, 0, None)]
        look = _Look(deadline, resumes=True)
        entries = [look.entry(flow_id, "sent.0", row, _SENDING_S)] if row.get("sending") else []
        delay_s = row.get("delay_s", 0.0)
        if not self._committed(writes, messages, entries, deadline, delay_s=delay_s):
            return False
        self._backend.list_soon([Listed(f"flow:{flow_id}", "flow:running", row["created_at"])])
        if row.get("sending"):
            self._look_after(flow_id, look)
        return True

    # Publishing

    def _committed(
        self,
        writes: Sequence[Write],
        messages: Sequence[Message],
        entries: Sequence[Entry],
        deadline: float,
        *,
        delay_s: float = 0.0,
    ) -> bool:
        """Do writes and publish messages, all or nothing; return whether it was done.

        A message whose record is there is published already, or was.
        """
        bridge, backend = self._bridge, self._backend
        if messages:
            found = backend.get([key_of(each.id) for each in messages], timeout_s=deadline - monotonic())
            messages = [each for each, text in zip(messages, found, strict=True) if text is None]
        with sending(bridge.observers, messages) if bridge.observers and messages else nullcontext():
            goes_along, commands, kept = bridge.settings.goes_along, list[Any](), list[Held]()
            for message in messages:
                self._tell_sent("before_send", message, delay_s)
                if goes_along:
                    commands += cast("RedisBroker", bridge.broker).commands(message, delay_s)
                else:
                    kept.append(held(message, delay_s))
            records = [self._record(each, delay_s) for each in messages]
            entries = [*entries, *(Entry(each.key, each.dumps(), OWN_S) for each in kept)]
            commit = Commit([*writes, *records], entries, commands)
            if not backend.commit([commit], timeout_s=deadline - monotonic())[0]:
                return False
            self._records.list_sent([(each, delay_s) for each in messages])
            if kept:
                self._relayed(kept)
        for message in messages:
            self._tell_sent("after_send", message, delay_s)
        if messages and bridge.settings.url.engine == "inline":
            bridge.work_is_there()
        return True

    def _relayed(self, kept: Sequence[Held]) -> None:
        """Publish what was put in the outbox; if that fails, a worker's relay does so when the broker is back."""
        try:
            self._bridge.relay.publish(kept, timeout_s=self._timeout_s)
        except BrokerUnavailable as exc:
            _log.warning("%d steps stay in the outbox until the broker is back: %s", len(kept), exc.problem)

    def _record(self, message: Message, delay_s: float) -> Write:
        key, text, kept_s = self._records.created(message, delay_s, message.enqueued_at)
        return Write(key, ABSENT, text, kept_s)

    def _tell_sent(self, name: Any, message: Message, delay_s: float) -> None:
        hooks, declared = self._bridge.hooks, self._bridge.declaration_of(message.task)
        if hooks.of[name]:
            arguments_of = None if declared is None else lambda: declared.arguments_of(message)
            hooks.call(Event(name=name, message=message, delay_s=delay_s, arguments_of=arguments_of))

    def _step(self, flow_id: str, row: FlowRow, plan: Plan, stage: int, given: str | None) -> Message:
        """Return the message of a single step; what it is given is its first argument, if it takes one."""
        spec, last = cast("Spec", plan["stages"][stage]), len(plan["stages"]) - 1
        following = plan["stages"][stage + 1] if stage < last else None
        flags = "r" if following is not None and not is_group(following) and following.get("takes") else ""
        is_large = given is not None and len(given) > _TRAVELS
        place = Place(flow_id, str(stage), row.get("life", 0), 0, flags + ("g" if is_large else ""))
        takes = bool(spec.get("takes"))
        return self._message(spec, place, given if takes and not is_large else None)

    def _callback(self, flow_id: str, row: FlowRow, plan: Plan, key: str) -> Message:
        """Return the message of a callback, which is given how the flow ended."""
        end = end_of(flow_id, row)
        given = codec.dumps(end, "end")
        return self._message(cast("Spec", cast("Any", plan)[key]), Place(flow_id, key, row.get("life", 0)), given)

    def _message(self, spec: Spec, place: Place, given: str | None) -> Message:
        bridge, now = self._bridge, self._bridge.now()
        declared = bridge.declaration_of(spec["task"])
        queue = spec.get("queue") or (spec["home"] if declared is None else bridge.queue_of(spec["task"]))
        priority = spec.get("priority") or ("normal" if declared is None else declared.priority)
        lasts_s = spec.get("expires_s", None if declared is None else declared.expires_s)
        expires_at = spec.get("expires_at", None if lasts_s is None else now + lasts_s)
        message = made(spec, place, queue=queue, priority=priority, expires_at=expires_at, now=now, given=given)
        return message if bridge.settings.goes_along else replace(message, relayed=True)

    # Groups

    def _give_members(self, flow_id: str, row: FlowRow, plan: Plan, upto: int, sent: int) -> None:
        """Publish members of the group at which a flow is, from the first one that may not be published yet."""
        stage, group = row["stage"], cast("Group", plan["stages"][row["stage"]])
        key, backend, entry = (
            group_key(flow_id, stage),
            self._backend,
            entry_id(flow_id, f"sent.{stage}", row.get("life", 0)),
        )
        ready_at = row["created_at"] + row.get("delay_s", 0.0) if stage == 0 else 0.0
        while sent < upto:
            specs = self._calls(flow_id, stage, group, sent, min(upto, sent + _BATCH))
            if not specs:
                raise DecodeError(f"the calls of group {stage} of flow {flow_id} are gone")
            flags = ("r" if group["wants"] else "") + ("b" if group["on_error"] == "fail" else "")
            flags += "a" if group["at_once"] else ""
            messages = [
                self._message(
                    spec, Place(flow_id, f"{stage}/{sent + at}", row.get("life", 0), group["total"], flags), None
                )
                for at, spec in enumerate(specs)
            ]
            self._give(messages, max(0.0, ready_at - self._bridge.now()) if ready_at else 0.0)
            before, sent = sent, sent + len(specs)
            backend.note_sent(key, sent, timeout_s=self._timeout_s)
            over = [calls_key(flow_id, stage, page) for page in range(before // PAGE, sent // PAGE)]
            if sent == group["total"]:
                over.append(calls_key(flow_id, stage, sent // PAGE))
            if group["calls"] is None and over:
                backend.remove(over, timeout_s=self._timeout_s)
            if sent < upto:
                backend.commit([Commit((), [Entry(entry, "flow", _SENDING_S)])], timeout_s=self._timeout_s)
                found = self._row(flow_id)
                if found is None or found["state"] != "running" or found["stage"] != stage:
                    return

    def _give(self, messages: Sequence[Message], delay_s: float) -> None:
        """Publish members, each with its record, unless it has one: then it was published."""
        bridge, backend = self._bridge, self._backend
        with sending(bridge.observers, messages) if bridge.observers else nullcontext():
            for message in messages:
                self._tell_sent("before_send", message, delay_s)
            if bridge.settings.goes_along:
                broker = cast("RedisBroker", bridge.broker)
                for start in range(0, len(messages), PAGE):
                    part = messages[start : start + PAGE]
                    commits = [
                        Commit([self._record(each, delay_s)], (), broker.commands(each, delay_s)) for each in part
                    ]
                    backend.commit(commits, timeout_s=self._timeout_s)
                self._records.list_sent([(each, delay_s) for each in messages])
            else:
                self._records.create([(each, delay_s) for each in messages], timeout_s=self._timeout_s)
                from taskbridge.brokers.base import hand_over

                hand_over(bridge.broker, messages, [delay_s] * len(messages), timeout_s=self._timeout_s)
        for message in messages:
            self._tell_sent("after_send", message, delay_s)
        if bridge.settings.url.engine == "inline":
            bridge.work_is_there()

    def _calls(self, flow_id: str, stage: int, group: Group, first: int, end: int) -> list[Spec]:
        """Return some calls of a group, as the plan has them."""
        if group["calls"] is not None:
            return group["calls"][first:end]
        pages = range(first // PAGE, (end - 1) // PAGE + 1)
        keys = [calls_key(flow_id, stage, page) for page in pages]
        texts = self._backend.get(keys, timeout_s=self._timeout_s)
        calls: list[Spec] = []
        for text in texts:
            if text is None:
                break
            calls += codec.from_json(text)
        start = first - pages[0] * PAGE
        return calls[start : start + end - first]

    # What is due

    def advance_due(self) -> None:
        """Do what is due in the flows whose steps this process has counted; what fails is left to the relay."""
        due = self._records.flows_due
        while due:
            try:
                self.advance(due.popleft())
            except IndexError:  # another thread has taken it
                return
            except BrokerUnavailable as exc:
                _log.warning("what follows in a flow waits: %s", exc.problem)
            except Exception:
                _log.exception("what follows in a flow waits")

    def advance(self, entry: str, *, resumes: bool = False) -> None:
        """Do what is due in the flow that an entry of the outbox is about, and remove the entry.

        `resumes` is for who goes on with a group that another process was sending.
        """
        if (id := flow_of_entry(entry)) is not None:
            self._look_after(id, _Look(self._deadline(), resumes=resumes, entries={entry}))

    def _look_after(self, id: str, look: _Look) -> None:
        """Do what is due in a flow, and remove the entries of whoever does, unless it is to be looked after again."""
        if not self._goes_on(id, look) and look.entries:
            self._backend.remove_entries(look.entries, timeout_s=self._timeout_s)

    def _goes_on(self, id: str, look: _Look) -> bool:
        """Do what is due, and return whether somebody has to look after the flow later."""
        while True:
            look.deadline = self._deadline()
            texts = self._backend.get([row_key(id), plan_key(id)], timeout_s=self._timeout_s)
            row = unpacked(texts[0])
            if row is None:
                self._forget_calls(id)
                return False
            if row.get("closed"):
                return self._close(id, row)
            plan = plan_of(texts[1])
            step = self._after_end if row["state"] in FINAL else self._after_step
            found = step(id, row, plan, look)
            if found is not None:
                return found

    def _after_step(self, id: str, row: FlowRow, plan: Plan, look: _Look) -> bool | None:
        """Do what is due in a flow that runs; return None to look again, else whether to look after it later."""
        if row.get("reopened"):
            self._give_again(id, row, plan)
            self._changed(id, row, reopened=None)
            return None
        if row["stage"] in row["groups"]:
            return self._after_member(id, row, plan, look)
        record = self._records.get(step_id(id, str(row["stage"])), timeout_s=self._timeout_s)
        if record is None or record.state not in states.FINAL:
            return False
        if record.state == "done":
            self._next(id, row, plan, record.result_json or "null", look)
        else:
            self._ended(id, row, plan, "failed", look, end=_bad_of(record))
        return None

    def _after_member(self, id: str, row: FlowRow, plan: Plan, look: _Look) -> bool | None:
        """Do what is due in a flow that is at a group."""
        number, group = row["stage"], cast("Group", plan["stages"][row["stage"]])
        total, at_once, policy = group["total"], group["at_once"], group["on_error"]
        [counts] = self._backend.counts_of([group_key(id, number)], timeout_s=self._timeout_s)
        has_ended = counts.ended >= total
        if policy != "collect" and counts.bad > (row.get("bad", 0) if policy == "fail" and not has_ended else 0):
            if has_ended or policy == "fail":
                self._ended(id, row, plan, "failed", look, end=self._first_bad(id, number, total))
                return None
        if has_ended:
            parts = id, number, total, policy == "collect"
            self._next(id, row, plan, f'{{"$":"results","v":{codec.to_json(parts)}}}', look)
            return None
        if row.get("sending") and not look.resumes:
            return True
        upto = total if at_once is None else min(total, counts.ended + at_once)
        if counts.sent < upto:
            self._give_members(id, row, plan, upto, counts.sent)
        if row.get("sending"):
            self._changed(id, row, sending=None)
            return None
        return at_once is not None and upto < total

    def _next(self, id: str, row: FlowRow, plan: Plan, given: str, look: _Look) -> None:
        """Begin the stage after the one at which a flow is, or end the flow."""
        number = row["stage"] + 1
        if number == len(plan["stages"]):
            self._ended(id, row, plan, "done", look, given=given)
            return
        new = row.copy()
        new["stage"], new["given"] = number, given
        new.pop("bad", None)
        if is_group(plan["stages"][number]):
            new["sending"] = look.resumes = True
            entry = look.entry(id, f"sent.{number}", row, LOOKED_AFTER_S)
            self._committed([self._write(id, row, new)], [], [entry], look.deadline)
        else:
            self._committed([self._write(id, row, new)], [self._step(id, new, plan, number, given)], [], look.deadline)

    def _ended(
        self,
        id: str,
        row: FlowRow,
        plan: Plan,
        state: FlowState,
        look: _Look,
        *,
        end: Sequence[str] = (),
        given: str | None = None,
    ) -> bool:
        """Have a flow be at its end, and publish the callback that comes first, if there is one."""
        new = row.copy()
        new["state"], new["ended_at"], new["end"] = state, self._bridge.now(), [*end]
        for name in ("sending", "reopened", "bad"):
            cast("Any", new).pop(name, None)
        if given is not None:
            new["given"] = given
        first = "failure" if state == "failed" and plan["failure"] else "end" if plan["end"] else ""
        return self._called_back(id, row, new, plan, first, look)

    def _called_back(self, id: str, row: FlowRow, new: FlowRow, plan: Plan, key: str, look: _Look) -> bool:
        """Write a row, and publish this callback; with none, the flow is closed: its texts are kept for a while."""
        was_open, entry = row["state"] == "running", look.entry(id, "over", new, LOOKED_AFTER_S)
        writes, messages = list[Write](), list[Message]()
        if key:
            new["callback"] = cast("Any", key)
            messages.append(self._callback(id, new, plan, key))
        else:
            new["closed"], ttl_s = True, self._bridge.settings.result_ttl_s
            new.pop("callback", None)
            [text] = self._backend.get([plan_key(id)], timeout_s=self._timeout_s)
            writes.append(Write(plan_key(id), head_of(text), text, ttl_s))
        writes.append(self._write(id, row, new, ends=was_open))
        if not self._committed(writes, messages, [entry], look.deadline):
            return False
        if was_open:
            kept_s = self._bridge.settings.result_ttl_s
            listed = Listed(
                f"flow:{id}", f"flow:{new['state']}", new["ended_at"], formers=("flow:running",), kept_s=kept_s
            )
            self._backend.list_soon([listed])
        return True

    def _after_end(self, id: str, row: FlowRow, plan: Plan, look: _Look) -> bool | None:
        """Do what is due in a flow that is at its end: tell the message that became it, and call what is to be called."""
        self._tell_parent(id, row)
        key = row.get("callback", "")
        record = self._records.get(step_id(id, key, row.get("life", 0)), timeout_s=self._timeout_s) if key else None
        if record is not None and record.state not in states.FINAL:
            return False
        following = "end" if key == "failure" and plan["end"] else ""
        self._called_back(id, row, row.copy(), plan, following, look)
        return None

    def _close(self, id: str, row: FlowRow) -> bool:
        """Have what is left of a flow be forgotten in time; return False, for nobody need look after it."""
        self._tell_parent(id, row)
        if row["groups"]:
            keys, ttl_s = [group_key(id, number) for number in row["groups"]], self._bridge.settings.result_ttl_s
            self._backend.end_groups(keys, kept_s=ttl_s, timeout_s=self._timeout_s)
        return False

    def _write(self, id: str, row: FlowRow, new: FlowRow, *, ends: bool = False) -> Write:
        """Return a write of a row, if it is as it was read; one that ends the flow keeps its steps from starting."""
        version = row["version"]
        kept_s = self._bridge.settings.result_ttl_s if new.get("closed") else None
        write = Write(row_key(id), str(version), packed(new, version + 1), kept_s, tells=new["state"] in FINAL)
        if ends and new["state"] != "done":
            write.cancels = life_of_flow(id, new.get("life", 0))
            write.cancellation_kept_s = transitions.CANCELLATION_KEPT_S
        return write

    def _changed(self, id: str, row: FlowRow, **changes: Any) -> bool:
        """Change a row if it is as it was read; None takes a field out."""
        new: Any = {name: value for name, value in {**row, **changes}.items() if value is not None}
        return self._backend.commit([Commit([self._write(id, row, new)])], timeout_s=self._timeout_s)[0]

    def _forget_calls(self, id: str) -> None:
        """Remove the calls of a flow whose sender has died before it was stored."""
        for stage in range(_MOST_STAGES):
            pages = [calls_key(id, stage, page) for page in range(PAGE)]
            if all(text is None for text in self._backend.get(pages, timeout_s=self._timeout_s)):
                continue
            start = 0
            while any(self._backend.get(pages, timeout_s=self._timeout_s)):
                self._backend.remove(pages, timeout_s=self._timeout_s)
                start += PAGE
                pages = [calls_key(id, stage, page) for page in range(start, start + PAGE)]

    def _first_bad(self, id: str, stage: int, total: int) -> list[str]:
        """Return what is told of the first member of a group that has ended badly."""
        for index, (ended, text) in self._members(id, stage, total):
            if ended != "done":
                bad, step = bad_end(ended, text), step_id(id, f"{stage}/{index}")
                record = self._records.get(step, timeout_s=self._timeout_s)
                error = bad.error or ErrorInfo(type="", message="")
                task = "" if record is None else record.task
                return [step, task, ended, bad.reason, error.type, error.message]
        return []

    def _members(self, id: str, stage: int, total: int) -> Iterator[tuple[int, tuple[Any, str | None]]]:
        """Yield the members of a group that have ended."""
        for first in range(0, total, _BATCH):
            count = min(_BATCH, total - first)
            found = self._backend.members(group_key(id, stage), first, count, timeout_s=self._timeout_s)
            yield from ((first + at, each) for at, each in enumerate(found) if each is not None)

    # What a task returns by `become`

    def become(self, message: Message, flow: Flow[Any], *, timeout_s: float) -> None:
        """Have a message end with a flow, which is begun; both in one act, and both no second time (rule W14)."""
        deadline = monotonic() + timeout_s
        flow_id = step_id(message.life, "became")
        decide = self._records.became(message, flow_id, self._bridge.now())
        text, row = self._planned(flow, flow_id, self._bridge.now(), deadline)
        row["parent"] = [message.id, message.replays]
        while True:
            [found] = self._backend.get([key_of(message.id)], timeout_s=self._timeout_s)
            decided = decide(stored.unpacked(found))
            if decided is None or self._created(flow_id, row, text, [decided[1]], deadline):
                return
            if self._row(flow_id) is not None:
                return
            if monotonic() >= deadline:
                raise StoreUnavailable("others change the same record")

    def _tell_parent(self, id: str, row: FlowRow) -> None:
        """End the message that became this flow, as the flow has ended."""
        if not row.get("parent"):
            return
        state = {"done": "done", "failed": "dead", "cancelled": "cancelled"}[row["state"]]
        end = end_of(id, row)
        error = ErrorInfo(type=end.error_type, message=end.error) if end.error_type else None
        given, at = row.get("given") if state == "done" else None, row.get("ended_at", 0.0)
        reason = "flow_failed" if state == "dead" else ""
        ending = Ending(state=cast("Any", state), at=at, result_json=given, reason=reason, error=error)

        def decide(old: states.Row | None) -> states.Row | None:
            return transitions.flow_ended(old, id, ending)

        self._records.change(row["parent"][0], decide, timeout_s=self._timeout_s)
        self.advance_due()

    # Cancelling, and going on again

    def cancel(self, id: str) -> FlowStatus:
        """Cancel a flow unless it has ended, and return its status after that."""
        while (row := self._known(id))["state"] not in FINAL:
            [text] = self._backend.get([plan_key(id)], timeout_s=self._timeout_s)
            look = _Look(self._deadline())
            if self._ended(id, row, plan_of(text), "cancelled", look):
                self._bridge.cancellations.add(life_of_flow(id, row.get("life", 0)))
                self._look_after(id, look)
        return self.status(id)

    def retry(self, id: str) -> FlowStatus:
        """Go on with a flow that failed, was cancelled or is stalled, and return its status after that."""
        row = self._known(id)
        if row["state"] != "done":
            writes, entries = self._reopening(id, row, again=True)
            self._backend.commit([Commit(writes, entries)], timeout_s=self._timeout_s)
            self.advance(entries[0].id, resumes=True)
        return self.status(id)

    def _reopening(self, id: str, row: FlowRow, *, again: bool) -> tuple[list[Write], list[Entry]]:
        """Return what has a flow go on."""
        new: Any = dict(row)
        for name in ("ended_at", "callback", "closed", "end"):
            new.pop(name, None)
        if row["state"] in FINAL:
            new["life"] = row.get("life", 0) + 1
        new["state"], new["reopened"] = "running", "again" if again else "given up"
        writes = [self._write(id, row, new)]
        if row.get("closed"):
            [text] = self._backend.get([plan_key(id)], timeout_s=self._timeout_s)
            writes.append(Write(plan_key(id), head_of(text), text))
            groups = [group_key(id, number) for number in row["groups"]]
            if groups:
                self._backend.end_groups(groups, kept_s=None, timeout_s=self._timeout_s)
        if row["state"] in FINAL:
            formers = (f"flow:{row['state']}",)
            self._backend.list_soon([Listed(f"flow:{id}", "flow:running", row["created_at"], formers=formers)])
            if row.get("parent"):
                self._reopen_parent(id, row["parent"][0])
        return writes, [Entry(entry_id(id, "again", new.get("life", 0)), "flow", LOOKED_AFTER_S)]

    def _reopen_parent(self, id: str, message_id: str) -> None:
        """Have the message that became a flow wait for it again, and the flow of which that is a step go on."""
        while True:
            [text] = self._backend.get([key_of(message_id)], timeout_s=self._timeout_s)
            old = stored.unpacked(text)
            new = transitions.flow_reopened(old, id)
            if old is None or new is None:
                return
            writes = [self._records.replacing(message_id, old, head_of_row(old), new)]
            entries, uncounts = list[Entry](), list[tuple[str, int]]()
            if (flow := old.get("flow")) and not (place := place_of(flow)).is_callback:
                row = self._row(place.flow)
                if row is not None and row["stage"] == place.stage:
                    more, entries = self._reopening(place.flow, row, again=False)
                    writes += more
                    if place.member is not None:
                        uncounts.append((group_key(place.flow, place.stage), place.member))
            if self._backend.commit([Commit(writes, entries, (), uncounts)], timeout_s=self._timeout_s)[0]:
                return

    def replay(self, messages: Sequence[tuple[Message, float]]) -> tuple[str, ...]:
        """Replay dead steps, each after a delay in seconds since it was sent, and return their ids (rule W10).

        Their flows go on, if they wait for these steps.
        """
        kept, flows = list[Held](), dict[str, None]()
        for message, delay_s in messages:
            kept.append(self._replayed(message, delay_s))
            flows[place_of(message.flow).flow] = None
        for start in range(0, len(kept), PAGE):
            self._bridge.relay.publish(kept[start : start + PAGE], timeout_s=self._timeout_s)
        for each in flows:
            self._look_after(each, _Look(self._deadline(), resumes=True))
        return tuple(each.message.id for each in kept)

    def _replayed(self, message: Message, delay_s: float) -> Held:
        """Put a dead step that is replayed in the outbox, and have its flow wait for it; both in one act."""
        while True:
            place = place_of(message.flow)
            texts = self._backend.get([key_of(message.id), row_key(place.flow)], timeout_s=self._timeout_s)
            old, row = stored.unpacked(texts[0]), unpacked(texts[1])
            writes, entries, uncounts = list[Write](), list[Entry](), list[tuple[str, int]]()
            sent = message
            if row is not None and not place.is_callback and place.stage == row["stage"]:
                is_over = row["state"] in FINAL
                place = place._replace(life=row.get("life", 0) + is_over)
                sent = replace(message, flow=place.dumps())
                if is_over:
                    writes, entries = self._reopening(place.flow, row, again=False)
                if place.member is not None:
                    uncounts.append((group_key(place.flow, place.stage), place.member))
            elif not place.is_callback:
                sent = replace(message, flow="")  # the flow has gone on without it, or is gone
            new = transitions.created(old, sent, delay_s)
            if new is not None:
                writes.append(self._records.replacing(sent.id, old, head_of(texts[0]), new))
            entry = held(sent, delay_s, "replayed")
            entries = [*entries, Entry(entry.key, entry.dumps(), OWN_S)]
            if self._backend.commit([Commit(writes, entries, (), uncounts)], timeout_s=self._timeout_s)[0]:
                return entry

    def _give_again(self, id: str, row: FlowRow, plan: Plan) -> None:
        """Publish again what was given up as a flow ended, or was lost; and what ended badly, if that is asked for."""
        again = cast("Any", row).get("reopened") == "again"
        stage = row["stage"]
        if not is_group(plan["stages"][stage]):
            self._give_one(id, row, plan, str(stage), again=True)
            return
        total, dead = cast("Group", plan["stages"][stage])["total"], list[str]()
        [counts] = self._backend.counts_of([group_key(id, stage)], timeout_s=self._timeout_s)
        ended = dict(self._members(id, stage, total))
        for index in range(counts.sent):
            found = ended.get(index)
            if found is None or found[0] == "cancelled" or (again and found[0] != "done"):
                letter = self._give_one(id, row, plan, f"{stage}/{index}", again=again)
                dead += [letter] if letter else []
        if dead:
            self._bridge.dead.replay(dead)
        [counts] = self._backend.counts_of([group_key(id, stage)], timeout_s=self._timeout_s)
        cast("Any", row).update(bad=counts.bad, sending=True)

    def _give_one(self, id: str, row: FlowRow, plan: Plan, key: str, *, again: bool) -> str | None:
        """Publish a step again, unless it runs, is done, or is dead; of a dead one, return the id, if it is to run."""
        step = step_id(id, key)
        while True:
            deadline = self._deadline()
            [text] = self._backend.get([key_of(step)], timeout_s=self._timeout_s)
            old, life = stored.unpacked(text), row.get("life", 0)
            if old is not None and old["state"] in ("running", "done"):
                return None
            if old is not None and old["state"] == "dead":
                return step if again else None
            place = Place(id, key, life)
            if old is not None and (known := old.get("flow")):
                place = place_of(known)
                if place.life == life and old["state"] not in states.FINAL and life:
                    return None  # it was given again before
            message = self._made_again(row, plan, place._replace(life=life), old)
            if message is None:
                return None
            uncounts = [(group_key(id, place.stage), place.member)] if place.member is not None else []
            record = self._records.replacing(step, old, head_of(text), transitions.new(message))
            entry = held(message, 0.0)
            commit = Commit([record], [Entry(entry.key, entry.dumps(), OWN_S)], (), uncounts)
            if self._backend.commit([commit], timeout_s=deadline - monotonic())[0]:
                self._relayed([entry])
                return None

    def _made_again(self, row: FlowRow, plan: Plan, place: Place, old: states.Row | None) -> Message | None:
        """Return the message of a step as it starts again, in another life of its own; None if nobody knows it."""
        if place.member is None:
            message = self._step(place.flow, row, plan, place.stage, row.get("given"))
        elif old is not None and (sent := status_of("", old).sent) is not None:
            args, kwargs, headers = sent
            head: Any = {"task": old["task"], "home": old["queue"], "queue": old["queue"], "headers": dict(headers)}
            spec = {**head, "args": codec.from_json(args), "kwargs": codec.from_json(kwargs)}
            message = self._message(cast("Spec", spec), place, None)
        else:
            return None
        return replace(message, relayed=True, replays=0 if old is None else old.get("replays", 0) + 1)

    # What is known of flows

    def status(self, id: str) -> FlowStatus:
        """Return what is known of a flow; it costs the same however many steps there are (rule W9)."""
        return self._status(id, self._known(id))

    def _status(self, id: str, row: FlowRow) -> FlowStatus:
        totals, at, groups = row["totals"], row["stage"], row["groups"]
        keys = [group_key(id, number) for number in groups if number <= at]
        counted = dict(
            zip(groups, self._backend.counts_of(keys, timeout_s=self._timeout_s) if keys else (), strict=False)
        )
        numbers = Counter[str](done=sum(number not in counted for number in range(at)))
        for counts in counted.values():
            for name in ("done", "dead", "discarded", "cancelled"):
                numbers[name] += getattr(counts, name)
        oldest, running = "", 0
        if (own := counted.get(at)) is not None:
            first = self._backend.first_open(group_key(id, at), totals[at], timeout_s=self._timeout_s)
            oldest = "" if first is None else step_id(id, f"{at}/{first}")
            running = own.sent - own.ended
        else:
            oldest = step_id(id, str(at))
        record = self._records.get(oldest, timeout_s=self._timeout_s) if oldest else None
        if own is None and record is not None:
            is_over = record.state in states.FINAL
            running, oldest = 0 if is_over else 1, "" if is_over else oldest
            numbers[record.state] += is_over
        ended = numbers["done"] + numbers["dead"] + numbers["discarded"] + numbers["cancelled"]
        return FlowStatus(
            id=id,
            name=row["name"],
            state=row["state"],
            created_at=moment(row["created_at"]),
            ended_at=moment(row.get("ended_at")),
            stage=at + 1,
            stages=len(totals),
            total=sum(totals),
            waiting=max(0, sum(totals) - ended - running),
            running=max(0, running),
            done=numbers["done"],
            dead=numbers["dead"],
            discarded=numbers["discarded"],
            cancelled=numbers["cancelled"],
            oldest=oldest,
            end=end_of(id, row) if row.get("end") else None,
            parent=row["parent"][0] if row.get("parent") else "",
            is_stalled=row["state"] == "running" and self._is_stalled(row, record, oldest),
        )

    def _is_stalled(self, row: FlowRow, record: Status | None, oldest: str) -> bool:
        """Return whether nothing will go on with a flow by itself: its oldest step is nowhere, or ended long ago."""
        if row.get("sending") or row.get("reopened"):
            return False  # there is an entry in the outbox
        now = self._bridge.now()
        if record is None:
            return True
        if record.state in states.FINAL:
            return record.ended_at is not None and now - record.ended_at.timestamp() > _STALLED_S
        waits = record.state in states.WAITING and not (record.due_at is not None and record.due_at.timestamp() > now)
        if not waits or now - max(record.enqueued_at.timestamp(), *map(_ended_at, record.attempts)) < _STALLED_S:
            return False
        counts = self._bridge.counts()
        return not counts.delayed and not counts.waiting.get(record.queue)

    def listed(
        self, *, state: FlowState | None = None, before: tuple[float, str] = (inf, ""), most: int = 50
    ) -> list[FlowStatus]:
        """Return flows of a state, all if None: the latest first, those before a time and an id."""
        names = [f"flow:{each}" for each in (_STATES if state is None else (state,))]
        place = before[0], f"flow:{before[1]}"
        lists = self._backend.listed("state", names, before=place, most=most, timeout_s=self._timeout_s)
        found = heapq.nlargest(most, ((at, key) for each in lists for key, at in each))
        ids = [key.removeprefix("flow:") for _, key in found]
        texts = self._backend.get([row_key(each) for each in ids], timeout_s=self._timeout_s) if ids else []
        rows = ((each, unpacked(text)) for each, text in zip(ids, texts, strict=True))
        return [self._status(each, row) for each, row in rows if row is not None]

    def counts(self) -> Mapping[str, int]:
        """Return how many flows are in each state, as far as they are kept, and how many of the oldest are stalled."""
        names = [f"flow:{each}" for each in _STATES]
        numbers = self._backend.count_listed(names, timeout_s=self._timeout_s)
        return {**dict(zip(_STATES, numbers, strict=True)), "stalled": len(self.stalled())}

    def stalled(self, *, most: int = 100) -> list[FlowStatus]:
        """Return those of the latest flows that run which are stalled (rule W11)."""
        return [each for each in self.listed(state="running", most=most) if each.is_stalled]

    def steps(self, id: str, *, first: int = 0, most: int = 50) -> list[Status]:
        """Return the records of a flow's steps that have one, in order, from this one on, and of its callbacks."""
        row, keys = self._known(id), list[str]()
        at = 0
        for number, total in enumerate(row["totals"][: row["stage"] + 1]):
            part = range(max(0, first - at), min(total, first - at + most))
            keys += (
                [f"{number}/{index}" for index in part] if number in row["groups"] else [str(number)] if part else []
            )
            at += total
        ids = [step_id(id, key) for key in keys[:most]]
        if first + most >= at:
            ids += [step_id(id, key, row.get("life", 0)) for key in CALLBACKS]
        return [each for each in self._records.find(ids, timeout_s=self._timeout_s) if each is not None]

    def members(self, id: str, stage: int, first: int, count: int) -> list[Any]:
        """Return what members of a group have returned, from one on; with `collect`, their outcomes."""
        texts = self._backend.get([row_key(id), plan_key(id)], timeout_s=self._timeout_s)
        if unpacked(texts[0]) is None:
            raise NoSuchRecord(id)
        group = cast("Group", plan_of(texts[1])["stages"][stage])
        found = self._backend.members(group_key(id, stage), first, count, timeout_s=self._timeout_s)
        collects = group["on_error"] == "collect"
        made = list[Any]()
        for index, each in enumerate(found, first):
            if each is None:
                raise NoSuchRecord(step_id(id, f"{stage}/{index}"))
            ended, text = each
            value = self._value(id, f"{stage}/{index}", text) if ended == "done" else None
            if not collects:
                made.append(value)
                continue
            bad = bad_end(ended, text) if ended != "done" else None
            reason, error = ("", None) if bad is None else (bad.reason, bad.error)
            made.append(Outcome(state=ended, value=value, reason=reason, error=error))
        return made

    def _value(self, id: str, key: str, text: str | None) -> Any:
        """Return what a step has returned, of JSON; of which class that may be says its task's declaration."""
        if text is None or (codec.TYPED not in text and codec.RESULTS not in text):
            return None if text is None else codec.loads(text)
        record = self._records.get(step_id(id, key), timeout_s=self._timeout_s)
        task = "" if record is None else record.task
        return value_of(task, text, self._bridge.declaration_of(task))

    # Waiting

    def result(self, id: str, *, timeout: Duration | None = None) -> Any:
        """Wait for a flow's end, and return what its last step has returned; see `FlowHandle.result`."""
        deadline, row = deadline_of(timeout), self._driven(id)
        if row["state"] in FINAL:
            return self._outcome(id, row)
        woken = locks.Event()
        end_watch = self._backend.watch(row_key(id), woken.set)
        try:
            while True:
                woken.clear()
                left_s = deadline - monotonic()
                if (row := self._again(id, row, left_s))["state"] in FINAL or left_s <= 0:
                    return self._outcome(id, row)
                woken.wait(max(0.0, min(left_s, _LOOK_AGAIN_S)))
        finally:
            end_watch()

    async def aresult(self, id: str, *, timeout: Duration | None = None) -> Any:
        """Do as `result` without blocking the event loop, and without holding a thread while it waits."""
        import asyncio  # here, for a program that doesn't await need not import it

        deadline, aside = deadline_of(timeout), self._bridge.results.aside
        ask = asyncio.to_thread if self._bridge.settings.url.engine == "inline" else aside
        row = await ask(lambda: self._driven(id))
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(woken.set)

        end_watch = await aside(lambda: self._backend.watch(row_key(id), wake))
        try:
            while row["state"] not in FINAL:
                woken.clear()
                left_s = deadline - monotonic()
                row = await aside(partial(self._again, id, row, left_s))
                if row["state"] in FINAL or left_s <= 0:
                    break
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(woken.wait(), max(0.0, min(left_s, _LOOK_AGAIN_S)))
            return await aside(lambda: self._outcome(id, row))
        finally:
            await asyncio.shield(aside(end_watch))

    def _again(self, id: str, row: FlowRow, left_s: float) -> FlowRow:
        """Return a flow's row; the one that was read before, if the store is away and there is time left."""
        try:
            return self._known(id)
        except StoreUnavailable:
            if left_s <= 0:
                raise
            return row

    def _driven(self, id: str) -> FlowRow:
        """Return a flow's row, after what waits has been run where nobody else would."""
        row = self._known(id)
        if row["state"] not in FINAL and self._bridge.settings.url.engine == "inline" and running.get() is None:
            self._bridge.run_until(lambda: self._known(id)["state"] in FINAL)
            row = self._known(id)
        return row

    def _outcome(self, id: str, row: FlowRow) -> Any:
        """Return what a flow has returned; raise if it has not."""
        if row["state"] not in FINAL:
            raise ResultTimeout(id, row["state"], "in time")
        end = end_of(id, row)
        if row["state"] == "done":
            last = len(row["totals"]) - 1
            given = row.get("given", "null")
            if last in row["groups"]:
                return Results(*codec.from_json(given)["v"], members=self.members)
            return self._value(id, str(last), given)
        if end.ended == "discarded":
            raise TaskDiscarded(id=end.step, task=end.task, reason=end.reason)
        if end.ended == "dead":
            facts = {"reason": end.reason, "type": end.error_type, "message": end.error}
            raise TaskFailed(id=end.step, task=end.task, traceback="", **facts)
        raise TaskCancelled(id=end.step or id, task=end.task or row["name"])

    # What the worker asks

    def filled(self, message: Message, *, timeout_s: float) -> Message:
        """Return a step with its first argument, which was too large to travel with it."""
        place = place_of(message.flow)
        [text] = self._backend.get([row_key(place.flow)], timeout_s=timeout_s)
        if (row := unpacked(text)) is None:
            raise NoSuchRecord(place.flow)
        given, args = row.get("given", "null"), message.args_json
        args = f"[{given}]" if args == "[]" else f"[{given},{args[1:]}"
        flow = place._replace(flags=place.flags.replace("g", "")).dumps()
        return replace(message, args_json=args, plain=None, flow=flow)

    # Parts

    @property
    def _store(self) -> Store:
        store = self._bridge.store
        if store is None:
            remedy = "a flow needs a store: set one (TASKBRIDGE_STORE=redis://localhost:6379/0, say)"
            raise UnsupportedError("W15", self._bridge.settings.url.target, remedy)
        return store

    @property
    def _backend(self) -> Backend:
        return self._store.backend

    @property
    def _records(self) -> Records:
        return self._store.records

    @property
    def _timeout_s(self) -> float:
        return self._bridge.settings.send_timeout_s

    def _deadline(self) -> float:
        return monotonic() + self._timeout_s

    def _row(self, id: str) -> FlowRow | None:
        [text] = self._backend.get([row_key(id)], timeout_s=self._timeout_s)
        return unpacked(text)

    def _known(self, id: str) -> FlowRow:
        row = self._row(id)
        if row is None:
            raise NoSuchRecord(id)
        return row


@dataclass(slots=True)
class _Look:
    """A look after a flow: until when a call may take, whether it goes on with a sending, and its own entries."""

    deadline: float  # monotonic
    resumes: bool = False
    entries: set[str] = field(default_factory=set[str])

    def entry(self, id: str, what: str, row: FlowRow, in_s: float) -> Entry:
        """Return an entry that has the flow looked after, if whoever looks after it now is killed."""
        made = Entry(entry_id(id, what, row.get("life", 0)), "flow", in_s)
        self.entries.add(made.id)
        return made


def _ended_at(attempt: Attempt) -> float:
    return 0.0 if attempt.ended_at is None else attempt.ended_at.timestamp()


def _bad_of(record: Status) -> list[str]:
    """Return what is told of a step that ended badly."""
    error = record.error or ErrorInfo(type="", message="")
    return [record.id, record.task, record.state, record.reason, error.type, error.message]


def _pages(calls: Iterable[Call[Any]]) -> Iterator[list[Call[Any]]]:
    left = iter(calls)
    while page := list(islice(left, PAGE)):
        yield page


def _digest(flow: Flow[Any]) -> str:
    """Return a hash of what a flow calls, but for the members of groups, which are read once."""
    from taskbridge.unique import hash_of

    calls = [
        None if each.call is None else [each.call.declaration.name, *each.call.encoded()[:2]] for each in flow.stages
    ]
    return hash_of(calls, "id")
