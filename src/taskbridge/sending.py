"""Hands messages to the broker together with their records, so that no worker is faster than a record (rule ST1)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from taskbridge.brokers.base import Broker, RecordingBroker
from taskbridge.exceptions import BrokerUnavailable, PartlyPublished

if TYPE_CHECKING:
    from taskbridge.message import Message
    from taskbridge.stores.records import Records

_log = logging.getLogger("taskbridge.send")

_AFTERWARDS: Final = 0.05
"""What part of the timeout is left at least for removing the records of what was not sent; rule S2 gives a tenth."""


class RecordedSending:
    """Sends messages that are recorded.

    A broker in Redis whose database the records share takes both in one transaction. Otherwise the records are made
    first, and removed again if the messages were surely not sent.

    Args:
        broker: What takes the messages.
        records: Where they are recorded.
    """

    def __init__(self, broker: Broker, records: Records) -> None:
        self._broker = broker
        self._records = records

    def publish(self, messages: Sequence[Message], *, recorded: Collection[str], timeout_s: float) -> None:
        """Publish messages; those of the ids in `recorded` get a record.

        Raises:
            PartlyPublished: Of several messages, not all were published.
            BrokerUnavailable: The only message was not published, or no record could be made.
        """
        commands = {message.id: self._records.creating(message, 0.0) for message in messages if message.id in recorded}
        if all(command is not None for command in commands.values()):
            broker = cast("RecordingBroker", self._broker)
            along = [command for each in messages if (command := commands.get(each.id)) is not None]
            return broker.publish_along(messages, [commands.get(message.id) for message in messages], timeout_s=timeout_s)
        return None
