"""Private clusters become whole, go on when a member is killed, and become whole again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Certificates
from tests.clusters import PrivateCluster, PrivateRabbitMQCluster, PrivateRedisCluster, PrivateSentinels
from tests.servers import MANAGED, PrivateRabbitMQ, PrivateRedis, ServerFailed
from tests.unit.test_servers import processes_in, wait_until

pika = pytest.importorskip("pika", reason="the clusters are plain Python; their tests need the clients")
redis = pytest.importorskip("redis", reason="the clusters are plain Python; their tests need the clients")


DOWN_AFTER_S = 5.0  # longer than a node that is well may be silent on a busy machine


def assert_nothing_is_left(cluster: PrivateCluster) -> None:
    cluster.stop()
    for member in cluster.members:
        assert processes_in(member.folder) == []
        assert not member.folder.exists()


def has_replicated(master: PrivateRedis) -> bool:
    told = master.info("replication")
    return f"offset={told['master_repl_offset']}," in told.get("slave0", "")


def has_another_leader(cluster: PrivateRabbitMQCluster, former: PrivateRabbitMQ) -> bool:
    try:
        return cluster.leader_of("kept") is not former
    except ServerFailed:  # there is none while they elect one
        return False


def test_sentinels_put_the_replica_in_the_master_s_place() -> None:
    with PrivateSentinels(down_after_s=DOWN_AFTER_S) as cluster:
        with redis.Redis.from_url(cluster.master().url) as client:
            client.set("key", "value")
            assert client.wait(1, 60_000) == 1

        killed = cluster.kill_master()
        master = cluster.wait_for_master(other_than=killed)
        with redis.Redis.from_url(master.url, decode_responses=True) as client:
            assert client.get("key") == "value"
            client.set("key", "another")
        killed.start()
        cluster.wait_until_whole()

        assert cluster.master() is master
        assert cluster.replica() is killed
    assert_nothing_is_left(cluster)


def test_a_replica_of_a_redis_cluster_takes_its_master_s_place_and_who_is_missing_is_named() -> None:
    with PrivateRedisCluster(down_after_s=DOWN_AFTER_S) as cluster:
        client: Any = redis.RedisCluster.from_url(cluster.url, decode_responses=True)
        for number in range(30):
            client.set(f"key{number}", number)
        key = "key7"
        master = cluster.master_of(key)
        wait_until(lambda: has_replicated(master), timeout_s=60, what=f"its replica has what {master} has")

        master.kill()
        with pytest.raises(ServerFailed, match=f"not whole: .*{master.port}"):
            cluster.wait_until_whole(within_s=0.1)
        cluster.wait_for_master(key, other_than=master)
        with redis.RedisCluster.from_url(cluster.nodes[cluster.nodes[0] is master].url) as other:
            assert other.get(key) == b"7"
        master.start()
        cluster.wait_until_whole()

        assert cluster.master_of(key) is not master
        client.close()
    assert_nothing_is_left(cluster)


def test_a_quorum_queue_of_a_rabbitmq_cluster_outlives_its_leader_s_node() -> None:
    with PrivateRabbitMQCluster() as cluster:
        with pika.BlockingConnection(pika.URLParameters(cluster.nodes[2].url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.queue_declare("kept", durable=True, arguments={"x-queue-type": "quorum"})
            channel.basic_publish("", "kept", b"one", mandatory=True)
        leader = cluster.leader_of("kept")
        assert leader is cluster.nodes[2], "a queue's leader is on the node that it was declared on"

        leader.kill()
        wait_until(lambda: has_another_leader(cluster, leader), timeout_s=60, what="another node leads")
        with pika.BlockingConnection(pika.URLParameters(cluster.nodes[0].url)) as connection:
            assert connection.channel().basic_get("kept", auto_ack=True)[2] == b"one"
        leader.start()
        cluster.wait_until_whole()
    assert_nothing_is_left(cluster)


class TestTLS:
    def test_redis_takes_clients_with_a_certificate_only(self, tmp_path: Path) -> None:
        tls = Certificates(tmp_path)
        with PrivateRedis(tls=tls) as server:
            with redis.Redis.from_url(server.url) as client:
                assert client.ping()
            without = redis.Redis(port=server.port, ssl=True, ssl_ca_certs=tls.authority)
            with without, pytest.raises(redis.ConnectionError):
                without.ping()

    def test_rabbitmq_takes_clients_with_a_certificate_only(self, tmp_path: Path) -> None:
        tls = Certificates(tmp_path)
        with PrivateRabbitMQ(tls=tls) as server:
            pika.BlockingConnection(pika.URLParameters(server.url)).close()
            other = server.url.partition("?")[0] + f"?ssl_options={{'ca_certs':'{tls.authority}'}}"
            with pytest.raises(pika.exceptions.AMQPConnectionError):
                pika.BlockingConnection(pika.URLParameters(other))


@pytest.mark.parametrize("command", [("CONFIG", "GET", "save"), ("KEYS", "*"), ("FLUSHALL",), ("CLIENT", "ID")])
def test_a_managed_redis_refuses_what_hosted_ones_do(command: tuple[str, ...]) -> None:
    with PrivateRedis(extra_args=MANAGED) as server:
        assert server.command("SET", "key", "value") == "+OK"
        with pytest.raises(ServerFailed, match=r"unknown command|NOPERM"):
            server.command(*command)
