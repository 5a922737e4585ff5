"""The RabbitMQ broker of the Dramatiq engine holds what it has threads for, and survives what RabbitMQ does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import replace
from queue import Empty
from typing import Any, cast
from urllib.parse import urlsplit

import dramatiq
import pika
import pytest
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import CurrentMessage

from taskbridge import Bridge, Message, RetryPolicy
from taskbridge.brokers.rabbitmq.connection import ClientError
from taskbridge.contract.proxy import Proxy
from taskbridge.contract.stopwatch import STALL_S, Stopwatch
from taskbridge.engines.dramatiq.deliveries import Delivery
from taskbridge.engines.dramatiq.fast.work import WorkQueue
from taskbridge.engines.dramatiq.rabbitmq_broker import SparingRabbitmqBroker
from taskbridge.engines.dramatiq.wire import queue_arguments
from taskbridge.engines.settle import MOST_REDELIVERIES
from tests.servers import PrivateRabbitMQ

PATIENCE_S = 60.0


class Place:
    """A bridge with a namespace of its own, and a look into RabbitMQ."""

    def __init__(self, url: str) -> None:
        self.namespace = f"dq-{os.urandom(4).hex()}"
        self._url = url
        self.port = urlsplit(url).port or 5672
        self._bridges: list[Bridge] = []
        self.bridge = self._bridge()
        self.queue, self.email = (f"{self.namespace}.dramatiq.{name}" for name in ("default", "email"))
        self.note = self.bridge.task(name="note")(_note)

    def _bridge(self, port: int | None = None, **settings: Any) -> Bridge:
        url = self._url if port is None else self._url.replace(f":{self.port}", f":{port}")
        options: dict[str, Any] = {"queues": ("email",), "send_timeout": PATIENCE_S, **settings}
        bridge = Bridge(f"dramatiq+{url}", namespace=self.namespace, **options)
        self._bridges.append(bridge)
        return bridge

    def close(self) -> None:
        for bridge in self._bridges:
            bridge.close()

    def broker(self, threads: int, *, port: int | None = None, **settings: Any) -> SparingRabbitmqBroker:
        """Return the broker of a worker process; each is one of its own."""
        bridge = self._bridge(port, **settings)
        bridge.task(name="note")(_note)
        broker: SparingRabbitmqBroker = bridge.native
        broker.opens(threads)
        broker.booted.set()
        return broker

    def waiting(self, queue: str) -> int:
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.message_count)

    def consumers(self, queue: str) -> int:
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.consumer_count)

    def holds(self, queue: str, number: int) -> bool:
        """Return whether so many messages wait, soon: what is given back, or is dead, moves by itself."""
        return in_time(lambda: self.waiting(queue) == number)

    @contextmanager
    def channel(self) -> Generator[Any]:
        with pika.BlockingConnection(pika.URLParameters(self._url)) as connection:
            yield connection.channel()


def in_time(condition: Callable[[], object]) -> bool:
    """Return whether something becomes so, though nobody asks a consumer for anything."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _note(x: int) -> None:
    """Do nothing."""


@pytest.fixture
def place(rabbitmq_server: PrivateRabbitMQ) -> Iterator[Place]:
    place = Place(rabbitmq_server.url)
    yield place
    place.close()


def take(consumer: Any) -> Delivery:
    """Return the next message of a consumer."""
    deadline = time.monotonic() + PATIENCE_S
    while (delivery := next(consumer)) is None:
        assert time.monotonic() < deadline
    taken: Delivery = delivery
    return taken


def is_suspect(delivery: Any) -> bool:
    """Return whether a message came back; without a store it is sent once more then, so that it counts that itself."""
    assert not delivery.redelivered
    return bool(delivery.task_message.redelivered == 1)


def _of_an_actor(delivery: Delivery) -> Delivery:
    delivery.task_message = None
    return delivery


def turn(consumer: Any, until: Callable[[], object]) -> None:
    """Let a consumer do what it does while it has nothing to give, until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        assert next(consumer) is None
        assert time.monotonic() < deadline


def work_of(consumer: Any, work: WorkQueue) -> Any:
    """Return the next message for a thread; what comes before a slot is free, the consumer has to hand on."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert next(consumer) is None
        with suppress(Empty):
            return work.get(timeout=0.05).message
        assert time.monotonic() < deadline


def test_the_queues_are_those_that_dramatiq_declares(place: Place) -> None:
    broker = place.broker(1)
    consumer = broker.consume(place.queue, prefetch=1, timeout=50)

    with place.channel() as channel:  # RabbitMQ answers 406 to other arguments
        for name in (place.queue, f"{place.queue}.DQ"):
            channel.queue_declare(name, durable=True, arguments=queue_arguments(place.queue, "classic"))
        channel.queue_declare(f"{place.queue}.XQ", durable=True, arguments={"x-message-ttl": 7 * 86_400_000})
    consumer.close()


def test_a_queue_of_another_type_is_refused_with_what_to_do_about_it(place: Place) -> None:
    place.note.send(1)
    consumer = place.broker(1, queue_type="quorum").consume(place.queue, prefetch=1, timeout=50)

    with pytest.raises(ConnectionClosed, match=rf"'{place.queue}'.*can't be changed: set queue_type"):
        turn(consumer, lambda: False)


def test_what_an_actor_failed_is_among_dramatiqs_dead_and_all_else_is_gone(place: Place) -> None:
    for n in range(3):
        place.note.send(n)
    consumer = place.broker(3).consume(place.queue, prefetch=3, timeout=50)

    consumer.ack(take(consumer))
    consumer.nack(take(consumer))
    consumer.nack(_of_an_actor(take(consumer)))
    consumer.close()

    assert place.holds(f"{place.queue}.XQ", 1)
    assert place.waiting(place.queue) == 0


def test_what_returns_is_in_its_queue_again(place: Place) -> None:
    place.note.send(1)
    consumer = place.broker(1).consume(place.queue, prefetch=1, timeout=50)
    delivery = take(consumer)
    delivery.returns = True

    consumer.ack(delivery)
    again = take(consumer)

    assert (is_suspect(delivery), is_suspect(again), again.args) == (False, True, (1,))
    consumer.close()
    assert place.holds(place.queue, 1), "a connection that closes returns what is not acknowledged"


def test_a_queue_is_left_alone_while_all_threads_are_busy(place: Place) -> None:
    place.note.send(1)
    broker = place.broker(1)
    busy, idle = (broker.consume(name, prefetch=1, timeout=50) for name in (place.queue, place.email))
    held = take(busy)
    turn(idle, until=lambda: not idle._is_consuming)  # type: ignore[attr-defined]
    assert in_time(lambda: place.consumers(place.email) == 0), "RabbitMQ is told, and does not answer"

    place.note.using(queue="email").send(2)
    nothing = [next(idle), next(idle)]
    assert (nothing, place.waiting(place.email)) == ([None, None], 1)
    busy.ack(held)

    assert take(idle).args == (2,)
    for consumer in (busy, idle):
        consumer.close()


def one_held_and_one_waiting(place: Place, broker: SparingRabbitmqBroker) -> tuple[Any, Any, Delivery]:
    """Return two consumers, the first one's message, which holds the only thread, while another waits in the second."""
    busy, late = (broker.consume(name, prefetch=1, timeout=50) for name in (place.queue, place.email))
    assert next(late) is None, "it has begun"
    place.note.send(1)
    held = take(busy)
    place.note.using(queue="email").send(2)
    assert in_time(lambda: late._arrived)  # type: ignore[attr-defined]
    return busy, late, held


def test_with_a_store_what_finds_no_free_thread_goes_back_after_a_second(place: Place) -> None:
    broker = place.broker(1, store="memory://")
    busy, late, held = one_held_and_one_waiting(place, broker)

    arrived_at = late._moved_at
    turn(late, until=lambda: not late._is_consuming)
    took_s = time.monotonic() - arrived_at
    assert took_s >= 1
    assert place.holds(place.email, 1)
    busy.ack(held)

    assert take(late).args == (2,)
    for consumer in (busy, late):
        consumer.close()


def test_without_a_store_it_waits_for_a_thread(place: Place) -> None:
    """What went back would count as delivered before, and could not be told from what killed its worker."""
    broker = place.broker(1)
    busy, late, held = one_held_and_one_waiting(place, broker)

    until = time.monotonic() + 1.5
    turn(late, until=lambda: time.monotonic() > until)
    busy.ack(held)

    delivery = take(late)
    assert (delivery.args, delivery.redelivered) == ((2,), False)
    for consumer in (busy, late):
        consumer.close()


def test_a_worker_that_drains_returns_what_has_arrived(place: Place) -> None:
    for n in range(3):
        place.note.send(n)
    broker = place.broker(3)
    consumer = broker.consume(place.queue, prefetch=3, timeout=50)
    held = take(consumer)

    broker.draining = True
    turn(consumer, until=lambda: place.waiting(place.queue) == 2)
    consumer.ack(held)
    consumer.close()

    assert place.waiting(place.queue) == 2


def test_threads_take_what_arrives_by_themselves_and_no_more_than_there_are_slots(place: Place) -> None:
    for n in range(3):
        place.note.send(n)
    broker = place.broker(2)
    work = broker.work = WorkQueue()
    consumer = broker.consume(place.queue, prefetch=2, timeout=50)

    turn(consumer, until=lambda: work.unfinished_tasks == 2)
    taken = [work.get(timeout=PATIENCE_S).message for _ in range(2)]
    with pytest.raises(Empty):
        work.get(timeout=0.3)
    consumer.ack(taken[0])
    turn(consumer, until=lambda: work.unfinished_tasks == 3)
    taken.append(work.get(timeout=PATIENCE_S).message)

    assert [message.args for message in taken] == [(0,), (1,), (2,)]
    for message in taken[1:]:
        consumer.ack(message)
    consumer.close()
    assert place.waiting(place.queue) == 0


def test_nothing_is_delivered_before_dramatiq_has_the_consumer(place: Place) -> None:
    """A thread that is done with a message asks Dramatiq for the queue's consumer, and would find none, or the last."""
    place.note.send(1)
    broker = place.broker(1)
    work = broker.work = WorkQueue()
    consumer = broker.consume(place.queue, prefetch=1, timeout=50)

    with pytest.raises(Empty):
        work.get(timeout=0.3)
    turn(consumer, until=lambda: work.unfinished_tasks == 1)
    assert work.get(timeout=PATIENCE_S).message.args == (1,)
    consumer.close()


def test_a_worker_that_drains_waits_for_no_server_that_is_silent(place: Place) -> None:
    with Proxy(("127.0.0.1", place.port)) as proxy:
        broker = place.broker(1, port=proxy.port)
        one, two = (broker.consume(name, prefetch=1, timeout=50) for name in (place.queue, place.email))
        proxy.stall()
        broker.draining = True

        with Stopwatch() as draining:
            for consumer in (one, two):
                assert next(consumer) is None
        with Stopwatch() as closing:
            for consumer in (one, two):
                consumer.close()
            broker.closed()

    assert draining.took_s < 1 + STALL_S
    assert draining.took_s + closing.took_s < 2 + STALL_S


def test_a_slot_goes_to_the_queue_that_waits_for_it_for_the_longest_time(place: Place) -> None:
    broker = place.broker(1)
    work = broker.work = WorkQueue()
    other: Any = broker.consume(place.email, prefetch=2, timeout=50)
    assert next(other) is None, "it had the slot for a moment, and consumes from now on"
    for n in range(2):
        place.note.send(n)
    busy = broker.consume(place.queue, prefetch=2, timeout=50)
    assert next(busy) is None, "it consumes from now on"
    assert in_time(lambda: busy._arrived)  # type: ignore[attr-defined]
    first = work.get(timeout=PATIENCE_S).message
    assert next(busy) is None, "it is in the line now"
    place.note.using(queue="email").send(2)
    assert in_time(lambda: other._arrived)
    assert next(other) is None, "it is in the line behind the other"

    busy.ack(first)
    turn(busy, until=lambda: work.unfinished_tasks == 2)
    second = work.get(timeout=PATIENCE_S).message
    place.note.send(3)
    busy.ack(second)
    turn(other, until=lambda: work.unfinished_tasks == 3)
    third = work.get(timeout=PATIENCE_S).message
    other.ack(third)
    turn(busy, until=lambda: work.unfinished_tasks == 4)

    assert [message.args for message in (first, second, third, work.get(timeout=PATIENCE_S).message)] == [
        (0,),
        (1,),
        (2,),
        (3,),
    ]
    for consumer in (busy, other):
        consumer.close()


def test_what_no_thread_has_begun_with_goes_back_when_the_worker_drains(place: Place) -> None:
    for n in range(2):
        place.note.send(n)
    broker = place.broker(2)
    work = broker.work = WorkQueue()
    consumer = broker.consume(place.queue, prefetch=2, timeout=50)
    turn(consumer, until=lambda: work.unfinished_tasks == 2)

    broker.draining = True
    with pytest.raises(Empty):
        work.get_nowait()
    turn(consumer, until=lambda: place.waiting(place.queue) == 2)

    consumer.close()


def test_what_was_taken_before_the_connection_was_lost_is_not_run_after(place: Place) -> None:
    place.note.send(1)
    broker = place.broker(1)
    work = broker.work = WorkQueue()
    first: Any = broker.consume(place.queue, prefetch=1, timeout=50)
    turn(first, until=lambda: work.unfinished_tasks == 1)
    first._channel.connection.close()

    with pytest.raises(Empty):
        work.get(timeout=0.1)
    again = broker.consume(place.queue, prefetch=1, timeout=50)

    assert is_suspect(work_of(again, work))
    again.close()


def test_what_a_channel_holds_on_which_a_call_was_not_answered_goes_back(place: Place) -> None:
    place.note.send(1)
    broker = place.broker(1)
    first: Any = broker.consume(place.queue, prefetch=1, timeout=50)
    held = take(first)
    first._channel.shut(ClientError("on purpose"))

    with pytest.raises(ConnectionClosed, match="on purpose"):
        next(first)
    first.close()
    second: Any = broker.consume(place.queue, prefetch=1, timeout=50)

    first.ack(held)
    assert is_suspect(take(second))
    assert second._channel.connection is first._channel.connection
    second.close()


def test_more_queues_than_a_connection_has_channels_are_consumed(place: Place) -> None:
    place.note.send(1)
    place.note.using(queue="email").send(2)
    broker = place.broker(2)
    parameters: Any = broker.parameters
    parameters[0].channel_max = 1
    consumers: list[Any] = [broker.consume(name, prefetch=1, timeout=50) for name in (place.queue, place.email)]

    assert [take(consumer).args for consumer in consumers] == [(1,), (2,)]

    connection = consumers[0]._channel.connection
    consumers[0].close()
    assert in_time(lambda: connection.has_room)
    again: Any = broker.consume(place.queue, prefetch=1, timeout=50)
    consumers[0] = again
    assert again._channel.connection is connection, "what has room again is used again"
    for consumer in consumers:
        consumer.close()


def test_a_body_of_many_frames_arrives_whole(place: Place) -> None:
    text: Any = "x" * 300_000
    place.note.send(text)
    consumer = place.broker(1).consume(place.queue, prefetch=1, timeout=50)

    assert take(consumer).args == (text,)
    consumer.close()


def test_bytes_that_can_not_be_read_are_dead_and_gone(place: Place) -> None:
    with place.channel() as channel:
        channel.queue_declare(place.queue, durable=True, arguments=queue_arguments(place.queue, "classic"))
        channel.basic_publish("", place.queue, b"\x80\x04.")
    place.note.send(1)
    consumer = place.broker(1).consume(place.queue, prefetch=1, timeout=50)

    consumer.ack(take(consumer))  # first: a message without a priority counts as low
    turn(consumer, until=place.bridge.dead_letters)
    consumer.close()

    assert [(letter.reason, letter.raw) for letter in place.bridge.dead_letters()] == [("undecodable", b"\x80\x04.")]
    assert place.waiting(place.queue) == 0


def test_a_queue_that_was_deleted_is_declared_anew(place: Place) -> None:
    broker = place.broker(1)
    consumer: Any = broker.consume(place.queue, prefetch=1, timeout=50)
    with place.channel() as channel:
        channel.queue_delete(place.queue)

    with pytest.raises(ConnectionClosed):
        turn(consumer, until=lambda: False)
    consumer.close()
    anew = broker.consume(place.queue, prefetch=1, timeout=50)
    place.note.send(1)

    assert take(anew).args == (1,)
    anew.close()


def test_an_acknowledgement_over_a_lost_connection_frees_its_slot(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.note.send(1)
    broker = place.broker(1)
    first: Any = broker.consume(place.queue, prefetch=1, timeout=50)
    held = take(first)
    first._channel.connection.close()

    with pytest.raises(ConnectionClosed):
        next(first)
    first.ack(held)
    second = broker.consume(place.queue, prefetch=1, timeout=50)
    again = take(second)
    second.ack(held)  # Dramatiq asks the consumer that there is now

    assert is_suspect(again)
    assert "delivers it again" in caplog.text
    second.close()


def test_without_a_store_an_attempt_that_waits_to_be_settled_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its verdict waits for RabbitMQ as RabbitMQ delivers it again, however often it has done so before."""
    ran: list[str] = []
    parked: list[tuple[Message, float]] = []
    retry = RetryPolicy(max_attempts=2, min_delay=60, jitter=0)
    bridge = Bridge("dramatiq+amqp://127.0.0.1:1", retry=retry)

    @bridge.task(name="fails")
    def fails() -> None:
        ran.append("m")
        raise ValueError("no")

    native, wire = bridge.native, cast("Any", bridge.wire)
    given: dict[str, Any] = {"args_json": "[]", "kwargs_json": "{}", "enqueued_at": time.time()}
    message = Message(id="m", task="fails", queue="default", **given)

    def deliver(message: Message, *, redelivered: bool) -> None:
        body = wire.encode(message).body
        delivery = native.reception.admit("taskbridge.dramatiq.default", body, place=None, redelivered=redelivered)
        assert delivery is not None
        current: Any = CurrentMessage()
        current.before_process_message(native, delivery)
        with pytest.raises(dramatiq.Retry):
            native.actors["fails"]()

    def park(messages: list[tuple[Message, float]], *, timeout_s: float) -> None:
        parked.extend(messages)
        if len(parked) == 1:
            copy_context().run(deliver, replace(message, redelivered=MOST_REDELIVERIES), redelivered=True)

    monkeypatch.setattr(bridge.broker, "park", park)
    for redelivered in (False, True):
        copy_context().run(deliver, message, redelivered=redelivered)

    assert ran == ["m"]
    assert [(each.attempt, delay_s) for each, delay_s in parked] == [(2, 60.0), (1, 2.0)]
    bridge.close()
