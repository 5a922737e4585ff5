"""RabbitMQ at several hosts: one that answers is found in time, and stays the first; wrong files are named."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from taskbridge import Bridge, BrokerUnavailable, SettingsError
from taskbridge.brokers.rabbitmq.broker import RabbitMQBroker
from taskbridge.brokers.rabbitmq.connection import ClientError, Deadline, TimedOutError
from taskbridge.brokers.rabbitmq.hosts import Hosts
from taskbridge.contract.ports import free_port
from taskbridge.contract.proxy import Proxy
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.settings import parse_url
from tests.certificates import Certificates
from tests.servers import PrivateRabbitMQ

TOLERANCE = 1.1
PATIENCE_S = 60.0


@contextmanager
def silent() -> Generator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def hosts(*ports: int, query: str = "") -> Hosts:
    places = ",".join(f"127.0.0.1:{port}" for port in ports)
    return Hosts.of(parse_url(f"celery+amqp://guest:guest@{places}/%2F{query}"))


def port_of(found: Hosts, timeout_s: float = PATIENCE_S) -> int:
    connection = found.connect(Deadline(timeout_s))
    connection.close()
    return int(connection.where.rpartition(":")[2])


def test_the_next_host_is_asked_if_one_refuses_and_is_the_first_from_then_on(rabbitmq_server: PrivateRabbitMQ) -> None:
    proxy = Proxy(("127.0.0.1", rabbitmq_server.port))
    found = hosts(proxy.port, rabbitmq_server.port)

    assert port_of(found) == rabbitmq_server.port
    with proxy:
        assert port_of(found) == rabbitmq_server.port, "the one that answered last goes first"


def test_a_silent_host_has_its_share_of_the_time(rabbitmq_server: PrivateRabbitMQ) -> None:
    with silent() as port:
        found = hosts(port, rabbitmq_server.port)
        begun_at = time.monotonic()

        assert port_of(found, timeout_s=12.0) == rabbitmq_server.port
        assert 5.9 < time.monotonic() - begun_at < 12.0
        begun_at = time.monotonic()
        assert port_of(found, timeout_s=12.0) == rabbitmq_server.port
        assert time.monotonic() - begun_at < 5.9


def test_if_no_host_answers_the_error_names_each_and_comes_in_time() -> None:
    refused, other = free_port(), free_port()
    with silent() as port:
        with Stopwatch() as watch, pytest.raises(TimedOutError, match=rf":{refused}.*; .*:{port}"):
            hosts(refused, port).connect(Deadline(1.0))
        assert watch.took_s < TOLERANCE
    with pytest.raises(ClientError, match=rf":{refused}.*; .*:{other}"):
        hosts(refused, other).connect(Deadline(1.0))


def test_it_is_told_whether_another_attempt_may_succeed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ClientError("away", again=True)

    monkeypatch.setattr("taskbridge.brokers.rabbitmq.hosts.Connection", refuse)
    for ports in ((1,), (1, 2)):
        with pytest.raises(ClientError) as refusal:
            hosts(*ports).connect(Deadline(1.0))
        assert refusal.value.again


def test_the_version_is_that_of_the_last_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = iter([(4, 2), (4, 3)])
    monkeypatch.setattr(
        "taskbridge.brokers.rabbitmq.hosts.Connection", lambda *_: SimpleNamespace(version=next(versions))
    )
    found = hosts(1)
    assert found.version is None
    for version in ((4, 2), (4, 3)):
        found.connect(Deadline(1.0))
        assert found.version == version


def test_whether_priorities_are_kept_is_asked_once(rabbitmq_server: PrivateRabbitMQ) -> None:
    url = f"celery+amqp://guest:guest@127.0.0.1:{rabbitmq_server.port}/%2F"
    with closing(Bridge(url, namespace="versions", queue_type="quorum")) as bridge:
        broker: Any = bridge.broker
        told = broker.keeps_priorities("default", timeout_s=PATIENCE_S)
        broker._looker.close()
        broker._looker.use = None  # it would be an error to ask again
        assert broker.keeps_priorities("default", timeout_s=PATIENCE_S) == told


def test_all_hosts_are_tried_as_often_as_the_url_says(rabbitmq_server: PrivateRabbitMQ) -> None:
    first, second = free_port(), Proxy(("127.0.0.1", rabbitmq_server.port))
    with pytest.raises(ClientError):
        hosts(first, second.port).connect(Deadline(2.0))
    with ExitStack() as stack:
        later = threading.Timer(0.5, stack.enter_context, (second,))
        later.start()
        assert port_of(hosts(first, second.port, query="?connection_attempts=500&retry_delay=0.1")) == second.port
        later.join()  # so that the proxy ends with the stack


def test_a_send_goes_on_with_another_host_when_its_own_goes_away(rabbitmq_server: PrivateRabbitMQ) -> None:
    place = ("127.0.0.1", rabbitmq_server.port)
    with Proxy(place) as first, Proxy(place) as second:
        url = f"celery+amqp://guest:guest@127.0.0.1:{first.port},127.0.0.1:{second.port}/%2F"
        with closing(Bridge(url, namespace=f"hosts{first.port}", send_timeout=PATIENCE_S)) as bridge:
            task = bridge.task(name="shop.note")(lambda: None)
            task.send()
            first.cut()
            begun_at = time.monotonic()
            task.send()
            task.schedule(3000)
            assert time.monotonic() - begun_at < PATIENCE_S / 2, "it waits for no host that is gone"
            assert bridge.counts().waiting["default"] == 2
            second.cut()
            with pytest.raises(
                BrokerUnavailable, match=rf":{first.port}.*:{second.port}|:{second.port}.*:{first.port}"
            ):
                task.send()


@pytest.mark.parametrize("option", ["ca_certs", "certfile", "keyfile"])
def test_a_file_that_can_not_be_read_is_named_with_its_option(tmp_path: Path, option: str) -> None:
    made = Certificates(tmp_path)
    files = {"ca_certs": made.authority, "certfile": made.client, "keyfile": made.client_key, option: "/no/such.pem"}
    for query in (
        "&".join(f"ssl_{name}={path}" for name, path in files.items()),
        f"ssl_options={ {name: str(path) for name, path in files.items()} }",
    ):
        with pytest.raises(SettingsError, match=rf"TLS can't be read.*{option}\W+/no/such\.pem.*No such file"):
            Hosts.of(parse_url(f"celery+amqps://h/v?{query}"))


def test_files_of_tls_may_be_named_as_for_redis(tmp_path: Path) -> None:
    ca = tmp_path / "a ca.pem"
    address = parse_url(f"celery+amqps://u:p@h1,h2/v?heartbeat=5&ssl_ca_certs={ca}")
    with pytest.raises(SettingsError, match=r"a ca\.pem"):
        Hosts.of(address)
    assert "heartbeat=5" in address.broker_url
    with pytest.raises(SettingsError, match="one of the two"):
        Bridge(f"celery+amqps://h/v?ssl_ca_certs={ca}&ssl_options={{'certfile':'x'}}")
    with pytest.raises(SettingsError, match="need amqps"):
        Bridge(f"celery+amqp://h/v?ssl_ca_certs={ca}")


def test_each_host_has_its_own_name_in_tls() -> None:
    found: Any = Hosts.of(parse_url("celery+amqps://h1,h2:1/v"))

    assert [(each.host, each.port) for each in found._parameters] == [("h1", 5671), ("h2", 1)]
    assert isinstance(Bridge("celery+amqp://h1,h2/v").broker, RabbitMQBroker)
