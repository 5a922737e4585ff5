"""A store: what is known beside the messages. It has three parts, each the same whatever keeps it.

`Marks`: which attempts were started, and by whom (rules A5, A7 and R9). `Records`: what became of each message.
`Ticks`: which instants of which schedules were sent.
"""

from __future__ import annotations

import time

from taskbridge.settings import Settings
from taskbridge.stores.backend import Backend
from taskbridge.stores.claims import Claims
from taskbridge.stores.clock import StoreClock
from taskbridge.stores.marks import Claim, Marks
from taskbridge.stores.records import Records
from taskbridge.stores.ticks import Ticks

__all__ = ["Claim", "Marks", "Records", "Store", "Ticks"]


class Store:
    """What `open_store(settings, url)` of a store's module returns. Opening one connects to nothing yet.

    Attributes:
        backend: What keeps it all.
        clock: Tells the time by its clock; None if this process alone has the store.
        marks: The attempt marks.
        records: What became of each message.
        claims: Which messages hold unique keys.
        ticks: Which instants of which schedules were sent.
    """

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self.backend: Backend = backend
        timeout_s = settings.send_timeout_s
        self.clock: StoreClock | None = StoreClock(backend, send_timeout_s=timeout_s) if backend.is_shared else None
        self.records: Records = Records(settings, backend, now=self.clock or time.time)
        self.claims: Claims = Claims(self.records, backend)
        self.marks: Marks = Marks(settings, backend, self.records.lost)
        self.ticks: Ticks = Ticks(backend)

    def ping(self, *, timeout_s: float) -> None:
        """Return if the store answers.

        Raises:
            StoreUnavailable: It does not, within so many seconds.
            StoreNotReady: `taskbridge store init` was not run by this release.
        """
        self.backend.ping(timeout_s=timeout_s)

    def close(self) -> None:
        """Close the connections, and say that this process is gone."""
        self.marks.close()
        self.records.close()
        self.backend.close()
