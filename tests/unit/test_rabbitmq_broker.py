"""The RabbitMQ broker confirms what it sends, keeps what waits, and tells in time when the server is away."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pika
import pytest
from pika import spec
from pika.exceptions import ChannelClosedByBroker

from taskbridge.brokers.base import Broker, Publication, Taken
from taskbridge.brokers.rabbitmq import channel, connect, pool
from taskbridge.brokers.rabbitmq.broker import RabbitMQBroker
from taskbridge.brokers.rabbitmq.channel import Channel
from taskbridge.brokers.rabbitmq.connection import ClientError, Connection, Deadline
from taskbridge.brokers.rabbitmq.pool import Pool
from taskbridge.contract.ports import free_port
from taskbridge.contract.proxy import Proxy
from taskbridge.contract.stopwatch import STALL_S, Stopwatch
from taskbridge.exceptions import BrokerUnavailable, MessageTooLarge, PartlyPublished, SettingsError
from taskbridge.message import DeadLetter, Message
from taskbridge.settings import load
from tests.servers import PrivateRabbitMQ, ServerNotInstalled

TOLERANCE = 1.1
"""A send may take 10% longer than its timeout (rule S2)."""

PATIENCE_S = 60.0
"""How long is waited for what has to come: RabbitMQ may confirm nothing for many seconds while its disk is busy."""

UNHINDERED_S = 20.0
"""What takes less was not held up by another thread or a lost connection, for which it would wait for half its time."""


class AnyWire:
    """A wire like an engine's: one queue for each of taskbridge's, and everything in headers and body."""

    def __init__(self, engine: str, namespace: str) -> None:
        self.engine = engine
        self.namespace = namespace

    def encode(self, message: Message) -> Publication:
        if message.task == "no.wire.can.encode":
            raise RuntimeError("no wire can encode this")
        return Publication(
            queue=self.places(message.queue)[0],
            arguments={"x-max-priority": 3},
            body=message.args_json.encode(),
            properties={
                "headers": {"task": message.task, "id": message.id, "taskbridge": message.dumps_meta()},
                "content_type": "application/json",
                "priority": 1,
            },
        )

    def places(self, queue: str) -> Sequence[str]:
        return [f"{self.namespace}.{self.engine}.{queue}"]


def own_ports(server_port: int, pid: int | None = None) -> set[str]:
    """Return the local ports of a process's connections to a port: the same ports are the same connections.

    Args:
        server_port: To where.
        pid: Of which process; this one if None.
    """
    mine: set[str] = set()
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        for each in Path(f"/proc/{pid or 'self'}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                mine.add(str(each.readlink()))
    ports: set[str] = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        is_open, there, inode = words[3] == "01", int(words[2].split(":")[1], 16), words[9]
        if is_open and there == server_port and f"socket:[{inode}]" in mine:
            ports.add(words[1])
    return ports


class Place:
    """A namespace of its own on a server, and a look at what is in it by a plain client."""

    def __init__(self, server: PrivateRabbitMQ, stack: ExitStack) -> None:
        self.server = server
        self.namespace = f"ns{uuid.uuid4().hex[:8]}"
        self._stack = stack

    def broker(self, engine: str = "celery", *, url: str | None = None, **settings: Any) -> RabbitMQBroker:
        given = {"url": f"{engine}+{url or self.server.url}", "namespace": self.namespace, "send_timeout": PATIENCE_S}
        given |= settings
        broker = connect(load(given, environ={})[0], AnyWire(engine, self.namespace))
        self._stack.callback(broker.close)
        return broker

    def pumping(
        self, broker: Broker, knows: Callable[[str], bool] = lambda task: True, **given: Any
    ) -> threading.Event:
        """Pump until the end of the test, or until the event that is returned is set."""
        stop = threading.Event()
        thread = threading.Thread(target=broker.pump, kwargs={"knows": knows, "stop": stop, **given})
        thread.start()

        def end() -> None:
            stop.set()
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "the pump does not stop"

        self._stack.callback(end)
        return stop

    def queue(self, queue: str = "email", engine: str = "celery") -> str:
        return f"{self.namespace}.{engine}.{queue}"

    @contextmanager
    def channel(self) -> Generator[Any]:
        with closing(pika.BlockingConnection(pika.URLParameters(self.server.url))) as connection:
            yield connection.channel()

    def take_all(self, queue: str) -> list[tuple[Any, bytes]]:
        """Return properties and bodies of all that waits in a queue, which is empty then."""
        found: list[tuple[Any, bytes]] = []
        with self.channel() as channel:
            while True:
                method, properties, body = channel.basic_get(queue, auto_ack=True)
                if method is None:
                    return found
                found.append((properties, body))

    def arrivals(self, number: int, *, timeout_s: float, queue: str | None = None) -> list[tuple[float, bytes]]:
        """Return when each of so many messages came, and its body."""
        seen: list[tuple[float, bytes]] = []
        with self.channel() as channel:
            name = queue or self.queue()
            channel.queue_declare(name, durable=True, arguments={"x-max-priority": 3})
            deadline = time.monotonic() + timeout_s
            for method, _, body in channel.consume(name, inactivity_timeout=0.2):
                if method is not None:
                    seen.append((time.time(), body))
                    channel.basic_ack(method.delivery_tag)
                if len(seen) >= number or time.monotonic() > deadline:
                    return seen
        raise AssertionError

    def silences(self) -> Callable[[], list[tuple[float, float]]]:
        """Watch how RabbitMQ confirms messages of another namespace, which wait in a quorum queue as what is delayed.

        Returns:
            What ends that, and returns from when to when RabbitMQ was silent, each time that it was for over 0.2 s.
        """
        broker, over = Place(self.server, self._stack).broker(), threading.Event()
        silences: list[tuple[float, float]] = []

        def watch() -> None:
            while not over.wait(0.1):
                began, is_silent = time.time(), True
                while is_silent and not over.is_set():
                    with suppress(BrokerUnavailable):
                        broker.park([(a_message(), 3600)], timeout_s=PATIENCE_S)
                        is_silent = False
                    over.wait(0.1 if is_silent else 0)
                silences.append((began, time.time()))

        def end() -> list[tuple[float, float]]:
            over.set()
            thread.join(PATIENCE_S)
            return [(began, ended) for began, ended in silences if ended - began > 0.2]

        broker.park([(a_message(), 3600)], timeout_s=PATIENCE_S)  # which makes the queue
        thread = threading.Thread(target=watch)
        thread.start()
        self._stack.callback(end)
        return end


def a_message(number: int = 0, **fields: Any) -> Message:
    given: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "task": "shop.add",
        "queue": "email",
        "args_json": f"[{number}]",
        "kwargs_json": "{}",
        "enqueued_at": time.time(),
        **fields,
    }
    return Message(**given)


def a_letter(number: int = 0) -> DeadLetter:
    return DeadLetter(message=a_message(number), reason="exhausted", died_at=time.time())


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


@contextmanager
def takes(at_least_s: float, at_most_s: float) -> Generator[None]:
    began = time.monotonic()
    with Stopwatch() as watch:
        yield
    assert time.monotonic() - began >= at_least_s, f"took {time.monotonic() - began:.3f} s, not {at_least_s}"
    assert watch.took_s <= at_most_s, f"took {watch.took_s:.3f} s, not {at_least_s} to {at_most_s}"


class RestartableRabbitMQ(PrivateRabbitMQ):
    """A node that is quick to go on with delays when it starts.

    What falls due before all its queues are there is tried again after so many milliseconds; else after 3 minutes.
    """

    def _prepare(self) -> None:
        super()._prepare()
        options = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 3000}]}].\n"
        (self.folder / "advanced.config").write_text(options)


@pytest.fixture(scope="module")
def fragile_server() -> Iterator[PrivateRabbitMQ]:
    """A node that tests of this file stop, pause and fill; each leaves it running."""
    server = RestartableRabbitMQ()
    try:
        server.start()
    except ServerNotInstalled as exc:
        if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
            raise
        pytest.skip(str(exc))
    with server:
        yield server


@pytest.fixture(autouse=True)
def slow_elections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let new queues elect their leaders for longer: the disk of a loaded machine may be busy for that long."""
    monkeypatch.setattr(channel, "_ELECTION_S", 20.0)


@pytest.fixture
def place(rabbitmq_server: PrivateRabbitMQ) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(rabbitmq_server, stack)


@pytest.fixture
def fragile(fragile_server: PrivateRabbitMQ) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(fragile_server, stack)


class TestPublishing:
    def test_a_message_arrives_persistent_and_with_the_wires_properties(self, place: Place) -> None:
        broker, message = place.broker(), a_message(7)

        broker.publish([message], timeout_s=PATIENCE_S)

        assert broker.counts(["email"]).waiting == {"email": 1}
        ((properties, body),) = place.take_all(place.queue())
        assert body == b"[7]"
        assert properties.headers["id"] == message.id
        assert (properties.content_type, properties.priority) == ("application/json", 1)
        assert properties.delivery_mode == 2

    def test_a_missing_queue_is_declared_as_the_wire_says(self, place: Place) -> None:
        place.broker().publish([a_message()], timeout_s=PATIENCE_S)

        with place.channel() as channel:  # else: 406
            channel.queue_declare(place.queue(), durable=True, arguments={"x-max-priority": 3})

    def test_a_queue_that_is_there_is_taken_as_it_is(self, place: Place) -> None:
        with place.channel() as channel:
            channel.queue_declare(place.queue(), durable=True, arguments={"x-max-length": 100})

        place.broker().publish([a_message()], timeout_s=PATIENCE_S)

        assert len(place.take_all(place.queue())) == 1

    def test_a_queue_that_was_deleted_is_declared_again(self, place: Place) -> None:
        broker = place.broker()
        broker.publish([a_message(1)], timeout_s=PATIENCE_S)
        with place.channel() as channel:
            channel.queue_delete(place.queue())

        broker.publish([a_message(2)], timeout_s=PATIENCE_S)

        assert [body for _, body in place.take_all(place.queue())] == [b"[2]"]

    @pytest.mark.parametrize("refusals", [3, 1000])
    def test_a_queue_that_is_not_found_as_others_declare_it_is_declared_again(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, refusals: int
    ) -> None:
        tried: list[Channel] = []

        def call_all(channel: Channel, methods: Sequence[Any], deadline: Deadline) -> list[Any]:
            if any(isinstance(method, spec.Queue.Declare) for method in methods):
                tried.append(channel)
                if len(tried) <= refusals:
                    channel.replies = []
                    channel.leave()
                    raise ClientError("NOT_FOUND - home node of durable queue is down or inaccessible", code=404)
            return ask(channel, methods, deadline)

        ask = Channel.call_all
        monkeypatch.setattr(Channel, "call_all", call_all)

        if refusals == 3:
            place.broker().publish([a_message()], timeout_s=PATIENCE_S)
            assert len(tried) == len(set(map(id, tried))) == 4
            assert len(place.take_all(place.queue())) == 1
        else:  # its node is away: it is said at last
            with pytest.raises(BrokerUnavailable, match="is down or inaccessible") as caught:
                place.broker().publish([a_message()], timeout_s=PATIENCE_S)
            assert not caught.value.maybe_taken
            assert 4 < len(tried) < 100

    def test_a_thousand_arrive_once_each_and_in_order(self, place: Place) -> None:
        broker = place.broker()
        broker.publish(
            [a_message(number) for number in range(1000)], timeout_s=PATIENCE_S
        )  # and all of them are returned
        broker.publish([a_message(number) for number in range(1000, 2000)], timeout_s=PATIENCE_S)

        bodies = [body for _, body in place.take_all(place.queue())]
        assert bodies == [b"[%d]" % number for number in range(2000)]

    def test_messages_of_one_id_and_one_body_all_arrive(self, place: Place) -> None:
        message = a_message()

        place.broker().publish([message, message, message], timeout_s=PATIENCE_S)

        assert len(place.take_all(place.queue())) == 3

    def test_a_message_larger_than_a_frame_arrives_whole(self, place: Place) -> None:
        text = '["' + "x" * 1_000_000 + '"]'

        place.broker().publish([a_message(args_json=text), a_message(1)], timeout_s=PATIENCE_S)

        assert [body for _, body in place.take_all(place.queue())] == [text.encode(), b"[1]"]

    def test_headers_larger_than_a_frame_are_refused_before_anything_is_sent(self, place: Place) -> None:
        broker = place.broker()

        with pytest.raises(MessageTooLarge, match=r"headers take 1\d{5} bytes"):
            broker.publish([a_message(headers={"note": "x" * 140_000})], timeout_s=PATIENCE_S)

        broker.publish([a_message(1)], timeout_s=PATIENCE_S)
        assert len(place.take_all(place.queue())) == 1

    @pytest.mark.parametrize("name", ["x\ud800", "x" * 200_000])
    def test_a_name_that_no_property_can_hold_is_refused_before_anything_is_sent(self, place: Place, name: str) -> None:
        broker = place.broker()
        broker.publish([a_message()], timeout_s=PATIENCE_S)
        place.take_all(place.queue())

        with pytest.raises((UnicodeEncodeError, MessageTooLarge)):
            broker.publish([*(a_message(number) for number in range(99)), a_message(task=name)], timeout_s=PATIENCE_S)

        assert place.take_all(place.queue()) == []

    def test_an_id_that_is_too_long_for_a_property_is_no_problem(self, place: Place) -> None:
        broker = place.broker()
        broker.publish([a_message(id="x" * 300)], timeout_s=PATIENCE_S)

        assert len(place.take_all(place.queue())) == 1

    def test_a_full_queue_is_an_error_and_the_message_was_not_taken(self, place: Place) -> None:
        broker = place.broker()
        with place.channel() as channel:
            arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
            channel.queue_declare(place.queue(), durable=True, arguments=arguments)
        broker.publish([a_message(1)], timeout_s=PATIENCE_S)

        with pytest.raises(BrokerUnavailable, match=f"is queue '{place.queue()}' full") as caught:
            broker.publish([a_message(2)], timeout_s=PATIENCE_S)

        assert not caught.value.maybe_taken

    def test_of_several_the_error_says_which_were_taken(self, place: Place) -> None:
        broker = place.broker()
        with place.channel() as channel:
            arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
            channel.queue_declare(place.queue("full"), durable=True, arguments=arguments)

        with pytest.raises(PartlyPublished) as caught:
            broker.publish([a_message(0), a_message(1, queue="full"), a_message(2)], timeout_s=PATIENCE_S)

        assert (caught.value.accepted, caught.value.unsure) == (frozenset({0, 2}), frozenset())
        assert [body for _, body in place.take_all(place.queue())] == [b"[0]", b"[2]"]

    def test_nothing_to_publish_needs_no_server(self) -> None:
        settings, _ = load({"url": f"celery+amqp://127.0.0.1:{free_port()}//"}, environ={})

        connect(settings, AnyWire("celery", "any")).publish([], timeout_s=1)

    def test_thirty_two_threads_share_a_few_connections(self, place: Place) -> None:
        broker = place.broker()
        others = own_ports(place.server.port)  # of tests before, whose pools keep one each
        failures: list[BaseException] = []

        def send(thread: int) -> None:
            try:
                for number in range(20):
                    broker.publish([a_message(thread * 100 + number)], timeout_s=PATIENCE_S)
                broker.publish([a_message(thread * 100 + number) for number in range(20, 40)], timeout_s=PATIENCE_S)
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * PATIENCE_S)

        assert failures == []
        assert len(own_ports(place.server.port) - others) <= 12  # a thread that found none for 30 s opens another
        counted = Counter(body for _, body in place.take_all(place.queue()))
        assert counted == {b"[%d]" % (thread * 100 + number): 1 for thread in range(32) for number in range(40)}

    @pytest.mark.filterwarnings(  # Python itself drops an exception that comes up inside a weak reference's callback
        "ignore::pytest.PytestUnraisableExceptionWarning"
    )
    def test_a_thread_that_is_interrupted_at_any_point_leaves_a_broker_that_works(self, place: Place) -> None:
        """As Celery's soft time limit does, in a task that sends."""

        class Interruption(BaseException):
            pass

        def interrupt(*_: object) -> None:
            raise Interruption

        broker = place.broker()
        broker.publish([a_message()], timeout_s=PATIENCE_S)
        place.take_all(place.queue())
        before = signal.signal(signal.SIGALRM, interrupt)
        confirmed: set[bytes] = set()
        interrupted = 0
        try:
            for number in range(150):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.00005 * (number % 40))
                    broker.publish([a_message(number)], timeout_s=PATIENCE_S)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    confirmed.add(b"[%d]" % number)
                except Interruption:
                    interrupted += 1
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    with takes(0, UNHINDERED_S), ThreadPoolExecutor(1) as another:
                        another.submit(broker.publish, [a_message(2000)], timeout_s=PATIENCE_S).result()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

        assert interrupted > 0
        broker.publish([a_message(1000)], timeout_s=PATIENCE_S)
        found = Counter(body for _, body in place.take_all(place.queue()))
        assert confirmed | {b"[1000]"} <= found.keys()
        assert found.pop(b"[2000]", 0) == interrupted
        assert max(found.values()) == 1

    def test_close_ends_the_thread_and_the_next_send_connects_again(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pool, "_JOIN_S", PATIENCE_S)  # it gives up waiting for the thread after that
        broker = place.broker()
        before = set(threading.enumerate())

        def names() -> set[str]:
            return {thread.name for thread in {*threading.enumerate()} - before}

        broker.publish([a_message()], timeout_s=PATIENCE_S)
        broker.counts([])
        assert "taskbridge-rabbitmq" in names()
        broker.close()
        assert "taskbridge-rabbitmq" not in names()
        wait_until(lambda: not names(), timeout_s=PATIENCE_S, what="the end of what connected")

        broker.publish([a_message()], timeout_s=PATIENCE_S)

        assert len(place.take_all(place.queue())) == 2


def blocked(broker: RabbitMQBroker, server: PrivateRabbitMQ) -> tuple[int, bool]:
    """Let the server take no more messages, and publish one after the other until it has told the broker so.

    It tells its connections after `rabbitmqctl` has ended, and what comes before that is confirmed, as it should be.

    Returns:
        How many `[999]` were confirmed, and whether the one that wasn't may have been taken.
    """
    server.ctl("set_vm_memory_high_watermark", "0")
    deadline = time.monotonic() + PATIENCE_S
    confirmed = 0
    while time.monotonic() < deadline:
        refusal: BrokerUnavailable | None = None
        began = time.monotonic()
        with Stopwatch() as watch:
            try:
                broker.publish([a_message(999)], timeout_s=1)
            except BrokerUnavailable as exc:
                refusal = exc
        if refusal is not None:
            assert time.monotonic() - began >= 0.9
            assert watch.took_s <= TOLERANCE
            return confirmed, refusal.maybe_taken
        confirmed += 1
    raise AssertionError(f"{confirmed} messages were confirmed within {PATIENCE_S:g} s")


class TestWaiting:
    @pytest.mark.parametrize("point", ["send", "read"])
    def test_a_signals_handler_may_send_while_its_thread_is_at_work_on_a_connection(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, point: str
    ) -> None:
        broker = place.broker()
        broker.publish([a_message(0)], timeout_s=PATIENCE_S)
        came: list[bool] = []
        work: Any = getattr(Connection, point)

        def interrupted(*given: Any) -> Any:
            if not came and threading.current_thread() is threading.main_thread():
                came.append(True)
                broker.publish([a_message(1)], timeout_s=PATIENCE_S)  # as a handler does, at this point
            return work(*given)

        monkeypatch.setattr(Connection, point, interrupted)
        with takes(0, UNHINDERED_S):
            broker.publish([a_message(2)], timeout_s=PATIENCE_S)

        assert came
        found = Counter(body for _, body in place.take_all(place.queue()))
        assert found == {b"[%d]" % number: 1 for number in range(3)}

    def test_frames_may_be_cut_anywhere(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("taskbridge.brokers.rabbitmq.connection._READ_BYTES", 1)
        broker = place.broker()
        broker.publish([a_message(number) for number in range(20)], timeout_s=PATIENCE_S)
        broker.bury(a_letter(), timeout_s=PATIENCE_S)

        assert len(broker.dead_letters()) == 1
        assert len(place.take_all(place.queue())) == 20

    def test_a_signals_handler_may_send_while_its_thread_waits_for_a_confirm(self, fragile: Place) -> None:
        broker = fragile.broker()
        broker.publish([a_message(0)], timeout_s=PATIENCE_S)

        resume = threading.Timer(0.7, fragile.server.resume)

        def send(*_: object) -> None:
            resume.start()
            broker.publish([a_message(1)], timeout_s=PATIENCE_S)

        before = signal.signal(signal.SIGALRM, send)
        fragile.server.pause()
        try:
            with takes(0.9, UNHINDERED_S):
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                broker.publish([a_message(2)], timeout_s=PATIENCE_S)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            fragile.server.resume()
            if resume.ident is not None:
                resume.join()

        found = Counter(body for _, body in fragile.take_all(fragile.queue()))
        assert found == {b"[%d]" % number: 1 for number in range(3)}

    def test_the_close_of_an_idle_connection_is_noticed(self, fragile: Place) -> None:
        broker = fragile.broker()
        for number in range(50):
            broker.publish([a_message(number)], timeout_s=PATIENCE_S)
        assert own_ports(fragile.server.port)

        fragile.server.ctl("close_all_connections", "for a test")

        wait_until(lambda: not own_ports(fragile.server.port), timeout_s=PATIENCE_S, what="the close is noticed")

    def test_connections_that_are_not_needed_any_longer_are_closed_but_one(self, place: Place) -> None:
        broker = place.broker()
        others = own_ports(place.server.port)  # of tests before, whose pools keep one each
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda number: broker.publish([a_message(number)], timeout_s=PATIENCE_S), range(200)))

        wait_until(lambda: len(own_ports(place.server.port) - others) == 1, timeout_s=PATIENCE_S, what="one connection")

    def test_heartbeats_are_served_while_threads_send_and_rest(self, place: Place) -> None:
        others = own_ports(place.server.port)
        broker = place.broker(url=f"{place.server.url}?heartbeat=2")
        broker.publish([a_message(0)], timeout_s=PATIENCE_S)
        before = own_ports(place.server.port) - others
        end = time.monotonic() + 8
        failures: list[BaseException] = []

        def send(pause_s: float) -> None:
            try:
                while time.monotonic() < end:
                    broker.publish([a_message()], timeout_s=PATIENCE_S)
                    time.sleep(pause_s)
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=send, args=(pause_s,)) for pause_s in (0.0, 0.005, 0.09, 0.3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S + 8)

        assert failures == []
        assert before <= own_ports(place.server.port)


class TestDelays:
    @pytest.mark.parametrize("refusals", [2, 1000])
    def test_a_level_that_has_no_leader_yet_is_tried_again(
        self, place: Place, refusals: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish, tries = Channel._publish, list[object]()

        def refuse_at_first(made: Channel, todo: Any, outcome: Any, deadline: Any) -> set[int]:
            tries.append(todo)
            if len(tries) > refusals:
                return publish(made, todo, outcome, deadline)
            outcome.refused.update(todo)
            return set()

        monkeypatch.setattr(Channel, "_publish", refuse_at_first)
        monkeypatch.setattr(channel, "_ELECTION_S", PATIENCE_S if refusals == 2 else 1.0)
        broker = place.broker()
        if refusals == 2:
            broker.park([(a_message(), 60)], timeout_s=PATIENCE_S)
            assert broker.counts([]).delayed == 1
        else:
            with pytest.raises(BrokerUnavailable, match=r"refused it: is queue .* full") as caught:
                broker.park([(a_message(), 60)], timeout_s=PATIENCE_S)
            assert not caught.value.maybe_taken
        assert len(tries) >= 3

    def test_a_queue_that_refuses_is_not_tried_again(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        tries: list[object] = []

        def refuse(channel: Channel, todo: Any, outcome: Any, deadline: Any) -> set[int]:
            tries.append(todo)
            outcome.refused.update(todo)
            return set()

        monkeypatch.setattr(Channel, "_publish", refuse)
        with pytest.raises(BrokerUnavailable, match="refused it"):
            place.broker().publish([a_message()], timeout_s=PATIENCE_S)
        assert len(tries) == 1

    def test_delays_are_never_early_and_at_most_a_second_late(self, place: Place) -> None:
        broker = place.broker()
        for minutes in (2, 4, 8):  # which makes all levels that the others need: that takes a while
            broker.park([(a_message(), 60 * minutes)], timeout_s=PATIENCE_S)
        wait_until(lambda: broker.counts([]).delayed == 3, timeout_s=PATIENCE_S, what="what is delayed for minutes")
        place.pumping(broker)
        end_of_silences = place.silences()
        delays_s = [1, 2, 3, 4, 5, 6, 7, 0.2, 1.5]
        due: dict[bytes, float] = {}
        for number, delay_s in enumerate(delays_s):
            due[b"[%d]" % number] = time.time() + delay_s
            broker.park([(a_message(number), delay_s)], timeout_s=PATIENCE_S)

        seen = place.arrivals(len(delays_s), timeout_s=PATIENCE_S)
        silences = end_of_silences()

        assert sorted(body for _, body in seen) == sorted(due)
        for at, body in seen:
            delay_s = delays_s[int(body[1:-1])]
            rounded_up_s = -(-delay_s // 1) - delay_s
            late_s = at - due[body]
            # On its way it passes several queues, so a silence before it is due makes it late as well.
            parked_at = due[body] - delay_s
            silent_s = sum(max(0.0, min(ended, at) - max(began, parked_at)) for began, ended in silences)
            assert 0 <= late_s <= rounded_up_s + 1 + silent_s, f"{delay_s} s: late by {late_s:.3f} s, {silent_s:.3f}"
        wait_until(lambda: broker.counts([]).delayed == 3, timeout_s=PATIENCE_S, what="the end of all other delays")

    def test_what_enters_a_level_before_that_knows_its_time_to_live_is_due_all_the_same(self, place: Place) -> None:
        """A new queue takes messages for a moment before it has its settings (rabbit_quorum_queue:start_cluster).

        What entered one then had no time to live, and it and all behind it stayed there for good.
        """
        broker = place.broker()
        broker.park([(a_message(), 1)], timeout_s=PATIENCE_S)  # which makes the level
        place.pumping(broker)
        assert [body for _, body in place.arrivals(1, timeout_s=PATIENCE_S)] == [b"[0]"]
        level = f"{place.namespace}.delay.0"
        found = f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{level}">>))'
        kept = "dead_letter_handler => at_least_once, overflow_strategy => reject_publish"
        named = "{Name, _} = amqqueue:get_pid(Q), Place = amqqueue:get_name(Q), Now = erlang:system_time(millisecond)"
        as_at_first = f"#{{name => Name, queue_resource => Place, created => Now, {kept}}}"
        update = f"ok = rabbit_fifo_client:update_machine_state(amqqueue:get_pid(Q), {as_at_first})"
        place.server.ctl("eval", f"{found}, {named}, {update}.")

        broker.park([(a_message(1), 1)], timeout_s=PATIENCE_S)
        place.server.ctl("eval", f"{found}, rabbit_quorum_queue:policy_changed(Q).")  # it has all its settings again
        broker.park([(a_message(2), 1)], timeout_s=PATIENCE_S)

        assert sorted(body for _, body in place.arrivals(2, timeout_s=PATIENCE_S)) == [b"[1]", b"[2]"]

    def test_many_are_kept_and_arrive_once_each(self, place: Place) -> None:
        broker = place.broker()
        place.pumping(broker)
        place.pumping(broker)  # any number may run
        due: dict[bytes, float] = {}
        for start in range(0, 3000, 500):
            for number in range(start, start + 500):
                due[b"[%d]" % number] = time.time() + 3 + number % 4
            parked = [(a_message(number), 3 + number % 4) for number in range(start, start + 500)]
            broker.park(parked, timeout_s=PATIENCE_S)

        seen = place.arrivals(3000, timeout_s=PATIENCE_S)

        assert Counter(body for _, body in seen) == dict.fromkeys(due, 1)
        early = [body for at, body in seen if at < due[body]]
        assert early == []

    def test_a_parked_message_is_published_as_the_wire_says_without_a_trace_of_its_way(self, place: Place) -> None:
        broker, message = place.broker(), a_message(5)
        place.pumping(broker)
        broker.park([(message, 3)], timeout_s=PATIENCE_S)

        wait_until(lambda: broker.counts(["email"]).waiting == {"email": 1}, timeout_s=PATIENCE_S, what="the message")

        ((properties, body),) = place.take_all(place.queue())
        assert body == b"[5]"
        assert properties.headers == {"task": "shop.add", "id": message.id, "taskbridge": message.dumps_meta()}
        assert properties.delivery_mode == 2

    @pytest.mark.parametrize(
        ("delay_s", "level"), [(3600, 11), (365.25 * 86400, 24), (8 * 365.25 * 86400, 27), (1e12, 27)]
    )
    def test_a_long_delay_waits_in_the_queue_of_its_highest_bit(self, place: Place, delay_s: float, level: int) -> None:
        broker = place.broker()

        broker.park([(a_message(), delay_s)], timeout_s=PATIENCE_S)

        assert broker.counts([]).delayed == 1
        ((_, body),) = place.take_all(f"{place.namespace}.delay.{level}")
        assert b"shop.add" in body

    def test_delays_outlive_the_worker_that_parked_them(self, place: Place) -> None:
        first = place.broker()
        first.park([(a_message(1), 1)], timeout_s=PATIENCE_S)
        first.close()
        time.sleep(1.5)  # it falls due while nobody pumps

        place.pumping(place.broker())

        assert [body for _, body in place.arrivals(1, timeout_s=PATIENCE_S)] == [b"[1]"]

    def test_deleted_delay_queues_are_declared_again(self, place: Place) -> None:
        broker = place.broker()
        broker.park([(a_message(0), 60)], timeout_s=PATIENCE_S)  # whose way begins at level 5
        with place.channel() as channel:
            channel.queue_delete(f"{place.namespace}.delay.0")
            channel.queue_delete(f"{place.namespace}.delay.1")
            channel.exchange_delete(f"{place.namespace}.delay.1")

        broker.park([(a_message(1), 1)], timeout_s=PATIENCE_S)  # its queue is missing
        broker.park([(a_message(2), 2)], timeout_s=PATIENCE_S)  # its exchange is missing

        place.pumping(broker)
        assert sorted(body for _, body in place.arrivals(2, timeout_s=PATIENCE_S)) == [b"[1]", b"[2]"]

    def test_a_queue_that_somebody_else_declared_otherwise_is_named(self, place: Place) -> None:
        broker, name = place.broker(), f"{place.namespace}.delay.3"
        with place.channel() as channel:
            channel.queue_declare(name, durable=True)

        with pytest.raises(BrokerUnavailable, match=f"queue '{name}' can't be declared") as caught:
            broker.park([(a_message(), 8)], timeout_s=PATIENCE_S)
        assert not caught.value.maybe_taken
        broker.publish([a_message()], timeout_s=PATIENCE_S)  # which doesn't need it
        with place.channel() as channel:
            channel.queue_delete(name)

        broker.park([(a_message(), 8)], timeout_s=PATIENCE_S)


class TestThePump:
    def put_due(self, place: Place, body: bytes, engine: str = "celery") -> None:
        with place.channel() as channel:
            channel.confirm_delivery()
            channel.basic_publish("", f"{place.namespace}.due.{engine}", body, mandatory=True)

    def test_what_can_not_be_decoded_is_dead_and_keeps_its_bytes(self, place: Place) -> None:
        broker = place.broker()
        broker.park([(a_message(1), 1)], timeout_s=PATIENCE_S)
        self.put_due(place, b"\xff nonsense")

        place.pumping(broker)

        wait_until(lambda: broker.counts([]).dead == 1, timeout_s=PATIENCE_S, what="the dead letter")
        (letter,) = broker.dead_letters()
        assert (letter.reason, letter.raw, letter.message) == ("undecodable", b"\xff nonsense", None)
        assert [body for _, body in place.arrivals(1, timeout_s=PATIENCE_S)] == [b"[1]"]

    def test_what_no_frame_can_hold_is_dead_and_keeps_no_other_waiting(self, place: Place) -> None:
        broker = place.broker()
        huge = a_message(1, headers={"note": "x" * 140_000})  # which a bridge refuses
        broker.park([(huge, 1), (a_message(2), 1)], timeout_s=PATIENCE_S)

        place.pumping(broker)

        wait_until(lambda: broker.counts([]).dead == 1, timeout_s=PATIENCE_S, what="the dead letter")
        (letter,) = broker.dead_letters()
        assert (letter.reason, letter.message) == ("too_large", huge)
        assert [body for _, body in place.arrivals(1, timeout_s=PATIENCE_S)] == [b"[2]"]

    @pytest.mark.parametrize("given", [{"task": "no.wire.can.encode"}, {"queue": 300 * "x"}])
    def test_what_can_not_be_encoded_is_dead_and_keeps_no_other_waiting(
        self, place: Place, given: dict[str, Any]
    ) -> None:
        broker = place.broker()
        bad = a_message(**given)
        broker.park([(a_message(1), 1)], timeout_s=PATIENCE_S)
        self.put_due(place, bad.dumps().encode())
        told: list[DeadLetter] = []

        place.pumping(broker, buried=told.append)

        wait_until(lambda: broker.counts([]).dead == len(told) == 1, timeout_s=PATIENCE_S, what="the dead letter")
        (letter,) = broker.dead_letters()
        assert (letter.reason, letter.message, told) == ("internal_error", bad, [letter])
        assert "Traceback" in letter.traceback
        assert [body for _, body in place.arrivals(1, timeout_s=PATIENCE_S)] == [b"[1]"]

    def test_what_a_newer_release_parked_waits_on(self, place: Place, caplog: pytest.LogCaptureFixture) -> None:
        broker = place.broker()
        broker.park([(a_message(1), 1), (a_message(2), 30)], timeout_s=PATIENCE_S)
        with place.channel() as channel:
            level = f"{place.namespace}.delay.4"  # 30 s begin with 16
            channel.queue_purge(level)
            self.put_due(place, a_message().dumps().replace('"form":1', '"form":99').encode())

            place.pumping(broker)

            wait_until(
                lambda: channel.queue_declare(level, passive=True).method.message_count == 1,
                timeout_s=PATIENCE_S,
                what="it waits as well",
            )
        assert [body for _, body in place.arrivals(1, timeout_s=PATIENCE_S)] == [b"[1]"]
        assert broker.counts([]).dead == 0
        messages = [record.getMessage() for record in caplog.records if record.name == "taskbridge.pump"]
        assert any("newer release" in text for text in messages)

    def test_what_a_full_queue_refuses_waits_on_and_holds_nothing_up(self, place: Place) -> None:
        broker = place.broker()
        with place.channel() as channel:
            arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
            channel.queue_declare(place.queue("full"), durable=True, arguments=arguments)
        broker.park([(a_message(1, queue="full"), 1), (a_message(2), 1)], timeout_s=PATIENCE_S)
        place.pumping(broker)
        assert [body for _, body in place.arrivals(1, timeout_s=PATIENCE_S)] == [b"[2]"]

        with place.channel() as channel:
            channel.queue_delete(place.queue("full"))

        assert [body for _, body in place.arrivals(1, timeout_s=PATIENCE_S, queue=place.queue("full"))] == [b"[1]"]

    def test_a_queue_that_can_not_be_declared_doubles_no_other_message(self, place: Place) -> None:
        class RefusedWire(AnyWire):
            def encode(self, message: Message) -> Publication:
                native = super().encode(message)
                return replace(native, arguments={"x-max-length": -1}) if message.queue == "refused" else native

        given = {"url": f"celery+{place.server.url}", "namespace": place.namespace, "send_timeout": PATIENCE_S}
        settings, _ = load(given, environ={})
        with closing(connect(settings, RefusedWire("celery", place.namespace))) as broker:
            broker.park(
                [(a_message(1), 1), (a_message(2, queue="refused"), 1), (a_message(3), 1)], timeout_s=PATIENCE_S
            )
            wait_until(lambda: self.due(place) == 3, timeout_s=PATIENCE_S, what="all are due")
            stop = place.pumping(broker)
            wait_until(lambda: broker.counts(["email"]).waiting["email"] >= 2, timeout_s=PATIENCE_S, what="the others")
            time.sleep(2)
            stop.set()

        assert sorted(body for _, body in place.take_all(place.queue())) == [b"[1]", b"[3]"]
        wait_until(lambda: self.due(place) == 1, timeout_s=PATIENCE_S, what="the one is still due")

    def due(self, place: Place) -> int:
        with place.channel() as channel:
            return int(channel.queue_declare(f"{place.namespace}.due.celery", passive=True).method.message_count)

    def both_pump(self, place: Place, celery: Broker, dramatiq: Broker) -> None:
        """Pump for two engines, and return when both pumps listen: what is due before, another engine's may publish."""
        celery.park([(a_message(), 3600)], timeout_s=PATIENCE_S)  # which makes the queues of what is due
        place.pumping(celery)
        place.pumping(dramatiq)

        def listen(channel: Any, engine: str) -> bool:
            due = channel.queue_declare(f"{place.namespace}.due.{engine}", passive=True)
            return int(due.method.consumer_count) == 1

        with place.channel() as channel:
            wait_until(
                lambda: all(listen(channel, engine) for engine in ("celery", "dramatiq")),
                timeout_s=PATIENCE_S,
                what="both pumps listen",
            )

    def test_two_engines_each_publish_their_own(self, place: Place) -> None:
        celery, dramatiq = place.broker("celery"), place.broker("dramatiq")
        self.both_pump(place, celery, dramatiq)
        for number in range(20):
            celery.park([(a_message(number), 1)], timeout_s=PATIENCE_S)
            dramatiq.park([(a_message(100 + number), 1)], timeout_s=PATIENCE_S)

        of_celery = place.arrivals(20, timeout_s=PATIENCE_S)
        of_dramatiq = place.arrivals(20, timeout_s=PATIENCE_S, queue=place.queue(engine="dramatiq"))

        assert sorted(body for _, body in of_celery) == sorted(b"[%d]" % number for number in range(20))
        assert sorted(body for _, body in of_dramatiq) == sorted(b"[%d]" % (100 + number) for number in range(20))

    def test_messages_of_an_engine_without_a_pump_are_adopted_if_the_task_is_known(self, place: Place) -> None:
        celery, dramatiq = place.broker("celery"), place.broker("dramatiq")
        strange = [(a_message(number, task="not.ours"), 1) for number in range(5)]
        ours = [(a_message(number), 1) for number in range(100, 110)]
        celery.park([*strange, *ours], timeout_s=PATIENCE_S)

        place.pumping(dramatiq, knows=lambda task: task == "shop.add")

        seen = place.arrivals(10, timeout_s=PATIENCE_S, queue=place.queue(engine="dramatiq"))
        assert sorted(body for _, body in seen) == sorted(b"[%d]" % number for number in range(100, 110))
        wait_until(lambda: dramatiq.counts([]).delayed == 5, timeout_s=PATIENCE_S, what="the strange ones are back")
        place.pumping(celery)
        wait_until(
            lambda: celery.counts(["email"]).waiting == {"email": 5}, timeout_s=PATIENCE_S, what="their own pump"
        )

    def test_an_orphan_that_can_not_be_encoded_here_stays_and_keeps_no_other_waiting(
        self, place: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        celery, dramatiq = place.broker("celery"), place.broker("dramatiq")
        celery.park([(a_message(task="no.wire.can.encode"), 1), (a_message(1), 1)], timeout_s=PATIENCE_S)
        place.pumping(dramatiq)

        seen = place.arrivals(1, timeout_s=PATIENCE_S, queue=place.queue(engine="dramatiq"))
        assert [body for _, body in seen] == [b"[1]"]
        wait_until(lambda: self.due(place) == 1, timeout_s=PATIENCE_S, what="the other is still due")
        messages = [record.getMessage() for record in caplog.records if record.name == "taskbridge.pump"]
        assert not any("wait until RabbitMQ" in text for text in messages)

    def test_looking_at_strange_messages_is_no_hot_loop(self, place: Place) -> None:
        celery, dramatiq = place.broker("celery"), place.broker("dramatiq")
        celery.park([(a_message(number, task="not.ours"), 1) for number in range(5)], timeout_s=PATIENCE_S)
        asked: list[str] = []

        def knows(task: str) -> bool:
            asked.append(task)
            return False

        place.pumping(dramatiq, knows=knows)

        wait_until(lambda: len(asked) == 5, timeout_s=PATIENCE_S, what="one look")
        time.sleep(3)
        assert len(asked) == 5

    def test_messages_of_an_engine_with_a_pump_are_left_alone(self, place: Place) -> None:
        celery, dramatiq = place.broker("celery"), place.broker("dramatiq")
        self.both_pump(place, celery, dramatiq)
        time.sleep(4)  # longer than it takes to find an engine without a pump
        celery.park([(a_message(number), 1) for number in range(300)], timeout_s=PATIENCE_S)

        assert len(place.arrivals(300, timeout_s=PATIENCE_S)) == 300
        assert dramatiq.counts(["email"]).waiting == {"email": 0}

    def test_what_another_pump_had_in_hand_says_that_it_may_have_been_published(self, place: Place) -> None:
        broker = place.broker()
        broker.park([(a_message(), 1)], timeout_s=PATIENCE_S)
        with place.channel() as channel:  # a pump that dies before it acknowledges
            wait_until(
                lambda: channel.basic_get(f"{place.namespace}.due.celery")[0] is not None,
                timeout_s=PATIENCE_S,
                what="it is due",
            )
        broker.park([(a_message(1), 1)], timeout_s=PATIENCE_S)
        place.pumping(broker)

        wait_until(
            lambda: broker.counts(["email"]).waiting == {"email": 2}, timeout_s=PATIENCE_S, what="both are published"
        )
        waiting = place.take_all(place.queue())
        metas = {body: json.loads(properties.headers["taskbridge"]) for properties, body in waiting}
        assert {body: meta.get("redelivered", 0) for body, meta in metas.items()} == {b"[0]": 1, b"[1]": 0}

    def test_it_stops_within_half_a_second(self, place: Place) -> None:
        broker = place.broker()
        broker.park([(a_message(), 1)], timeout_s=PATIENCE_S)
        stop = threading.Event()
        pump = threading.Thread(target=broker.pump, kwargs={"knows": bool, "stop": stop})
        pump.start()
        assert len(place.arrivals(1, timeout_s=PATIENCE_S)) == 1

        with takes(0, 0.5 + STALL_S):
            stop.set()
            pump.join(PATIENCE_S)
        assert not pump.is_alive()

    def test_it_waits_for_a_server_whose_name_is_looked_up_slowly(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        look_up = socket.getaddrinfo

        def slowly(host: str, *given: Any, **options: Any) -> Any:
            if host == "rabbit.test" and not options.get("flags"):
                time.sleep(0.5)
                host = "127.0.0.1"
            return look_up(host, *given, **options)

        monkeypatch.setattr(socket, "getaddrinfo", slowly)
        broker = place.broker(url=place.server.url.replace("127.0.0.1", "rabbit.test"))
        place.pumping(broker)
        broker.park([(a_message(1), 1)], timeout_s=PATIENCE_S)

        assert [body for _, body in place.arrivals(1, timeout_s=PATIENCE_S)] == [b"[1]"]

    @pytest.mark.parametrize("outage", ["refused", "black-holed", "swallowed", "swallowed in TLS"])
    def test_it_stops_within_half_a_second_in_an_outage_which_it_reports_once(
        self, place: Place, outage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with black_hole() as hole, swallowing() as nowhere:
            port = {"refused": free_port(), "swallowed": nowhere}.get(outage, hole)
            broker = place.broker(url=f"{'amqps' if 'TLS' in outage else 'amqp'}://127.0.0.1:{port}//")
            stop = threading.Event()
            pump = threading.Thread(target=broker.pump, kwargs={"knows": bool, "stop": stop})

            def warnings() -> int:
                told = [record.getMessage() for record in caplog.records if record.name == "taskbridge.pump"]
                return sum(f":{port}" in text for text in told)

            pump.start()
            if outage == "refused":
                wait_until(lambda: warnings() > 0, timeout_s=PATIENCE_S, what="the warning")
            time.sleep(2)
            with takes(0, 0.5 + STALL_S):
                stop.set()
                pump.join(PATIENCE_S)

        assert not pump.is_alive()
        assert warnings() == (1 if outage == "refused" else 0)  # the other is not over yet


class TestDeadLetters:
    def test_letters_are_returned_in_order_and_stay(self, place: Place) -> None:
        broker = place.broker()
        letters = [a_letter(number) for number in range(300)]
        for letter in letters:
            broker.bury(letter, timeout_s=PATIENCE_S)

        for _ in range(5):
            assert broker.dead_letters() == letters
            assert broker.counts([]).dead == 300

    def test_two_that_look_at_once_both_see_all(self, place: Place) -> None:
        first, second = place.broker(), place.broker()
        for number in range(50):
            first.bury(a_letter(number), timeout_s=PATIENCE_S)
        seen: list[int] = []

        def look(broker: Broker) -> None:
            seen.extend(len(broker.dead_letters()) for _ in range(10))

        threads = [threading.Thread(target=look, args=(broker,)) for broker in (first, second, first)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * PATIENCE_S)

        assert seen == [50] * 30

    def test_all_are_seen_while_others_ask_for_queues_that_do_not_exist(self, place: Place) -> None:
        broker = place.broker()
        broker.bury(a_letter(), timeout_s=PATIENCE_S)
        done = threading.Event()

        def count() -> None:
            while not done.is_set():
                broker.counts(["missing"])

        threads = [threading.Thread(target=count) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            seen = {len(broker.dead_letters()) for _ in range(100)}
        finally:
            done.set()
            for thread in threads:
                thread.join(PATIENCE_S)

        assert seen == {1}

    def test_they_are_forgotten_after_dead_ttl(self, place: Place) -> None:
        broker = place.broker(dead_ttl=3)
        began = time.monotonic()
        broker.bury(a_letter(), timeout_s=PATIENCE_S)
        assert broker.counts([]).dead == 1 or time.monotonic() - began > 3

        wait_until(lambda: broker.counts([]).dead == 0, timeout_s=PATIENCE_S, what="the letter to be forgotten")
        assert broker.dead_letters() == []

    def test_what_is_no_letter_is_shown_as_it_is(self, place: Place) -> None:
        broker = place.broker()
        broker.bury(a_letter(), timeout_s=PATIENCE_S)
        with place.channel() as channel:
            channel.basic_publish("", f"{place.namespace}.dead", b"junk")

        wait_until(lambda: broker.counts([]).dead == 2, timeout_s=PATIENCE_S, what="both")
        assert [(letter.reason, letter.raw) for letter in broker.dead_letters()] == [
            ("exhausted", None),
            ("undecodable", b"junk"),
        ]

    def test_a_time_that_the_server_can_not_keep_is_refused(self, place: Place) -> None:
        with pytest.raises(SettingsError, match="dead_ttl"):
            place.broker(dead_ttl=11 * 365 * 86400)

    def test_nothing_is_there_at_first(self, place: Place) -> None:
        broker = place.broker()

        counts = broker.counts(["email", "sms"])

        assert (counts.waiting, counts.delayed, counts.dead) == ({"email": 0, "sms": 0}, 0, 0)
        assert broker.dead_letters() == []

    def test_to_count_it_asks_for_many_queues_at_once(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        call_all, asked = Channel.call_all, list[int]()

        def counted(channel: Channel, methods: Sequence[Any], deadline: Any) -> list[Any]:
            if isinstance(methods[0], spec.Queue.Declare):
                asked.append(len(methods))
            return call_all(channel, methods, deadline)

        broker = place.broker()
        broker.publish([a_message()], timeout_s=PATIENCE_S)
        broker.park([(a_message(), 60)], timeout_s=PATIENCE_S)
        monkeypatch.setattr(Channel, "call_all", counted)

        counts = broker.counts(["sms", "email"])

        assert (counts.waiting, counts.delayed, counts.dead) == ({"sms": 0, "email": 1}, 1, 0)
        assert len(asked) == 1

    def test_what_is_not_there_leaves_no_error_in_the_servers_log(self, place: Place) -> None:
        broker, log = place.broker(), place.server.folder / "log"
        size = log.stat().st_size

        def lines() -> list[str]:
            written = log.read_bytes()[size:].decode(errors="replace")
            return [line for line in written.splitlines() if place.namespace in line]

        for delay_s, delayed in ((100, 1), (1000, 2), (100, 3)):  # nothing moves on to its next level meanwhile
            broker.park([(a_message(), delay_s)], timeout_s=PATIENCE_S)
            assert broker.take_dead(lambda _: None, timeout_s=PATIENCE_S) == []
            assert broker.counts(["email", "sms"]).delayed == delayed
            assert broker.dead_letters() == []
        with place.channel() as channel, pytest.raises(ChannelClosedByBroker):
            channel.queue_declare(f"{place.namespace}.missing", passive=True)

        wait_until(lambda: bool(lines()), timeout_s=PATIENCE_S, what="the last error")
        assert all(f"{place.namespace}.missing" in line for line in lines())

    @pytest.mark.parametrize("deleted", ["delay.5", "due.celery", "dead"])
    def test_what_was_deleted_meanwhile_counts_as_empty(self, place: Place, deleted: str) -> None:
        broker = place.broker()
        broker.park([(a_message(), 60)], timeout_s=PATIENCE_S)
        assert broker.counts(["email"]).delayed == 1
        with place.channel() as channel:
            channel.queue_delete(f"{place.namespace}.{deleted}")

        assert broker.counts(["email"]).delayed == (0 if deleted == "delay.5" else 1)

    def test_queues_of_another_type_are_looked_at_all_the_same(self, place: Place) -> None:
        place.broker().park([(a_message(), 60), (a_message(), 0)], timeout_s=PATIENCE_S)
        place.broker().bury(a_letter(), timeout_s=PATIENCE_S)
        broker = place.broker(queue_type="quorum")

        for _ in range(2):
            assert (broker.counts(["email"]).delayed, broker.counts([]).dead) == (2, 1)
            assert len(broker.dead_letters()) == 1
            broker.publish([a_message()], timeout_s=PATIENCE_S)  # from now on it declares what it looks at

    def test_who_only_looks_declares_no_queue_of_the_application(self, place: Place) -> None:
        """By other settings than the application's, it would be of another type."""
        broker = place.broker()
        broker.counts(["email"])
        broker.dead_letters()

        place.broker(queue_type="quorum").bury(a_letter(), timeout_s=PATIENCE_S)
        with place.channel() as channel:
            channel.queue_declare(place.queue(), durable=True)  # else: 406


def run_script(script: str, *args: str, timeout_s: float = 4 * PATIENCE_S) -> str:
    """Run a script that begins with what is needed to send, and return what it printed."""
    head = (
        "import os, signal, sys, threading, time\n"
        "from tests.unit.test_rabbitmq_broker import AnyWire, a_message\n"
        "from taskbridge.brokers.rabbitmq import connect\n"
        "from taskbridge.settings import load\n"
        "def make(url, namespace):\n"
        f"    given = {{'url': 'celery+' + url, 'namespace': namespace, 'send_timeout': {PATIENCE_S}}}\n"
        "    settings, _ = load(given, environ={})\n"
        "    return connect(settings, AnyWire('celery', namespace))\n"
        "broker = make(*sys.argv[1:3])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + script, *args],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


class TestProcesses:
    def test_a_forked_child_sends_on_a_connection_of_its_own(self, place: Place) -> None:
        run_script(
            "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"
            "broker.publish([a_message(0)], timeout_s=60)\n"
            "busy = [threading.Thread(target=lambda n=n: [broker.publish([a_message(100 * n + i)], timeout_s=60)"
            " for i in range(50)]) for n in range(1, 5)]\n"
            "for thread in busy: thread.start()\n"
            "children = []\n"
            "for child in range(5):\n"
            "    pid = os.fork()\n"
            "    if pid == 0:\n"
            "        broker.publish([a_message(1000 + child)], timeout_s=60)\n"
            "        sys.exit(0)\n"
            "    children.append(pid)\n"
            "assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 5\n"
            "for thread in busy: thread.join()\n"
            "broker.publish([a_message(2000)], timeout_s=60)\n",
            place.server.url,
            place.namespace,
        )

        found = Counter(body for _, body in place.take_all(place.queue()))
        sent = [0, 2000, *(100 * n + i for n in range(1, 5) for i in range(50)), *range(1000, 1005)]
        assert found == {b"[%d]" % number: 1 for number in sent}

    def test_a_process_that_sent_ends_at_once(self, place: Place) -> None:
        printed = run_script(
            "broker.publish([a_message()], timeout_s=60); broker.counts([])\n"
            "import atexit; atexit.register(lambda: print(time.monotonic() - began))\n"
            "began = time.monotonic()\n",
            place.server.url,
            place.namespace,
        )
        assert float(printed) < 1

    def test_a_process_ends_at_once_when_the_server_is_silent(self, fragile: Place) -> None:
        script = (
            "broker.publish([a_message()], timeout_s=60)\n"
            f"os.kill({fragile.server.pid}, signal.SIGSTOP)\n"
            "print(time.time(), flush=True)\n"
        )
        try:
            printed = run_script(script, fragile.server.url, fragile.namespace)
            assert time.time() - float(printed) < 5
        finally:
            fragile.server.resume()

    def test_a_process_that_slept_longer_than_its_heartbeats_sends(self, place: Place) -> None:
        script = (
            "broker.publish([a_message(1)], timeout_s=60)\n"
            "print('sent', flush=True)\n"
            "sys.stdin.readline()\n"
            "broker.publish([a_message(2)], timeout_s=60)\n"
        )
        head = "from tests.unit.test_rabbitmq_broker import *\nimport sys\n"
        head += f"broker = connect(load({{'url': 'celery+{place.server.url}?heartbeat=1', "
        head += f"'namespace': '{place.namespace}'}}, environ={{}})[0], AnyWire('celery', '{place.namespace}'))\n"
        process = subprocess.Popen(
            [sys.executable, "-c", head + script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "sent\n"
            process.send_signal(signal.SIGSTOP)
            time.sleep(4)  # the server misses two heartbeats, and closes
            process.send_signal(signal.SIGCONT)
            process.communicate("go on\n", timeout=2 * PATIENCE_S)
            assert process.returncode == 0

        assert [body for _, body in place.take_all(place.queue())] == [b"[1]", b"[2]"]


@contextmanager
def black_hole() -> Generator[int]:
    """Yield a port where connections are taken and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def swallowing() -> Generator[int]:
    """Yield a port where connections are neither taken nor refused: the queue of those that wait is full."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            waits = stack.enter_context(socket.socket())
            waits.setblocking(False)
            waits.connect_ex(server.getsockname())
        time.sleep(0.1)
        yield server.getsockname()[1]


@contextmanager
def answering(answer: bytes) -> Generator[int]:
    """Yield a port where connections are answered with these bytes, and closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(8)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


class TestConnecting:
    def test_a_server_that_is_not_there_is_reported_at_once(self, place: Place) -> None:
        broker = place.broker(url=f"amqp://guest:secret@127.0.0.1:{free_port()}//")

        with takes(0, 1), pytest.raises(BrokerUnavailable, match="refused") as caught:
            broker.publish([a_message()], timeout_s=PATIENCE_S)

        assert not caught.value.maybe_taken
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("scheme", ["amqp", "amqps"])
    def test_a_server_that_never_answers_takes_no_longer_than_the_timeout(self, place: Place, scheme: str) -> None:
        with black_hole() as port:
            broker = place.broker(url=f"{scheme}://127.0.0.1:{port}//", send_timeout=1)
            for act in (
                lambda: broker.publish([a_message()], timeout_s=1),
                lambda: broker.park([(a_message(), 1)], timeout_s=1),
                lambda: broker.bury(a_letter(), timeout_s=1),
                lambda: broker.ping(timeout_s=1),
                lambda: broker.counts([]),
                broker.dead_letters,
            ):
                with takes(0.9, TOLERANCE), pytest.raises(BrokerUnavailable) as caught:
                    act()
                assert not caught.value.maybe_taken

    def test_a_server_that_does_not_even_take_a_connection_takes_no_longer_than_the_timeout(self, place: Place) -> None:
        with swallowing() as port:
            broker = place.broker(url=f"amqp://127.0.0.1:{port}//")
            with takes(0.9, TOLERANCE), pytest.raises(BrokerUnavailable, match="does not answer"):
                broker.publish([a_message()], timeout_s=1)

    def test_each_thread_has_its_own_timeout(self, place: Place) -> None:
        with black_hole() as port:
            broker = place.broker(url=f"amqp://127.0.0.1:{port}//")
            failures: list[BaseException] = []

            def send() -> None:
                try:
                    with takes(0.9, TOLERANCE), pytest.raises(BrokerUnavailable):
                        broker.publish([a_message()], timeout_s=1)
                except BaseException as exc:
                    failures.append(exc)

            threads = [threading.Thread(target=send) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE_S)
        assert failures == []

    @pytest.mark.parametrize(
        ("answer", "problem"),
        [
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "doesn't speak AMQP"),
            (b"AMQP\x00\x00\x09\x01", "doesn't speak AMQP"),
            (b"\x08" + b"\x00" * 7, "doesn't speak AMQP"),
            (b"", "closed the connection"),
        ],
    )
    def test_something_else_that_listens_is_reported(self, place: Place, answer: bytes, problem: str) -> None:
        with answering(answer) as port:
            broker = place.broker(url=f"amqp://127.0.0.1:{port}//")
            with takes(0, 1), pytest.raises(BrokerUnavailable, match=problem):
                broker.publish([a_message()], timeout_s=PATIENCE_S)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [(("guest:guest", "guest:wrong"), "ACCESS_REFUSED"), (("%2F", "nowhere"), "vhost nowhere not found")],
    )
    def test_a_refused_login_is_reported_without_the_password(
        self, place: Place, change: tuple[str, str], problem: str
    ) -> None:
        broker = place.broker(url=place.server.url.replace(*change))

        with takes(0, UNHINDERED_S), pytest.raises(BrokerUnavailable, match=problem) as caught:
            broker.publish([a_message()], timeout_s=PATIENCE_S)

        assert "wrong" not in str(caught.value)
        assert not caught.value.maybe_taken

    def test_a_url_that_can_not_be_read_is_a_settings_error(self, place: Place) -> None:
        with pytest.raises(SettingsError, match="colour"):
            place.broker(url=f"{place.server.url}?colour=red")

    def test_the_url_may_allow_less_time_for_connecting_than_a_send_has(self, place: Place) -> None:
        with black_hole() as silent, swallowing() as nowhere:
            for port, option in ((nowhere, "socket_timeout=1"), (silent, "stack_timeout=1")):
                broker = place.broker(url=f"amqp://127.0.0.1:{port}//?{option}")
                with takes(0.9, TOLERANCE), pytest.raises(BrokerUnavailable, match="does not answer"):
                    broker.publish([a_message()], timeout_s=PATIENCE_S)

    def test_connecting_is_tried_as_often_as_the_url_says(self, place: Place) -> None:
        proxy = Proxy(("127.0.0.1", place.server.port))
        options = "connection_attempts=100&retry_delay=0.2"
        broker = place.broker(url=f"amqp://guest:guest@127.0.0.1:{proxy.port}/%2F?{options}")
        with ExitStack() as stack:
            later = threading.Timer(0.5, stack.enter_context, (proxy,))
            with takes(0.4, UNHINDERED_S):
                later.start()
                broker.publish([a_message()], timeout_s=PATIENCE_S)
            later.join()

        assert len(place.take_all(place.queue())) == 1

    def test_small_frames_few_channels_and_options_of_tcp_are_as_the_url_says(self, place: Place) -> None:
        options = "frame_max=8192&channel_max=1&tcp_options={'TCP_KEEPIDLE':60}&locale=en_US"
        broker = place.broker(url=f"{place.server.url}?{options}")
        text = '["' + "x" * 100_000 + '"]'

        broker.publish([a_message(args_json=text)], timeout_s=PATIENCE_S)
        broker.park([(a_message(1), 1)], timeout_s=PATIENCE_S)
        broker.bury(a_letter(), timeout_s=PATIENCE_S)
        place.pumping(broker)

        assert [body for _, body in place.arrivals(2, timeout_s=PATIENCE_S)] == [text.encode(), b"[1]"]
        assert len(broker.take_dead(lambda _: Taken(), timeout_s=PATIENCE_S)) == 1
        assert broker.dead_letters() == []

    def test_the_server_shows_the_client_by_what_the_url_says(self, place: Place) -> None:
        name = f"shop{uuid.uuid4().hex[:8]}"
        broker = place.broker(url=f"{place.server.url}?client_properties={{'connection_name':'{name}'}}")
        broker.publish([a_message()], timeout_s=PATIENCE_S)

        assert name in place.server.ctl("list_connections", "client_properties")

    def test_tls(self, place: Place, tmp_path: Path) -> None:
        with tls_proxy(place.server.port, tmp_path) as (port, certificate):
            options = f"ssl_options={{'ca_certs':'{certificate}'}}"
            broker = place.broker(url=f"amqps://guest:guest@localhost:{port}/%2F?{options}")
            broker.publish([a_message(1, args_json='["' + "x" * 1_000_000 + '"]')], timeout_s=PATIENCE_S)
            broker.publish([a_message(number) for number in range(500)], timeout_s=PATIENCE_S)
            stranger = place.broker(url=f"amqps://guest:guest@localhost:{port}/%2F")
            with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                stranger.publish([a_message()], timeout_s=PATIENCE_S)
            broker.close()

        assert len(place.take_all(place.queue())) == 501


@contextmanager
def tls_proxy(target: int, folder: Path) -> Generator[tuple[int, Path]]:
    """Yield a port that speaks TLS and passes on to another, and the certificate to trust."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*words.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve_one(plain: socket.socket) -> None:
        try:
            with context.wrap_socket(plain, server_side=True) as client, socket.socket() as server:
                server.connect(("127.0.0.1", target))
                client.settimeout(0.01)
                server.settimeout(0.01)
                while pass_on(client, server) and pass_on(server, client):
                    continue
        except OSError:
            return  # the client does not trust us, or has gone

    def pass_on(source: socket.socket, sink: socket.socket) -> bool:
        try:
            data = source.recv(65536)
        except TimeoutError:
            return True
        sink.settimeout(PATIENCE_S)
        sink.sendall(data)
        sink.settimeout(0.01)
        return bool(data)

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve_one, args=(plain,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1], certificate
        listener.shutdown(socket.SHUT_RDWR)


class TestIdleConnections:
    def test_a_connection_stays_alive_for_many_heartbeats(self, place: Place) -> None:
        others = own_ports(place.server.port)  # of tests before, which may be closed at any time
        broker = place.broker(url=f"{place.server.url}?heartbeat=2")
        broker.publish([a_message(1)], timeout_s=PATIENCE_S)
        before = own_ports(place.server.port) - others

        time.sleep(10)

        broker.publish([a_message(2)], timeout_s=PATIENCE_S)
        assert own_ports(place.server.port) - others == before
        assert len(place.take_all(place.queue())) == 2

    def test_a_connection_that_was_closed_meanwhile_is_replaced_before_anything_is_lost(self, fragile: Place) -> None:
        broker = fragile.broker()
        for number in range(3):
            broker.publish([a_message(number)], timeout_s=PATIENCE_S)
            fragile.server.ctl("close_all_connections", "for a test")

        broker.publish([a_message(3)], timeout_s=PATIENCE_S)

        assert [body for _, body in fragile.take_all(fragile.queue())] == [b"[%d]" % number for number in range(4)]

    def test_a_close_that_has_not_been_read_yet_is_noticed_before_publishing(
        self, fragile: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Pool, "start", lambda _: None)  # nobody looks after what is idle
        broker = fragile.broker()
        broker.publish([a_message(0)], timeout_s=PATIENCE_S)
        fragile.server.ctl("close_all_connections", "for a test")
        broker.publish([a_message(1)], timeout_s=PATIENCE_S)

        assert len(fragile.take_all(fragile.queue())) == 2

    def test_a_restart_while_idle_is_survived_by_senders_pumps_and_delays(self, fragile: Place) -> None:
        broker = fragile.broker()
        fragile.pumping(broker)
        broker.publish([a_message(1)], timeout_s=PATIENCE_S)
        due = time.time() + 20
        broker.park([(a_message(number), 20) for number in range(2, 102)], timeout_s=PATIENCE_S)
        broker.bury(a_letter(), timeout_s=PATIENCE_S)

        fragile.server.restart()

        broker.publish([a_message(102)], timeout_s=PATIENCE_S)
        seen = fragile.arrivals(102, timeout_s=PATIENCE_S)
        assert sorted(body for _, body in seen) == sorted(b"[%d]" % number for number in range(1, 103))
        delayed = [at for at, body in seen if body not in (b"[1]", b"[102]")]
        assert min(delayed) >= due
        assert broker.counts([]).dead == 1


class TestOutages:
    def test_a_server_that_falls_silent_is_noticed_in_time_and_forgotten_when_it_is_back(self, fragile: Place) -> None:
        broker = fragile.broker()
        broker.publish([a_message(0)], timeout_s=PATIENCE_S)
        fragile.server.pause()
        try:
            with takes(0.9, TOLERANCE), pytest.raises(BrokerUnavailable) as caught:
                broker.publish([a_message(1)], timeout_s=1)
            assert caught.value.maybe_taken
            with takes(0.9, TOLERANCE), pytest.raises(BrokerUnavailable) as caught:
                broker.publish([a_message(2)], timeout_s=1)
            assert not caught.value.maybe_taken, "there was no connection to send it on"
            with takes(0.9, TOLERANCE), pytest.raises(PartlyPublished) as partly:
                broker.publish([a_message(3), a_message(4)], timeout_s=1)
            assert (partly.value.accepted, partly.value.unsure) == (frozenset(), frozenset())
        finally:
            fragile.server.resume()

        broker.publish([a_message(5)], timeout_s=PATIENCE_S)

        found = Counter(body for _, body in fragile.take_all(fragile.queue()))
        assert found.pop(b"[1]", 1) == 1, "it may have been taken, once"
        assert found == {b"[0]": 1, b"[5]": 1}

    def test_a_server_that_does_not_read_is_noticed_in_time(self, fragile: Place) -> None:
        """The system's buffers are full, so that a large message is sent in part."""
        broker = fragile.broker()
        broker.publish([a_message(0)], timeout_s=PATIENCE_S)
        large = [a_message(args_json='["' + "x" * 1_000_000 + '"]') for _ in range(20)]
        fragile.server.pause()
        try:
            with takes(0.9, TOLERANCE), pytest.raises(PartlyPublished) as caught:
                broker.publish(large, timeout_s=1)
            assert caught.value.accepted == frozenset()
            assert 0 < len(caught.value.unsure) < 20
        finally:
            fragile.server.resume()

        broker.publish([a_message(1)], timeout_s=PATIENCE_S)

    def test_a_memory_alarm_is_noticed_in_time_and_doubles_nothing(self, fragile: Place) -> None:
        broker = fragile.broker(url=f"{fragile.server.url}?heartbeat=2")
        broker.publish([a_message(0)], timeout_s=PATIENCE_S)
        fragile.pumping(broker)
        broker.park([(a_message(100), 2)], timeout_s=PATIENCE_S)
        try:
            confirmed, first_maybe_taken = blocked(broker, fragile.server)
            for number in (2, 3):
                with takes(0.9, TOLERANCE), pytest.raises(BrokerUnavailable, match="low on memory") as caught:
                    broker.publish([a_message(number)], timeout_s=1)
                assert not caught.value.maybe_taken
            broker.ping(timeout_s=PATIENCE_S)
            assert broker.counts(["email"]).waiting["email"] >= 1
            time.sleep(8)  # longer than the server keeps a connection without heartbeats, as the pump's would be
        finally:
            fragile.server.ctl("set_vm_memory_high_watermark", "0.4")

        broker.publish([a_message(4)], timeout_s=PATIENCE_S)

        wait_until(
            lambda: broker.counts([]).delayed == 0, timeout_s=PATIENCE_S, what="the delayed message is published"
        )
        found = Counter(body for _, body in fragile.take_all(fragile.queue()))
        assert first_maybe_taken
        assert found.pop(b"[999]", 0) in (confirmed, confirmed + 1)
        assert found == {b"[0]": 1, b"[4]": 1, b"[100]": 1}

    def test_a_blocked_connection_is_given_up_after_the_time_that_the_url_says(self, fragile: Place) -> None:
        broker = fragile.broker(url=f"{fragile.server.url}?blocked_connection_timeout=5")
        broker.publish([a_message(0)], timeout_s=PATIENCE_S)
        try:
            blocked(broker, fragile.server)
            # It has been blocked for more than a second.
            with takes(1, 8), pytest.raises(BrokerUnavailable, match="blocked_connection_timeout") as caught:
                broker.publish([a_message(1)], timeout_s=PATIENCE_S)
            assert not caught.value.maybe_taken
        finally:
            fragile.server.ctl("set_vm_memory_high_watermark", "0.4")

    def test_a_send_waits_for_the_end_of_an_alarm(self, fragile: Place) -> None:
        broker = fragile.broker()
        broker.publish([a_message(0)], timeout_s=PATIENCE_S)
        over = threading.Thread(target=fragile.server.ctl, args=("set_vm_memory_high_watermark", "0.4"))
        try:
            blocked(broker, fragile.server)
        finally:
            over.start()

        broker.publish([a_message(2)], timeout_s=PATIENCE_S)

        over.join()
        assert b"[2]" in [body for _, body in fragile.take_all(fragile.queue())]

    def test_a_killed_server_loses_nothing_that_was_confirmed(self, fragile: Place) -> None:
        broker = fragile.broker()
        broker.park([(a_message(number), 2 + number % 6) for number in range(500)], timeout_s=PATIENCE_S)
        broker.publish([a_message(1000)], timeout_s=PATIENCE_S)
        broker.bury(a_letter(), timeout_s=PATIENCE_S)
        time.sleep(3)  # some have moved on already, some are about to

        fragile.server.kill()
        with takes(0, 1), pytest.raises(BrokerUnavailable):
            broker.publish([a_message(1001)], timeout_s=PATIENCE_S)
        fragile.server.start()

        fragile.pumping(broker)
        expected = {b"[%d]" % number for number in (*range(500), 1000)}
        found: set[bytes] = set()
        deadline = time.monotonic() + 2 * PATIENCE_S
        while found != expected and time.monotonic() < deadline:
            found |= {body for _, body in fragile.arrivals(len(expected - found), timeout_s=5)}
        assert found == expected
        assert broker.counts([]).dead == 1

    def test_a_server_killed_at_once_keeps_the_first_delayed_messages(self, fragile: Place) -> None:
        broker = fragile.broker()
        for delay_s in (100, 600):  # the second needs levels that the first has not made
            broker.park([(a_message(0), delay_s)], timeout_s=PATIENCE_S)

        fragile.server.kill()
        fragile.server.start()

        wait_until(lambda: broker.counts([]).delayed == 2, timeout_s=PATIENCE_S, what="both are there")


def test_nothing_secret_is_logged(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
    with caplog.at_level(logging.DEBUG):
        broker = place.broker()
        broker.publish([a_message(args_json='["hush"]')], timeout_s=PATIENCE_S)
        broker.close()

    logged = "\n".join(logging.Formatter().format(each) for each in caplog.records if each.thread not in others)
    assert "hush" not in logged
    assert "guest" not in logged


def test_every_setting_of_the_wire_counts(place: Place) -> None:
    """A queue's arguments are the wire's, not the broker's own."""

    class OtherWire(AnyWire):
        def encode(self, message: Message) -> Publication:
            arguments: Mapping[str, Any] = {"x-max-priority": 3, "x-dead-letter-exchange": ""}
            return Publication(queue=self.places("email")[0], arguments=arguments, body=b"x")

    settings, _ = load({"url": f"celery+{place.server.url}", "namespace": place.namespace}, environ={})
    with closing(connect(settings, OtherWire("celery", place.namespace))) as broker:
        broker.publish([a_message()], timeout_s=PATIENCE_S)

    with place.channel() as channel:
        channel.queue_declare(
            place.queue(), durable=True, arguments={"x-max-priority": 3, "x-dead-letter-exchange": ""}
        )
