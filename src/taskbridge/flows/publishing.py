"""Plans flows, and publishes their steps: each with its record, in one act, so that none is published twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from taskbridge import codec
from taskbridge.durations import seconds, timestamp
from taskbridge.exceptions import BrokerUnavailable, DecodeError, MessageTooLarge, UnsupportedError
from taskbridge.flows.plan import (
    PAGE,
    FlowRow,
    Group,
    Plan,
    Spec,
    call_line,
    calls_key,
    calls_of,
    end_of,
    is_group,
    made,
    plan_text,
)
from taskbridge.flows.reading import Reading
from taskbridge.hooks import Event, HookName
from taskbridge.logs import logger
from taskbridge.message import Message, new_id
from taskbridge.observing import sending
from taskbridge.routing import check_known
from taskbridge.stores.backend import ABSENT, Commit, Entry, Write
from taskbridge.stores.claims import OWN_S
from taskbridge.stores.entries import LOOK, Held, held
from taskbridge.stores.records import key_of
from taskbridge.stores.steps import Place, entry_id, group_key

if TYPE_CHECKING:
    from taskbridge.brokers.redis import RedisBroker
    from taskbridge.flows.building import Flow, Stage
    from taskbridge.tasks import Call

_log = logger("taskbridge.flows")

_BATCH: Final = 1000  # how many members are published before that is noted
_PAGES: Final = 10  # how many pages of calls are written at a time
SENDING_S: Final = 2.0  # for how long the sending of a group is left to who does it
_MOST_STAGES: Final = 100  # in which the calls of a flow are looked for that was never stored
_PAUSE_S: Final = 0.5  # before the store is asked again that was away
_PLANNED_S: Final = 3600.0  # for how long a plan may be in the making
_TRAVELS: Final = 65_536  # characters: what is passed on in the next message; more is read as that starts


@dataclass(slots=True)
class Look:
    """A look after a flow: until when a call may take, whether it goes on with a sending, and its own entries."""

    deadline: float  # monotonic
    resumes: bool = False
    waits: bool = False  # for the store, while the worker runs: the calls of a generator can't be read again
    entries: set[str] = field(default_factory=set[str])
    kept: list[tuple[int, int, str]] | None = None  # the calls of large groups, if they are not to be stored yet

    def entry(self, id: str, what: str, row: FlowRow, in_s: float) -> Entry:
        """Return an entry that has the flow looked after, if whoever looks after it now is killed."""
        made = Entry(entry_id(id, what, row.get("life", 0)), LOOK, in_s)
        self.entries.add(made.id)
        return made


class Publishing(Reading):
    """Plans flows, and publishes their steps."""

    # Plans

    def _planned(self, flow: Flow[Any], id: str, look: Look) -> tuple[str, FlowRow]:
        """Return a flow's plan as a text, and its row; the calls of its large groups are stored."""
        stages, totals, groups, names, pages = list[str](), list[int](), list[int](), list[str](), new_id()
        for number, stage in enumerate(flow.stages):
            if stage.call is not None:
                stages.append(self._spec(stage.call, takes=stage.takes_result))
                totals.append(1)
                names.append(stage.call.declaration.name)
                continue
            is_last = number + 1 == len(flow.stages)
            wants = is_last or flow.stages[number + 1].takes_result
            text, total, name = self._group(id, pages, number, stage, look, wants=wants)
            stages.append(text)
            totals.append(total)
            groups.append(number)
            names.append(name)
        callbacks = (None if each is None else self._spec(each, takes=True) for each in (flow.failure, flow.end))
        row: FlowRow = {
            "name": next(filter(None, names), "group"),
            "state": "running",
            "created_at": round(self._bridge.now(), 6),
            "stage": 0,
            "totals": totals,
            "groups": groups,
        }
        if any(each > PAGE for each in totals):
            row["pages"] = pages
        if 0 in groups:
            row["sending"] = True
        return plan_text(stages, *callbacks), row

    def _group(
        self, id: str, pages: str, number: int, stage: Stage, look: Look, *, wants: bool
    ) -> tuple[str, int, str]:
        """Return a group as JSON, its number of members, and the first one's task; a large one's calls are stored."""
        first, total, name, waiting = "", 0, "", list[tuple[int, int, str]]()
        for page in _pages(stage.members or ()):
            text = self._page(page)
            name = name or page[0].declaration.name
            if not total:
                first = text
            elif total == PAGE:  # there is more than one
                waiting.append((number, 0, first))
            if total:
                waiting.append((number, total // PAGE, text))
            total += len(page)
            if len(waiting) >= _PAGES:
                self._keep(id, pages, waiting, look)
                waiting = []
        self._keep(id, pages, waiting, look)
        head = {"total": total, "at_once": stage.at_once, "on_error": stage.on_error, "wants": wants}
        return codec.to_json({**head, "calls": None if total > PAGE else first}), total, name

    def _keep(self, id: str, pages: str, calls: Sequence[tuple[int, int, str]], look: Look) -> None:
        """Store pages of calls, each with its stage and number; they are removed if their flow is not stored soon."""
        if look.kept is not None:
            look.kept += calls
        elif calls:
            mine = Entry(entry_id(id, f"planned/{pages}", 0), LOOK, _PLANNED_S)
            if mine.id not in look.entries:
                look.entries.add(mine.id)
                self._stored(partial(self._backend.commit, [Commit((), [mine])]), look)
            texts = [(calls_key(id, pages, stage, page), text, None) for stage, page, text in calls]
            for first in range(0, len(texts), _PAGES):  # an application's outbox has them all
                self._stored(partial(self._backend.create, texts[first : first + _PAGES]), look)

    def _stored(self, act: Callable[..., object], look: Look) -> None:
        """Do what stores calls; if the store is away, again, for who waits for it."""
        while True:
            try:
                act(timeout_s=self._timeout_s)
                return
            except BrokerUnavailable:
                if not look.waits or self._bridge.stopping.wait(_PAUSE_S):
                    raise

    def _spec(self, call: Call[Any], *, takes: bool = False) -> str:
        """Return a call as JSON; raise if it can't be a step here."""
        args, kwargs, _ = call.encoded()
        _check_size(call, args, kwargs, self._bridge.settings.max_message_bytes)
        return f'{self._common(call, takes=takes)[:-1]},"args":{codec.to_json(args)},"kwargs":{codec.to_json(kwargs)}}}'

    def _page(self, calls: Iterable[Call[Any]]) -> str:
        """Return calls as a text that `calls_of` reads; raise if one can't be a step here."""
        lines, most, last = list[str](), self._bridge.settings.max_message_bytes, None
        for call in calls:
            if last is None or call.declaration is not last.declaration or call.options is not last.options:
                lines.append(self._common(call))
                last = call
            args, kwargs, _ = call.encoded()
            _check_size(call, args, kwargs, most)
            lines.append(call_line(args, kwargs))
        return "\n".join(lines)

    def _common(self, call: Call[Any], *, takes: bool = False) -> str:
        """Return a call without its arguments as JSON; raise if it can't be a step here."""
        bridge, name = self._bridge, call.declaration.name
        if not call.declaration.results:
            problem = f"task {name!r} is declared with results=False, and a flow needs its records; leave that out"
            raise UnsupportedError("W1", bridge.settings.url.target, problem)
        if call.options.queue is not None:
            check_known(call.options.queue, bridge.queues())
        return _common_of(call, self._sender.way(call.declaration).queue, takes=takes)

    # Messages

    def _step(self, id: str, row: FlowRow, plan: Plan, stage: int, given: str | None) -> Message:
        """Return the message of a single step; what it is given is its first argument, if it takes one."""
        spec, last = cast("Spec", plan["stages"][stage]), len(plan["stages"]) - 1
        following = plan["stages"][stage + 1] if stage < last else None
        is_passed_on = following is not None and not is_group(following) and cast("Spec", following).get("takes")
        takes, is_large = bool(spec.get("takes")), given is not None and len(given) > _TRAVELS
        flags = ("r" if is_passed_on else "") + ("g" if takes and is_large else "")
        place = Place(id, str(stage), row.get("life", 0), 0, flags, tuple(row.get("above", ())))
        return self._message(spec, place, given if takes and not is_large else None)

    def _callback(self, id: str, row: FlowRow, plan: Plan, key: str) -> Message:
        """Return the message of a callback, which is given how the flow ended."""
        spec: Spec = cast("Any", plan)[key]
        return self._message(spec, Place(id, key, row.get("life", 0)), codec.dumps(end_of(id, row), "end"))

    def _message(self, spec: Spec, place: Place, given: str | None) -> Message:
        bridge = self._bridge
        now, declared = bridge.now(), bridge.declaration_of(spec["task"])
        way = None if declared is None else self._sender.way(declared)
        queue = spec.get("queue") or (spec["home"] if way is None else way.queue)
        priority = spec.get("priority") or ("normal" if way is None else way.priority)
        lasts_s = spec.get("expires_s", None if way is None else way.expires_s)
        expires_at = spec.get("expires_at", None if lasts_s is None else now + lasts_s)
        message = made(spec, place, queue=queue, priority=priority, expires_at=expires_at, now=now, given=given)
        return message if bridge.settings.goes_along else replace(message, relayed=True)

    # Publishing

    def _committed(
        self,
        writes: Sequence[Write],
        message: Message | None,
        entries: Sequence[Entry],
        deadline: float,
        *,
        delay_s: float = 0.0,
        is_first: bool = False,
    ) -> bool:
        """Do writes and publish a message, all or nothing; return whether it was done.

        A message whose record is there is published already, or was; nothing is done then, if this `is_first` to try.
        """
        if message is not None and not is_first:
            [found] = self._backend.get([key_of(message.id)], timeout_s=deadline - monotonic())
            message = message if found is None else None
        if message is None:
            return self._backend.commit([Commit(writes, entries)], timeout_s=deadline - monotonic())[0]
        return self._give([message], delay_s, deadline, writes, entries) == 1

    def _give(
        self,
        messages: Sequence[Message],
        delay_s: float,
        deadline: float,
        writes: Sequence[Write] = (),
        entries: Sequence[Entry] = (),
    ) -> int:
        """Publish messages, each with its record, if there is none; return how many. The writes go with the first."""
        bridge, of_hooks = self._bridge, self._bridge.hooks.of
        goes_along = bridge.settings.goes_along
        with sending(bridge.observers, messages) if bridge.observers else nullcontext():
            commits, kept = list[Commit](), list[Held]()
            for message in messages:
                if of_hooks["before_send"]:
                    self._tell("before_send", message, delay_s)
                key, text, kept_s = self._records.created(message, delay_s, message.enqueued_at)
                its, commands = [Write(key, ABSENT, text, kept_s)], list[Any]()
                own: list[Entry] = []
                if goes_along:
                    commands = [*cast("RedisBroker", bridge.broker).commands(message, delay_s)]
                else:
                    kept.append(held(message, delay_s))
                    own = [Entry(kept[-1].key, kept[-1].dumps(), OWN_S)]
                if message is messages[0]:
                    its, own = [*writes, *its], [*entries, *own]
                commits.append(Commit(its, own, commands))
            done = self._backend.commit(commits, timeout_s=deadline - monotonic())
            new = [message for message, is_done in zip(messages, done, strict=True) if is_done]
            self._records.list_sent([(each, delay_s) for each in new])
            self._relayed([each for each, is_done in zip(kept, done, strict=False) if is_done])
        for message in new if of_hooks["after_send"] else ():
            self._tell("after_send", message, delay_s)
        if new and bridge.settings.url.engine == "inline":
            bridge.work_is_there()
        return len(new)

    def _relayed(self, kept: Sequence[Held]) -> None:
        """Publish what was put in the outbox; if that fails, a worker's relay does so when the broker is back."""
        try:
            if kept:
                self._bridge.relay.publish(kept, timeout_s=self._timeout_s)
        except BrokerUnavailable as exc:
            _log.warning("%d steps stay in the outbox until the broker is back: %s", len(kept), exc.problem)

    def _tell(self, name: HookName, message: Message, delay_s: float) -> None:
        hooks, declared = self._bridge.hooks, self._bridge.declaration_of(message.task)
        arguments_of = None if declared is None else lambda: declared.arguments_of(message)
        hooks.call(Event(name=name, message=message, delay_s=delay_s, arguments_of=arguments_of))

    # Groups

    def _members(self, id: str, row: FlowRow, group: Group, indexes: Iterable[int]) -> Iterator[Place]:
        """Yield the places of members of the group at which a flow is."""
        flags = ("r" if group["wants"] else "") + ("b" if group["on_error"] == "fail" else "")
        flags += "a" if group["at_once"] else ""
        stage, life, total, above = row["stage"], row.get("life", 0), group["total"], tuple(row.get("above", ()))
        for index in indexes:
            yield Place(id, f"{stage}/{index}", life, total, flags, above)

    def _give_members(self, id: str, row: FlowRow, plan: Plan, upto: int, sent: int) -> None:
        """Publish members of the group at which a flow is, from the first one that may not be published yet."""
        stage, group, life = row["stage"], cast("Group", plan["stages"][row["stage"]]), row.get("life", 0)
        ready_at = row["created_at"] + row.get("delay_s", 0.0) if stage == 0 and row.get("delay_s") else 0.0
        while sent < upto:
            specs = self._calls(id, row, group, sent, min(upto, sent + _BATCH))
            if not specs:
                [counts] = self._backend.counts_of([group_key(id, stage)], timeout_s=self._timeout_s)
                if counts.sent > sent:  # another one is ahead, and has removed them
                    sent = counts.sent
                    continue
                raise DecodeError(f"the calls of group {stage} of flow {id} are gone")
            delay_s = max(0.0, ready_at - self._bridge.now()) if ready_at else 0.0
            places = self._members(id, row, group, range(sent, sent + len(specs)))
            messages = [self._message(spec, place, None) for spec, place in zip(specs, places, strict=True)]
            self._give(messages, delay_s, self._deadline())
            before, sent = sent, sent + len(specs)
            self._backend.note_sent(group_key(id, stage), sent, timeout_s=self._timeout_s)
            self._forget(id, row, group, before, sent)
            if sent < upto:
                mine = Entry(entry_id(id, f"sent.{stage}", life), LOOK, SENDING_S)
                self._backend.commit([Commit((), [mine])], timeout_s=self._timeout_s)
                found = self._row(id)
                if found is None or found["state"] != "running" or found["stage"] != stage:
                    return

    def _forget(self, id: str, row: FlowRow, group: Group, before: int, sent: int) -> None:
        """Remove those pages of a group's calls that are published."""
        last = sent // PAGE + (sent == group["total"])
        pages = [calls_key(id, row.get("pages", ""), row["stage"], page) for page in range(before // PAGE, last)]
        if pages and group["calls"] is None:
            self._backend.remove(pages, timeout_s=self._timeout_s)

    def _calls(self, id: str, row: FlowRow, group: Group, first: int, end: int) -> list[Spec]:
        """Return some calls of the group at which a flow is, as they were stored; none if they are gone."""
        if group["calls"] is not None:
            return calls_of(group["calls"])[first:end]
        pages, calls = range(first // PAGE, (end - 1) // PAGE + 1), list[Spec]()
        for text in self._get(*(calls_key(id, row.get("pages", ""), row["stage"], page) for page in pages)):
            if text is None:
                break
            calls += calls_of(text)
        start = first - pages[0] * PAGE
        return calls[start : start + end - first]

    def _forget_what_is_left(self, id: str, entries: Iterable[str]) -> None:
        """Remove what is left of a flow that is no more, or whose sender has died before it was stored."""
        for what, *facts in (entry.rpartition("\t")[2].partition(".")[0].split("/") for entry in entries):
            if what.isdecimal():  # a member has ended after its group was forgotten
                kept_s = self._bridge.settings.result_ttl_s
                self._backend.end_groups([group_key(id, int(what))], kept_s=kept_s, timeout_s=self._timeout_s)
            elif what == "left":
                for page in range(0, int(facts[2]) // PAGE + 1, PAGE):
                    self._remove_pages(id, facts[0], int(facts[1]), page)
            elif what == "planned":  # all that was written of each stage is there
                for stage in range(_MOST_STAGES):
                    page = 0
                    while self._remove_pages(id, facts[0], stage, page):
                        page += PAGE

    def _remove_pages(self, id: str, pages: str, stage: int, first: int) -> bool:
        """Remove a hundred pages of calls from one on, and return whether any was there."""
        keys = [calls_key(id, pages, stage, page) for page in range(first, first + PAGE)]
        are_there = any(self._get(*keys))
        if are_there:
            self._backend.remove(keys, timeout_s=self._timeout_s)
        return are_there


def _check_size(call: Call[Any], args: str, kwargs: str, most: int) -> None:
    size = len(args) + len(kwargs)
    if size > most:
        raise MessageTooLarge(call.declaration.name, size, most)


def _common_of(call: Call[Any], home: str, *, takes: bool) -> str:
    """Return a call without its arguments as JSON: a `Spec`."""
    options, plain = call.options, {"task": call.declaration.name, "home": home}
    more: dict[str, Any] = {"queue": options.queue, "priority": options.priority, "takes": takes or None}
    more |= {"headers": dict(options.headers) or None}
    if options.expires is not None:
        at = isinstance(options.expires, datetime)
        its: Any = options.expires
        value = timestamp(its, name="expires") if at else seconds(its, name="expires")
        more["expires_at" if at else "expires_s"] = value
    return codec.to_json(plain | {name: value for name, value in more.items() if value is not None})


def _pages(calls: Iterable[Call[Any]]) -> Iterator[list[Call[Any]]]:
    left = iter(calls)
    while page := list(islice(left, PAGE)):
        yield page
