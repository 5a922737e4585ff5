"""RabbitMQ's frames as the Celery worker reads and writes them: the same as py-amqp does, in fewer calls."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from struct import pack, unpack
from typing import Any

import pytest
from amqp import spec
from amqp.basic_message import Message
from amqp.exceptions import RecoverableConnectionError, UnexpectedFrame
from amqp.serialization import dumps

from taskbridge.engines.celery.fast.reader import Channel, Connection, Socket, _delivery

TYPICAL: dict[str, Any] = {
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "application_headers": {
        "task": "añadir",
        "eta": None,
        "retries": 3,
        "big": 2**40,
        "ignore_result": True,
        "timelimit": [None, 2.5],
        "stamps": {"a": {"b": "c"}},
        "empty": "",
    },
    "delivery_mode": 2,
    "priority": 1,
    "correlation_id": "an id",
    "reply_to": "",
}


def untyped(made: object) -> Any:
    return made


class Peer:
    """A connection whose other end is in the test's hands, with what its channel was given."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.connection = untyped(Connection(heartbeat=0))
        transport = untyped(Socket("localhost"))
        self.connection.transport = transport
        transport.sock, transport.connected = ours, True
        transport._setup_transport()
        self.connection._handshake_complete = True
        self.connection.frame_max = 131_072
        self.connection.on_inbound_frame = self.connection.frame_handler_cls(
            self.connection, self.connection.on_inbound_method
        )
        self.connection.frame_writer = self.connection.frame_writer_cls(self.connection, transport)
        self.channel = untyped(Channel(self.connection, 1, auto_decode=False))
        self.came: list[Any] = []
        self.channel.callbacks["tag"] = self.came.append

    def send(self, data: bytes) -> None:
        self.theirs.sendall(data)
        self.connection.receive()

    def close(self) -> None:
        self.theirs.close()
        self.connection.transport.sock.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def frame(kind: int, payload: bytes, channel: int = 1) -> bytes:
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def delivery(body: bytes, *, number: int = 7, chunk: int = 100_000, **properties: Any) -> list[bytes]:
    """Return the frames of a message as RabbitMQ writes them."""
    arguments = dumps("sLbss", ("tag", number, True, "", "a queue"))
    header = pack(">HHQ", 60, 0, len(body)) + Message(**properties)._serialize_properties()
    parts = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    return [
        frame(1, pack(">HH", *spec.Basic.Deliver) + arguments),
        frame(2, header),
        *(frame(3, each) for each in parts),
    ]


def shown(message: Any) -> tuple[Any, ...]:
    return message.body, message.properties, message.delivery_info


def by_py_amqp(frames: list[bytes]) -> tuple[Any, ...]:
    """Return what py-amqp's own reader makes of a message."""
    peer = Peer()
    try:
        for each in frames:
            kind, channel, payload = each[0], 1, each[7:-1]
            peer.connection.on_inbound_frame((kind, channel, payload))
        return shown(peer.came[0])
    finally:
        peer.close()


@pytest.mark.parametrize(
    "properties",
    [
        TYPICAL,
        {},
        {"application_headers": {}},
        {**TYPICAL, "message_id": "rare", "timestamp": 1_700_000_000, "expiration": "5", "app_id": "x"},
        {"priority": 0, "type": "t"},
        {"content_type": "text/plain", "application_headers": {"bytes": b"\xff\xfe"}},
    ],
)
def test_a_message_is_what_py_amqp_makes_of_it(peer: Peer, properties: dict[str, Any]) -> None:
    frames = delivery(b'["a", {}, {}]', **properties)

    peer.send(b"".join(frames))

    assert [shown(each) for each in peer.came] == [by_py_amqp(frames)]
    assert peer.connection.taken == 1, "the reader left it to py-amqp"


def _odd_headers() -> dict[str, bytes]:
    nested = b""
    for _ in range(5000):
        nested = b"A" + pack(">I", len(nested)) + nested
    return {"deep": nested, "unknown": b"?"}


@pytest.mark.parametrize("body", [b"[]", b""])
@pytest.mark.parametrize("chunk", [100, 1])  # in as many frames, which the reader leaves to py-amqp
@pytest.mark.parametrize("name", ["deep", "unknown"])
def test_properties_that_py_amqp_can_not_read_end_nothing(peer: Peer, name: str, chunk: int, body: bytes) -> None:
    entry = b"\x03odd" + _odd_headers()[name]
    method, _, *parts = delivery(body, chunk=chunk)
    header = frame(2, pack(">HHQH", 60, 0, len(body), 0x2000) + pack(">I", len(entry)) + entry)

    peer.send(method + header + b"".join(parts) + b"".join(delivery(b"{}", **TYPICAL)))

    assert [each.properties for each in peer.came] == [{}, TYPICAL]


def test_a_body_is_never_decoded(peer: Peer) -> None:
    frames = delivery(b"caf\xc3\xa9", content_encoding="utf-8")

    peer.send(b"".join(frames))

    assert [shown(each) for each in peer.came] == [by_py_amqp(frames)]
    assert peer.connection.taken == 1, "the reader left it to py-amqp"


@pytest.mark.parametrize("body", [b"", b"x" * 10, b"y" * 250])
def test_a_message_without_a_body_or_with_one_in_parts_is_too(peer: Peer, body: bytes) -> None:
    frames = delivery(body, chunk=100, **TYPICAL)

    peer.send(b"".join(frames))

    assert [shown(each) for each in peer.came] == [by_py_amqp(frames)]


def test_messages_come_whole_and_in_order_however_they_are_cut(peer: Peer) -> None:
    data = b"".join(
        b"".join(delivery(b"%d" % number * size, number=number, chunk=3000, **TYPICAL)) + frame(8, b"", channel=0)
        for number, size in ((1, 1), (2, 0), (3, 4000), (4, 10))
    )
    for start in range(0, len(data), 97):
        peer.send(data[start : start + 97])

    assert [each.delivery_info["delivery_tag"] for each in peer.came] == [1, 2, 3, 4]
    assert [len(each.body) for each in peer.came] == [1, 0, 4000, 10]


def test_what_a_call_that_waits_for_a_reply_leaves_is_delivered_before_the_loop_sleeps(peer: Peer) -> None:
    loop: Any = type("Loop", (), {"on_tick": set()})()
    peer.connection.serve(loop)
    ok = frame(1, pack(">HH", *spec.Basic.QosOk))
    peer.theirs.sendall(ok + b"".join(delivery(b"1", **TYPICAL)))
    peer.connection.transport.receive()  # the loop has read it, but not handled it yet

    peer.channel.basic_qos(0, 8, True)
    assert not peer.came
    for callback in loop.on_tick:
        callback()

    assert len(peer.came) == 1


def test_frames_of_two_channels_are_not_one_message() -> None:
    method, header, body = delivery(b"[]")
    other = [header[:1] + pack(">H", 2) + header[3:], body[:1] + pack(">H", 2) + body[3:]]
    assert _delivery(method + header + body) is not None
    assert _delivery(method + b"".join(other)) is None


def test_a_frame_without_its_end_ends_the_connection(peer: Peer) -> None:
    with pytest.raises(UnexpectedFrame):
        peer.send(frame(8, b"", channel=0)[:-1] + b"\x00")


def test_a_closed_connection_is_noticed(peer: Peer) -> None:
    peer.theirs.close()
    with pytest.raises(OSError, match="closed"):
        peer.connection.receive()
    with pytest.raises(RecoverableConnectionError):
        peer.connection.receive()


def test_a_read_without_data_returns(peer: Peer) -> None:
    peer.connection.receive()
    assert not peer.came


class TestAcknowledging:
    """Acknowledgements are written together, and never after what was sent later."""

    def test_outside_the_loop_each_is_written_at_once(self, peer: Peer) -> None:
        peer.channel.basic_ack(5)
        assert peer.theirs.recv(100) == frame(1, pack(">HHQB", 60, 80, 5, 0))

    def test_in_the_loop_those_of_a_turn_are_written_together(self, peer: Peer) -> None:
        loop: Any = type("Loop", (), {"on_tick": set()})()
        peer.connection.serve(loop)
        for number in (5, 6, 2**40):
            peer.channel.basic_ack(number)
        peer.theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.theirs.recv(100)

        for callback in loop.on_tick:
            callback()

        expected = b"".join(frame(1, pack(">HHQB", 60, 80, number, 0)) for number in (5, 6, 2**40))
        assert peer.theirs.recv(1000) == expected

    def test_what_is_sent_later_comes_later(self, peer: Peer) -> None:
        peer.connection.gathers = True
        peer.channel.basic_ack(5)
        peer.channel.basic_reject(6, requeue=True)
        assert peer.theirs.recv(1000) == frame(1, pack(">HHQB", 60, 80, 5, 0)) + frame(1, pack(">HHQB", 60, 90, 6, 1))

    def test_the_end_of_the_loop_leaves_none_unwritten(self, peer: Peer) -> None:
        peer.connection.gathers = True
        peer.channel.basic_ack(5)
        peer.connection.stop_gathering()
        peer.channel.basic_ack(6)
        expected = b"".join(frame(1, pack(">HHQB", 60, 80, number, 0)) for number in (5, 6))
        assert peer.theirs.recv(1000) == expected

    def test_slots_and_the_loop_write_whole_frames(self, peer: Peer) -> None:
        """More than the socket holds at a time, so that a write takes several system calls."""
        peer.connection.gathers = True
        peer.connection.transport.sock.settimeout(120)
        each, received = 20_000, bytearray()
        whole = 3 * each * len(frame(1, pack(">HHQB", 60, 80, 1, 0)))

        def receive() -> None:
            time.sleep(0.2)  # so that all wait for room
            while len(received) < whole and (data := peer.theirs.recv(65_536)):
                received.extend(data)

        def acknowledge(first: int) -> None:
            for number in range(first, first + each):
                peer.channel.basic_ack(number)
            peer.channel.writer()

        threads = [threading.Thread(target=acknowledge, args=(first,), daemon=True) for first in (0, each)]
        threads.append(threading.Thread(target=receive, daemon=True))
        for thread in threads:
            thread.start()
        for number in range(2 * each, 3 * each):
            peer.channel.basic_reject(number, requeue=True)
        threads[0].join(120)
        threads[1].join(120)
        peer.connection.write_gathered()
        threads[2].join(120)
        frames = [bytes(received[at : at + 21]) for at in range(0, len(received), 21)]
        assert sorted(unpack(">Q", each[11:19])[0] for each in frames) == list(range(3 * each))
        assert {(each[:11], each[20:]) for each in frames} == {
            (frame(1, pack(">HHQB", 60, method, 1, 0))[:11], b"\xce") for method in (80, 90)
        }

    def test_a_lost_connection_forgets_them(self, peer: Peer) -> None:
        loop: Any = type("Loop", (), {"on_tick": set()})()
        peer.connection.serve(loop)
        peer.channel.basic_ack(5)
        peer.connection.transport.connected = False
        for callback in list(loop.on_tick):
            callback()
        assert not loop.on_tick, "the loop goes on without it"
