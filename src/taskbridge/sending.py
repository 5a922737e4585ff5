"""Sending: makes messages, checks them, and hands them to the broker together with their records (rules S and ST1)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import groupby
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from taskbridge.background import in_thread
from taskbridge.durations import LONGEST_DELAY_S, Duration, When, delay_s, seconds, timestamp
from taskbridge.exceptions import (
    BrokerUnavailable,
    IdempotencyConflict,
    MessageTooLarge,
    PartlyPublished,
    SendError,
    TaskBridgeError,
    UniqueConflict,
    UnsupportedError,
)
from taskbridge.handle import Handle
from taskbridge.hooks import Event
from taskbridge.logs import logger, say
from taskbridge.message import MOST_HEADER_BYTES, TYPED_FORM, Message, Priority, new_id
from taskbridge.routing import check_known
from taskbridge.tasks import Call
from taskbridge.unique import STARTS_IN_ORDER, digest_of

if TYPE_CHECKING:
    from types import EllipsisType

    from taskbridge.bridge import Bridge
    from taskbridge.brokers.base import Broker
    from taskbridge.brokers.redis import RedisBroker
    from taskbridge.declaration import Declaration
    from taskbridge.flows.building import Flow
    from taskbridge.stores.base import Store
    from taskbridge.stores.claims import Claims, Intent, Outcome
    from taskbridge.stores.records import Records, Status
    from taskbridge.transactions import Committing, Sends
    from taskbridge.unique import Unique

T = TypeVar("T")
R = TypeVar("R")

_log = logger("taskbridge.send")

_BATCH: Final = 1000  # how many messages `send_many` hands to the broker at a time; each batch has `send_timeout`
_CLAIMED_TOGETHER: Final = 100  # how many unique messages are claimed at a time, each with `send_timeout`
_AFTERWARDS: Final = 0.05
"""What part of the timeout is left at least to remove the records of what was not sent; rule S2 gives a tenth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Way:
    """All that sending a task's messages needs, made once a task; `using` goes before the first three."""

    queue: str
    priority: Priority
    expires_s: float | None
    broker: Broker
    records: Records | None
    claims: Claims | None
    goes_along: bool  # the command that makes the record travels with the message, in one transaction
    timeout_s: float
    has_quorum: bool  # so a queue may keep no priorities
    most_bytes: int
    unique: Unique | None
    clock: Callable[[], float]
    runs_here: bool  # this process runs what it sends, so it is to be told
    at_once: EllipsisType | None  # the `commit` of what waits for no transaction, or that of most such calls


def check_priority(bridge: Bridge, task: str, queue: str, priority: Priority) -> None:
    """Refuse a priority that a queue does not keep (rule RQ2).

    Raises:
        UnsupportedError: It is not `normal`, and the queue is a quorum queue of RabbitMQ before 4.3.
        BrokerUnavailable: Nobody tells which RabbitMQ it is.
    """
    keeps = None if priority == "normal" else getattr(bridge.broker, "keeps_priorities", None)
    if keeps is not None and not keeps(queue, timeout_s=bridge.settings.send_timeout_s):
        raise UnsupportedError(
            "RQ2",
            bridge.settings.url.target,
            f"task {task!r} has priority {priority!r}, which quorum queue {queue!r} keeps from RabbitMQ 4.3 on: "
            "leave the priority out, or use a queue of type 'classic'",
        )


_Made = tuple[_Way, Message, "Call[Any]", float]
"""A message that is to be sent, how, the call that it is of, and its delay in seconds."""

_Given = tuple[Message, "Records | None", float, float]
"""A message that is sent now, who records it, its delay in seconds, and what is left of that."""


@dataclass(slots=True)
class _Pending:
    """A message that waits for transactions; `open` says for how many."""

    made: _Made
    open: int


class Sending:
    """Sends the messages of a bridge's tasks. Threads share it.

    Attributes:
        bridge: Whose messages it sends.
        diverted: What takes messages in the place of the broker, unrecorded; see `Bridge.divert`.
    """

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self._hooks = bridge.hooks
        self._observers = bridge.observers
        self._ways: dict[str, _Way] = {}
        self.diverted: Broker | None = None

    def flow_of(self, call: Call[R]) -> Flow[R]:
        """Return a call as a flow of one step."""
        from taskbridge.flows.building import flow_of  # here, for few processes make flows

        return flow_of(call)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sending:
        """Return itself: a copy of a call is sent by the same one."""
        return self

    def _now(self) -> float:
        is_asked = self.diverted is None or self.bridge.settings.url.engine == "inline"
        return self.bridge.now() if is_asked else time.time()  # a store that need not be there has the time

    def forget(self) -> None:
        """Learn anew where messages go: settings, tasks or connections have changed."""
        self._ways = {}

    def way(self, declaration: Declaration) -> _Way:
        """Return all that sending a task's messages needs."""
        way = self._ways.get(declaration.name)
        return self._made_way(declaration) if way is None else way

    def _made_way(self, declaration: Declaration) -> _Way:
        bridge, ways, settings = self.bridge, self._ways, self.bridge.settings
        diverted = self.diverted
        broker = bridge.broker if diverted is None else diverted
        records = bridge.records_of(declaration.name) if diverted is None else None
        store = None if records is None else bridge.store
        runs_here = settings.url.engine == "inline" and diverted is None
        way = ways[declaration.name] = _Way(
            queue=bridge.queue_of(declaration.name),
            priority=declaration.priority,
            expires_s=declaration.expires_s,
            broker=broker,
            records=records,
            claims=None if store is None else store.claims,
            goes_along=settings.goes_along,
            timeout_s=settings.send_timeout_s,
            has_quorum=settings.has_quorum and diverted is None,
            most_bytes=settings.max_message_bytes,
            unique=declaration.unique if diverted is None else None,
            clock=time.time if records is None and not runs_here else bridge.clock,
            runs_here=runs_here,
            at_once=... if settings.commit is None else None,
        )
        return way

    def send_call(self, call: Call[R], *, when: When | None) -> Handle[R]:
        """Send one call, now or later; what `Task.send` and `Task.schedule` do."""
        way = self.way(call.declaration)
        wait_s = 0.0 if when is None else self.wait_s(when)
        message = self._message(way, call, wait_s)
        if when is not None and way.unique is not None and way.unique.debounce_s is not None:
            raise ValueError(f"task {message.task!r} is debounced, which says when it starts: use send, not schedule")
        if call.options.commit is not way.at_once and (hold := self._holding(call.options.commit)) is not None:
            made = way, message, call, _debounced_s(way, wait_s)
            self._checked(*made)
            hold([made])
            return self._handle(message)
        return self._send(way, message, call, wait_s)

    async def asend_call(self, call: Call[R], *, when: When | None) -> Handle[R]:
        """Do as `send_call` without blocking the event loop."""
        return await self.aside(lambda: self.send_call(call, when=when), call.options.commit)

    async def aside(self, act: Callable[[], T], commit: Committing = ...) -> T:
        """Do what sends in a thread: in that of the caller's transactions, if it may wait for one."""
        commit = self.bridge.settings.commit if commit is ... else commit
        sends = self.bridge.transactions if commit is None or isinstance(commit, tuple) else commit.sends
        return await (in_thread(act) if commit is None or sends is None else sends.aside(act))

    def send_tick(self, call: Call[Any], *, id: str, headers: dict[str, str]) -> None:
        """Send the message of a schedule's tick.

        Perhaps somebody else sends it too, who stood still before; so it is marked as one that may have been started
        (rule A7). If another message holds the key of a unique task, it is left out.

        Raises:
            BrokerUnavailable: The broker didn't take it.
        """
        way = self.way(call.declaration)
        message = self._message(way, call)
        with suppress(UniqueConflict):
            self._send(way, replace(message, id=id, headers={**message.headers, **headers}, redelivered=1), call, 0.0)

    def _message(self, way: _Way, call: Call[Any], wait_s: float = 0.0) -> Message:
        options, now = call.options, way.clock()
        wait_s = _debounced_s(way, wait_s)
        args_json, kwargs_json, form = call.encoded()
        expires = way.expires_s if options.expires is None else options.expires
        unique = digest = ""
        if way.unique is not None or (options.id is not None and self.diverted is None):
            unique, digest, form = self._keys(way, call, args_json, form)
        message = Message(
            id=new_id() if options.id is None else options.id,
            task=call.declaration.name,
            queue=way.queue if options.queue is None else options.queue,
            priority=way.priority if options.priority is None else options.priority,
            args_json=args_json,
            kwargs_json=kwargs_json,
            form=form,
            enqueued_at=now,
            expires_at=None if expires is None else _expires_at(expires, self._now),
            headers=dict(options.headers),
            unique=unique,
            digest=digest,
            keeps_call=call.declaration.keeps_call,
            due_at=now + wait_s if wait_s > 0 else None,
        )
        if options.queue is not None:
            check_known(options.queue, self.bridge.queues())
        if way.has_quorum:
            check_priority(self.bridge, message.task, message.queue, message.priority)
        return message

    def _keys(self, way: _Way, call: Call[Any], args_json: str, form: int) -> tuple[str, str, int]:
        """Return the key of a unique task's message, the hash of its arguments if its id was chosen, and its form."""
        if way.records is None:
            rule, what = ("U6", "ids of one's own") if way.unique is None else ("U1", "unique tasks")
            remedy = "set one (TASKBRIDGE_STORE=redis://localhost:6379/0, say), and leave out results=False"
            raise UnsupportedError(rule, self.bridge.settings.url.target, f"{what} need a store; {remedy}")
        unique = "" if way.unique is None else way.unique.held_by(call, args_json)
        # A release that knows nothing of that would not look whether another message has replaced it, say.
        form = TYPED_FORM if unique[:1] in STARTS_IN_ORDER else form
        return unique, "" if call.options.id is None else digest_of(call), form

    def _send(self, way: _Way, message: Message, call: Call[Any], wait_s: float) -> Handle[Any]:
        if self._observers and self.diverted is None:
            from taskbridge.observing import sending  # here, for few processes have observers

            with sending(self._observers, [message]):
                return self._send_one(way, message, call, wait_s)
        return self._send_one(way, message, call, wait_s)

    def _send_one(self, way: _Way, message: Message, call: Call[Any], wait_s: float) -> Handle[Any]:
        if message.unique or message.digest:  # `is_claimed`, without a call: each send passes here
            return self._send_keyed((way, message, call, _debounced_s(way, wait_s)))
        self._checked(way, message, call, wait_s)
        if way.records is None:
            _publish(way.broker, [message], [wait_s], way.timeout_s)
        else:
            _publish_recorded(way, [(message, way.records, wait_s, wait_s)])
        if way.runs_here or self._hooks.of["after_send"]:
            self._sent([(way, message, call, wait_s)])
        return self._handle(message)

    def wait_s(self, when: When) -> float:
        """Return in how many seconds a time is; raise `ValueError` if it is none for a delay."""
        # Only an instant needs the time: where nothing is recorded, the store is not asked for it without need.
        wait_s = delay_s(when, now=self._now() if isinstance(when, datetime) else 0.0, name="when")
        if wait_s > LONGEST_DELAY_S:
            raise ValueError(f"a delay is at most 8 years, not {when!r}")
        return wait_s

    def holds(self, act: Callable[[], object], kept: Callable[[], str]) -> bool:
        """Have something done when the open transactions are committed for which sends wait; False if none is open.

        Where sends go into the application's outbox, put there what `kept` returns, as the text of an entry, even if no
        transaction is open.
        """
        names, sends = self.bridge.settings.commit, self.bridge.transactions
        if names is None or sends is None:
            return False
        from taskbridge.transactions import OUTBOX  # here, as in `_holding`

        if names == OUTBOX:
            runs_here = self.bridge.settings.url.engine == "inline"
            sends.put([kept()], self.bridge.work_is_there if runs_here else None)
            return True
        databases = [*sends.open_on(names)]
        left = len(databases)

        def committed(_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                act()

        for database in databases:
            sends.hold(database, [act], committed)
        return bool(databases)

    # What waits for a transaction, or is put into the application's outbox

    def _holding(self, commit: Committing) -> Callable[[Sequence[_Made]], None] | None:
        """Return what keeps messages that are checked until they may be published; None if they are sent at once.

        Raises `UnsupportedError` if the bridge knows no transactions, or has no store for what an outbox publishes.
        """
        bridge = self.bridge
        if commit is ...:
            commit = bridge.settings.commit
        if commit is None:
            return None
        from taskbridge.transactions import OUTBOX  # here, for few applications have transactions

        names, sends = (commit, bridge.transactions) if isinstance(commit, tuple) else (commit.names, commit.sends)
        is_for_outbox = names == OUTBOX
        if is_for_outbox and self.diverted is not None:
            return None
        target = bridge.settings.url.target
        if sends is None:
            remedy = (
                "this bridge knows no transactions: taskbridge.django in INSTALLED_APPS sets default_bridge()'s, and "
                "taskbridge.integrations.sqlalchemy names a session's"
            )
            raise UnsupportedError(f"commit={', '.join(names)}", target, f"{remedy}; else leave commit out")
        if is_for_outbox:
            if bridge.store is None:
                remedy = "an outbox may publish twice, and only a store tells: set one"
                raise UnsupportedError("OB1", target, f"{remedy} (TASKBRIDGE_STORE=redis://localhost:6379/0, say)")
            return partial(self._put, sends)
        databases = sends.open_on(names)
        return partial(self._hold, sends, databases) if databases else None

    def _hold(self, sends: Sends, databases: Sequence[str], made: Sequence[_Made]) -> None:
        pending = [_Pending(each, len(databases)) for each in made]
        for database in databases:
            sends.hold(database, pending, self._committed)

    def _committed(self, pending: Sequence[_Pending]) -> None:
        """Publish what has waited for a transaction that is committed, and waits for no other; `SendError` if not all.

        A message that is left out because another one holds its key or its id is logged, for its sender has gone on.
        """
        for each in pending:
            each.open -= 1
        made = [each.made for each in pending if each.open == 0]
        if made:
            self._give(made, is_late=True)

    def _put(self, sends: Sends, made: Sequence[_Made]) -> None:
        from taskbridge.stores.entries import held  # here, for few applications have an outbox

        way = made[0][0]
        texts = [held(message, wait_s).dumps() for _, message, _, wait_s in made]
        sends.put(texts, self.bridge.work_is_there if way.runs_here else None)
        self._call_after_send(made)

    def relay(self, messages: Sequence[Message], lefts: Sequence[float], *, timeout_s: float) -> None:
        """Publish what the application's outbox holds, perhaps a second time: all now, or each after what is left.

        All of them have a key or a chosen id, which is claimed, or none has.

        Raises:
            PartlyPublished: Of several messages, not all were published, or claimed.
            BrokerUnavailable: None was.
        """
        began = monotonic()
        ways = [self.way(cast("Declaration", self.bridge.declaration_of(each.task))) for each in messages]
        now = self.bridge.now()
        waits = [
            now + left_s - each.enqueued_at if left_s > 0 else 0.0 for each, left_s in zip(messages, lefts, strict=True)
        ]
        if not messages[0].is_claimed:
            records = [way.records for way in ways]
            _publish_recorded(ways[0], [*zip(messages, records, waits, lefts, strict=True)])
        else:
            claims = cast("Store", self.bridge.store).claims  # also of tasks that are not recorded any more
            ways = [replace(way, claims=claims) for way in ways]
            intents = [_intent(*each) for each in zip(ways, messages, waits, lefts, strict=True)]
            outcomes, error = self._claim(ways[0], intents, began + timeout_s)
            for index, outcome in outcomes.items():
                _log_conflict(_conflict(ways[index], messages[index], outcome), messages[index])
            if error is not None:
                raise PartlyPublished(error, accepted=frozenset(outcomes), unsure=frozenset()) from error
        if self._observers:
            from taskbridge.observing import tell  # here, as in `_send`

            tell(self._observers, "sent", messages, monotonic() - began, None)

    # What has a unique key or a chosen id is claimed in the store first (rules U)

    def _send_keyed(self, made: _Made) -> Handle[Any]:
        """Send a message whose key and id are free; return its handle, or that of the one that holds them."""
        way, message, _, wait_s = made
        self._checked(*made)
        deadline, intent = monotonic() + way.timeout_s, _intent(way, message, wait_s, wait_s)
        holder: Status | None = None
        if not (way.goes_along and way.claims and way.claims.send_new(intent, timeout_s=way.timeout_s)):
            outcomes, error = self._claim(way, [intent], deadline, are_held=way.goes_along)
            if error is not None:
                raise error
            if (conflict := _conflict(way, message, outcomes[0])) is not None:
                raise conflict
            holder = outcomes[0].holder
        if holder is None and (way.runs_here or self._hooks.of["after_send"]):
            self._sent([made])
        return self._handle(message, holder)

    def _claim_many(
        self, made: Sequence[_Made], *, is_late: bool
    ) -> tuple[dict[int, Outcome], BrokerUnavailable | None]:
        """Do so with many, up to 100 at a time; return what `_claim` does."""
        outcomes: dict[int, Outcome] = {}
        error: BrokerUnavailable | None = None
        for start in range(0, len(made), _CLAIMED_TOGETHER):
            part = made[start : start + _CLAIMED_TOGETHER]
            intents = [_intent(each[0], each[1], each[3], _left_s(each, is_late)) for each in part]
            found, error = self._claim(part[0][0], intents, monotonic() + part[0][0].timeout_s)
            outcomes |= {start + index: outcome for index, outcome in found.items()}
            if error is not None:
                break
        self._sent([made[index] for index, each in sorted(outcomes.items()) if each.holder is None])
        return outcomes, error

    def _claim(
        self, way: _Way, intents: Sequence[Intent], deadline: float, *, are_held: bool = False
    ) -> tuple[dict[int, Outcome], BrokerUnavailable | None]:
        """Claim keys and ids, and publish the messages that are new, now or later.

        Returns:
            What became of each message, by its index, and what kept the others from being decided about, or published:
            these are in the outbox.
        """
        error: BrokerUnavailable | None
        timeout_s = deadline - monotonic()
        outcomes, error = cast("Claims", way.claims).send(intents, timeout_s=timeout_s, are_held=are_held)
        if way.goes_along:
            return outcomes, error
        held = {
            index: intents[index].entry()
            for index, each in sorted(outcomes.items())
            if not each.waits and each.holder is None
        }
        if held:
            try:
                self.bridge.relay.publish(list(held.values()), timeout_s=max(0.001, deadline - monotonic()))
            except BrokerUnavailable as exc:
                problem = f"{exc.problem}; it is in the outbox, and is sent when the broker is back"
                error = BrokerUnavailable(problem, maybe_taken=True)
                error.__cause__ = exc.__cause__
                given = _of_batch(exc).accepted
                left = {index for number, index in enumerate(held) if number not in given}
                outcomes = {index: outcome for index, outcome in outcomes.items() if index not in left}
        return outcomes, error

    def _checked(self, way: _Way, message: Message, call: Call[Any], wait_s: float = 0.0) -> None:
        """Call the hooks before a send, and refuse what can't be sent then (they may have added headers)."""
        if self._hooks.of["before_send"]:
            self._hooks.call(_event("before_send", message, call, wait_s))
        if message.headers or message.expires_at is not None:
            message.check_rare()
        size = message.size
        if size > way.most_bytes:
            raise MessageTooLarge(message.task, size, way.most_bytes)
        if message.headers and message.headers_size > MOST_HEADER_BYTES:
            raise MessageTooLarge(message.task, message.headers_size, MOST_HEADER_BYTES, headers=True)

    def _call_after_send(self, made: Sequence[_Made]) -> None:
        if self._hooks.of["after_send"]:
            for _, message, call, wait_s in made:
                self._hooks.call(_event("after_send", message, call, wait_s))

    def _sent(self, made: Sequence[_Made]) -> None:
        self._call_after_send(made)
        if made and made[0][0].runs_here:
            self.bridge.work_is_there()

    def _handle(self, message: Message, holder: Status | None = None) -> Handle[Any]:
        """Return the handle of a message, or of the one that holds its key or id."""
        if holder is not None:
            return Handle(id=holder.id, task=holder.task, queue=holder.queue, is_new=False, bridge=self.bridge)
        return Handle(id=message.id, task=message.task, queue=message.queue, bridge=self.bridge)

    def send_many(self, calls: Iterable[Call[R]], *, commit: Committing = ...) -> list[Handle[R]]:
        """Send any number of calls of any tasks in pipelined batches; see `Bridge.send_many`.

        `commit` is for those calls that say nothing of it. What waits for a transaction then is no part of a
        `SendError`.
        """
        drawn: list[_Made] = []
        for call in calls:
            if not isinstance(call, Call):
                raise TypeError(f"send_many takes what task.call(...) returns, not {call!r}: is it a @task?")
            way = self.way(call.declaration)
            drawn.append((way, self._message(way, call), call, _debounced_s(way, 0.0)))
        commits = [commit if made[2].options.commit is ... else made[2].options.commit for made in drawn]
        holding = {each: self._holding(each) for each in dict.fromkeys(commits)}
        for made in drawn:
            self._checked(*made)
        for each, hold in holding.items():
            if hold is not None:
                hold([made for made, its in zip(drawn, commits, strict=True) if its == each])
        are_held = [holding[each] is not None for each in commits]
        holders = iter(self._give([made for made, is_held in zip(drawn, are_held, strict=True) if not is_held]))
        return [
            self._handle(made[1], None if is_held else next(holders))
            for made, is_held in zip(drawn, are_held, strict=True)
        ]

    async def asend_many(self, calls: Iterable[Call[R]], *, commit: Committing = ...) -> list[Handle[R]]:
        """Do as `send_many` without blocking the event loop."""
        # Any of the calls may wait for a transaction: they are drawn in the thread, for that may take long.
        return await self.aside(lambda: self.send_many(calls, commit=commit), ())

    def _give(self, drawn: Sequence[_Made], *, is_late: bool = False) -> list[Status | None]:
        if drawn and self._observers and self.diverted is None:
            from taskbridge.observing import sending  # here, as above

            with sending(self._observers, [made[1] for made in drawn]):
                return self._give_all(drawn, is_late=is_late)
        return self._give_all(drawn, is_late=is_late)

    def _give_all(self, drawn: Sequence[_Made], *, is_late: bool) -> list[Status | None]:
        """Send what is checked; return of each message which other one holds its key or id, if one does.

        What is late was sent a while ago, and has waited for a commit: of a delay, the broker is told what is left.

        Raises `SendError` if something was not sent; but that another message holds a key or an id is only logged if
        it is late, for the sender has gone on.
        """
        made, keyed = list[_Made](), list[_Made]()
        for each in drawn:
            (keyed if each[1].is_claimed else made).append(each)
        outcomes, error = self._claim_many(keyed, is_late=is_late)
        conflicts = {
            index: _conflict(*keyed[index][:2], outcome)
            for index, outcome in sorted(outcomes.items())
            if outcome.holder is not None
        }
        cause: TaskBridgeError | None = error
        if cause is None and not is_late:
            cause = next((each for each in conflicts.values() if each is not None), None)
        sent = {keyed[index][1].id for index, outcome in outcomes.items() if outcome.holder is None}
        maybe_taken = getattr(cause, "maybe_taken", False)
        for index, conflict in conflicts.items() if is_late else ():
            _log_conflict(conflict, keyed[index][1])
        for batch in _batches([(each, _left_s(each, is_late)) for each in made]):
            if isinstance(cause, BrokerUnavailable):
                break
            taken: Iterable[int] = range(len(batch))
            try:
                given = [(message, way.records, wait_s, left) for (way, message, _, wait_s), left in batch]
                _publish_recorded(batch[0][0][0], given)
            except BrokerUnavailable as exc:
                cause = part = _of_batch(exc)
                taken, maybe_taken = sorted(part.accepted), bool(part.unsure)
            sent |= {batch[index][0][1].id for index in taken}
            self._sent([batch[index][0] for index in taken])
        if cause is not None:
            ids = [message.id for _, message, _, _ in drawn]
            skipped = {keyed[index][1].id for index, conflict in conflicts.items() if conflict is None}
            settled = sent | skipped
            raise SendError(
                getattr(cause, "problem", str(cause)),
                sent=[each for each in ids if each in sent],
                unsent=[each for each in ids if each not in settled],
                maybe_taken=maybe_taken,
            ) from cause
        holders = (outcomes[index].holder for index in range(len(keyed)))
        return [next(holders) if each.is_claimed else None for _, each, _, _ in drawn]


def _debounced_s(way: _Way, wait_s: float) -> float:
    """Return the delay of a message, which is that of its task if that is debounced."""
    return wait_s if way.unique is None or way.unique.debounce_s is None else way.unique.debounce_s


def _left_s(made: _Made, is_late: bool) -> float:
    """Return the delay of a message; of one that is late what is left of it, which counts from the call."""
    way, message, _, wait_s = made
    return max(0.0, message.enqueued_at + wait_s - way.clock()) if is_late and wait_s > 0 else wait_s


def _batches(made: Sequence[tuple[_Made, float]]) -> Iterator[Sequence[tuple[_Made, float]]]:
    """Return messages, with what is left of their delays, in batches: first those that the broker is not to park.

    Each batch is for one broker: what was held for a commit may have been sent before another one was diverted to.
    """
    for is_delayed in (False, True):
        of_delay = [each for each in made if (each[1] > 0) is is_delayed]
        for _, of_broker in groupby(of_delay, lambda each: id(each[0][0].broker)):
            part = [*of_broker]
            yield from (part[start : start + _BATCH] for start in range(0, len(part), _BATCH))


def _intent(way: _Way, message: Message, wait_s: float, left_s: float) -> Intent:
    """Return that a message is to be sent: its delay counts from the call, and so much of it is left."""
    commands = cast("RedisBroker", way.broker).commands(message, left_s) if way.goes_along else ()
    return cast("Claims", way.claims).intent(message, wait_s, way.unique, commands)


def _conflict(way: _Way, message: Message, outcome: Outcome) -> TaskBridgeError | None:
    """Return the error that tells of another message with the same id or key, if the sender is to be told."""
    holder = outcome.holder
    if holder is None or (holder.id == message.id and not outcome.is_other):
        return None
    if outcome.is_other:
        return IdempotencyConflict(id=holder.id, task=message.task)
    is_told = way.unique is not None and way.unique.on_conflict == "raise"
    return UniqueConflict(id=holder.id, task=message.task, state=holder.state) if is_told else None


def _log_conflict(conflict: TaskBridgeError | None, message: Message) -> None:
    if conflict is not None:
        say(_log, logging.WARNING, message, "was left out after its sender had gone on: %s", conflict)


def _event(name: Literal["before_send", "after_send"], message: Message, call: Call[Any], wait_s: float) -> Event:
    arguments_of = partial(call.declaration.bound, call.args, call.kwargs)
    return Event(name=name, message=message, delay_s=wait_s, arguments_of=arguments_of)


def _expires_at(expires: Duration | datetime, now: Callable[[], float]) -> float:
    if isinstance(expires, datetime):
        return timestamp(expires, name="expires")
    return now() + seconds(expires, name="expires")


def _publish(broker: Broker, messages: Sequence[Message], waits: Sequence[float], timeout_s: float) -> None:
    """Do as `brokers.base.hand_over`, here, so that a send passes through a file less."""
    if waits[0] > 0:
        broker.park([*zip(messages, waits, strict=True)], timeout_s=timeout_s)
    else:
        broker.publish(messages, timeout_s=timeout_s)


def _publish_recorded(way: _Way, given: Sequence[_Given]) -> None:
    """Publish messages, or park them if something is left of the first one's delay, each with its record if it has one.

    A broker in Redis whose database the records share takes both in one transaction. Otherwise the records are made
    first, and removed again if the messages were surely not sent; but not those of messages that somebody else may
    have sent before (the ticks of schedules, and what an outbox holds): these may be that one's.

    Raises:
        PartlyPublished: Of several messages, not all were published.
        BrokerUnavailable: The only message was not published, or no record could be made.
    """
    messages, lefts = [message for message, _, _, _ in given], [left_s for _, _, _, left_s in given]
    keeper = next((records for _, records, _, _ in given if records is not None), None)
    if keeper is None:
        _publish(way.broker, messages, lefts, way.timeout_s)
        return
    if way.goes_along:
        broker = cast("RedisBroker", way.broker)
        is_one = len(given) == 1  # of many, all are listed in one command
        along = [
            () if records is None else records.creating(message, wait_s, lists=is_one)
            for message, records, wait_s, _ in given
        ]
        if lefts[0] > 0:
            broker.park([*zip(messages, lefts, strict=True)], along=along, timeout_s=way.timeout_s)
        else:
            broker.publish(messages, along=along, timeout_s=way.timeout_s)
        if not is_one:
            keeper.list_sent([(message, wait_s) for message, records, wait_s, _ in given if records is not None])
        return
    deadline = monotonic() + way.timeout_s
    recorded = [(message, wait_s) for message, records, wait_s, _ in given if records is not None]
    keeper.create(recorded, timeout_s=way.timeout_s)
    try:
        _publish(way.broker, messages, lefts, max(0.001, deadline - monotonic()))
    except BrokerUnavailable as exc:
        cause = _of_batch(exc)
        kept = cause.accepted | cause.unsure
        perhaps = (index for index, each in enumerate(messages) if not each.redelivered and not each.relayed)
        unsent = [messages[index].id for index in perhaps if index not in kept]
        _forget(keeper, unsent, max(way.timeout_s * _AFTERWARDS, deadline - monotonic()))
        raise


def _of_batch(problem: BrokerUnavailable) -> PartlyPublished:
    """Return a problem of one message as one of a batch."""
    if isinstance(problem, PartlyPublished):
        return problem
    unsure = frozenset({0}) if problem.maybe_taken else frozenset[int]()
    return PartlyPublished(problem, accepted=frozenset(), unsure=unsure)


def _forget(records: Records, ids: Sequence[str], timeout_s: float) -> None:
    if not ids:
        return
    try:
        records.forget(ids, timeout_s=timeout_s)
    except BrokerUnavailable as exc:
        _log.warning("%d messages were not sent, but stay recorded as if they were: %s", len(ids), exc.problem)
