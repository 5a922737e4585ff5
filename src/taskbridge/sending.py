"""Hands messages to the broker together with their records, so that no worker is faster than a record (rule ST1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, cast

from taskbridge.exceptions import BrokerUnavailable, PartlyPublished

if TYPE_CHECKING:
    from taskbridge.brokers.base import Broker, RecordingBroker, RedisCommand
    from taskbridge.message import Message
    from taskbridge.settings import Settings
    from taskbridge.stores.records import Records

_log = logging.getLogger("taskbridge.send")

_AFTERWARDS: Final = 0.05
"""What part of the timeout is left at least to remove the records of what was not sent; rule S2 gives a tenth."""


class Host(Protocol):
    """The bridge, as what is sent through it."""

    @property
    def settings(self) -> Settings:
        """The checked settings."""
        ...

    @property
    def broker(self) -> Broker:
        """What takes the messages."""
        ...


def publish_recorded(
    host: Host, records: Records, messages: Sequence[Message], *, but: Collection[str] = (), timeout_s: float
) -> None:
    """Publish messages, each with a record.

    A broker in Redis whose database the records share takes both in one transaction. Otherwise the records are made
    first, and removed again if the messages were surely not sent.

    Args:
        host: The bridge.
        records: Where they are recorded.
        messages: The messages.
        but: The ids of those that get no record.
        timeout_s: How long it may take.

    Raises:
        PartlyPublished: Of several messages, not all were published.
        BrokerUnavailable: The only message was not published, or no record could be made.
    """
    recorded = [(message, 0.0) for message in messages if message.id not in but]
    commands = _commands(host.settings, records, recorded)
    if commands is None:
        send = partial(_publish, host.broker, messages)
        _after_records(records, recorded, send, messages=messages, timeout_s=timeout_s)
    else:
        along = [commands.get(message.id) for message in messages]
        cast("RecordingBroker", host.broker).publish_along(messages, along, timeout_s=timeout_s)


def park_recorded(host: Host, records: Records, message: Message, delay_s: float, *, timeout_s: float) -> None:
    """Park a message with its record; as `publish_recorded` does it.

    Raises:
        BrokerUnavailable: The message was not parked, or no record could be made.
    """
    recorded = [(message, delay_s)]
    commands = _commands(host.settings, records, recorded)
    if commands is None:
        send = partial(_park, host.broker, recorded)
        _after_records(records, recorded, send, messages=[message], timeout_s=timeout_s)
    else:
        cast("RecordingBroker", host.broker).park_along(message, delay_s, commands[message.id], timeout_s=timeout_s)


def _publish(broker: Broker, messages: Sequence[Message], timeout_s: float) -> None:
    broker.publish(messages, timeout_s=timeout_s)


def _park(broker: Broker, messages: Sequence[tuple[Message, float]], timeout_s: float) -> None:
    broker.park(messages, timeout_s=timeout_s)


def _commands(
    settings: Settings, records: Records, recorded: Sequence[tuple[Message, float]]
) -> dict[str, RedisCommand] | None:
    """Return the commands that make the records, by id; None if they can't be sent along with the messages."""
    if settings.url.broker != "redis" or settings.store not in (None, settings.url.broker_url):
        return None
    commands: dict[str, RedisCommand] = {}
    for message, delay_s in recorded:
        command = records.creating(message, delay_s)
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
