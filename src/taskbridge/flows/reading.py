"""Tells of flows: their status, lists of them, and what they return. Nothing here changes one."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from itertools import islice, repeat
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from taskbridge import codec, exceptions
from taskbridge.durations import Duration, moment
from taskbridge.flows.plan import FlowRow, Group, end_of, plan_key, plan_of, row_key, step_id, unpacked
from taskbridge.flows.results import Results, read_by
from taskbridge.flows.states import FINAL, STATES, FlowState, FlowStatus, Outcome
from taskbridge.results import Awaited, value_of
from taskbridge.stores import states
from taskbridge.stores.backend import COUNTED, Listed
from taskbridge.stores.states import Status
from taskbridge.stores.steps import CALLBACKS, bad_end, group_key
from taskbridge.stores.transitions import life_of

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge
    from taskbridge.sending import Sending
    from taskbridge.stores.backend import Backend, Counts
    from taskbridge.stores.base import Store
    from taskbridge.stores.records import Records

_STALLED_S: Final = 60.0  # how long nothing is heard of a step before it is looked for
_LOOK_AGAIN_S: Final = 2.0  # how often who waits for a flow looks, though nobody tells
_MOST_LISTED: Final = 1000  # how many flows are looked at together


class Reading:
    """What is known of a bridge's flows. Threads share it.

    Its methods raise `UnsupportedError` if the bridge has no store (rule W15), `StoreUnavailable` if that does not
    answer within `send_timeout`, and `NoSuchRecord` for a flow that is not known.
    """

    def __init__(self, bridge: Bridge, sender: Sending) -> None:
        self._bridge = bridge
        self._sender = sender

    # The store

    @property
    def _store(self) -> Store:
        store = self._bridge.store
        if store is None:
            remedy = "a flow needs a store: set one (TASKBRIDGE_STORE=redis://localhost:6379/0, say)"
            raise exceptions.UnsupportedError("W15", self._bridge.settings.url.target, remedy)
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

    def _get(self, *keys: str) -> list[str | None]:
        return self._backend.get(keys, timeout_s=self._timeout_s)

    def _row(self, id: str) -> FlowRow | None:
        return unpacked(self._get(row_key(id))[0])

    def _known(self, id: str) -> FlowRow:
        row = self._row(id)
        if row is None:
            raise exceptions.NoSuchRecord(id, kind="flow")
        return row

    # Looking

    def status(self, id: str) -> FlowStatus:
        """Return what is known of a flow; it costs the same however many steps there are (rule W9)."""
        return self._statuses({id: self._known(id)}, looks=True)[0]

    def list(
        self, *, state: FlowState | None = None, before: tuple[float, str] = (inf, ""), most: int = 50
    ) -> Sequence[FlowStatus]:
        """Return flows of a state, of all if None: the latest first, those before a time and an id.

        Running flows are in the order of their beginning, the others in that of their end. `oldest` of a group is left
        out of those that have just begun.
        """
        names = [f"flow:{each}" for each in (STATES if state is None else (state,))]
        place, count, rows = (before[0], f"flow:{before[1]}"), most, dict[str, FlowRow]()
        while True:  # again, for those that are gone
            lists = self._backend.listed("state", names, before=place, most=count, timeout_s=self._timeout_s)
            named = [(at, key, name) for name, each in zip(names, lists, strict=True) for key, at in each]
            found = heapq.nlargest(count, named)
            rows |= self._listed([(key, name) for _, key, name in found])
            if len(rows) >= most or len(found) < count:
                return self._statuses(dict(islice(rows.items(), most)))
            place, count = found[-1][:2], min(2 * count, _MOST_LISTED)

    def _listed(self, found: Sequence[tuple[str, str]], *, are_called_back: bool = False) -> dict[str, FlowRow]:
        """Return flows, each found in a list; those that don't belong there any more leave it.

        `are_called_back` is whether those belong there, too, that are at their end and wait for a callback.
        """
        texts = self._get(*(row_key(key.removeprefix("flow:")) for key, _ in found)) if found else []
        rows, gone = dict[str, FlowRow](), list[Listed]()
        for (key, name), text in zip(found, texts, strict=True):
            row = unpacked(text)
            is_there = row is not None and name == f"flow:{row['state']}"
            if row is not None and (is_there or (are_called_back and _is_called_back(row))):
                rows[key.removeprefix("flow:")] = row
            else:
                gone.append(Listed(key, formers=(name,), freed="flow:running"))
        if gone:
            self._backend.list_soon(gone)
        return rows

    def counts(self) -> Mapping[str, int]:
        """Return how many flows are in each state, as far as they are kept; `stalled` as that counts."""
        names = [f"flow:{each}" for each in STATES]
        numbers = self._backend.count_listed(names, timeout_s=self._timeout_s)
        return {**dict(zip(STATES, numbers, strict=True)), "stalled": len(self.stalled())}

    def stalled(self, *, most: int = 100) -> Sequence[FlowStatus]:
        """Return which of so many flows that have run longest are stalled (rule W11)."""
        names, last = ["flow:running"], (inf, "")
        [found] = self._backend.listed("queue", names, before=last, most=most, timeout_s=self._timeout_s)
        rows = self._listed([(key, "flow:running") for key, _ in found], are_called_back=True)
        return [each for each in self._statuses(rows) if each.is_stalled]

    def steps(self, id: str, *, first: int = 0, most: int = 50) -> Sequence[Status]:
        """Return the records of a flow's steps that have one, in order, from this one on, and of its callbacks."""
        row, at, keys = self._known(id), 0, list[str]()
        for number, total in enumerate(row["totals"][: row["stage"] + 1]):
            part = range(max(0, first - at), min(total, first - at + most))
            keys += [f"{number}/{each}" if number in row["groups"] else str(number) for each in part]
            at += total
        ids = [step_id(id, key) for key in keys[:most]]
        if first + most >= at:
            ids += [step_id(id, key, row.get("life", 0)) for key in CALLBACKS]
        return [each for each in self._records.find(ids, timeout_s=self._timeout_s) if each is not None]

    def _statuses(self, rows: Mapping[str, FlowRow], *, looks: bool = False, asks: bool = True) -> Sequence[FlowStatus]:
        """Return what is known of flows, in a few questions for all; of the open groups, one each.

        What waits for a minute is stalled; if this `asks`, only where nothing waits in its queue, as far as is known.
        """
        now = self._bridge.now()
        groups = [(each, number) for each, row in rows.items() for number in row["groups"] if number <= row["stage"]]
        keys = [group_key(*each) for each in groups]
        found = self._backend.counts_of(keys, timeout_s=self._timeout_s) if keys else []
        counted, oldest = dict(zip(groups, found, strict=True)), dict[str, str]()
        for each, row in rows.items():
            at = row["stage"]
            if at not in row["groups"]:
                oldest[each] = step_id(each, str(at))
            elif looks or (row["state"] == "running" and now - row["created_at"] > _STALLED_S):
                index = self._backend.first_open(group_key(each, at), row["totals"][at], timeout_s=self._timeout_s)
                index = row["totals"][at] - 1 if index is None else index  # if all have ended, the flow goes on soon
                oldest[each] = step_id(each, f"{at}/{index}")
        called = {each: _called_back(each, row) for each, row in rows.items() if _is_called_back(row)}
        ids = [*oldest.values(), *called.values()]
        known = self._records.find(ids, timeout_s=self._timeout_s)
        records = dict(zip(ids, known, strict=True))
        awaited = {each: called.get(each) or oldest.get(each, "") for each in rows}
        gone = self._gone([record for step in awaited.values() if (record := records.get(step)) is not None])
        waits = cache(self._bridge.counts if asks else lambda: None)

        def is_stalled(id: str, row: FlowRow) -> bool:
            step = awaited[id]
            return self._is_stalled(row, step, records.get(step), waits, is_gone=step in gone)

        return [
            self._status(
                each, row, counted, oldest.get(each, ""), records.get(oldest.get(each, "")), is_stalled(each, row)
            )
            for each, row in rows.items()
        ]

    def _gone(self, records: Sequence[Status]) -> Collection[str]:
        """Return the ids of those that have run for a minute, as far as they tell, and are run by no live worker."""
        now = self._bridge.now()
        running = [each for each in records if each.state == "running" and not each.became]
        silent = [each for each in running if now - _heard_at(each) > _STALLED_S]
        if not silent:
            return ()
        keys = {each.id: f"{life_of(each)}:{each.attempts[-1].number}" for each in silent if each.attempts}
        gone = self._store.marks.gone_of([*keys.values()], timeout_s=self._timeout_s)
        return {each for each, key in keys.items() if key in gone}

    def _status(
        self,
        id: str,
        row: FlowRow,
        counted: Mapping[tuple[str, int], Counts],
        oldest: str,
        record: Status | None,
        is_stalled: bool,
    ) -> FlowStatus:
        at, total, own = row["stage"], sum(row["totals"]), counted.get((id, row["stage"]))
        numbers = Counter[str](done=sum(number not in row["groups"] for number in range(at)))
        for number in row["groups"]:
            for name in COUNTED:
                numbers[name] += getattr(counted.get((id, number)), name, 0)
        is_over = own is None and record is not None and record.state in states.FINAL
        if record is not None:
            numbers[record.state] += is_over
        with_broker = own.sent - own.ended if own is not None else int(record is not None and not is_over)
        ends: dict[str, Any] = {name: numbers[name] for name in COUNTED}
        return FlowStatus(
            id=id,
            name=row["name"],
            state=row["state"],
            created_at=moment(row["created_at"]),
            ended_at=moment(row.get("ended_at")),
            stage=at + 1,
            stages=len(row["totals"]),
            total=total,
            waiting=max(0, total - sum(ends.values()) - max(0, with_broker)),
            running=max(0, with_broker),
            **ends,
            oldest="" if is_over else oldest,
            end=end_of(id, row) if row.get("end") else None,
            parent=next(iter(row.get("parent", ())), ""),
            is_stalled=is_stalled,
        )

    def _is_stalled(
        self, row: FlowRow, step: str, record: Status | None, waits: Callable[[], Any], *, is_gone: bool
    ) -> bool:
        """Return whether nothing goes on with a flow by itself: what it waits for is nowhere, or ended long ago.

        That is its oldest step, or a callback; `is_gone` is whether it was started, and no live worker has it.
        """
        now, is_at_end = self._bridge.now(), row["state"] in FINAL
        if is_at_end and not _is_called_back(row):
            return False
        since = row.get("ended_at", 0.0) if is_at_end else row["created_at"]
        if not step or row.get("sending") or row.get("reopened") or now - since < _STALLED_S:
            return False  # there is an entry in the outbox, or there may be
        if record is None:
            return True
        if record.state in states.FINAL:
            return record.ended_at is not None and now - record.ended_at.timestamp() > _STALLED_S
        if not (is_gone if record.state == "running" else now - _heard_at(record) >= _STALLED_S):
            return False
        counts = waits()
        return counts is None or not (counts.delayed or counts.waiting.get(record.queue))

    # What they return

    def members(self, id: str, stage: int, first: int, count: int) -> Sequence[Any]:
        """Return what members of a group have returned, from one on; with `collect`, their outcomes."""
        row, plan = self._get(row_key(id), plan_key(id))
        if unpacked(row) is None:
            raise exceptions.NoSuchRecord(id, kind="flow")
        collects = cast("Group", plan_of(plan)["stages"][stage])["on_error"] == "collect"
        found = self._backend.members(group_key(id, stage), first, count, timeout_s=self._timeout_s)
        made: list[Any] = []
        for index, each in enumerate(found, first):
            if each is None:
                raise exceptions.NoSuchRecord(step_id(id, f"{stage}/{index}"))
            ended, text = each
            value = self._value(id, f"{stage}/{index}", text) if ended == "done" else None
            if collects:
                reason, error = bad_end(text) if ended != "done" else ("", None)
                value = cast("Any", Outcome)(state=ended, value=value, reason=reason, error=error)
            made.append(value)
        return made

    def _value(self, id: str, key: str, text: str | None) -> Any:
        """Return what a step has returned, of JSON; of which class that may be says its task's declaration."""
        if text is None or (codec.TYPED not in text and codec.RESULTS not in text):
            return None if text is None else codec.loads(text)
        record = self._records.get(step_id(id, key), timeout_s=self._timeout_s)
        task = "" if record is None else record.task
        with read_by(self.members):
            return value_of(task, text, self._bridge.declaration_of(task))

    def result(self, id: str, *, timeout: Duration | None = None) -> Any:
        """Wait for a flow's end, and return what its last step has returned; see `FlowHandle.result`."""
        return self._outcome(id, self._bridge.results.ended(partial(self._awaited, id), timeout))

    async def aresult(self, id: str, *, timeout: Duration | None = None) -> Any:
        """Do as `result` without blocking the event loop, and without holding a thread while it waits."""
        results = self._bridge.results
        row = await results.aended(partial(self._awaited, id), timeout)
        return await results.aside(lambda: self._outcome(id, row))

    def _awaited(self, id: str) -> Awaited[FlowRow]:
        get, watch = partial(self._known, id), partial(self._backend.watch, row_key(id))
        return Awaited(id=id, kind="flow", get=get, doing=_doing, watch=watch, pauses=repeat(_LOOK_AGAIN_S))

    def _outcome(self, id: str, row: FlowRow) -> Any:
        """Return what a flow has returned; raise if it has not."""
        end, last = end_of(id, row), len(row["totals"]) - 1
        match row["state"]:
            case "done":
                given = row.get("given", "null")
                if last in row["groups"]:
                    flow, stage, total, collects = codec.from_json(given)["v"]
                    return Results[Any](flow, stage, total, collects, self.members)
                if row.get("lost"):
                    raise exceptions.ResultNotEncodable(id=step_id(id, str(last)), task="", problem=row.get("lost", ""))
                return self._value(id, str(last), given)
            case "failed" if end.ended == "dead":
                facts = {"reason": end.reason, "type": end.error_type, "message": end.error}
                raise exceptions.TaskFailed(id=end.step, task=end.task, traceback="", **facts)
            case "failed" if end.ended == "discarded":
                raise exceptions.TaskDiscarded(id=end.step, task=end.task, reason=end.reason)
            case "failed" | "cancelled":
                raise exceptions.TaskCancelled(id=end.step or id, task=end.task or row["name"])
            case _:
                raise exceptions.ResultTimeout(id, row["state"], "in time", kind="flow")


def _doing(row: FlowRow) -> str | None:
    return None if row["state"] in FINAL else row["state"]


def _is_called_back(row: FlowRow) -> bool:
    """Return whether a flow is at its end, and waits for a callback."""
    return row["state"] in FINAL and bool(row.get("callback")) and not row.get("closed")


def _called_back(id: str, row: FlowRow) -> str:
    """Return the id of the callback for which a flow waits."""
    return step_id(id, row.get("callback", ""), row.get("life", 0))


def _heard_at(record: Status) -> float:
    """Return when something was last heard of a message, as its record tells, in seconds since the epoch."""
    runs = (at for each in record.attempts for at in (each.started_at, each.ended_at))
    return max(at.timestamp() for at in (record.enqueued_at, record.due_at, *runs) if at is not None)
