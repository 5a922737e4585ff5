"""Records: what became of each message (rules ST, RS and CA), in a form that belongs to no engine.

A record is made as its message is sent, before or together with the message, so that no worker can be faster. Workers
then write what happens. A record's key is the message's id, so that a handle outlives a switch of engines.

Who writes what, and what a store must keep to:

- `create` never overwrites: a worker may have been faster, or the same message may have been published twice.
- `started` and `ended` carry the message's attempt and `replays`; a write of an earlier attempt than the record's
  latest one, or of an earlier life, changes nothing. A final record (`FINAL`) changes only by a replay.
- An attempt ends once: the first `ended` stands, but for one that says `queued` (the run was given back, and is no
  attempt).
- `create` of a later life (a replay) begins the record anew.
- A record that was asked to be cancelled while it ran waits for nothing more: where the run's end would make it
  `retrying` or `queued`, it becomes `cancelled`.
- `cancel` and these are atomic to one another: a message whose record is `cancelled` is never `running` again, except
  that a start may win which began before its worker could know (`CANCEL_KNOWN_S`); that `started` says so by its time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from taskbridge.brokers.base import RedisCommand
from taskbridge.message import Message
from taskbridge.retry import ErrorInfo

State = Literal["scheduled", "queued", "running", "retrying", "done", "dead", "discarded", "cancelled"]
"""What a message is doing.

`scheduled`: it waits for its time. `queued`: it waits for a worker. `running`: a worker runs it. `retrying`: an attempt
failed and the next one waits. `done`: it returned. `dead`: its attempts are spent, or it was given up. `discarded`: it
expired or was dropped by `Discard`. `cancelled`: it was cancelled before it ended, and starts no more.
"""

FINAL: Final[frozenset[State]] = frozenset({"done", "dead", "discarded", "cancelled"})
"""The states that a message does not leave, but by a replay from the dead letters."""

CANCEL_KNOWN_S: Final = 1.0
"""A worker knows of a cancellation after this at most."""


CANCELLATIONS_AT_ONCE: Final = 1000
"""How many cancellations a store tells of at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRecord:
    """One run of a message.

    Attributes:
        number: 1 is the first.
        worker: `host:pid` of the process that ran it.
        started_at: In seconds since the epoch.
        ended_at: The same; None while it runs, or if its worker never told.
        error: Why it failed; None if it didn't.
    """

    number: int
    worker: str
    started_at: float
    ended_at: float | None = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is known of a message.

    Attributes:
        id: The message's id.
        task: The task's name.
        queue: Where it was sent.
        state: What it is doing.
        enqueued_at: When it was sent, in seconds since the epoch.
        due_at: When it starts at the earliest, if it is `scheduled` or `retrying`.
        ended_at: When it became final.
        attempts: Its runs, the earliest first; of more than `MOST_ATTEMPTS` the latest.
        result_json: What it returned, in the codec's form, if it is `done`.
        reason: Why it is `dead` or `discarded`.
        error: Of the last attempt that failed.
        traceback: The same, as text, if it is `dead`.
        replays: How often it was replayed from the dead letters.
        cancel_asked: Whether it was cancelled while it ran.
    """

    id: str
    task: str
    queue: str
    state: State
    enqueued_at: float
    due_at: float | None = None
    ended_at: float | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    result_json: str | None = None
    reason: str = ""
    error: ErrorInfo | None = None
    traceback: str = ""
    replays: int = 0
    cancel_asked: bool = False


MOST_ATTEMPTS: Final = 50
"""How many runs a record tells of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a run, or a wait, ended.

    Attributes:
        state: What the message is doing now: a final state, `retrying`, or `queued` if it was given back or put off.
        at: When, in seconds since the epoch.
        due_at: For `retrying`, when the next attempt starts.
        result_json: For `done`.
        reason: For `dead` and `discarded`.
        error: For `retrying` and `dead`.
        traceback: For `dead`.
    """

    state: State
    at: float
    due_at: float | None = None
    result_json: str | None = None
    reason: str = ""
    error: ErrorInfo | None = None
    traceback: str = ""


class Records(Protocol):
    """The records of a bridge, for this process. Threads share it; a forked process makes its own connections."""

    def create(self, messages: Sequence[tuple[Message, float]], *, timeout_s: float) -> None:
        """Make the records of messages that are about to be sent, each with its delay in seconds.

        Raises:
            BrokerUnavailable: The store doesn't answer; nothing must be sent.
        """
        ...

    def creating(self, message: Message, delay_s: float) -> RedisCommand | None:
        """Return one Redis command that does what `create` does, for a Redis broker that shares the store's database.

        The broker sends it along with the message, in one transaction. None: use `create`.
        """
        ...

    def forget(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Remove the records of messages that were surely not sent, if nobody has changed them since.

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        ...

    def started(self, message: Message, *, worker: str, at: float) -> None:
        """Record that an attempt starts. Raises nothing, and waits for nothing where the store allows that."""
        ...

    def ended(self, message: Message, ending: Ending, *, timeout_s: float) -> State | None:
        """Record how a run or a wait ended, and wake who waits for a final record.

        It is written even if this process is killed after this returns.

        Returns:
            The record's state after that, whether this has changed it or not; None if it is of another life. It is
            `cancelled` where there was to be a next attempt, and somebody has cancelled the message.

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        ...

    def get(self, message_id: str, *, timeout_s: float) -> Record | None:
        """Return a record; None if there is none, or it is older than `result_ttl`.

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        ...

    def watch(self, message_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake`, from any thread, whenever a message's record may have become final, until it is told to stop.

        One connection a process serves any number of watches. A wake may come for nothing and one may be missed while
        the store is away: it comes after the connection is there again. Who waits reads the record after `watch`
        returns and after each wake.

        Returns:
            What ends the watch.

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        ...

    def cancel(self, message_id: str, *, at: float, timeout_s: float) -> Record | None:
        """Cancel a message unless it is final, in one step, and return its record after that; None if there is none.

        One that does not run becomes `cancelled`; for one that runs, `cancel_asked` is set. `cancelled_since` tells
        its life from now on, for at least as long as its message can be about: its due time, and `result_ttl` or
        7 days more.

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        ...

    def cancelled_since(self, cursor: str, *, timeout_s: float) -> tuple[str, Collection[str]]:
        """Return the lives that were cancelled after a cursor, and the next cursor; "" is the beginning.

        A message's life is `Message.life`. A replay begins another one, which is not cancelled.
        None is skipped, whatever the order in which concurrent calls of `cancel` end; some may be told twice. Of many
        only the first are told, `CANCELLATIONS_AT_ONCE` or so: whoever wants all asks with the next cursor, until none
        is told.

        Raises:
            BrokerUnavailable: The store doesn't answer.
        """
        ...

    def close(self) -> None:
        """Let go of what is held open."""
        ...
