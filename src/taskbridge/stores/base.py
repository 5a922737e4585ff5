"""Stores: what is known beside the messages. A store has three parts, each a protocol of its own.

`Marks`, here: which attempts were started, and by whom (rules A5, A7 and R9). `Records`: what became of each message.
`Ticks`: which instants of which schedules were sent.

A worker marks an attempt as its run starts and as its verdict has been carried out. Nobody waits for these writes.
Only where a message may have been delivered before is the mark read.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol, runtime_checkable

from taskbridge.message import Message
from taskbridge.stores.records import Records
from taskbridge.stores.ticks import Ticks


class Claim(Enum):
    """What may be done with a message that may have been delivered before."""

    RUN = "run"
    """The attempt was never started: run it."""

    ENDED = "ended"
    """Its verdict has been carried out: drop this delivery."""

    RUNNING = "running"
    """A live worker runs it: look again later."""

    LOST = "lost"
    """Its worker is gone: the attempt failed, with `WorkerLost`."""


class Marks(Protocol):
    """The attempt marks of a bridge, for this process. Threads share it; a forked process is another worker."""

    def started(self, message: Message) -> None:
        """Mark an attempt as started here. Waits for nothing and raises nothing: without marks it just runs."""
        ...

    def ended(self, message: Message) -> None:
        """Mark an attempt as ended: its verdict has been carried out. Waits for nothing and raises nothing."""
        ...

    def given_back(self, message: Message, *, timeout_s: float) -> None:
        """Take the mark of an interrupted run away, so that the same attempt may start elsewhere (rule R8).

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        ...

    def all_given_back(self, *, timeout_s: float) -> None:
        """Take the marks of all runs in this process away: it ends now, and their messages are given back (rule R8).

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        ...

    def claim(self, message: Message, *, timeout_s: float) -> Claim:
        """Say what may be done with a message that may have been delivered before, and mark it as this worker's.

        Of several workers that ask at once, one is told `RUN` or `LOST`.

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        ...

    def still_ours(self, message: Message, *, timeout_s: float) -> bool:
        """Return whether an attempt that was started here is still this worker's.

        It isn't if this process stood still for so long that it was taken for dead, and another worker has decided
        about the attempt. The store is asked only then.

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        ...

    def prepare(self) -> None:
        """Connect and say that this process is alive, before it takes messages; raises nothing.

        Else its first mark would take longer than others, and another delivery of that attempt could be quicker.
        """
        ...

    def stood_still(self) -> bool:
        """Return whether this process may have been taken for dead lately, for the time of a lease.

        What it took before may have been given to another worker then. Nothing is asked of the store.
        """
        ...

    def close(self) -> None:
        """Let go of what is held open."""
        ...


class Store(Protocol):
    """What a store's module makes: `open_store(settings, url)`. Opening one connects to nothing yet."""

    @property
    def marks(self) -> Marks:
        """The attempt marks."""
        ...

    @property
    def records(self) -> Records:
        """What became of each message."""
        ...

    @property
    def ticks(self) -> Ticks:
        """Which instants of which schedules were sent."""
        ...

    def ping(self, *, timeout_s: float) -> None:
        """Return if the store answers and can be used.

        Raises:
            BrokerUnavailable: It doesn't answer.
            StoreNotReady: It answers, but `taskbridge store init` was not run, or by an earlier or later release.
        """
        ...

    def close(self) -> None:
        """Let go of what is held open."""
        ...


@runtime_checkable
class StoreWithTables(Store, Protocol):
    """A store that has to be made ready, once and by each release that needs it otherwise: `taskbridge store init`."""

    def init(self, *, timeout_s: float) -> tuple[int, int]:
        """Make it ready, and return the versions of its tables before and after; 0 is none.

        It may be done again, and by several processes at once. Data stays.

        Raises:
            BrokerUnavailable: It doesn't answer, or refuses.
            StoreNotReady: A later release has made it.
        """
        ...

    def clear(self, *, timeout_s: float) -> None:
        """Remove all that the bridge's namespace has stored.

        Raises:
            BrokerUnavailable: It wasn't done.
        """
        ...
