"""Runs flows: sends them, and does what is due when a step has ended (rules W). `Bridge.flows` is one.

What is due is decided by `advance`, from what is stored alone: the flow's row, its plan, the records of its steps and
what its groups have counted. It changes the row only if it is as it was read, in one commit with the record of what is
published by that. So anybody may call it, any number of times, and killing whoever does loses nothing: a step is
counted in one act with an entry of the outbox, by which any worker calls it after 2 s; the entry is removed at last.

Where store and broker are one Redis, that commit publishes, too. Elsewhere it puts what it publishes in the outbox, and
these messages are suspect from the first time that they are published (rule A7).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from taskbridge import codec
from taskbridge.brokers.base import hand_over
from taskbridge.durations import When
from taskbridge.exceptions import (
    BrokerUnavailable,
    DecodeError,
    EncodeError,
    IdempotencyConflict,
    NoSuchRecord,
    StoreUnavailable,
)
from taskbridge.flows.handle import FlowHandle
from taskbridge.flows.plan import (
    PAGE,
    FlowRow,
    Group,
    Plan,
    end_of,
    packed,
    plan_key,
    plan_of,
    row_key,
    step_id,
    unpacked,
)
from taskbridge.flows.publishing import SENDING_S, Look
from taskbridge.flows.reopening import Reopening
from taskbridge.flows.states import FINAL, FlowState, FlowStatus
from taskbridge.logs import logger
from taskbridge.message import Message, is_id, new_id
from taskbridge.retry import ErrorInfo
from taskbridge.stores import records as stored
from taskbridge.stores import states, transitions
from taskbridge.stores.backend import ABSENT, Commit, Entry, Listed, Write, head_of
from taskbridge.stores.entries import KEPT, KEPT_END, LOOK
from taskbridge.stores.records import Ending, key_of
from taskbridge.stores.states import Status
from taskbridge.stores.steps import (
    LOOKED_AFTER_S,
    Place,
    bad_end,
    entry_id,
    flow_of_entry,
    group_key,
    life_of_flow,
    place_of,
)
from taskbridge.unique import hash_of

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge
    from taskbridge.flows.building import Flow
    from taskbridge.sending import Sending

R = TypeVar("R")

_log = logger("taskbridge.flows")

_BATCH: Final = 1000  # how many members are read at a time
_MOST_SEEN: Final = 1000
_LONG: Final = 4096  # characters: texts of flows that are not remembered
_MOST_ABOVE: Final = 20  # ids and lives of flows that a step knows of which its own is a step


class Flows(Reopening):
    """The flows of a bridge. Threads share it; see `Reading` for what its methods raise."""

    def __init__(self, bridge: Bridge, sender: Sending) -> None:
        super().__init__(bridge, sender)
        self._seen: dict[str, tuple[FlowRow, Plan]] = {}  # flows whose steps were published here, as they were then
        if (store := bridge.store) is not None:
            store.records.step_ended = self.step_ended

    # Sending

    def send(self, flow: Flow[R], *, when: When | None = None) -> FlowHandle[R]:
        """Send a flow, its first stage now or later, or when the open transaction is committed; see `Flow.send`."""
        delay_s = 0.0 if when is None else self._sender.wait_s(when)
        flow_id = new_id() if flow.id is None else flow.id
        if (diverted := self._sender.diverted) is not None:
            if messages := self._captured(flow, flow_id):
                hand_over(diverted, messages, [delay_s] * len(messages), timeout_s=self._timeout_s)
            return FlowHandle(id=flow_id, bridge=self._bridge)
        begin = partial(self._begin, flow, flow_id, delay_s)
        is_new = self._sender.holds(begin, partial(self._kept, flow, flow_id, delay_s)) or begin()
        return FlowHandle(id=flow_id, is_new=is_new, bridge=self._bridge)

    async def asend(self, flow: Flow[R], *, when: When | None = None) -> FlowHandle[R]:
        """Do as `send` without blocking the event loop."""
        return await self._sender.aside(lambda: self.send(flow, when=when))

    def _captured(self, flow: Flow[Any], id: str) -> list[Message]:
        """Return the messages of a flow's first stage, for who takes them in a broker's place."""
        first = flow.stages[0]
        keys = ["0"] if first.call is not None else (f"0/{index}" for index in count())
        calls = [first.call] if first.call is not None else first.members or ()
        specs = [codec.from_json(self._spec(call)) for call in calls]
        return [self._message(spec, Place(id, key), None) for spec, key in zip(specs, keys, strict=False)]

    def _begin(self, flow: Flow[Any], id: str, delay_s: float) -> bool:
        """Store a flow and publish its first stage; return whether it is new."""
        if flow.id is not None and (found := self._row(id)) is not None:
            return self._is_same(found, flow, id)
        look = Look(self._deadline(), resumes=True)
        text, row = self._sent(flow, id, delay_s, look)
        is_new = self._created(id, row, text, [], look, is_fresh=flow.id is None)
        return is_new or self._is_same(self._known(id), flow, id)

    def _sent(self, flow: Flow[Any], id: str, delay_s: float, look: Look) -> tuple[str, FlowRow]:
        """Return the plan and the row of a flow that is sent."""
        text, row = self._planned(flow, id, look)
        if delay_s > 0:
            row["delay_s"] = delay_s
        if flow.id is not None:
            row["digest"] = _digest(flow)
        return text, row

    def _kept(self, flow: Flow[Any], id: str, delay_s: float) -> str:
        """Return a flow as the text of an entry of an application's outbox, from which `begin_kept` sends it."""
        _ = self._backend  # which raises, if there is none
        look = Look(0.0, kept=[])
        text, row = self._sent(flow, id, delay_s, look)
        row.setdefault("digest", "")  # so it is kept as one of a chosen id: the entry may be relayed again much later
        return KEPT + codec.to_json([id, packed(row, 1), text, look.kept]) + KEPT_END

    def begin_kept(self, text: str) -> bool:
        """Send the flow that an entry of an application's outbox holds, unless it was sent before.

        Return False if its first task is not known here. Raises `DecodeError` for a text that holds no flow, and
        `BrokerUnavailable` if store or broker did not take it.
        """
        try:
            flow_id, first, plan, kept = codec.from_json(text.removeprefix(KEPT).removesuffix(KEPT_END))
            calls = [(int(stage), int(page), str(each)) for stage, page, each in kept]
            row = unpacked(first)
            if row is None or not is_id(flow_id) or plan_of(plan)["text"] != plan:
                raise ValueError(flow_id)
        except (ValueError, TypeError, AttributeError, RecursionError) as exc:
            raise DecodeError("an entry of an outbox holds no flow that can be read") from exc
        if any(row["totals"]) and not self._bridge.knows(row["name"]):
            return False
        if (found := self._row(flow_id)) is None:
            look = Look(self._deadline(), resumes=True)
            row["pages"] = new_id()  # of this sending: perhaps another worker is at it, too
            self._keep(flow_id, row["pages"], calls, look)
            if self._created(flow_id, row, plan, [], look):
                return True
            found = self._row(flow_id)
        if found is not None and found.get("digest", "") != row.get("digest", ""):
            _log.warning("flow %s was left out: there is another one of this id", flow_id)
        return True

    def _is_same(self, found: FlowRow, flow: Flow[Any], id: str) -> bool:
        """Return that a flow of this id is not new; raise `IdempotencyConflict` if it is another one."""
        if found.get("digest", "") != _digest(flow):
            raise IdempotencyConflict(id=id, task=found["name"], kind="flow")
        return False

    def _created(
        self, id: str, row: FlowRow, text: str, more: Sequence[Write], look: Look, *, is_fresh: bool = False
    ) -> bool:
        """Store a flow with its first step, and publish that; False if there is a flow of this id.

        `is_fresh` is that nobody can have published a step of a flow of this id before.
        """
        look.deadline, is_group = self._deadline(), bool(row.get("sending"))
        writes = [*more, Write(row_key(id), ABSENT, packed(row, 1)), Write(plan_key(id), ABSENT, text)]
        first = None if is_group else self._step(id, row, plan_of(text), 0, None)
        entries = [look.entry(id, "sent.0", row, SENDING_S)] if is_group else []
        delay_s = row.get("delay_s", 0.0)
        if delay_s:  # it counts from the call, and an outbox may have held the flow
            delay_s = max(0.0, row["created_at"] + delay_s - self._bridge.now())
        if not self._committed(writes, first, entries, look.deadline, delay_s=delay_s, is_first=is_fresh):
            return False
        self._backend.list_soon([Listed(f"flow:{id}", "flow:running", row["created_at"], "flow:running")])
        try:
            if look.entries:
                self.look_after(id, look)
        except BrokerUnavailable as exc:
            _log.warning("flow %s is stored, and is sent when broker and store are back: %s", id, exc.problem)
        return True

    # What is due

    def advance_due(self) -> None:
        """Do what is due in the flows whose steps this process has counted; what fails is left to the relay."""
        due = self._records.flows_due
        while due:
            try:
                entry = due.popleft()
            except IndexError:  # another thread has taken it
                return
            try:
                self.advance(entry, resumes="\tsent." in entry)  # a group that nobody has begun to send
            except BrokerUnavailable as exc:
                _log.warning("what follows in a flow waits: %s", exc.problem)
            except Exception:
                _log.exception("what follows in a flow waits")

    def advance(self, entry: str, *, resumes: bool = False) -> None:
        """Do what is due in the flow that an entry of the outbox is about, and remove the entry.

        `resumes` is for who goes on with a group that another process was sending.
        """
        self.look_after(flow_of_entry(entry), Look(self._deadline(), resumes=resumes, entries={entry}))

    def look_after(self, id: str, look: Look) -> None:
        """Do what is due in a flow, and remove the entries of whoever does, unless it is to be looked after again."""
        if not self._goes_on(id, look) and look.entries:
            self._backend.remove_entries(look.entries, timeout_s=self._timeout_s)

    def _goes_on(self, id: str, look: Look) -> bool:
        """Do what is due, and return whether somebody has to look after the flow later."""
        while True:
            look.deadline = self._deadline()
            texts = self._get(row_key(id), plan_key(id))
            row = unpacked(texts[0])
            if row is None:
                self._forget_what_is_left(id, look.entries)
                return False
            own = f"\tplanned/{row.get('pages', '')}."  # others are of a sending that was not the first
            self._forget_what_is_left(id, [each for each in look.entries if "\tplanned/" in each and own not in each])
            if row.get("closed"):
                return self._close(id, row, look)
            step = self._after_end if row["state"] in FINAL else self._after_step
            try:
                found = step(id, row, plan_of(texts[1]), look)
            except (DecodeError, KeyError, TypeError, IndexError) as exc:  # anybody may have written the plan
                self._give_up(id, row, texts[1], exc, look)
                continue
            if found is not None:
                return found

    def _give_up(self, id: str, row: FlowRow, plan: str | None, error: Exception, look: Look) -> None:
        """Have a flow fail whose plan can't be read; nothing is called back, for nobody knows what."""
        _log.error("flow %s is given up: its plan can't be read", id, exc_info=error)
        new = row.copy()
        new["state"], new["ended_at"], new["closed"] = "failed", round(self._bridge.now(), 6), True
        new["end"] = ["", "", "dead", "undecodable", *_pair(ErrorInfo.of(error))]
        writes = [self._write(id, row, new, ends=True)]
        if plan is not None:
            writes.append(Write(plan_key(id), head_of(plan), None))
        self._committed(writes, None, [look.entry(id, "over", row, LOOKED_AFTER_S)], self._deadline())

    def _after_step(self, id: str, row: FlowRow, plan: Plan, look: Look) -> bool | None:
        """Do what is due in a flow that runs; return None to look again, else whether to look after it later."""
        if self._is_given_up(row):
            self._ended(id, row, plan, "cancelled", look)
            return None
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
            self._next(id, row, plan, record.result_json or "null", look, lost=record.reason)
        elif record.state != "cancelled" or not self._give_late(id, row, plan):
            self._ended(id, row, plan, "failed", look, end=_bad_of(record))
        return None

    def step_ended(self, write: Write, record: states.Row) -> bool:
        """Do the write that makes the record of a single step final, and what is due then, all in one act.

        Return False if nothing was done: the step is counted by itself then, and what is due is done after that.
        """
        try:
            return self._ended_with_what_follows(write, record)
        except BrokerUnavailable:
            raise
        except Exception:  # the end is recorded all the same, and what is due then is tried again
            _log.exception("what follows in a flow is not known yet")
            return False

    def _ended_with_what_follows(self, write: Write, record: states.Row) -> bool:
        place = place_of(record.get("flow", ""))
        if place.member is not None or place.is_callback or record["state"] != "done":
            return False
        row, plan = self._seen.pop(place.flow, (None, None))
        if row is None or plan is None or not _is_at(row, place):  # others have gone on with it
            texts = self._get(row_key(place.flow), plan_key(place.flow))
            row = unpacked(texts[0])
            if row is None or not _is_at(row, place):
                return False
            plan = plan_of(texts[1])
        if row.get("reopened") or row.get("above"):
            return False
        look, lost = Look(self._deadline(), resumes=True), record.get("reason", "")
        is_done = self._next(place.flow, row, plan, record.get("result") or "null", look, lost=lost, also=[write])
        if is_done and look.entries:
            self._records.flows_due.extend(look.entries)
        return is_done

    def _is_given_up(self, row: FlowRow) -> bool:
        """Return whether a flow of which this one is a step is over, or was reopened without it."""
        above = row.get("above", ())
        rows = map(unpacked, self._get(*map(row_key, above[::2])) if above else ())
        lives = zip(above[1::2], rows, strict=True)
        return any(
            now is not None and (now["state"] in ("failed", "cancelled") or now.get("life", 0) != int(life))
            for life, now in lives
        )

    def _after_member(self, id: str, row: FlowRow, plan: Plan, look: Look) -> bool | None:
        """Do what is due in a flow that is at a group."""
        number, group = row["stage"], cast("Group", plan["stages"][row["stage"]])
        total, at_once, policy = group["total"], group["at_once"], group["on_error"]
        [counts] = self._backend.counts_of([group_key(id, number)], timeout_s=self._timeout_s)
        has_ended = counts.ended >= total
        has_failed = counts.bad > 0 if has_ended else policy == "fail" and counts.bad > row.get("bad", 0)
        room = None if at_once is None else max(0, at_once - max(0, counts.sent - counts.ended))
        if row.get("left") and room:
            self._give_left(id, row, plan, counts, room)
            return None
        if counts.cancelled and (has_failed or has_ended) and self._give_late(id, row, plan, room):
            return None
        if has_failed and policy != "collect":
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
        return at_once is not None  # each end lets another one begin, until the last

    def _next(
        self,
        id: str,
        row: FlowRow,
        plan: Plan,
        given: str,
        look: Look,
        *,
        lost: str = "",
        also: Sequence[Write] = (),
    ) -> bool:
        """Begin the stage after the one at which a flow is, or end the flow; return whether all was as it was read."""
        number = row["stage"] + 1
        if number == len(plan["stages"]):
            return self._ended(id, row, plan, "done", look, given=given, lost=lost, also=also)
        new, message, entries = row.copy(), None, list[Entry]()
        new["stage"], new["given"] = number, given
        new.pop("bad", None)
        new.pop("left", None)
        if number in row["groups"]:
            new["sending"] = look.resumes = True
            entries.append(look.entry(id, f"sent.{number}", row, LOOKED_AFTER_S))
        else:
            message = self._step(id, new, plan, number, given)
        write = self._write(id, row, new)
        if message is not None and len(write.text or "") + len(plan["text"]) < _LONG:  # before another thread ends it
            if len(self._seen) >= _MOST_SEEN:
                self._seen = {}
            self._seen[id] = {**new, "version": row.get("version", 0) + 1}, plan
        is_done = self._committed([*also, write], message, entries, look.deadline, is_first=bool(also))
        if not is_done:
            self._seen.pop(id, None)
        return is_done

    def _ended(
        self,
        id: str,
        row: FlowRow,
        plan: Plan,
        state: FlowState,
        look: Look,
        *,
        end: Sequence[str] = (),
        given: str | None = None,
        lost: str = "",
        also: Sequence[Write] = (),
    ) -> bool:
        """Have a flow be at its end, and publish the callback that comes first, if there is one."""
        new = row.copy()
        new["state"], new["ended_at"], new["end"] = state, round(self._bridge.now(), 6), [*end]
        for name in ("sending", "reopened", "bad", "left"):
            cast("Any", new).pop(name, None)
        if given is not None:
            new["given"] = given
        if lost:
            new["lost"] = lost
        first = "failure" if state == "failed" and plan["failure"] else "end" if plan["end"] else ""
        return self._called_back(id, row, new, plan, first, look, also)

    def _called_back(
        self, id: str, row: FlowRow, new: FlowRow, plan: Plan, key: str, look: Look, also: Sequence[Write] = ()
    ) -> bool:
        """Write a row, and publish this callback; with none, the flow is closed: its texts are kept for a while."""
        was_open, message, writes = row["state"] == "running", None, [*also]
        is_looked_after = key or row["groups"] or row.get("parent")
        entries = [look.entry(id, "over", new, LOOKED_AFTER_S)] if is_looked_after else []
        if key:
            new["callback"] = cast("Any", key)
            message = self._callback(id, new, plan, key)
        else:
            new["closed"], ttl_s = True, self._kept_s(row)
            new.pop("callback", None)
            writes.append(Write(plan_key(id), head_of(plan["text"]), plan["text"], ttl_s))
        writes.append(self._write(id, row, new, ends=was_open))
        if not self._committed(writes, message, entries, look.deadline):
            return False
        if was_open and new["state"] != "done":
            self._bridge.cancellations.add(life_of_flow(id, row.get("life", 0)))
        if was_open or not key:  # one that waits for a callback may be stalled, too
            kept_s, queue = (None, "flow:running") if key else (self._bridge.settings.result_ttl_s, None)
            state, formers = f"flow:{new['state']}", ("flow:running",)
            listed = Listed(f"flow:{id}", state, new.get("ended_at", 0.0), queue, formers, "flow:running", kept_s)
            self._backend.list_soon([listed])
        return True

    def _after_end(self, id: str, row: FlowRow, plan: Plan, look: Look) -> bool | None:
        """Do what is due in a flow that is at its end: tell the message that became it, and call back."""
        self._tell_parent(id, row)
        key = row.get("callback", "")
        record = self._records.get(step_id(id, key, row.get("life", 0)), timeout_s=self._timeout_s) if key else None
        if record is not None and record.state not in states.FINAL:
            return False
        following = "end" if key == "failure" and plan["end"] else ""
        self._called_back(id, row, row.copy(), plan, following, look)
        return None

    def _close(self, id: str, row: FlowRow, look: Look) -> bool:
        """Have what is left of a flow be forgotten in time; return False, for nobody need look after it."""
        if not any("\tover." in each for each in look.entries):
            return False  # a member has ended late
        self._tell_parent(id, row)
        kept_s = self._kept_s(row)
        if row["groups"]:
            keys = [group_key(id, number) for number in row["groups"]]
            self._backend.end_groups(keys, kept_s=kept_s, timeout_s=self._timeout_s)
        large = [each for each in row["groups"] if row["totals"][each] > PAGE] if kept_s is not None else []
        pages, life = row.get("pages", ""), row.get("life", 0)
        left = [entry_id(id, f"left/{pages}/{each}/{row['totals'][each]}", life) for each in large]
        if left and kept_s is not None:  # calls that were never published
            entries = [Entry(each, LOOK, kept_s + 3600.0) for each in left]
            self._backend.commit([Commit((), entries)], timeout_s=self._timeout_s)
        return False

    def _first_bad(self, id: str, stage: int, total: int) -> list[str]:
        """Return what is told of the first member of a group that has ended badly."""
        for first in range(0, total, _BATCH):
            count = min(_BATCH, total - first)
            ends = self._backend.members(group_key(id, stage), first, count, timeout_s=self._timeout_s)
            for index, end in enumerate(ends, first):
                if end is not None and end[0] != "done":
                    (reason, error), step = bad_end(end[1]), step_id(id, f"{stage}/{index}")
                    record = self._records.get(step, timeout_s=self._timeout_s)
                    return [step, "" if record is None else record.task, end[0], reason, *_pair(error)]
        return []

    # What a task returns by `become`

    def become(self, message: Message, flow: Flow[Any], *, timeout_s: float) -> None:
        """Have a message end with a flow, which is begun; both in one act, and both no second time (rule W14)."""
        look, flow_id = Look(monotonic() + timeout_s, resumes=True, waits=True), step_id(message.life, "became")
        decide = self._records.became(message, flow_id, self._bridge.now())
        text, row = self._planned(flow, flow_id, look)
        row["parent"] = [message.id, message.replays]
        if message.flow:
            place = place_of(message.flow)
            row["above"] = [*place.above, place.flow, place.life][-_MOST_ABOVE:]
        deadline = monotonic() + timeout_s  # for all tries: each sets its own in `look`; and planning may take long
        while self._row(flow_id) is None:
            [found] = self._get(key_of(message.id))
            decided = decide(stored.unpacked(found))
            if decided is None:
                return
            if self._created(flow_id, row, text, [decided[1]], look):
                if decided[0].get("cancel_asked"):
                    self.cancel(flow_id)
                return
            if monotonic() >= deadline:
                raise StoreUnavailable("others change the same record")

    def _tell_parent(self, id: str, row: FlowRow) -> None:
        """End the message that became this flow, as the flow has ended."""
        if not (parent := row.get("parent")):
            return
        end, at, state = end_of(id, row), row.get("ended_at", 0.0), row["state"]
        error = ErrorInfo(type=end.error_type, message=end.error) if end.error_type else None

        def decide(old: states.Row | None) -> states.Row | None:
            if (now := self._row(id)) is None or now.get("life", 0) != row.get("life", 0):
                return None  # it was reopened since
            lost, flow = row.get("lost", ""), "" if old is None else old.get("flow", "")
            if state == "done" and lost and flow and "r" in place_of(flow).flags:  # what follows can't have it
                info = ErrorInfo.of(EncodeError("result", lost))
                ending = Ending(state="dead", at=at, reason="gave_up", error=info)
            elif state == "done":
                ending = Ending(state="done", at=at, result_json=None if lost else row.get("given"), reason=lost)
            elif state == "failed" and end.ended != "cancelled":
                ending = Ending(state="dead", at=at, reason="flow_failed", error=error)
            else:
                ending = Ending(state="cancelled", at=at)
            return transitions.flow_ended(old, id, ending)

        self._records.change(parent[0], decide, timeout_s=self._timeout_s)

    # Cancelling, and going on again

    def cancel(self, id: str) -> FlowStatus:
        """Cancel a flow unless it has ended, and return its status after that."""
        while (row := self._known(id))["state"] not in FINAL:
            [text] = self._get(plan_key(id))
            look = Look(self._deadline())
            if self._ended(id, row, plan_of(text), "cancelled", look):
                self.look_after(id, look)
                self.advance_due()
        return self.status(id)

    def filled(self, message: Message, *, timeout_s: float) -> Message:
        """Return a step with its first argument, which was too large to travel with it."""
        place = place_of(message.flow)
        [text] = self._backend.get([row_key(place.flow)], timeout_s=timeout_s)
        if (row := unpacked(text)) is None:
            raise NoSuchRecord(place.flow, kind="flow")
        given, args = row.get("given", "null"), message.args_json
        args = f"[{given}]" if args == "[]" else f"[{given},{args[1:]}"
        flow = place._replace(flags=place.flags.replace("g", "")).dumps()
        return replace(message, args_json=args, plain=None, flow=flow)


def _is_at(row: FlowRow, place: Place) -> bool:
    """Return whether a flow runs, and is at a step."""
    return (row["state"], row["stage"], row.get("life", 0)) == ("running", place.stage, place.life)


def _bad_of(record: Status) -> list[str]:
    """Return what is told of a step that ended badly."""
    return [record.id, record.task, record.state, record.reason, *_pair(record.error)]


def _pair(error: ErrorInfo | None) -> tuple[str, str]:
    return ("", "") if error is None else (error.type, error.message)


def _digest(flow: Flow[Any]) -> str:
    """Return a hash of what a flow calls; of what groups read once, only what they are."""
    parts: list[Any] = []
    for stage in flow.stages:
        members = stage.members
        are_known = isinstance(members, Collection) and len(members) <= PAGE
        calls = [stage.call] if stage.call is not None else members if are_known and members is not None else ()
        count = len(members) if isinstance(members, Collection) else None
        parts.append([count, stage.at_once, stage.on_error, stage.takes_result, [_call(each) for each in calls]])
    return hash_of([parts, *(None if each is None else _call(each) for each in (flow.failure, flow.end))], "id")


def _call(call: Any) -> list[Any]:
    return [call.declaration.name, *call.encoded()[:2]]
