"""Has flows go on again: what was given up because of a step that ended badly, or was lost (rules W10 and W11)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from time import monotonic
from typing import Any, Final, cast

from taskbridge.flows.plan import PAGE, FlowRow, Group, Plan, Spec, packed, plan_key, row_key, step_id, unpacked
from taskbridge.flows.publishing import Look, Publishing
from taskbridge.flows.states import FINAL, FlowStatus
from taskbridge.message import Message
from taskbridge.stores import records as stored
from taskbridge.stores import states, transitions
from taskbridge.stores.backend import Commit, Entry, Listed, Write, head_of
from taskbridge.stores.claims import OWN_S
from taskbridge.stores.entries import Held, held
from taskbridge.stores.records import head_of_row, key_of
from taskbridge.stores.states import status_of
from taskbridge.stores.steps import LOOKED_AFTER_S, Place, entry_id, group_key, life_of_flow, place_of

_BATCH: Final = 1000  # how many members are read at a time


class Reopening(Publishing):
    """Has flows go on again."""

    @abstractmethod
    def look_after(self, id: str, look: Look) -> None:
        """Do what is due in a flow, and remove the entries of whoever does, unless it is looked after again."""

    def _write(self, id: str, row: FlowRow, new: FlowRow, *, ends: bool = False) -> Write:
        """Return a write of a row, if it is as it was read; one that ends the flow keeps its steps from starting."""
        version = row.get("version", 0)
        kept_s = self._bridge.settings.result_ttl_s if new.get("closed") else None
        write = Write(row_key(id), str(version), packed(new, version + 1), kept_s, tells=new["state"] in FINAL)
        if ends and new["state"] != "done":
            write.cancels = life_of_flow(id, row.get("life", 0))
            write.cancellation_kept_s = transitions.CANCELLATION_KEPT_S
        return write

    def _changed(self, id: str, row: FlowRow, **changes: Any) -> bool:
        """Change a row if it is as it was read; None takes a field out."""
        new: Any = {name: value for name, value in {**row, **changes}.items() if value is not None}
        return self._backend.commit([Commit([self._write(id, row, new)])], timeout_s=self._timeout_s)[0]

    def _members(self, id: str, stage: int, total: int) -> Iterator[tuple[int, tuple[Any, str | None]]]:
        """Yield the members of a group that have ended."""
        for first in range(0, total, _BATCH):
            count = min(_BATCH, total - first)
            found = self._backend.members(group_key(id, stage), first, count, timeout_s=self._timeout_s)
            yield from ((first + at, each) for at, each in enumerate(found) if each is not None)

    def retry(self, id: str, *, is_step: bool = False) -> FlowStatus:
        """Go on with a flow that failed, was cancelled or is stalled, and return its status after that.

        One that `is_step` of a flow which was reopened goes on again if it runs, too: its own steps may start no more.
        """
        row = self._known(id)
        if (
            row["state"] in ("failed", "cancelled")
            or is_step
            or self._statuses({id: row}, looks=True, asks=False)[0].is_stalled
        ):
            _, writes, entries = self._reopening(id, row, again=True)
            self._backend.commit([Commit(writes, entries)], timeout_s=self._timeout_s)
            self.look_after(id, Look(self._deadline(), resumes=True, entries={entries[0].id}))
        return self.status(id)

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
            self.look_after(each, Look(self._deadline(), resumes=True))
        return tuple(each.message.id for each in kept)

    def _reopening(self, id: str, row: FlowRow, *, again: bool) -> tuple[FlowRow, list[Write], list[Entry]]:
        """Return what has a flow go on, in another life; `again` is whether all that ended badly is to run again.

        What waits of the life before starts no more. It is published again, when this was done. The message that became
        the flow waits for it again before that, and so does the flow of which that is a step.
        """
        for parent in row.get("parent", ())[:1]:
            self._reopen_parent(id, parent)
        new: Any = {name: value for name, value in row.items() if name not in ("ended_at", "callback", "closed", "end")}
        new["life"], new["state"], new["reopened"] = row.get("life", 0) + 1, "running", "again" if again else "given up"
        if above := row.get("above"):
            rows = map(unpacked, self._get(*(row_key(each) for each in above[::2])))
            lives = (life if now is None else now.get("life", 0) for life, now in zip(above[1::2], rows, strict=True))
            new["above"] = [*chain.from_iterable(zip(above[::2], lives, strict=True))]
        writes = [self._write(id, row, new, ends=True)]
        if row.get("closed"):
            [text] = self._get(plan_key(id))
            writes.append(Write(plan_key(id), head_of(text), text))
            if row["groups"]:
                keys = [group_key(id, number) for number in row["groups"]]
                self._backend.end_groups(keys, kept_s=None, timeout_s=self._timeout_s)
        if row["state"] in FINAL:
            formers = (f"flow:{row['state']}",)
            running = Listed(f"flow:{id}", "flow:running", row["created_at"], "flow:running", formers)
            self._backend.list_soon([running])
        return new, writes, [Entry(entry_id(id, "again", new["life"]), "flow", LOOKED_AFTER_S)]

    def _reopen_parent(self, id: str, message_id: str) -> None:
        """Have the message that became a flow wait for it again, and the flow of which that is a step go on."""
        while True:
            [text] = self._get(key_of(message_id))
            old = stored.unpacked(text)
            new = transitions.flow_reopened(old, id)
            if old is None or new is None:
                return
            writes = [self._records.replacing(message_id, old, head_of_row(old), new)]
            entries, uncounts = list[Entry](), list[tuple[str, int]]()
            if (flow := old.get("flow")) and not (place := place_of(flow)).is_callback:
                row = self._row(place.flow)
                if row is not None and row["stage"] == place.stage:
                    if row["state"] in FINAL:
                        _, more, entries = self._reopening(place.flow, row, again=False)
                        writes += more
                    if place.member is not None:
                        uncounts.append((group_key(place.flow, place.stage), place.member))
            if self._backend.commit([Commit(writes, entries, (), uncounts)], timeout_s=self._timeout_s)[0]:
                return

    def _replayed(self, message: Message, delay_s: float) -> Held:
        """Put a dead step that is replayed in the outbox, and have its flow wait for it; both in one act."""
        while True:
            place = place_of(message.flow)
            texts = self._get(key_of(message.id), row_key(place.flow))
            old, row = stored.unpacked(texts[0]), unpacked(texts[1])
            writes, entries, uncounts = list[Write](), list[Entry](), list[tuple[str, int]]()
            sent = message
            if row is not None and not place.is_callback and place.stage == row["stage"]:
                if row["state"] in FINAL:
                    row, writes, entries = self._reopening(place.flow, row, again=False)
                place = place._replace(life=row.get("life", 0), above=tuple(row.get("above", ())))
                sent = replace(message, flow=place.dumps())
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
        stage, again, dead = row["stage"], row.get("reopened") == "again", list[str | None]()
        if stage not in row["groups"]:
            dead.append(self._give_one(id, row, plan, str(stage), again=again))
        else:
            total, key = row["totals"][stage], group_key(id, stage)
            [counts] = self._backend.counts_of([key], timeout_s=self._timeout_s)
            ended = dict(self._members(id, stage, total))
            for index in range(counts.sent):
                found = ended.get(index)
                if found is None or found[0] == "cancelled" or (again and found[0] != "done"):
                    dead.append(self._give_one(id, row, plan, f"{stage}/{index}", again=again))
        if letters := [each for each in dead if each]:
            self._bridge.dead.replay(letters)
        if stage in row["groups"]:
            [counts] = self._backend.counts_of([group_key(id, stage)], timeout_s=self._timeout_s)
            row["bad"], row["sending"] = counts.bad, True

    def _give_one(self, id: str, row: FlowRow, plan: Plan, key: str, *, again: bool) -> str | None:
        """Publish a step again, unless it runs, is done, or is dead; of a dead one, return the id, if it is to run."""
        step = step_id(id, key)
        while True:
            deadline = self._deadline()
            [text] = self._get(key_of(step))
            old, life = stored.unpacked(text), row.get("life", 0)
            if old is not None and old["state"] in ("running", "done"):
                return None
            if old is not None and (became := old.get("became")) and (inner := self._row(became)) is not None:
                if inner["state"] != "done" and (again or old["state"] != "dead"):
                    self.retry(became, is_step=True)
                return None
            if old is not None and old["state"] == "dead":
                return step if again else None
            place = Place(id, key, life)
            if old is not None and (known := old.get("flow")):
                place = place_of(known)
                if place.life == life and old["state"] not in states.FINAL:
                    return None  # it was given again before
            message = self._made_again(row, plan, place._replace(life=life, above=tuple(row.get("above", ()))), old)
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
        calls = None if place.member is None else cast("Group", plan["stages"][place.stage])["calls"]
        if place.member is None:
            message = self._step(place.flow, row, plan, place.stage, row.get("given"))
        elif calls is not None:
            message = self._message(calls[place.member], place, None)
        elif old is not None and (sent := status_of("", old).sent) is not None:
            args, kwargs, headers = sent
            head: Any = {"task": old["task"], "home": old["queue"], "queue": old["queue"], "headers": dict(headers)}
            spec = {**head, "args": args, "kwargs": kwargs}
            message = self._message(cast("Spec", spec), place, None)
        else:
            return None
        return replace(message, relayed=True, replays=0 if old is None else old.get("replays", 0) + 1)
