"""What is done on a connection: calls, deliveries, and publications that are confirmed or part of a transaction."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Final

from pika import spec

from taskbridge.brokers.rabbitmq.connection import ClientError, Connection, Deadline
from taskbridge.brokers.rabbitmq.frames import (
    Assembler,
    Delivery,
    Returned,
    ack_bytes,
    method_bytes,
    publication_pieces,
)
from taskbridge.brokers.rabbitmq.hosts import Hosts
from taskbridge.brokers.rabbitmq.publication import Destination, EncodedPublication

NOT_FOUND: Final = 404  # AMQP's reply code: a queue or an exchange is missing
_ROUNDS: Final = 3  # how often a missing queue is declared before the publication fails
_ELECTION_S: Final = 3.0
"""For how long, once, a quorum queue may refuse until it counts as full: a new one first elects a leader.

On a busy machine, with RabbitMQ 3.10, that took more than a second.
"""

_PAUSE_S: Final = 0.1

_CHUNK_BYTES: Final = 1 << 18
_LEAVE_S: Final = 0.3


@dataclass(slots=True)
class Outcome:
    """What became of publications that were sent together, by number. One in none of these sets was not taken."""

    accepted: set[int] = field(default_factory=set[int])  # confirmed by the server
    refused: set[int] = field(default_factory=set[int])  # rejected by their queue (`basic.nack`)
    unsure: set[int] = field(default_factory=set[int])  # sent and not answered: the server may have taken them
    problem: str | None = None  # why not all were accepted


class Channel:
    """A channel. One thread at a time calls it; any thread may tell and acknowledge.

    After a `ClientError` (the server refused and closed the channel, the connection is gone, or there was no answer in
    time) the channel can't be used any more. `receive` is called with each delivery, in the thread that reads; it must
    not wait. By default deliveries are kept.
    """

    def __init__(self, connection: Connection, receive: Callable[[Delivery], None] | None = None) -> None:
        self.connection = connection
        self.closed: ClientError | None = None  # why the channel can no longer be used
        self.deliveries: deque[Delivery] = deque()  # those that are kept, the first first
        self.replies: list[Any] = []  # to the last calls; if one was refused, to those before it
        self._receive = receive or self.deliveries.append
        self._is_closing = False  # RabbitMQ closes the connection if a channel is closed twice
        self._assembler = Assembler()
        self._declared: set[Destination] = set()
        self._elections: dict[Destination, Deadline] = {}
        self._sent = 0
        self._unconfirmed: dict[int, tuple[Outcome, int]] = {}
        self._returned: set[Returned] = set()
        self._number = connection.attach(self)
        self.tell(spec.Channel.Open())

    def call(self, method: Any, deadline: Deadline) -> Any:
        """Return the reply to a method."""
        return self.call_all([method], deadline)[0]

    def call_all(self, methods: Sequence[Any], deadline: Deadline) -> list[Any]:
        """Return the replies to methods that are sent together."""
        self.check()
        self.replies, asked = [], len(methods)
        self._exchange(self._bytes(methods), lambda: len(self.replies) >= asked, deadline)
        return self.replies

    def _exchange(self, data: bytes, is_enough: Callable[[], bool], deadline: Deadline) -> None:
        """Send bytes, and wait until what has come is enough."""
        try:
            self.connection.write(data, deadline)
            self.connection.wait(lambda: is_enough() or self.closed is not None, deadline)
        except BaseException as exc:  # a late reply would be taken for the next call's
            self.connection.lose(f"a call was not answered: {exc}")
            raise
        if not is_enough():
            self.check()

    def check(self) -> None:
        """Raise the `ClientError` of which the channel was closed, if it was."""
        if self.closed is not None:
            raise copy(self.closed)  # what is raised twice keeps the traces of both

    def tell(self, *methods: Any) -> None:
        """Send methods, without waiting; nobody calls after those that have replies."""
        self.connection.send(self._bytes(methods))

    def _bytes(self, methods: Iterable[Any]) -> bytes:
        return b"".join(method_bytes(self._number, method) for method in methods)

    def leave(self) -> None:
        """Close the channel, without waiting; unacknowledged deliveries return to their places in the queue.

        A channel may be closed here and still open on the server, as when its queue was deleted.
        """
        if not self._is_closing:
            self._is_closing = True
            self.tell(spec.Channel.Close(200, "", 0, 0))
            self.shut(ClientError("the channel was closed"))

    def declare(self, destination: Destination, deadline: Deadline, *, anew: bool = False) -> None:
        """Declare a destination and what it needs, unless this channel has done so and it is not to be done anew.

        Of a queue that others are just declaring for the first time, RabbitMQ 4 says for a moment that it is not found,
        as of one whose node is away: another attempt, on another channel, may succeed.
        """
        if destination in self._declared and not anew:
            return
        calls = list(destination.calls())
        try:
            self.call_all(calls, deadline)
        except ClientError as exc:
            if not exc.code:
                raise
            problem, again = _declaration_problem(calls[len(self.replies)], exc), exc.code == NOT_FOUND
            if again:
                time.sleep(deadline.within(_PAUSE_S).left_s)
            raise ClientError(problem, again=again) from exc
        self._declared.add(destination)
        self._elections.pop(destination, None)

    # Deliveries

    def ack(self, tags: Iterable[int]) -> None:
        """Acknowledge deliveries, without waiting."""
        acks = ack_bytes(self._number, tags)
        if acks:
            self.connection.send(acks)

    def arriving(self, queue: str, deadline: Callable[[], Deadline]) -> Iterator[Delivery]:
        """Yield deliveries as they come, until all are here that a queue can deliver to this channel now.

        Then the first of `replies` says how many messages the queue still held. `deadline` makes that of each wait.
        """
        look, answers = self._bytes([spec.Queue.Declare(queue=queue, passive=True)]), list[Any]()
        # The first answer may overtake what the queue has delivered, for its channel waits for the queue before it goes
        # on; the one to what is asked after that can't.
        for _ in range(2):
            self.check()
            self.replies, data = [], look
            while not self.replies:
                self._exchange(data, lambda: bool(self.replies or self.deliveries), deadline())
                data = b""
                while self.deliveries:
                    yield self.deliveries.popleft()
            answers += self.replies
        self.replies = answers

    # Publications

    def publish(self, publications: Mapping[int, EncodedPublication], outcome: Outcome, deadline: Deadline) -> None:
        """Publish messages in order, and return when all are confirmed; `Confirm.Select` was called before.

        Missing exchanges and queues are declared. What was accepted before is left out; whatever is raised, the outcome
        tells what became of each.
        """
        where = self.connection.where
        outcome.problem = None
        outcome.refused.clear()
        todo = {number: each for number, each in publications.items() if number not in outcome.accepted}
        rounds = _ROUNDS
        while rounds > 0:
            self.connection.wait(lambda: self.connection.blocked is None, deadline)
            for destination in dict.fromkeys(each.destination for each in todo.values() if each.destination.exchange):
                self.declare(destination, deadline)
            returned = self._publish(todo, outcome, deadline)
            again = {number for number in outcome.refused if self._may_elect(publications[number].destination)}
            if again and not deadline.passed:
                time.sleep(deadline.within(_PAUSE_S).left_s)
                outcome.refused -= again
                todo = {number: each for number, each in todo.items() if number in returned | again}
                continue
            if outcome.refused:
                name = publications[min(outcome.refused)].destination.name
                outcome.problem = f"RabbitMQ at {where} refused it: is queue {name!r} full?"
            if not returned:
                return
            todo = {number: publications[number] for number in sorted(returned)}
            for destination in dict.fromkeys(each.destination for each in todo.values()):
                self.declare(destination, deadline, anew=True)
            rounds -= 1
        name = publications[min(todo)].destination.name
        outcome.problem = f"RabbitMQ at {where} does not find {name!r}, just declared"

    def _may_elect(self, destination: Destination) -> bool:
        """Return whether a queue that refuses may be about to elect its leader: it has just begun to refuse here."""
        return destination.is_quorum and not self._elections.setdefault(destination, Deadline(_ELECTION_S)).passed

    def _publish(self, todo: Mapping[int, EncodedPublication], outcome: Outcome, deadline: Deadline) -> set[int]:
        """Publish messages, and return the numbers of those that were routed to no queue when all are confirmed."""
        self._returned.clear()
        returned: set[int] = set()
        try:
            for chunk in _chunks(todo.items()):
                data = self._frames(publication for _, publication in chunk)
                self.check()
                for number, _ in chunk:
                    self._sent += 1
                    self._unconfirmed[self._sent] = outcome, number
                    outcome.unsure.add(number)
                self.connection.write(data, deadline)
            problem = f"RabbitMQ at {self.connection.where} sent no confirm in {deadline.timeout_s:g} s"
            self.connection.wait(lambda: not outcome.unsure or self.closed is not None, deadline, problem)
            if outcome.unsure:
                self.check()
        finally:
            if self._returned:  # what was returned is confirmed as well
                returned = {number for number, each in todo.items() if each.way in self._returned}
                outcome.accepted -= returned
                outcome.unsure -= returned
            if self.closed is not None and self.closed.code and len(outcome.unsure) == 1:
                outcome.unsure.clear()  # the server closed the channel because of it, and has not taken it
        return returned

    def finds(self, publication: EncodedPublication, deadline: Deadline) -> bool:
        """Declare what a publication needs, publish it, and return whether it was routed to a queue."""
        if self.connection.blocked is not None:
            raise ClientError(self.connection.blocked)
        self.call_all(list(publication.destination.calls()), deadline)
        return not self._publish({0: publication}, Outcome(), deadline)

    def commit(
        self, publications: Sequence[EncodedPublication], tags: Iterable[int], deadline: Deadline
    ) -> list[EncodedPublication]:
        """Publish messages and acknowledge deliveries in one transaction; `Tx.Select` was called before.

        Returned are the publications that were routed to no queue. If it raises, the transaction may have been
        committed or not.
        """
        self._returned.clear()
        for chunk in _chunks(enumerate(publications)):
            self.connection.write(self._frames(publication for _, publication in chunk), deadline)
        self.ack(tags)
        self.call(spec.Tx.Commit(), deadline)
        return [publication for publication in publications if publication.way in self._returned]

    def _frames(self, publications: Iterable[EncodedPublication]) -> bytes:
        number, frame_max = self._number, self.connection.frame_max
        pieces: list[bytes] = []
        for destination, key, _, properties, body in publications:
            pieces += publication_pieces(number, destination.exchange, key, properties, body, frame_max=frame_max)
        return b"".join(pieces)

    # For the connection

    def take(self, kind: int, payload: bytes) -> None:
        """Take a frame."""
        made = self._assembler.made_of(kind, payload)
        match made:
            case Delivery():
                self._receive(made)
            case None | spec.Channel.OpenOk():
                pass
            case spec.Basic.Ack():
                self._on_confirm(made, taken=True)
            case spec.Basic.Nack():
                self._on_confirm(made, taken=False)
            case Returned():
                self._returned.add(made)  # its confirm, or the reply to the commit, comes after it
            case spec.Channel.Close():
                self._is_closing = True
                self.tell(spec.Channel.CloseOk())
                self.shut(ClientError(made.reply_text, code=made.reply_code))
                self.connection.detach(self._number)
            case spec.Channel.CloseOk():
                self.connection.detach(self._number)
            case spec.Basic.Cancel():  # its queue was deleted
                self.shut(ClientError(f"the queue of consumer {made.consumer_tag} is gone", code=NOT_FOUND))
            case spec.Channel.Flow():
                self.tell(spec.Channel.FlowOk(made.active))
            case _:
                self.replies.append(made)

    def shut(self, reason: ClientError) -> None:
        """Let the channel be used no more, for this reason."""
        if self.closed is None:
            self.closed = reason

    def _on_confirm(self, method: Any, *, taken: bool) -> None:
        last = method.delivery_tag
        for each in list(takewhile(lambda sent: sent <= last, self._unconfirmed)) if method.multiple else [last]:
            outcome, number = self._unconfirmed.pop(each)
            outcome.unsure.discard(number)
            (outcome.accepted if taken else outcome.refused).add(number)


@contextmanager
def channel_of_its_own(hosts: Hosts, deadline: Deadline, *, leave_s: float = _LEAVE_S) -> Generator[Channel]:
    """Open a connection with one channel for the block; what is not acknowledged goes back to its queue after it.

    For `leave_s` seconds at most, an answer is waited for that says that this is done.
    """
    connection = hosts.connect(deadline)
    try:
        yield Channel(connection)
    finally:
        connection.close(leave_s if connection.blocked is None else 0.0)  # the server reads nothing in an alarm


def _declaration_problem(call: Any, refusal: ClientError) -> str:
    name = getattr(call, "queue", None) or getattr(call, "exchange", None) or call.destination
    kind = "queue" if hasattr(call, "queue") else "exchange"
    return f"{kind} {name!r} can't be declared as it must be{remedy(refusal)} (RabbitMQ says: {refusal})"


def remedy(refusal: Exception) -> str:
    """Return what to do about a refusal, if it is because a queue or an exchange is there with other arguments."""
    if "inequivalent" not in str(refusal):  # rabbit_misc:assert_args_equivalence
        return ""
    return "; it can't be changed: set queue_type to what it is, or delete it when it is empty; it is made again"


def _chunks(
    publications: Iterable[tuple[int, EncodedPublication]],
) -> Iterator[Sequence[tuple[int, EncodedPublication]]]:
    """Yield numbered publications in chunks of about 256 KiB."""
    chunk: list[tuple[int, EncodedPublication]] = []
    size = 0
    for number, publication in publications:
        if size > 0 and size + len(publication.body) > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append((number, publication))
        size += len(publication.body) + len(publication.properties) + 100
    yield chunk
