"""The Redis broker takes messages, says in time and truly when it doesn't, and keeps dead letters."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from taskbridge.brokers.base import Counts
from taskbridge.brokers.redis import RedisBroker, places
from taskbridge.brokers.redis import client as client_module
from taskbridge.brokers.redis.client import connector
from taskbridge.contract.ports import free_port
from taskbridge.contract.proxy import Proxy
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.exceptions import BrokerUnavailable, PartlyPublished, SettingsError
from taskbridge.message import DeadLetter, Message
from taskbridge.retry import ErrorInfo
from tests.servers import PrivateRedis
from tests.unit.redis_helpers import HashWire, OneListWire, Place, message, place_on, wait_until


@pytest.fixture
def place(redis_server: PrivateRedis) -> Iterator[Place]:
    with place_on(redis_server.url) as place:
        yield place


def ids(messages: list[Message]) -> list[str]:
    return [message.id for message in messages]


@contextmanager
def unavailable(
    *, within_s: float, maybe_taken: bool, match: str
) -> Generator[pytest.ExceptionInfo[BrokerUnavailable]]:
    """Expect `BrokerUnavailable`, within the time and 10% (and 50 ms, for timeouts that are short)."""
    with Stopwatch() as watch, pytest.raises(BrokerUnavailable, match=match) as caught:
        yield caught
    assert watch.took_s <= within_s * 1.1 + 0.05, f"took {watch.took_s:.2f} s"
    assert caught.value.maybe_taken is maybe_taken


class TestPublishing:
    @pytest.mark.parametrize("wire", [OneListWire, HashWire])
    def test_what_the_wire_made_of_a_message_is_in_redis(self, place: Place, wire: type[OneListWire]) -> None:
        sent = message()

        place.broker(wire).publish([sent], timeout_s=3)

        [item] = place.client.lrange(f"{place.namespace}.celery.email", 0, -1)
        if wire is HashWire:
            assert item.decode() == sent.id
            item = place.client.hget(f"{place.namespace}.celery.email.msgs", sent.id)
        assert item.decode() == sent.dumps()

    @pytest.mark.parametrize("wire", [OneListWire, HashWire])
    def test_many_keep_their_order_in_each_queue(self, place: Place, wire: type[OneListWire]) -> None:
        sent = [message(f"q{number % 3}") for number in range(1000)]
        broker = place.broker(wire)

        broker.publish(sent, timeout_s=3)

        for queue in ("q0", "q1", "q2"):
            items = place.client.lrange(f"{place.namespace}.celery.{queue}", 0, -1)
            expected = [m.id if wire is HashWire else m.dumps() for m in sent if m.queue == queue]
            assert [item.decode() for item in items] == expected
        assert broker.counts(["q0", "q1", "q2"]).waiting == {"q0": 334, "q1": 333, "q2": 333}

    def test_many_go_in_few_commands(self, make_redis: Callable[..., PrivateRedis]) -> None:
        with place_on(make_redis().url) as place:
            place.broker().publish([message() for _ in range(300)], timeout_s=3)

            assert place.client.info("commandstats")["cmdstat_rpush"]["calls"] == 3

    def test_large_ones_are_not_sent_all_at_once(self, place: Place) -> None:
        sent = [message(args_json=f'["{"x" * 300_000}"]') for _ in range(20)]

        place.broker().publish(sent, timeout_s=5)

        assert ids(place.waiting()) == ids(sent)

    def test_commands_that_cannot_be_joined_go_one_by_one(self, place: Place) -> None:
        class Appending(OneListWire):
            def encode(self, message: Message) -> tuple[tuple[str | bytes | int | float, ...], ...]:
                return (("APPEND", f"{self.namespace}:text", b"\x00\xff"), ("INCRBYFLOAT", f"{self.namespace}:n", 0.5))

        place.broker(Appending).publish([message() for _ in range(3)], timeout_s=3)

        assert place.client.get(f"{place.namespace}:text") == b"\x00\xff" * 3
        assert place.client.get(f"{place.namespace}:n") == b"1.5"

    def test_none_at_all_is_nothing(self, place: Place) -> None:
        place.broker().publish([], timeout_s=3)
        place.broker().park([], timeout_s=3)

        assert place.client.keys(f"{place.namespace}*") == []


class TestAddresses:
    def test_a_unix_socket(self, make_redis: Callable[..., PrivateRedis]) -> None:
        server = make_redis(extra_args=("--unixsocket", "redis.sock"))
        with place_on(server.url) as place:
            place.broker(url=f"unix://{server.folder}/redis.sock?db=2").publish([message()], timeout_s=3)

            place.client.select(2)
            assert len(place.waiting()) == 1

    def test_a_user_a_password_and_a_database(self, make_redis: Callable[..., PrivateRedis]) -> None:
        server = make_redis()
        with place_on(server.url) as place:
            place.client.execute_command("ACL", "SETUSER", "ann", "on", ">s3cr@t", "~*", "&*", "+@all")
            place.broker(url=f"redis://ann:s3cr%40t@127.0.0.1:{server.port}/3").publish([message()], timeout_s=3)

            place.client.select(3)
            assert len(place.waiting()) == 1

    def test_a_name_that_the_server_shows(self, redis_server: PrivateRedis, place: Place) -> None:
        place.broker(url=f"{redis_server.url}?client_name=shop").publish([message()], timeout_s=3)

        assert "shop" in [client["name"] for client in place.client.client_list()]

    def test_a_process_that_only_declares_tasks_does_not_import_redis_py(self) -> None:
        script = (
            "import sys\n"
            "from taskbridge import Bridge\n"
            "bridge = Bridge('celery+redis://127.0.0.1:1/0')\n"
            "task = bridge.task(name='t')(lambda: None)\n"
            "print('redis' in sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)

        assert done.stdout == "False\n"

    def test_resp3_and_options_for_a_pool(self, redis_server: PrivateRedis, place: Place) -> None:
        query = "protocol=3&decode_responses=true&retry_on_timeout=true&max_connections=1&health_check_interval=1"
        broker = place.broker(url=f"{redis_server.url}?{query}")

        broker.publish([message()], timeout_s=3)
        broker.park([(message(), 60)], timeout_s=3)
        broker.bury(DeadLetter(message=message(), reason="exhausted", died_at=time.time()), timeout_s=3)

        assert broker.counts(["email"]) == Counts(waiting={"email": 1}, delayed=1, dead=1)
        assert len(broker.dead_letters()) == 1

    def test_tls(
        self, make_redis: Callable[..., PrivateRedis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if shutil.which("openssl") is None:
            pytest.fail("openssl is needed to make a certificate: apt-get install openssl")
        subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
        files = ("-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert"))
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files],
            check=True,
            capture_output=True,
            timeout=60,
        )
        port = free_port()
        cert = ("--tls-cert-file", str(tmp_path / "cert"), "--tls-key-file", str(tmp_path / "key"))
        server = make_redis(extra_args=("--tls-port", str(port), *cert, "--tls-auth-clients", "no"))
        with place_on(server.url) as place:
            broker = place.broker(url=f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / 'cert'}")
            for _ in range(3):
                broker.publish([message()], timeout_s=3)
            assert len(place.waiting()) == 3
            assert connections(place, besides=1) == 1, "a connection over TLS is used again"

            made: list[ssl.SSLContext] = []
            make = ssl.create_default_context

            def counting() -> ssl.SSLContext:
                made.append(make())
                return made[-1]

            monkeypatch.setattr(ssl, "create_default_context", counting)
            connect = connector(places.Place(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / 'cert'}"))
            links = [connect(5) for _ in range(2)]
            assert len(made) == 1, "connections share what TLS needs"
            monkeypatch.setattr(client_module, "_CONTEXT_S", -1.0)
            links.append(connect(5))
            assert len(made) == 2, "for a time, for certificates are renewed"
            for link in links:
                link.close()

            stranger = place.broker(url=f"rediss://127.0.0.1:{port}/0")
            with unavailable(within_s=3, maybe_taken=False, match="certificate"):
                stranger.publish([message()], timeout_s=3)

    @pytest.mark.parametrize("query", ["socket_keepalive_tpyo=1", "protocol=7", "db=one"])
    def test_what_redis_py_cannot_read_is_refused_before_anything_is_sent(self, place: Place, query: str) -> None:
        with pytest.raises(SettingsError, match=r"127\.0\.0\.1") as caught:
            place.broker(url=f"redis://ann:secret@127.0.0.1:1/0?{query}")

        assert "secret" not in str(caught.value)
        assert "ann" not in str(caught.value)

    def test_making_a_broker_connects_to_nothing_and_imports_no_engine(self) -> None:
        script = (
            "import socket, sys\n"
            "socket.socket.connect = None\n"
            "from taskbridge.brokers.redis import connect\n"
            "from taskbridge.settings import load\n"
            "class Wire: engine = 'celery'\n"
            "connect(load({'url': 'celery+redis://127.0.0.1:1/0'}, environ={})[0], Wire())\n"
            "print([name for name in ('celery', 'kombu', 'dramatiq', 'pika') if name in sys.modules])\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)

        assert done.stdout == "[]\n"


def connect_often(place: Place, broker: RedisBroker, count: int) -> None:
    """Have a broker use so many connections at once, and leave them idle; the server must be the test's own."""

    def wait(_: int) -> None:
        broker._client.execute([("BLPOP", f"{place.namespace}:none", 0)], timeout_s=60)

    def waiting() -> int:
        return int(place.client.info("clients")["blocked_clients"])

    with ThreadPoolExecutor(count) as threads:
        calls = [threads.submit(wait, number) for number in range(count)]
        wait_until(lambda: waiting() == count, timeout_s=30, saw=waiting)
        place.client.rpush(f"{place.namespace}:none", *range(count))
        for call in calls:
            call.result()
    assert connections(place) == count


def connections(place: Place, *, besides: int = 1) -> int:
    """Return how many connections the server has, besides those of the test's own client."""
    return len(place.client.client_list()) - besides


class TestConnections:
    def test_a_connection_is_used_again(self, make_redis: Callable[..., PrivateRedis]) -> None:
        with place_on(make_redis().url) as place:
            broker = place.broker()
            for _ in range(20):
                broker.publish([message()], timeout_s=3)
                broker.counts(["email"])

            assert connections(place) == 1

    def test_after_a_restart_while_idle_the_first_send_works(self, make_redis: Callable[..., PrivateRedis]) -> None:
        server = make_redis()
        with place_on(server.url) as place:
            broker = place.broker()
            connect_often(place, broker, 8)

            server.restart()
            broker.publish([message()], timeout_s=3)
            server.kill()
            server.start()
            broker.park([(message(), 60)], timeout_s=3)

            assert len(place.waiting()) == 1
            assert len(place.delayed()) == 1

    def test_a_connection_that_the_server_closed_is_not_used(self, make_redis: Callable[..., PrivateRedis]) -> None:
        with place_on(make_redis().url) as place:
            broker = place.broker()
            for _ in range(5):
                broker.publish([message()], timeout_s=3)
                place.client.client_kill_filter(_type="normal", skipme=True)

            assert len(place.waiting()) == 5

    def test_one_that_was_idle_for_long_is_not_trusted(
        self, make_redis: Callable[..., PrivateRedis], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with place_on(make_redis().url) as place:
            broker = place.broker()
            connect_often(place, broker, 4)
            monkeypatch.setattr(client_module, "_LONGEST_IDLE_S", 0.1)
            time.sleep(0.2)

            broker.publish([message()], timeout_s=3)

            wait_until(lambda: connections(place) == 1, timeout_s=20, saw=place.client.client_list)
            assert len(place.waiting()) == 1

    def test_32_threads_send_safely(self, place: Place) -> None:
        broker = place.broker(HashWire)
        sent = [message() for _ in range(32 * 40)]
        start = threading.Barrier(32)

        def send(number: int) -> None:
            start.wait(60)
            for each in sent[number::32]:
                broker.publish([each], timeout_s=20)

        with ThreadPoolExecutor(32) as threads:
            list(threads.map(send, range(32)))

        items = place.client.lrange(f"{place.namespace}.celery.email", 0, -1)
        assert sorted(item.decode() for item in items) == sorted(ids(sent))

    def test_a_forked_process_makes_connections_of_its_own(self, place: Place) -> None:
        script = f"""
import os
from tests.unit.redis_helpers import OneListWire, message, place_on
with place_on({place.url!r}) as place:
    place.namespace = {place.namespace!r}
    broker = place.broker()
    def send_50():
        for number in range(50):
            broker.publish([message()], timeout_s=3)
            said = b"%d %d" % (os.getpid(), number)
            if broker._client.execute([("ECHO", said)], timeout_s=3) != said:
                os._exit(1)
    broker.publish([message()], timeout_s=3)
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            send_50()
            broker.close()
            os._exit(0)
        children.append(child)
    send_50()
    print([os.waitpid(child, 0)[1] for child in children])
    broker.publish([message()], timeout_s=3)
"""
        done = subprocess.run(
            [sys.executable, "-c", script],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

        assert (done.stdout, done.stderr) == ("[0, 0, 0]\n", "")
        assert len(set(ids(place.waiting()))) == 202

    def test_close_closes_and_the_next_call_connects_again(self, make_redis: Callable[..., PrivateRedis]) -> None:
        with place_on(make_redis().url) as place:
            broker = place.broker()
            broker.publish([message()], timeout_s=3)

            broker.close()
            broker.close()

            wait_until(lambda: connections(place) == 0, timeout_s=20, saw=place.client.client_list)
            broker.publish([message()], timeout_s=3)
            assert len(place.waiting()) == 2

    def test_an_exception_thrown_into_a_call_does_not_mix_up_replies(
        self, make_redis: Callable[..., PrivateRedis]
    ) -> None:
        server = make_redis()
        with place_on(server.url) as place:
            broker = place.broker()
            broker.publish([message()], timeout_s=3)

            class Thrown(BaseException):  # not KeyboardInterrupt: outside of the block, that would end the whole run
                pass

            def throw(*_: object) -> None:
                raise Thrown

            before = signal.signal(signal.SIGALRM, throw)
            server.pause()
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                with pytest.raises(Thrown):
                    broker.publish([message()], timeout_s=20)
            finally:
                signal.signal(signal.SIGALRM, before)

            resuming = threading.Timer(0.3, server.resume)  # the reply comes while the next call waits for its own
            resuming.start()
            assert broker.counts(["email"]).waiting["email"] in (1, 2)
            resuming.join(5)


Call = Callable[[RedisBroker, float], object]


def letter(**changes: Any) -> DeadLetter:
    fields: dict[str, Any] = {"message": message(), "reason": "exhausted", "died_at": time.time(), **changes}
    return DeadLetter(**fields)


CALLS: dict[str, Call] = {
    "publish": lambda broker, timeout_s: broker.publish([message()], timeout_s=timeout_s),
    "publish many": lambda broker, timeout_s: broker.publish([message() for _ in range(3)], timeout_s=timeout_s),
    "park": lambda broker, timeout_s: broker.park([(message(), 60)], timeout_s=timeout_s),
    "park many": lambda broker, timeout_s: broker.park([(message(), 60)] * 3, timeout_s=timeout_s),
    "bury": lambda broker, timeout_s: broker.bury(letter(), timeout_s=timeout_s),
    "ping": lambda broker, timeout_s: broker.ping(timeout_s=timeout_s),
}
WRITES = {name: call for name, call in CALLS.items() if name != "ping"}


def named(calls: dict[str, Call]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("call", calls.values(), ids=[name.replace(" ", "-") for name in calls])


@pytest.fixture(scope="module")
def breakable() -> Iterator[PrivateRedis]:
    """A server that tests break, and mend again."""
    with PrivateRedis() as server:
        yield server


@pytest.fixture
def broken_place(breakable: PrivateRedis) -> Iterator[Place]:
    with place_on(breakable.url) as place:
        yield place
        breakable.resume()


class TestOutages:
    @named(CALLS)
    def test_nobody_listens(self, place: Place, call: Call) -> None:
        broker = place.broker(url=f"redis://ann:secret@127.0.0.1:{free_port()}/0")

        with unavailable(within_s=1, maybe_taken=False, match="refused") as caught:
            call(broker, 1)

        assert "secret" not in str(caught.value)
        assert "ann" not in str(caught.value)

    @named(CALLS)
    def test_it_accepts_and_never_answers(self, place: Place, call: Call) -> None:
        with socket.create_server(("127.0.0.1", 0)) as black_hole:
            broker = place.broker(url=f"redis://:secret@127.0.0.1:{black_hole.getsockname()[1]}/0")

            with unavailable(within_s=2, maybe_taken=False, match="no answer in time"):
                call(broker, 2)

    @pytest.mark.parametrize("first", ["", "+OK\r\n+OK\r\n"], ids=["while connecting", "in a reply"])
    def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(self, place: Place, first: str) -> None:
        def drip(listener: socket.socket) -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(first.encode())
                for _ in range(100):
                    time.sleep(0.05)
                    connection.sendall(b"1")

        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=drip, args=(listener,))
            thread.start()
            broker = place.broker(url=f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
            with unavailable(within_s=2, maybe_taken=bool(first), match="no answer in time"):
                broker.publish([message()], timeout_s=2)
            thread.join(10)

    @named(CALLS)
    def test_it_stops_answering_on_an_open_connection(
        self, breakable: PrivateRedis, broken_place: Place, call: Call
    ) -> None:
        broker = broken_place.broker()
        call(broker, 3)
        breakable.pause()

        with unavailable(within_s=2, maybe_taken=True, match="no answer in time"):
            call(broker, 2)

        breakable.resume()
        call(broker, 3)

    def test_no_address_answers_and_there_are_many(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            fillers = [socket.socket() for _ in range(3)]  # from then on, the kernel drops what wants to connect
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", full.getsockname())
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [address] * 4)

            with unavailable(within_s=2, maybe_taken=False, match="no answer in time"):
                place.broker(url="redis://redis.test/0").publish([message()], timeout_s=2)
            for filler in fillers:
                filler.close()

    def test_the_name_server_does_not_answer(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(10))

        with unavailable(within_s=2, maybe_taken=False, match="no answer in time"):
            place.broker(url="redis://redis.test/0").publish([message()], timeout_s=2)

    @pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "x" * 70])
    def test_there_is_no_such_host(self, place: Place, host: str) -> None:
        with pytest.raises(BrokerUnavailable) as caught:
            place.broker(url=f"redis://{host}/0").publish([message()], timeout_s=3)

        assert not caught.value.maybe_taken

    def test_it_is_killed_in_the_middle_of_a_call(self, make_redis: Callable[..., PrivateRedis]) -> None:
        server = make_redis()
        with place_on(server.url) as place:
            broker = place.broker()
            broker.ping(timeout_s=3)
            server.pause()
            killer = threading.Timer(1, server.kill)
            killer.start()

            with unavailable(within_s=10, maybe_taken=True, match="closed|reset"):
                broker.publish([message()], timeout_s=10)

            killer.join(30)
            server.start()
            broker.publish([message()], timeout_s=3)
            assert len(place.waiting()) == 1

    def test_threads_that_wait_for_a_dead_redis_all_end_in_time(self, place: Place) -> None:
        with socket.create_server(("127.0.0.1", 0)) as black_hole:
            broker = place.broker(url=f"redis://127.0.0.1:{black_hole.getsockname()[1]}/0")

            def send(_: int) -> None:
                broker.publish([message()], timeout_s=1)

            with Stopwatch() as watch, ThreadPoolExecutor(16) as threads:
                futures = [threads.submit(send, number) for number in range(16)]

        assert {type(future.exception()) for future in futures} == {BrokerUnavailable}
        assert watch.took_s < 2


def test_a_call_without_an_answer_ends_all_connections_that_were_idle_before_it(place: Place) -> None:
    """What drops one connection silently has dropped the others, and each would cost a call its time."""
    parts = urlsplit(place.url)
    assert parts.port is not None
    with Proxy(("127.0.0.1", parts.port)) as proxy:
        client = client_module.Client(f"redis://127.0.0.1:{proxy.port}/0")
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(lambda n: client.execute([("BLPOP", f"none{n}", 0.5)], timeout_s=20), range(3)))
        proxy.freeze()

        with unavailable(within_s=2, maybe_taken=True, match="no answer in time"):
            client.execute([("PING",)], timeout_s=2)

        assert client.execute([("PING",)], timeout_s=3) == b"PONG"
        client.close()


class TestRefusals:
    @named(WRITES)
    @pytest.mark.parametrize("wire", [OneListWire, HashWire])
    def test_out_of_memory(
        self, breakable: PrivateRedis, broken_place: Place, call: Call, wire: type[OneListWire]
    ) -> None:
        broker = broken_place.broker(wire)
        broken_place.client.set("filler", b"x" * (1 << 20))
        broken_place.client.config_set("maxmemory", "1mb")
        try:
            with unavailable(within_s=3, maybe_taken=False, match=r"out of memory: .*'maxmemory'\. \("):
                call(broker, 3)
            assert broker.counts(["email"]) == Counts(waiting={"email": 0}, delayed=0, dead=0)
            assert broken_place.client.keys(f"{broken_place.namespace}*") == []
        finally:
            broken_place.client.config_set("maxmemory", "0")

        call(broker, 3)

    @named(WRITES)
    @pytest.mark.parametrize("wire", [OneListWire, HashWire])
    def test_a_read_only_replica(self, broken_place: Place, call: Call, wire: type[OneListWire]) -> None:
        broker = broken_place.broker(wire)
        broken_place.client.replicaof("127.0.0.1", free_port())
        try:
            with unavailable(within_s=3, maybe_taken=False, match="read-only replica"):
                call(broker, 3)
        finally:
            broken_place.client.replicaof("NO", "ONE")

        assert broken_place.client.keys(f"{broken_place.namespace}*") == []
        call(broker, 3)

    def test_after_a_failover_new_connections_are_made(self, make_redis: Callable[..., PrivateRedis]) -> None:
        server = make_redis()
        with place_on(server.url) as place:
            broker = place.broker()
            connect_often(place, broker, 4)
            before = {client["id"] for client in place.client.client_list()}
            place.client.replicaof("127.0.0.1", free_port())
            with unavailable(within_s=3, maybe_taken=False, match="read-only replica"):
                broker.publish([message()], timeout_s=3)
            place.client.replicaof("NO", "ONE")

            broker.publish([message()], timeout_s=3)

            wait_until(lambda: connections(place) == 1, timeout_s=20, saw=place.client.client_list)
            assert len({client["id"] for client in place.client.client_list()} - before) == 1

    @named(CALLS)
    def test_busy_with_a_script(self, breakable: PrivateRedis, broken_place: Place, call: Call) -> None:
        broker = broken_place.broker()
        call(broker, 3)  # so that the scripts are known
        broken_place.client.config_set("lua-time-limit", 100)

        def spin() -> None:
            with redis.Redis.from_url(breakable.url) as client, pytest.raises(redis.ResponseError, match="kill"):
                client.eval("while true do end", 0)

        thread = threading.Thread(target=spin)
        thread.start()
        try:
            wait_until(lambda: is_busy(broken_place.client), timeout_s=30, saw=thread.is_alive)
            with unavailable(within_s=3, maybe_taken=False, match="BUSY"):
                call(broker, 3)
        finally:
            broken_place.client.script_kill()
            thread.join(20)

        call(broker, 3)

    def test_loading_its_data(self, make_redis: Callable[..., PrivateRedis]) -> None:
        server = make_redis(
            appendonly=False,
            extra_args=("--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024"),  # 20 s
        )
        with place_on(server.url) as place:
            broker = place.broker()
            with place.client.pipeline(transaction=False) as pipeline:
                for number in range(4000):
                    pipeline.set(number, "x" * 50)
                pipeline.execute()
            place.client.save()
            server.kill()
            starting = threading.Thread(target=server.start)
            starting.start()
            try:
                wait_until(lambda: not_refused(server.port), timeout_s=20, saw=server.log)
                for call in CALLS.values():
                    with unavailable(within_s=3, maybe_taken=False, match="loading its data"):
                        call(broker, 3)
                server.command("CONFIG", "SET", "key-load-delay", "0")
            finally:
                starting.join(60)

            broker.publish([message()], timeout_s=3)
            assert len(place.waiting()) == 1

    @named(CALLS)
    def test_a_wrong_password(self, breakable: PrivateRedis, broken_place: Place, call: Call) -> None:
        broken_place.client.execute_command("ACL", "SETUSER", "ann", "on", ">right", "~*", "+@all")
        broker = broken_place.broker(url=f"redis://ann:wrong-secret@127.0.0.1:{breakable.port}/0")

        with unavailable(within_s=3, maybe_taken=False, match="refuses the credentials") as caught:
            call(broker, 3)

        assert "secret" not in str(caught.value)

    def test_no_password_where_one_is_needed(self, make_redis: Callable[..., PrivateRedis]) -> None:
        server = make_redis()
        with place_on(server.url) as place:
            place.client.config_set("requirepass", "secret")

            with unavailable(within_s=3, maybe_taken=False, match="refuses the credentials"):
                place.broker(HashWire).publish([message()], timeout_s=3)

    def test_no_room_for_another_client(self, make_redis: Callable[..., PrivateRedis]) -> None:
        server = make_redis()
        with place_on(server.url) as place:
            place.client.config_set("maxclients", connections(place, besides=0))
            with unavailable(within_s=3, maybe_taken=False, match="max number of clients"):
                place.broker(HashWire).publish([message()], timeout_s=3)
            place.client.config_set("maxclients", 100)

    def test_a_database_that_is_not_there(self, redis_server: PrivateRedis, place: Place) -> None:
        with unavailable(within_s=3, maybe_taken=False, match="DB index is out of range"):
            place.broker(url=f"redis://127.0.0.1:{redis_server.port}/4711").publish([message()], timeout_s=3)

    def test_a_user_that_may_not_write_here(self, breakable: PrivateRedis, broken_place: Place) -> None:
        broken_place.client.execute_command("ACL", "SETUSER", "bob", "on", ">pw", "~other*", "+@all")
        broker = broken_place.broker(HashWire, url=f"redis://bob:pw@127.0.0.1:{breakable.port}/0")

        with unavailable(within_s=3, maybe_taken=False, match="permission"):
            broker.publish([message()], timeout_s=3)

    def test_what_answers_is_not_redis(self, place: Place) -> None:
        def answer(listener: socket.socket) -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=answer, args=(listener,))
            thread.start()
            broker = place.broker(url=f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
            with unavailable(within_s=2, maybe_taken=False, match="HTTP|Protocol"):
                broker.publish([message()], timeout_s=2)
            thread.join(5)

    def test_a_server_without_scripts_is_not_quoted_with_arguments(self, breakable: PrivateRedis) -> None:
        with place_on(breakable.url) as place:

            class Odd(OneListWire):
                def encode(self, message: Message) -> tuple[tuple[str | bytes | int | float, ...], ...]:
                    return (("TELEPORT", "secret argument"),)

            with unavailable(within_s=3, maybe_taken=False, match="unknown command") as caught:
                place.broker(Odd).publish([message()], timeout_s=3)

        assert "secret" not in str(caught.value)


def is_busy(client: Any) -> bool:
    try:
        client.ping()
    except redis.ResponseError as exc:
        return "BUSY" in str(exc)
    return False


def not_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True


class TestPartOfABatch:
    @pytest.mark.parametrize("wire", [OneListWire, HashWire])
    def test_what_was_taken_is_told_apart(self, place: Place, wire: type[OneListWire]) -> None:
        place.client.set(f"{place.namespace}.celery.broken", "not a list")
        sent = [message("broken" if number % 3 == 1 else "email") for number in range(250)]

        with pytest.raises(PartlyPublished, match="WRONGTYPE") as caught:
            place.broker(wire).publish(sent, timeout_s=3)

        wanted = frozenset(index for index, each in enumerate(sent) if each.queue == "email")
        assert caught.value.accepted == wanted
        # In a transaction, the other command is carried out.
        assert caught.value.unsure == (frozenset(range(250)) - wanted if wire is HashWire else frozenset())
        assert caught.value.maybe_taken is (wire is HashWire)
        assert place.client.llen(f"{place.namespace}.celery.email") == len(wanted)

    def test_what_may_have_been_taken_is_told_apart(self, make_redis: Callable[..., PrivateRedis]) -> None:
        server = make_redis()
        with place_on(server.url) as place:
            broker = place.broker()
            broker.ping(timeout_s=3)
            sent = [message(args_json=f'["{"x" * 400_000}"]') for _ in range(12)]
            server.pause()

            with unavailable(within_s=2, maybe_taken=True, match="in time") as caught:
                broker.publish(sent, timeout_s=2)

            server.resume()
            assert isinstance(caught.value, PartlyPublished)
            assert caught.value.accepted == frozenset()
            taken = [sent.index(each) for each in place.waiting()]
            assert set(taken) <= caught.value.unsure
            assert 0 < len(caught.value.unsure) < 12, "what was not sent at all is known not to be taken"

    def test_parking_is_not_sure_of_any_without_an_answer(self, make_redis: Callable[..., PrivateRedis]) -> None:
        server = make_redis()
        with place_on(server.url) as place:
            broker = place.broker()
            broker.park([(message(), 60)], timeout_s=3)
            server.pause()

            with unavailable(within_s=2, maybe_taken=True, match="in time") as caught:
                broker.park([(message(), 60) for _ in range(250)], timeout_s=2)

            server.resume()
            assert isinstance(caught.value, PartlyPublished)
            assert (caught.value.accepted, caught.value.unsure) == (frozenset(), frozenset(range(250)))


class TestDeadLetters:
    def test_they_come_back_as_they_were_the_oldest_first(self, place: Place) -> None:
        now = time.time()
        error = ErrorInfo.of(ValueError("no \u00e4 \ud800"))  # whose half of a pair is escaped
        young = letter(died_at=now, error=error, traceback="Traceback...")
        old = letter(died_at=now - 60, reason="given_up", message=message(headers={"a": "b"}, attempt=3))
        raw = letter(died_at=now - 30, reason="undecodable", message=None, raw=bytes(range(256)))
        broker = place.broker()

        for each in (young, raw, old):
            broker.bury(each, timeout_s=3)

        assert broker.dead_letters() == [old, raw, young]
        assert broker.dead_letters() == [old, raw, young], "reading them leaves them"
        assert broker.counts([]).dead == 3

    def test_many_chosen_ones_come_the_oldest_first_too(self, place: Place) -> None:
        now, broker = time.time(), place.broker()
        letters = [letter(died_at=now - 100 + number) for number in range(50)]
        for each in letters:
            broker.bury(each, timeout_s=3)

        assert broker.dead_letters([each.id for each in letters[:0:-1]]) == letters[1:]

    def test_the_same_id_replaces(self, place: Place) -> None:
        broker = place.broker()
        first = letter(died_at=time.time() - 5)
        second = letter(message=first.message, reason="given_up")

        broker.bury(first, timeout_s=3)
        broker.bury(second, timeout_s=3)

        assert broker.dead_letters() == [second]
        assert place.client.hlen(f"{place.namespace}:dead:letters") == 1

    def test_they_are_forgotten_after_dead_ttl(self, place: Place) -> None:
        broker = place.broker(dead_ttl=1000)
        old = [letter(died_at=time.time() - 1100) for _ in range(2)]
        young = [letter(died_at=time.time() - 900 + index) for index in range(2)]
        lasting = place.broker(dead_ttl=3600)
        for each in (*old, young[0]):
            lasting.bury(each, timeout_s=3)
        assert broker.counts([]).dead == 1

        broker.bury(young[1], timeout_s=3)

        assert lasting.dead_letters() == young
        assert place.client.hlen(f"{place.namespace}:dead:letters") == 2

    def test_listing_forgets_any_number_too(self, place: Place) -> None:
        many = [letter(died_at=time.time() - 100) for _ in range(2500)]
        with place.client.pipeline(transaction=False) as pipeline:
            for each in many:
                pipeline.zadd(f"{place.namespace}:dead", {each.id: each.died_at * 1000})
                pipeline.hset(f"{place.namespace}:dead:letters", each.id, each.dumps())
            pipeline.execute()
        assert len(place.broker(dead_ttl=1000).dead_letters()) == 2500

        assert place.broker(dead_ttl=10).dead_letters() == []

        assert place.client.keys(f"{place.namespace}:dead*") == []

    def test_one_that_cannot_be_read_does_not_hide_the_others(self, place: Place) -> None:
        broker = place.broker()
        good, newer = letter(), letter(died_at=time.time() - 5)
        broker.bury(good, timeout_s=3)
        broker.bury(newer, timeout_s=3)
        text = newer.dumps().replace('"form":1', '"form":99').encode()
        place.client.hset(f"{place.namespace}:dead:letters", newer.id, text)

        unreadable, readable = broker.dead_letters()

        assert readable == good
        assert (unreadable.message, unreadable.reason, unreadable.raw) == (None, "undecodable", text)
        assert unreadable.died_at == pytest.approx(newer.died_at, abs=0.001)


class TestCounts:
    def test_they_cover_all_places_of_a_queue_and_all_engines(self, place: Place) -> None:
        class Levels(OneListWire):
            def places(self, queue: str) -> list[str]:
                return [f"{self.namespace}.{queue}", f"{self.namespace}.{queue}:low"]

        place.client.rpush(f"{place.namespace}.email", 1, 2)
        place.client.rpush(f"{place.namespace}.email:low", 3)
        broker, other = place.broker(Levels), place.broker(engine="dramatiq")
        broker.park([(message(), 60), (message(), 60)], timeout_s=3)
        other.park([(message(), 60)], timeout_s=3)
        other.bury(letter(), timeout_s=3)

        assert broker.counts(["email", "vip"]) == Counts(waiting={"email": 3, "vip": 0}, delayed=3, dead=1)
        assert place.broker().counts([]) == Counts(waiting={}, delayed=3, dead=1)

    def test_they_take_one_round_trip(self, make_redis: Callable[..., PrivateRedis]) -> None:
        with place_on(make_redis().url) as place:
            broker = place.broker()
            broker.counts(["a", "b", "c"])
            place.client.config_resetstat()

            broker.counts(["a", "b", "c"])

            assert place.client.info("commandstats")["cmdstat_evalsha"]["calls"] == 1
            assert "cmdstat_eval" not in place.client.info("commandstats")

    def test_scripts_that_the_server_has_forgotten_are_sent_again(
        self, make_redis: Callable[..., PrivateRedis]
    ) -> None:
        with place_on(make_redis().url) as place:
            broker = place.broker()
            for _ in range(2):
                broker.park([(message(), 60)], timeout_s=3)
                place.client.script_flush()

            assert broker.counts([]).delayed == 2


class TestOdd:
    """What is no Redis, or not quite: a proxy, another protocol, a server with commands taken away."""

    @pytest.mark.parametrize(
        "said",
        [
            b"* OK IMAP4rev1 ready\r\n",
            b":irc.example NOTICE *\r\n",
            b"$x\r\n",
            b"*1\r\n" * 3000,
        ],
    )
    def test_what_is_not_redis_is_no_broker(self, place: Place, said: bytes) -> None:
        with _speaking([said]) as port, unavailable(within_s=2, maybe_taken=False, match="not Redis"):
            place.broker(url=f"redis://127.0.0.1:{port}/0").publish([message()], timeout_s=2)

    def test_a_proxy_that_does_not_know_client_is_a_broker(self, place: Place) -> None:
        with _speaking([b"-unsupported command 'CLIENT'\r\n"] * 2 + [b":1\r\n"]) as port:
            place.broker(OneListWire, url=f"redis://127.0.0.1:{port}/0").publish([message()], timeout_s=2)

    @pytest.mark.parametrize("query", ["", "?socket_read_size=1000"])
    def test_a_server_that_quotes_the_password_is_not_quoted(self, place: Place, query: str) -> None:
        password = "s3cret"
        quote = f"-ERR unknown command 'AUTH', with args beginning with: 'ann' '{password}' \r\n".encode()
        with (
            _speaking([quote] * 3) as port,
            unavailable(within_s=2, maybe_taken=False, match="refuses|unknown command") as caught,
        ):
            place.broker(url=f"redis://ann:{password}@127.0.0.1:{port}/0{query}").publish([message()], timeout_s=2)

        assert password not in "".join(traceback.format_exception(caught.value))

    def test_what_makes_connections_shows_no_password(self) -> None:
        assert "s3cret" not in repr(connector(places.Place("redis://ann:s3cret@127.0.0.1:1/0")))

    def test_an_address_of_a_family_that_the_system_has_not_is_passed_over(
        self, redis_server: PrivateRedis, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        there = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", redis_server.port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(999, socket.SOCK_STREAM, 6, "", ("::1", 1)), there])

        place.broker(OneListWire, url="redis://redis.test/0").publish([message()], timeout_s=3)

    def test_a_transaction_that_was_not_carried_out_may_have_been(self, place: Place) -> None:
        replies = [b"+OK\r\n", b"+OK\r\n", b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*-1\r\n"]
        with _speaking(replies) as port, unavailable(within_s=2, maybe_taken=True, match="transaction"):
            place.broker(HashWire, url=f"redis://127.0.0.1:{port}/0").publish([message()], timeout_s=2)


@contextmanager
def _speaking(replies: list[bytes]) -> Generator[int]:
    """Yields the port of a server that answers whatever it is sent with these, one after the other."""

    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):  # reset, where something was left unread
            for reply in replies:
                if not connection.recv(65536):
                    return
                connection.sendall(reply)
            connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        thread.join(5)
