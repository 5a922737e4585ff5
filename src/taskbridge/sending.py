"""Sending: makes messages, checks them, and hands them to the broker together with their records (rules S and ST1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from taskbridge import codec
from taskbridge.durations import Duration, When, delay_s, seconds, timestamp
from taskbridge.exceptions import (
    BrokerUnavailable,
    HeadersTooLarge,
    MessageTooLarge,
    PartlyPublished,
    SendError,
)
from taskbridge.handle import Handle
from taskbridge.hooks import Event, Hooks
from taskbridge.message import MOST_HEADER_BYTES, Message, Priority, new_id
from taskbridge.routing import check_known

if TYPE_CHECKING:
    from taskbridge.brokers.base import Broker, RecordingBroker, RedisCommand
    from taskbridge.declaration import Declaration
    from taskbridge.results import Results
    from taskbridge.settings import Settings
    from taskbridge.stores.records import Records
    from taskbridge.tasks import Call

R = TypeVar("R")

LONGEST_DELAY_S: Final = 8 * 365.25 * 86400.0
"""8 years (rule D5)."""

_log = logging.getLogger("taskbridge.send")

_BATCH: Final = 1000
"""How many messages `send_many` hands to the broker at a time; each batch has `send_timeout`."""

_AFTERWARDS: Final = 0.05
"""What part of the timeout is left at least to remove the records of what was not sent; rule S2 gives a tenth."""


class Source(Protocol):
    """The bridge, as what is sent through it."""

    @property
    def settings(self) -> Settings:
        """The checked settings."""
        ...

    @property
    def hooks(self) -> Hooks:
        """The application's hooks."""
        ...

    @property
    def broker(self) -> Broker:
        """What takes the messages."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """What tells the time, in seconds since the epoch."""
        ...

    @property
    def results(self) -> Results:
        """What becomes of messages, for their handles."""
        ...

    def queues(self) -> Sequence[str]:
        """Return the names of the known queues."""
        ...

    def queue_of(self, task: str) -> str:
        """Return the queue that a task's messages go to, unless `using(queue=)` says otherwise."""
        ...

    def records_of(self, task: str) -> Records | None:
        """Return where a task's messages are recorded; None if they are not."""
        ...

    def work_is_there(self) -> None:
        """Learn that messages wait."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Way:
    """All that sending a task's messages needs; made once a task.

    Attributes:
        queue: Where they go, unless `using(queue=)` says otherwise.
        priority: Theirs, unless `using` says otherwise.
        expires_s: After which time they expire, unless `using` says otherwise; None is never.
        broker: What takes them.
        records: Where they are recorded; None if they are not.
        goes_along: Whether the record's command travels with the message, in one transaction.
        timeout_s: How long the broker may take.
        most_bytes: How large a message may be.
        clock: What tells the time.
        runs_here: Whether this process runs what it sends, so that it is to be told.
    """

    queue: str
    priority: Priority
    expires_s: float | None
    broker: Broker
    records: Records | None
    goes_along: bool
    timeout_s: float
    most_bytes: int
    clock: Callable[[], float]
    runs_here: bool


class Sending:
    """Sends the messages of a bridge's tasks. Threads share it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._hooks = source.hooks.of
        self._ways: dict[str, _Way] = {}

    def forget(self) -> None:
        """Learn anew where messages go: settings, tasks or connections have changed."""
        self._ways = {}

    def _way(self, declaration: Declaration) -> _Way:
        way = self._ways.get(declaration.name)
        return self._made_way(declaration) if way is None else way

    def _made_way(self, declaration: Declaration) -> _Way:
        source, ways = self._source, self._ways
        settings, broker, records = source.settings, source.broker, source.records_of(declaration.name)
        way = ways[declaration.name] = _Way(
            queue=source.queue_of(declaration.name),
            priority=declaration.priority,
            expires_s=declaration.expires_s,
            broker=broker,
            records=records,
            goes_along=settings.url.broker == "redis" and settings.store in (None, settings.url.broker_url),
            timeout_s=settings.send_timeout_s,
            most_bytes=settings.max_message_bytes,
            clock=source.clock,
            runs_here=settings.url.engine == "inline",
        )
        return way

    # One message

    def send_call(self, call: Call[R], *, when: When | None) -> Handle[R]:
        """Send one call, now or later; what `Task.send` and `Task.schedule` do."""
        way = self._way(call.declaration)
        message = self._message(way, call)
        return self._send(way, message, 0.0 if when is None else _wait_s(when, way.clock()))

    def send_tick(self, call: Call[Any], *, id: str, headers: dict[str, str]) -> None:
        """Send the message of a schedule's tick.

        Perhaps somebody else sends it too, who stood still before; so it is marked as one that may have been started
        (rule A7).

        Raises:
            BrokerUnavailable: The broker didn't take it.
        """
        way = self._way(call.declaration)
        message = self._message(way, call)
        self._send(way, replace(message, id=id, headers={**message.headers, **headers}, redelivered=1), 0.0)

    def _message(self, way: _Way, call: Call[Any]) -> Message:
        options, now = call.options, way.clock()
        expires = way.expires_s if options.expires is None else options.expires
        message = Message(
            id=new_id(),
            task=call.declaration.name,
            queue=way.queue if options.queue is None else options.queue,
            priority=way.priority if options.priority is None else options.priority,
            args_json=codec.dumps_array(call.args, "args"),
            kwargs_json=codec.dumps_object(call.kwargs, "kwargs") if call.kwargs else "{}",
            enqueued_at=now,
            expires_at=None if expires is None else _expires_at(expires, now),
            headers=dict(options.headers),
        )
        if options.queue is not None:
            check_known(options.queue, self._source.queues())
        return message

    def _send(self, way: _Way, message: Message, wait_s: float) -> Handle[Any]:
        if self._hooks["before_send"]:
            self._source.hooks.call(Event(name="before_send", message=message, delay_s=wait_s))
        _check(message, way.most_bytes)
        if way.records is not None:
            self._send_recorded(way, way.records, message, wait_s)
        elif wait_s > 0:
            way.broker.park([(message, wait_s)], timeout_s=way.timeout_s)
        else:
            way.broker.publish([message], timeout_s=way.timeout_s)
        if self._hooks["after_send"]:
            self._source.hooks.call(Event(name="after_send", message=message, delay_s=wait_s))
        if way.runs_here:
            self._source.work_is_there()
        return self._handle(message)

    def _send_recorded(self, way: _Way, records: Records, message: Message, wait_s: float) -> None:
        command = records.creating(message, wait_s) if way.goes_along else None
        broker, timeout_s = way.broker, way.timeout_s
        if command is not None and wait_s > 0:
            cast("RecordingBroker", broker).park_along(message, wait_s, command, timeout_s=timeout_s)
        elif command is not None:
            cast("RecordingBroker", broker).publish_along([message], [command], timeout_s=timeout_s)
        else:

            def act(timeout_s: float) -> None:
                if wait_s > 0:
                    broker.park([(message, wait_s)], timeout_s=timeout_s)
                else:
                    broker.publish([message], timeout_s=timeout_s)

            _after_records(records, [(message, wait_s)], act, messages=[message], timeout_s=timeout_s)

    def _handle(self, message: Message) -> Handle[Any]:
        return Handle(id=message.id, task=message.task, queue=message.queue, bridge=self._source)

    # Many messages

    def send_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """Send any number of calls of any tasks in pipelined batches; see `Bridge.send_many`."""
        made = [(way, self._message(way, call)) for call in calls for way in [self._way(call.declaration)]]
        for way, message in made:
            if self._hooks["before_send"]:
                self._source.hooks.call(Event(name="before_send", message=message))
            _check(message, way.most_bytes)
        messages = [message for _, message in made]
        remaining = iter(made)
        sent: list[str] = []
        while batch := list(islice(remaining, _BATCH)):
            try:
                _deliver_all(batch)
            except PartlyPublished as exc:
                self._raise_send_error(exc, sent, batch, messages)
            except BrokerUnavailable as exc:  # of a batch of one
                unsure = frozenset({0}) if exc.maybe_taken else frozenset[int]()
                cause = PartlyPublished(exc, accepted=frozenset(), unsure=unsure)
                self._raise_send_error(cause, sent, batch, messages)
            self._sent(batch)
            sent.extend(message.id for _, message in batch)
        return [self._handle(message) for message in messages]

    async def asend_call(self, call: Call[R], *, when: When | None) -> Handle[R]:
        """Do as `send_call` without blocking the event loop."""
        return await _in_thread(lambda: self.send_call(call, when=when))

    async def asend_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """Do as `send_many` without blocking the event loop."""
        return await _in_thread(lambda: self.send_many(calls))

    def _sent(self, batch: Sequence[tuple[_Way, Message]]) -> None:
        if self._hooks["after_send"]:
            for _, message in batch:
                self._source.hooks.call(Event(name="after_send", message=message))
        if batch and batch[0][0].runs_here:
            self._source.work_is_there()

    def _raise_send_error(
        self,
        cause: PartlyPublished,
        sent: Sequence[str],
        batch: Sequence[tuple[_Way, Message]],
        messages: Sequence[Message],
    ) -> None:
        taken = [batch[index] for index in sorted(cause.accepted)]
        self._sent(taken)
        ids = [*sent, *(message.id for _, message in taken)]
        accepted = set(ids)
        unsent = [message.id for message in messages if message.id not in accepted]
        raise SendError(cause.problem, sent=ids, unsent=unsent, maybe_taken=bool(cause.unsure)) from cause


async def _in_thread(act: Callable[[], R]) -> R:
    import asyncio  # here, for a program that doesn't await need not import it (30 ms)

    return await asyncio.to_thread(act)


def _check(message: Message, most_bytes: int) -> None:
    if message.headers or message.expires_at is not None:
        message.check_rare()
    size = message.size
    if size > most_bytes:
        raise MessageTooLarge(message.task, size, most_bytes)
    if message.headers and message.headers_size > MOST_HEADER_BYTES:
        raise HeadersTooLarge(message.task, message.headers_size, MOST_HEADER_BYTES)


def _wait_s(when: When, now: float) -> float:
    wait_s = delay_s(when, now=now, name="when")
    if wait_s > LONGEST_DELAY_S:
        raise ValueError(f"a delay is at most 8 years, not {when!r}")
    return wait_s


def _expires_at(expires: Duration | datetime, now: float) -> float:
    if isinstance(expires, datetime):
        return timestamp(expires, name="expires")
    return now + seconds(expires, name="expires")


def _deliver_all(batch: Sequence[tuple[_Way, Message]]) -> None:
    """Publish messages, each with its record if its task has one.

    A broker in Redis whose database the records share takes both in one transaction. Otherwise the records are made
    first, and removed again if the messages were surely not sent.

    Raises:
        PartlyPublished: Of several messages, not all were published.
        BrokerUnavailable: The only message was not published, or no record could be made.
    """
    way, messages = batch[0][0], [message for _, message in batch]
    records = next((way.records for way, _ in batch if way.records is not None), None)
    if records is None:
        way.broker.publish(messages, timeout_s=way.timeout_s)
        return
    recorded = [(message, 0.0) for way, message in batch if way.records is not None]
    commands = _commands(records, recorded) if way.goes_along else None
    if commands is not None:
        along = [commands.get(message.id) for message in messages]
        cast("RecordingBroker", way.broker).publish_along(messages, along, timeout_s=way.timeout_s)
        return

    def act(timeout_s: float) -> None:
        way.broker.publish(messages, timeout_s=timeout_s)

    _after_records(records, recorded, act, messages=messages, timeout_s=way.timeout_s)


def _commands(records: Records, recorded: Sequence[tuple[Message, float]]) -> dict[str, RedisCommand] | None:
    """Return the commands that make the records, by id; None if they can't be sent along with the messages."""
    commands: dict[str, RedisCommand] = {}
    for message, wait_s in recorded:
        command = records.creating(message, wait_s)
        if command is None:
            return None
        commands[message.id] = command
    return commands


def _after_records(
    records: Records,
    recorded: Sequence[tuple[Message, float]],
    send: Callable[[float], None],
    *,
    messages: Sequence[Message],
    timeout_s: float,
) -> None:
    """Make the records, and then send; what was surely not sent loses its record again.

    Except for messages that somebody else may have sent before (the ticks of schedules): theirs may be that one's.
    """
    deadline = monotonic() + timeout_s
    if recorded:
        records.create(recorded, timeout_s=timeout_s)
    try:
        send(max(0.001, deadline - monotonic()))
    except PartlyPublished as exc:
        unsent = [each for index, each in enumerate(messages) if index not in exc.accepted and index not in exc.unsure]
        _forget(records, unsent, max(timeout_s * _AFTERWARDS, deadline - monotonic()))
        raise
    except BrokerUnavailable as exc:
        if not exc.maybe_taken:
            _forget(records, messages, max(timeout_s * _AFTERWARDS, deadline - monotonic()))
        raise


def _forget(records: Records, unsent: Sequence[Message], timeout_s: float) -> None:
    ids = [message.id for message in unsent if not message.redelivered]
    if not ids:
        return
    try:
        records.forget(ids, timeout_s=timeout_s)
    except BrokerUnavailable as exc:
        _log.warning("%d messages were not sent, but stay recorded as if they were: %s", len(ids), exc.problem)
