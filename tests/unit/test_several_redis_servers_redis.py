"""Redis behind Sentinels and in a cluster: what is sent, taken and kept while servers and slots move."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from taskbridge.brokers.redis import RedisBroker, connect
from taskbridge.brokers.redis.client import pool
from taskbridge.brokers.redis.places import Place
from taskbridge.contract import matrix
from taskbridge.engines.celery.wire import RedisWire as CeleryWire
from taskbridge.engines.dramatiq.wire import RedisWire as DramatiqWire
from taskbridge.engines.redis_leases import CELERY, DRAMATIQ, Leases, Lists
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import DeadLetter, Priority
from taskbridge.settings import Settings, load
from taskbridge.stores.backend import Write
from taskbridge.stores.redis.backend import open_store
from tests.certificates import Certificates
from tests.clusters import PrivateRedisCluster, PrivateSentinels
from tests.servers import PrivateRedis, ServerFailed
from tests.unit.redis_helpers import message, pumping

NAMESPACE = "{shop}"
ENGINES: dict[str, Any] = {"celery": (CELERY, CeleryWire), "dramatiq": (DRAMATIQ, DramatiqWire)}
_ID = re.compile(rb'"(?:message_)?id": ?"([^"]+)"')
LEVELS: tuple[Priority, ...] = ("low", "normal", "high", "critical")
DOWN_AFTER_S = 5.0  # longer than a node that is well may be silent on a busy machine
GOES_ON_S = 60.0
"""How long a failover may take on a busy machine, until replicas have all that their new primary has, and more."""


def settings_of(url: str, engine: str = "celery", **given: Any) -> Settings:
    return load({"url": f"{engine}+{url}", "namespace": NAMESPACE, "send_timeout": 15, **given}, environ={})[0]


@contextmanager
def broker_of(settings: Settings) -> Generator[RedisBroker]:
    broker = connect(settings, ENGINES[settings.url.engine][1](settings))
    yield broker
    broker.close()


@dataclass
class Traffic:
    """Messages that are sent and taken all the time, by threads, until the block is left."""

    settings: Settings
    pause_s: float = 0.002
    accepted: list[str] = field(default_factory=list[str])
    refused: list[BrokerUnavailable] = field(default_factory=list[BrokerUnavailable])
    taken: Counter[str] = field(default_factory=Counter[str])
    _stop: threading.Event = field(default_factory=threading.Event)

    def send(self) -> None:
        with broker_of(self.settings) as broker:
            while not self._stop.wait(self.pause_s):
                sent = message(priority=LEVELS[len(self.accepted) % 4])
                try:
                    broker.publish([sent], timeout_s=self.settings.send_timeout_s)
                    self.accepted.append(sent.id)
                except BrokerUnavailable as exc:
                    self.refused.append(exc)

    def take(self) -> None:
        layout, make_wire = ENGINES[self.settings.url.engine]
        leases, lists = Leases(self.settings, layout), Lists([make_wire(self.settings).places("email")])
        leases.start()
        idle_from = time.monotonic()
        while not self._stop.is_set() or time.monotonic() - idle_from < self.settings.lease_s + 3:
            try:
                held = leases.take(lists, 3, timeout_s=5)
            except BrokerUnavailable:
                time.sleep(0.05)
                continue
            for each in held:
                self.taken[_ID.findall(each.text)[0].decode()] += 1
            leases.end(*(each.tag for each in held))
            if held:
                idle_from = time.monotonic()
            else:
                time.sleep(0.01)
        leases.stop()

    @contextmanager
    def __call__(self) -> Generator[None]:
        threads = [threading.Thread(target=act, daemon=True) for act in (self.send, self.send, self.take, self.take)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(120)
        assert not any(thread.is_alive() for thread in threads)

    def goes_on(self) -> None:
        """Return when messages are accepted and taken again."""
        sent, taken = len(self.accepted), len(self.taken)
        deadline = time.monotonic() + GOES_ON_S
        while len(self.accepted) < sent + 20 or len(self.taken) < taken + 20:
            assert time.monotonic() < deadline, self.refused[-3:]
            time.sleep(0.05)

    def lost(self) -> set[str]:
        return set(self.accepted) - set(self.taken)


@pytest.fixture(scope="module")
def cluster() -> Iterator[PrivateRedisCluster]:
    with PrivateRedisCluster(down_after_s=DOWN_AFTER_S) as made:
        yield made


@pytest.fixture(scope="module")
def sentinels() -> Iterator[PrivateSentinels]:
    with PrivateSentinels(replicas=2, password="secret", sentinel_password="other") as made:
        yield made


class TestCluster:
    @pytest.mark.parametrize("engine", ENGINES)
    def test_all_that_a_broker_does_is_done(self, cluster: PrivateRedisCluster, engine: str) -> None:
        with broker_of(settings_of(cluster.url, engine)) as broker:
            broker.publish([message() for _ in range(30)], timeout_s=10)
            broker.park([(message(), 0.2), (message(), 60.0)], timeout_s=10)
            letters = [DeadLetter(message=message(), reason="exhausted", died_at=time.time()) for _ in range(2)]
            for letter in letters:
                broker.bury(letter, timeout_s=10)
            with pumping(broker):
                deadline = time.monotonic() + 30
                while broker.counts(["email"]).waiting["email"] < 31 and time.monotonic() < deadline:
                    time.sleep(0.05)
            counts = broker.counts(["email"])
            assert (counts.waiting["email"], counts.delayed, counts.dead) == (31, 1, 2)
            assert {each.id for each in broker.dead_letters()} == {each.id for each in letters}
            broker.leave_signs(["a"], life_s=60, timeout_s=10)
            assert broker.see_signs(["a", "b"], timeout_s=10) == {"a"}
        with client_of(cluster.url) as client:
            client.delete(*client.keys("{shop}*"))

    def test_the_contract_finds_out_that_namespaces_need_braces(self, cluster: PrivateRedisCluster) -> None:
        pytest.importorskip("celery")
        found = matrix.verify([f"celery+{cluster.url}"], ["S1"])
        assert found.ok, found.render()

    def test_namespaces_of_their_own_spread_over_the_nodes(self, cluster: PrivateRedisCluster) -> None:
        names = {cluster.master_of(name): name for name in (f"{{shop-{number}}}" for number in range(20))}
        assert len(names) == 3
        for sent, name in enumerate(names.values(), 1):
            with broker_of(settings_of(cluster.url, namespace=name)) as broker:
                broker.publish([message() for _ in range(sent)], timeout_s=10)
                broker.park([(message(), 60.0)], timeout_s=10)
        for sent, (node, name) in enumerate(names.items(), 1):
            with broker_of(settings_of(cluster.url, namespace=name)) as broker:
                counts = broker.counts(["email"])
            assert (counts.waiting["email"], counts.delayed) == (sent, 1)
            assert node.command("KEYS", f"*{name}*") != "*0", f"{node} has nothing of {name}"

    def test_a_store_tells_and_keeps(self, cluster: PrivateRedisCluster) -> None:
        store = open_store(settings_of(cluster.url), cluster.url)
        woken = threading.Event()
        end = store.backend.watch("record:x", woken.set)
        store.backend.put_soon("record:y", "1", kept_s=60)
        assert store.backend.get(["record:y"], timeout_s=10) == ["1"]
        assert store.backend.write([Write("record:x", "0", "1\nx", tells=True)], timeout_s=10) == [True]
        assert woken.wait(10)
        end()
        store.close()

    @pytest.mark.parametrize("engine", ENGINES)
    def test_while_its_slot_is_moved_nothing_is_lost(self, cluster: PrivateRedisCluster, engine: str) -> None:
        traffic = Traffic(settings_of(cluster.url, engine, lease=10))
        cluster.wait_until_whole()
        with patient(cluster), traffic():
            traffic.goes_on()
            for pause_s in (0, 0.3, 0.6):
                move_slot(cluster, NAMESPACE, pause_s=pause_s)
                traffic.goes_on()
        assert traffic.lost() == set()
        assert [error for error in traffic.refused if not error.maybe_taken] == []
        assert max(traffic.taken.values()) == 1, "no server was lost"

    @pytest.mark.parametrize("engine", ENGINES)
    def test_its_master_is_killed(self, cluster: PrivateRedisCluster, engine: str) -> None:
        traffic = Traffic(settings_of(cluster.url, engine, lease=3, wait_replicas=1))
        with traffic():
            traffic.goes_on()
            killed = cluster.master_of(NAMESPACE)
            killed.kill()
            cluster.wait_for_master(NAMESPACE, other_than=killed)
            killed.start()  # without it, there is no replica to wait for
            traffic.goes_on()
            cluster.wait_until_whole()
        assert traffic.lost() == set()


class TestSentinels:
    @pytest.mark.parametrize("engine", ENGINES)
    def test_the_master_is_killed(self, sentinels: PrivateSentinels, engine: str) -> None:
        traffic = Traffic(settings_of(sentinels.url, engine, lease=3, wait_replicas=1))
        with traffic():
            traffic.goes_on()
            killed = sentinels.kill_master()
            traffic.goes_on()
            killed.start()
            sentinels.wait_until_whole()
        assert traffic.lost() == set()
        with client_of(sentinels.url) as client:
            client.flushall()

    @pytest.mark.parametrize(
        ("wrong", "right", "said"),
        [
            ("mymaster", "other", "the Sentinels name no master 'other'.*is that the name in their `sentinel monitor`"),
            ("sentinel_password=other", "sentinel_password=wrong", "the Sentinels name no master 'mymaster'"),
            (":secret@", ":wrong@", "Redis refuses the credentials"),
        ],
    )
    def test_errors_say_what_is_wrong(self, sentinels: PrivateSentinels, wrong: str, right: str, said: str) -> None:
        url = sentinels.url
        assert wrong in url
        with (
            broker_of(settings_of(url.replace(wrong, right))) as broker,
            pytest.raises(BrokerUnavailable, match=said) as caught,
        ):
            broker.ping(timeout_s=5)
        assert not {"secret", "wrong"} & set(str(caught.value).replace("'", " ").split())

    def test_over_tls(self, tmp_path: Path) -> None:
        with PrivateSentinels(tls=Certificates(tmp_path)) as secure, broker_of(settings_of(secure.url)) as broker:
            broker.publish([message()], timeout_s=10)
            assert broker.counts(["email"]).waiting["email"] == 1


@contextmanager
def patient(cluster: PrivateRedisCluster) -> Generator[None]:
    """Have the nodes of a cluster take none for failed that only stands still for a while."""

    def wait(node: PrivateRedis, seconds: float) -> None:
        node.command("CONFIG", "SET", "cluster-node-timeout", f"{seconds * 1000:.0f}")

    for node in cluster.nodes:
        wait(node, 30)
    try:
        yield
    finally:
        for node in cluster.nodes:
            with suppress(ServerFailed, OSError):  # of one that is gone, which must not hide why
                wait(node, DOWN_AFTER_S)


def client_of(url: str) -> Any:
    return redis.Redis(connection_pool=pool(Place(url, NAMESPACE), protocol=2, socket_timeout=10))


def move_slot(cluster: PrivateRedisCluster, key: str, *, pause_s: float) -> None:
    """Move a key's slot to another master, as an administrator does, and leave it half-way for a while."""
    source = cluster.master_of(key)
    with redis.Redis(port=source.port) as old:
        roles = {node: node.info("replication")["role"] for node in cluster.nodes}
        masters = [node for node in cluster.nodes if roles[node] == "master"]
        target = next(node for node in masters if node is not source)
        slot = old.cluster("KEYSLOT", key)
        ids = {node: node.command("CLUSTER", "MYID") for node in masters}
        target.command("CLUSTER", "SETSLOT", str(slot), "IMPORTING", ids[source])
        source.command("CLUSTER", "SETSLOT", str(slot), "MIGRATING", ids[target])
        while keys := old.execute_command("CLUSTER GETKEYSINSLOT", slot, 3):
            for each in keys:
                old.execute_command("MIGRATE", "127.0.0.1", target.port, each, 0, 5000)
            time.sleep(pause_s / 10)
        time.sleep(pause_s)
        for node in (target, source, *masters):
            node.command("CLUSTER", "SETSLOT", str(slot), "NODE", ids[target])
