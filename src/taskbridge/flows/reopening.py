"""Has flows go on again: what was given up because of a step that ended badly, or was lost (rules W10 and W11)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Final, cast

from taskbridge.flows.plan import (
    PAGE,
    FlowRow,
    Group,
    Plan,
    Spec,
    calls_of,
    packed,
    plan_key,
    plan_of,
    row_key,
    step_id,
    unpacked,
)
from taskbridge.flows.publishing import SENDING_S, Look, Publishing
from taskbridge.flows.states import FINAL, FlowStatus
from taskbridge.message import Message
from taskbridge.stores import records as stored
from taskbridge.stores import states, transitions
from taskbridge.stores.backend import Commit, Counted, Counts, Entry, Listed, Write, head_of
from taskbridge.stores.claims import OWN_S
from taskbridge.stores.entries import LOOK, Held, held
from taskbridge.stores.records import head_of_row, key_of
from taskbridge.stores.states import status_of
from taskbridge.stores.steps import LOOKED_AFTER_S, Place, entry_id, group_key, life_of_flow, place_of

_BATCH: Final = 1000  # how many members are read at a time

_given: Final[ContextVar[int | None]] = ContextVar("taskbridge_given_again", default=None)
"""The life of a flow whose dead steps are replayed because it was reopened: they don't reopen it themselves."""


class Reopening(Publishing):
    """Has flows go on again."""

    @abstractmethod
    def look_after(self, id: str, look: Look) -> None:
        """Do what is due in a flow, and remove the entries of whoever does, unless it is looked after again."""

    @abstractmethod
    def advance_due(self) -> None:
        """Do what is due in the flows whose steps this process has counted."""

    def _kept_s(self, row: FlowRow) -> float | None:
        """Return for how many seconds a flow is kept after its end.

        One whose id was chosen is kept as long as what hangs on the id: the records of its steps, and cancellations.
        """
        ttl_s = self._bridge.settings.result_ttl_s
        if ttl_s is None or "digest" not in row:
            return ttl_s
        return max(ttl_s, transitions.STEP_KEPT_S + 60.0, transitions.CANCELLATION_KEPT_S + 60.0)

    def _write(self, id: str, row: FlowRow, new: FlowRow, *, ends: bool = False) -> Write:
        """Return a write of a row, if it is as it was read; one that ends the flow keeps its steps from starting."""
        version, kept_s = row.get("version", 0), self._kept_s(new) if new.get("closed") else None
        write = Write(row_key(id), str(version), packed(new, version + 1), kept_s, tells=new["state"] in FINAL)
        if ends and new["state"] != "done":
            write.cancels = life_of_flow(id, row.get("life", 0))
            write.cancellation_kept_s = transitions.CANCELLATION_KEPT_S
        return write

    def _changed(self, id: str, row: FlowRow, **changes: Any) -> bool:
        """Change a row if it is as it was read; None takes a field out."""
        new: Any = {name: value for name, value in {**row, **changes}.items() if value is not None}
        return self._backend.commit([Commit([self._write(id, row, new)])], timeout_s=self._timeout_s)[0]

    def retry(self, id: str) -> FlowStatus:
        """Go on with a flow that failed, was cancelled or is stalled, and return its status after that.

        Of one at its end whose callback was lost, that is published again, and nothing else.
        """

        def goes_on(row: FlowRow) -> bool:
            is_over = row["state"] in ("failed", "cancelled")
            return is_over or self._statuses({id: row}, looks=True, asks=False)[0].is_stalled

        row = self._row(id)
        if row is not None and row["state"] in FINAL and self._statuses({id: row})[0].is_stalled:
            self._call_again(id, row)
        else:
            self._retry(id, goes_on)
        self.advance_due()
        return self.status(id)

    def _call_again(self, id: str, row: FlowRow) -> None:
        """Publish again the callback for which a flow at its end waits; or go on, if that has ended."""
        key = row.get("callback", "")
        step = step_id(id, key, row.get("life", 0))
        text, plan = self._get(key_of(step), plan_key(id))
        old = stored.unpacked(text)
        if old is not None and old["state"] in states.FINAL:
            self.look_after(id, Look(self._deadline(), resumes=True))
            return
        replays = 0 if old is None else old.get("replays", 0) + 1
        message = replace(self._callback(id, row, plan_of(plan), key), relayed=True, replays=replays)
        entry = held(message, 0.0)
        write = self._records.replacing(step, old, head_of(text), transitions.new(message))
        commit = Commit([write], [Entry(entry.key, entry.dumps(), OWN_S)])
        if self._backend.commit([commit], timeout_s=self._timeout_s)[0]:  # else something goes on with it
            self._relayed([entry])

    def _retry(self, id: str, goes_on: Callable[[FlowRow], bool]) -> bool:
        """Reopen a flow if it is one that goes on, and return whether it was reopened."""
        while (row := self._row(id)) is not None and goes_on(row):
            act = _Act()
            self._reopen(id, row, act, again=True)
            if self._done(act):
                self.look_after(id, Look(self._deadline(), resumes=True, entries={each.id for each in act.entries}))
                return True
        return False

    def replay(self, messages: Sequence[tuple[Message, float]]) -> tuple[str, ...]:
        """Replay dead steps, each after a delay in seconds since it was sent, and return their ids (rule W10).

        Their flows go on, if they wait for these steps.
        """
        kept, flows = list[Held](), dict[str, None]()
        for message, delay_s in messages:
            if (replayed := self._replayed(message, delay_s)) is not None:
                kept.append(replayed)
            flows[place_of(message.flow).flow] = None
        for start in range(0, len(kept), PAGE):
            self._bridge.relay.publish(kept[start : start + PAGE], timeout_s=self._timeout_s)
        if _given.get() is None:  # else whoever gives them again looks after the flow
            for each in flows:
                self.look_after(each, Look(self._deadline(), resumes=True))
            self.advance_due()
        return tuple(each.message.id for each in kept)

    def _replayed(self, message: Message, delay_s: float) -> Held | None:
        """Put a dead step that is replayed in the outbox, and have its flow wait for it; both in one act.

        None if it is given again with others of its flow, and that has ended again meanwhile, or others have done so.
        """
        life = _given.get()
        while True:
            act, place, sent = _Act(), place_of(message.flow), message
            texts = self._get(key_of(message.id), row_key(place.flow))
            old, row = stored.unpacked(texts[0]), unpacked(texts[1])
            if life is not None and (row is None or (row["state"], row.get("life", 0)) != ("running", life)):
                return None
            if life is not None and old is not None and (flow := old.get("flow")) and place_of(flow).life == life:
                return None
            if row is not None and not place.is_callback and place.stage == row["stage"]:
                row = self._reopen(place.flow, row, act, again=False) if row["state"] in FINAL else row
                place = place._replace(life=row.get("life", 0), above=tuple(row.get("above", ())))
                sent = replace(message, flow=place.dumps())
            elif not place.is_callback:
                sent = replace(message, flow="")  # the flow has gone on without it, or is gone
            new = transitions.created(old, sent, delay_s)
            if new is not None:  # else somebody has done so before, and perhaps it has ended again
                act.writes.append(self._records.replacing(sent.id, old, head_of(texts[0]), new))
                if sent.flow:
                    act.uncount(place)
            entry = held(sent, delay_s, "replayed")
            act.entries.append(Entry(entry.key, entry.dumps(), OWN_S))
            if self._done(act):
                return entry

    def _done(self, act: _Act) -> bool:
        """Do an act, and return whether all in it was as it was read."""
        commit = Commit(act.writes, act.entries, (), act.uncounts)
        is_done = self._backend.commit([commit], timeout_s=self._timeout_s)[0]
        for each, row in act.rows.items() if is_done else ():
            self._bridge.cancellations.add(life_of_flow(each, row.get("life", 0) - 1))
        return is_done

    def _reopen(self, id: str, row: FlowRow, act: _Act, *, again: bool) -> FlowRow:
        """Have a flow go on in another life, and return its row; `again` is whether all that ended badly runs again.

        What waits of the life before starts no more. It is published again, when this was done. In the same act, the
        message that became the flow waits for it again, and the flow of which that is a step goes on.
        """
        for parent in row.get("parent", ())[:1]:
            self._reopen_parent(id, parent, act)
        new: Any = {name: value for name, value in row.items() if name not in ("ended_at", "callback", "closed", "end")}
        new["life"], new["state"], new["reopened"] = row.get("life", 0) + 1, "running", "again" if again else "given up"
        if above := row.get("above"):
            rows = [act.rows.get(each) or self._row(each) for each in above[::2]]
            lives = (life if now is None else now.get("life", 0) for life, now in zip(above[1::2], rows, strict=True))
            new["above"] = [*chain.from_iterable(zip(above[::2], lives, strict=True))]
        act.rows[id] = new
        act.writes.append(self._write(id, row, new, ends=True))
        act.entries.append(Entry(entry_id(id, "again", new["life"]), LOOK, LOOKED_AFTER_S))
        if row.get("closed"):
            [text] = self._get(plan_key(id))
            act.writes.append(Write(plan_key(id), head_of(text), text))
            if row["groups"]:
                keys = [group_key(id, number) for number in row["groups"]]
                self._backend.end_groups(keys, kept_s=None, timeout_s=self._timeout_s)
        if row["state"] in FINAL:
            formers = (f"flow:{row['state']}",)
            running = Listed(f"flow:{id}", "flow:running", row["created_at"], "flow:running", formers)
            self._backend.list_soon([running])
        return act.rows[id]

    def _reopen_parent(self, id: str, message_id: str, act: _Act) -> None:
        """Have the message that became a flow wait for it again, and the flow of which that is a step go on."""
        [text] = self._get(key_of(message_id))
        old = stored.unpacked(text)
        new = transitions.flow_reopened(old, id)
        if old is None or new is None:
            return
        act.writes.append(self._records.replacing(message_id, old, head_of_row(old), new))
        if (flow := old.get("flow")) and not (place := place_of(flow)).is_callback:
            row = self._row(place.flow)
            if row is not None and row["stage"] == place.stage:
                if row["state"] in FINAL:
                    self._reopen(place.flow, row, act, again=False)
                act.uncount(place)

    def _give_again(self, id: str, row: FlowRow, plan: Plan) -> None:
        """Publish again what was given up as a flow ended, or was lost; and what ended badly, if that is asked for.

        With `at_once`, what has ended waits for its turn: see `_give_left`.
        """
        stage, again = row["stage"], row.get("reopened") == "again"
        if stage not in row["groups"]:
            self._give_steps(id, row, plan, [str(stage)], again=again)
            return
        key, mine = group_key(id, stage), entry_id(id, "again", row.get("life", 0))
        at_once = cast("Group", plan["stages"][stage])["at_once"]
        [counts] = self._backend.counts_of([key], timeout_s=self._timeout_s)
        most = min(row["totals"][stage], counts.sent + _BATCH)  # so many may be published, and not noted yet
        for first in range(0, most, _BATCH):
            ends = self._backend.members(key, first, min(_BATCH, most - first), timeout_s=self._timeout_s)
            left = [
                index
                for index, end in enumerate(ends, first)
                if end is None or (at_once is None and _is_left(end, again=again))
            ]
            unsure = [index for index in left if index >= counts.sent]
            texts = self._get(*(key_of(step_id(id, f"{stage}/{index}")) for index in unsure)) if unsure else []
            unsent = {index for index, text in zip(unsure, texts, strict=True) if text is None}
            keys = [f"{stage}/{index}" for index in left if index not in unsent]
            self._give_steps(id, row, plan, keys, again=again)
            self._backend.commit([Commit((), [Entry(mine, LOOK, SENDING_S)])], timeout_s=self._timeout_s)
        [counts] = self._backend.counts_of([key], timeout_s=self._timeout_s)
        row["bad"], row["sending"] = counts.bad, True
        row.pop("left", None)
        if at_once is not None:
            row["left"] = [0, most, int(again)]

    def _give_left(self, id: str, row: FlowRow, plan: Plan, counts: Counts, room: int) -> None:
        """Publish so many of the next members again that had ended badly as the flow was reopened."""
        key, (first, last, again) = group_key(id, row["stage"]), row.get("left", [0, 0, 0])[:3]
        ends = self._backend.members(key, first, min(_BATCH, last - first), timeout_s=self._timeout_s)
        left = [index for index, end in enumerate(ends, first) if end is not None and _is_left(end, again=bool(again))]
        given = self._give_steps(id, row, plan, [f"{row['stage']}/{index}" for index in left[:room]], again=bool(again))
        following = left[room - 1] + 1 if len(left) >= room else first + len(ends)
        now: FlowRow | None = row
        while now is not None and now.get("life", 0) == row.get("life", 0) and now["state"] == "running":
            at = max(following, now.get("left", [last])[0])  # another one may be further
            more = [at, last, again] if at < last else None
            if self._changed(id, now, left=more, bad=max(0, now.get("bad", 0) - given)):
                return
            now = self._row(id)

    def _give_late(self, id: str, row: FlowRow, plan: Plan, room: int | None = None) -> bool:
        """Publish again what was cancelled with a life of the flow that is over, and return whether anything was.

        If there is `room` for so many of a group's members only, that is one at least, and not many more.

        It still ran as the flow was reopened, and failed after that; or whoever published it did not know of that yet.
        """
        stage, is_given = row["stage"], False
        if not row.get("life"):
            return False
        if stage not in row["groups"]:
            return bool(self._give_steps(id, row, plan, [str(stage)], again=False))
        key, total = group_key(id, stage), row["totals"][stage]
        for first in range(0, total, _BATCH):
            ends = self._backend.members(key, first, min(_BATCH, total - first), timeout_s=self._timeout_s)
            late = [f"{stage}/{index}" for index, end in enumerate(ends, first) if end and end[0] == "cancelled"]
            step = len(late) if room is None else max(1, room)
            while late and not (is_given and room is not None):
                is_given |= bool(self._give_steps(id, row, plan, late[:step], again=False))
                late = late[step:]
        return is_given

    def _give_steps(self, id: str, row: FlowRow, plan: Plan, keys: Sequence[str], *, again: bool) -> int:
        """Publish steps again that neither run nor are done, and return how many were.

        Those that are dead are replayed, if they are to run.
        """
        dead, given = list[str](), 0
        while keys:
            steps, commits, kept = [step_id(id, key) for key in keys], list[Commit](), dict[str, Held]()
            texts = self._get(*map(key_of, steps))
            rows = [stored.unpacked(text) for text in texts]
            gone = self._gone([status_of(step, old) for step, old in zip(steps, rows, strict=True) if old is not None])
            for key, step, text, old in zip(keys, steps, texts, rows, strict=True):
                goes_on = step not in gone and old is not None and self._goes_on_by_itself(row, old, again=again)
                given += goes_on is None
                if goes_on is not False:
                    continue
                if old is not None and old["state"] == "dead":
                    dead += [step] if again else []
                    continue
                message = self._made_again(id, row, plan, key, old)
                if message is None:
                    continue
                act, entry = _Act(), held(message, 0.0)
                act.uncount(place_of(message.flow))
                act.writes.append(self._records.replacing(step, old, head_of(text), transitions.new(message)))
                commits.append(Commit(act.writes, [Entry(entry.key, entry.dumps(), OWN_S)], (), act.uncounts))
                kept[key] = entry
            done = self._backend.commit(commits, timeout_s=self._timeout_s) if commits else []
            self._relayed([entry for entry, is_done in zip(kept.values(), done, strict=True) if is_done])
            given += sum(done)
            keys = [key for key, is_done in zip(kept, done, strict=True) if not is_done]
        if dead:
            token = _given.set(row.get("life", 0))
            try:
                given += len(self._bridge.dead.replay(dead).ids)
            finally:
                _given.reset(token)
        return given

    def _goes_on_by_itself(self, row: FlowRow, old: states.Row, *, again: bool) -> bool | None:
        """Return whether a step runs, is done, or was given again in this life; None if the flow that it became was."""
        life, flow = row.get("life", 0), old.get("flow")
        if old["state"] == "done" or (flow is not None and place_of(flow).life == life):
            return True
        if (became := old.get("became")) and self._row(became) is not None:
            if not again and old["state"] == "dead":
                return True
            # Also one that runs, for its own steps start no more; once in each life.
            is_again = self._retry(became, lambda it: it["state"] != "done" and it.get("above", [-1])[-1] != life)
            return None if is_again else True
        return old["state"] == "running"

    def _made_again(self, id: str, row: FlowRow, plan: Plan, key: str, old: states.Row | None) -> Message | None:
        """Return the message of a step as it starts again, in another life of its own; None if nobody knows it.

        That of a member of a large group, whose record alone tells of it, expires as long after that as at first.
        """
        stage, _, index = key.partition("/")
        if not index:
            message = self._step(id, row, plan, int(stage), row.get("given"))
        else:
            group = cast("Group", plan["stages"][int(stage)])
            [place] = self._members(id, row, group, [int(index)])
            if group["calls"] is not None:
                message = self._message(calls_of(group["calls"])[int(index)], place, None)
            elif old is not None and (sent := status_of("", old).sent) is not None:
                args, kwargs, headers = sent
                home = {"task": old["task"], "home": old["queue"], "queue": old["queue"], "headers": dict(headers)}
                own: dict[str, Any] = {"priority": old.get("priority", "normal")}
                if (expires_at := old.get("expires_at")) is not None:
                    own["expires_s"] = expires_at - old["enqueued_at"]
                message = self._message(cast("Spec", {**home, **own, "args": args, "kwargs": kwargs}), place, None)
            else:
                return None
        return replace(message, relayed=True, replays=0 if old is None else old.get("replays", 0) + 1)


def _is_left(end: tuple[Counted, str | None], *, again: bool) -> bool:
    """Return whether a member that has ended so is published again: it was given up; or all that has ended badly is."""
    return end[0] == "cancelled" or (again and end[0] != "done")


@dataclass(slots=True)
class _Act:
    """What is done in one act as flows are reopened; `rows` are those of these flows then."""

    writes: list[Write] = field(default_factory=list[Write])
    entries: list[Entry] = field(default_factory=list[Entry])
    uncounts: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    rows: dict[str, FlowRow] = field(default_factory=dict[str, FlowRow])

    def uncount(self, place: Place) -> None:
        """Have a member of a group count as ended no more."""
        if place.member is not None:
            self.uncounts.append((group_key(place.flow, place.stage), place.member))
