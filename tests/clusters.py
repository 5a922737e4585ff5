"""Private servers that stand in for one another: Redis with Sentinels, a Redis Cluster, a RabbitMQ cluster.

    with PrivateSentinels() as redis:
        bridge = Bridge(f"celery+{redis.url}")
        killed = redis.kill_master()
        redis.wait_for_master(other_than=killed)
        killed.start()

Their members are private servers: each may be killed, paused and started again.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from typing_extensions import Self

from taskbridge.contract.ports import free_port
from tests.certificates import Certificates
from tests.programs import Origin
from tests.servers import PrivateRabbitMQ, PrivateRedis, PrivateServer, ServerFailed

_HOST: Final = "127.0.0.1"
_POLL_S: Final = 0.05
_WHOLE_S: Final = 180.0
_FAILOVER_S: Final = 120.0  # a Sentinel that stood still for 2 s decides nothing for the next 30 s
_AGAIN_S: Final = 3.0

DOWN_AFTER_S: Final = 1.0
"""How long a Redis that does not answer is waited for before another takes its place, if nothing else is said.

On a busy machine a node that is well may be silent for longer, and is replaced then.
"""


class PrivateCluster(ABC):
    """Servers that are started and stopped together.

    Attributes:
        members: All of them, in the order in which they start.
    """

    members: Sequence[PrivateServer]

    @property
    @abstractmethod
    def url(self) -> str:
        """The broker's URL, to be put after `celery+` or `dramatiq+`."""

    @property
    def hosts(self) -> str:
        """Host and port of each member, with commas."""
        return ",".join(f"{_HOST}:{member.port}" for member in self.members)

    def start(self) -> Self:
        """Start the members, and return when they are whole.

        Raises:
            ServerNotInstalled: A program is not there.
            ServerFailed: One does not start, or they do not find each other. Nothing is left then.
        """
        try:
            self._start()
            self.wait_until_whole()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        for member in self.members:
            member.start()

    @abstractmethod
    def _missing(self) -> str:
        """Return what the members still lack to stand in for one another; it may raise if one does not answer."""

    def wait_until_whole(self, within_s: float = _WHOLE_S) -> None:
        """Return when every member is there and any one of them may be lost.

        Raises:
            ServerFailed: They are not whole within this time; it says what is missing.
        """
        _wait_until(lambda: not self._missing(), within_s, self._told)

    def _told(self) -> str:
        try:
            return f"they are not whole: {self._missing()}"
        except (OSError, ServerFailed) as exc:
            return f"they are not whole: {exc}"

    def stop(self) -> None:
        """End all members at once, and remove their folders."""
        for member in reversed(self.members):
            member.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def _wait_until(condition: Callable[[], object], within_s: float, problem: Callable[[], str]) -> None:
    deadline = time.monotonic() + within_s
    while True:
        with suppress(OSError, ServerFailed):  # a member is about to start
            if condition():
                return
        if time.monotonic() > deadline:
            raise ServerFailed("cluster", f"after {within_s:g} s, {problem()}", "")
        time.sleep(_POLL_S)


class PrivateSentinel(PrivateRedis):
    """A Redis Sentinel that watches a master called `mymaster`.

    Args:
        master: The master's port, when it first starts.
        password: That which it asks its clients for.
        master_password: That of the servers which it watches.
        down_after_s: How long it waits for the master.
        tls: With what it and they speak TLS.
        origin: Where its programs are.
    """

    def __init__(
        self,
        master: int,
        *,
        password: str | None,
        master_password: str | None,
        down_after_s: float,
        tls: Certificates | None,
        origin: Origin | None,
    ) -> None:
        name = "mymaster"
        config = [
            f"sentinel monitor {name} {_HOST} {master} 2",
            f"sentinel down-after-milliseconds {name} {down_after_s * 1000:.0f}",
            f"sentinel failover-timeout {name} 6000",
        ]
        if password is not None:
            config += [f"requirepass {password}", f"sentinel sentinel-pass {password}"]
        if master_password is not None:
            config.append(f"sentinel auth-pass {name} {master_password}")
        super().__init__(config=config, password=password, tls=tls, origin=origin)

    def _command(self) -> list[str]:
        return [self._program(), "redis.conf", "--sentinel", *self._place()]


class PrivateSentinels(PrivateCluster):
    """A Redis master with replicas, and three Sentinels that put one of them in its place.

    Args:
        replicas: How many.
        password: That of the servers.
        sentinel_password: That of the Sentinels.
        down_after_s: How long a master that does not answer is waited for.
        tls: What makes all of them take TLS alone.
        extra_args: Further arguments of the servers.
        origin: Where the programs are; as `TASKBRIDGE_TEST_SERVERS` says if None.
    """

    def __init__(
        self,
        *,
        replicas: int = 1,
        password: str | None = None,
        sentinel_password: str | None = None,
        down_after_s: float = DOWN_AFTER_S,
        tls: Certificates | None = None,
        extra_args: Sequence[str] = (),
        origin: Origin | None = None,
    ) -> None:
        def server(*config: str) -> PrivateRedis:
            return PrivateRedis(config=config, password=password, tls=tls, extra_args=extra_args, origin=origin)

        first = server()
        others = (server(f"replicaof {_HOST} {first.port}") for _ in range(replicas))
        self.nodes: tuple[PrivateRedis, ...] = (first, *others)
        self.sentinels: tuple[PrivateSentinel, ...] = tuple(
            PrivateSentinel(
                first.port,
                password=sentinel_password,
                master_password=password,
                down_after_s=down_after_s,
                tls=tls,
                origin=origin,
            )
            for _ in range(3)
        )
        self.members = (*self.nodes, *self.sentinels)
        self._password = password
        self._sentinel_password = sentinel_password
        self._tls = tls

    @property
    def hosts(self) -> str:
        """Host and port of each Sentinel, with commas."""
        return ",".join(f"{_HOST}:{sentinel.port}" for sentinel in self.sentinels)

    @property
    def url(self) -> str:
        """`redis+sentinel://HOST:PORT,HOST:PORT,HOST:PORT/mymaster/0`, with the passwords and files that there are."""
        scheme = "redis" if self._tls is None else "rediss"
        user = "" if self._password is None else f":{self._password}@"
        options = [] if self._tls is None else [self._tls.redis_options]
        if self._sentinel_password is not None:
            options.append(f"sentinel_password={self._sentinel_password}")
        return f"{scheme}+sentinel://{user}{self.hosts}/mymaster/0{'?' if options else ''}{'&'.join(options)}"

    def master(self) -> PrivateRedis:
        """Return the server that the Sentinels take for the master.

        Raises:
            ServerFailed: They do not agree.
        """
        told = {self._told_by(sentinel)["address"] for sentinel in self.sentinels if sentinel.is_running}
        found = [node for node in self.nodes if told == {f"{_HOST}:{node.port}"}]
        if not found:
            raise ServerFailed("redis", f"the Sentinels do not agree on a master: {told}", "")
        return found[0]

    def _told_by(self, sentinel: PrivateSentinel) -> dict[str, str]:
        return dict(each.split("=") for each in sentinel.info("sentinel")["master0"].split(","))

    def replica(self) -> PrivateRedis:
        """Return a server that is not the master."""
        return self._replicas()[0]

    def _replicas(self) -> list[PrivateRedis]:
        master = self.master()
        return [node for node in self.nodes if node is not master]

    def kill_master(self) -> PrivateRedis:
        """Kill the master, and return it."""
        master = self.master()
        master.kill()
        return master

    def wait_for_master(self, *, other_than: PrivateServer, within_s: float = _FAILOVER_S) -> PrivateRedis:
        """Return the new master when the Sentinels agree on one, and it takes writes.

        Raises:
            ServerFailed: Not within this time.
        """

        found: list[PrivateRedis] = []

        def is_another() -> bool:
            found[:] = [self.master()]
            return found[0] is not other_than and found[0].info("replication")["role"] == "master"

        _wait_until(is_another, within_s, lambda: "there is no other master")
        return found[0]

    def _missing(self) -> str:
        replicas = self._replicas()
        for sentinel in self.sentinels:
            told = self._told_by(sentinel)
            if (told["status"], told["slaves"], told["sentinels"]) != ("ok", str(len(replicas)), "3"):
                return f"a Sentinel tells {told}"
        if any(each.info("replication").get("master_link_status") != "up" for each in replicas):
            return "a replica has no link to its master"
        connected = self.master().info("replication")["connected_slaves"]
        return "" if connected == str(len(replicas)) else f"the master has {connected} replicas"


class PrivateRedisCluster(PrivateCluster):
    """A Redis Cluster.

    Args:
        masters: How many, at least three.
        replicas: How many each of them has.
        down_after_s: How long one that does not answer is waited for.
        extra_args: Further arguments of each server.
        origin: Where the programs are; as `TASKBRIDGE_TEST_SERVERS` says if None.
    """

    def __init__(
        self,
        *,
        masters: int = 3,
        replicas: int = 1,
        down_after_s: float = DOWN_AFTER_S,
        extra_args: Sequence[str] = (),
        origin: Origin | None = None,
    ) -> None:
        self._masters = masters
        self._down_after_s = down_after_s
        self._ports: dict[int, int] = {}
        self.nodes: tuple[PrivateRedis, ...] = tuple(
            self._node(extra_args, origin) for _ in range(masters * (1 + replicas))
        )
        self.members = self.nodes

    def _node(self, extra_args: Sequence[str], origin: Origin | None) -> PrivateRedis:
        port = free_port()
        args = ("--cluster-enabled", "yes", "--cluster-port", str(port))
        patience = ("--cluster-node-timeout", f"{self._down_after_s * 1000:.0f}")
        node = PrivateRedis(extra_args=(*args, *patience, *extra_args), origin=origin)
        self._ports[node.port] = port
        return node

    @property
    def url(self) -> str:
        """The first node's."""
        return self.nodes[0].url

    def _start(self) -> None:
        super()._start()
        for number, node in enumerate(self.nodes):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        bounds = [_SLOTS * number // self._masters for number in range(self._masters + 1)]
        masters = self.nodes[: self._masters]
        for node, low, high in zip(masters, bounds, bounds[1:], strict=False):
            node.command("CLUSTER", "ADDSLOTSRANGE", str(low), str(high - 1))
        self._meet()
        for number, node in enumerate(self.nodes[self._masters :]):
            node.command("CLUSTER", "REPLICATE", masters[number % self._masters].command("CLUSTER", "MYID"))

    def _meet(self) -> None:
        """Have the nodes meet, once more if need be: Redis forgets of one that did not answer within a second."""
        first = self.nodes[0]
        until = 0.0

        def have_met() -> bool:
            nonlocal until
            if all(self._has_met_all(node) for node in self.nodes):
                return True
            if time.monotonic() >= until:
                for node in self.nodes[1:]:
                    if not self._has_met_all(node):
                        node.command("CLUSTER", "MEET", _HOST, str(first.port), str(self._ports[first.port]))
                until = time.monotonic() + _AGAIN_S
            return False

        _wait_until(have_met, _WHOLE_S, lambda: "the nodes have not met")

    def _has_met_all(self, node: PrivateRedis) -> bool:
        table = self._table(node)
        return len(table) == len(self.nodes) and not any("handshake" in words[2] for words in table)

    def _table(self, node: PrivateRedis) -> list[list[str]]:
        """Return what a node knows of all, a line of words for each."""
        return [line.split() for line in node.command("CLUSTER", "NODES").splitlines()]

    def _missing(self) -> str:
        gone = next((node for node in self.nodes if not node.is_running), None)
        if gone is not None:
            return f"{gone} does not run"
        for node in self.nodes:
            if "cluster_state:ok" not in node.command("CLUSTER", "INFO"):
                return f"{node} does not take the cluster for complete"
            failed = [line for line in self._table(node) if "fail" in line[2] or "handshake" in line[2]]
            if failed:
                return f"{node} misses {failed[0][1]}"
        told = [node.info("replication") for node in self.nodes]
        replicas = [each for each in told if each["role"] == "slave"]
        if len(replicas) != len(self.nodes) - self._masters:
            return f"there are {len(replicas)} replicas"
        return "" if all(each["master_link_status"] == "up" for each in replicas) else "a replica has no link"

    def master_of(self, key: str) -> PrivateRedis:
        """Return the node that takes writes to a key.

        Raises:
            ServerFailed: There is none now.
        """
        node = next(node for node in self.nodes if node.is_running)
        slot = int(node.command("CLUSTER", "KEYSLOT", key)[1:])
        for words in self._table(node):
            ranges = [each.partition("-") for each in words[8:] if not each.startswith("[")]
            if "fail" not in words[2] and any(int(low) <= slot <= int(high or low) for low, _, high in ranges):
                port = int(words[1].partition("@")[0].rpartition(":")[2])
                return next(node for node in self.nodes if node.port == port)
        raise ServerFailed("redis", f"no node has the slot of {key}", "")

    def wait_for_master(self, key: str, *, other_than: PrivateServer, within_s: float = _FAILOVER_S) -> PrivateRedis:
        """Return the new master of a key, when there is one.

        Raises:
            ServerFailed: Not within this time.
        """
        found: list[PrivateRedis] = []

        def is_another() -> bool:
            found[:] = [self.master_of(key)]
            return found[0] is not other_than

        _wait_until(is_another, within_s, lambda: f"there is no other master of {key}")
        return found[0]


_SLOTS: Final = 16384


class PrivateRabbitMQCluster(PrivateCluster):
    """RabbitMQ nodes in one cluster. It takes about half a minute to start.

    Args:
        nodes: How many.
        extra_config: Further lines of each one's rabbitmq.conf.
        advanced_config: What each one's advanced.config holds.
        origin: Where the programs are; as `TASKBRIDGE_TEST_SERVERS` says if None.
    """

    def __init__(
        self,
        *,
        nodes: int = 3,
        extra_config: Sequence[str] = (),
        advanced_config: str = "[].",
        origin: Origin | None = None,
    ) -> None:
        def node(beside: PrivateRabbitMQ | None = None) -> PrivateRabbitMQ:
            return PrivateRabbitMQ(
                extra_config=("cluster_partition_handling = pause_minority", *extra_config),
                advanced_config=advanced_config,
                beside=beside,
                origin=origin,
                start_timeout_s=400.0,
            )

        first = node()
        self.nodes: tuple[PrivateRabbitMQ, ...] = (first, *(node(first) for _ in range(nodes - 1)))
        self.members = self.nodes

    @property
    def url(self) -> str:
        """`amqp://guest:guest@HOST:PORT,HOST:PORT,HOST:PORT/%2F`."""
        return self.url_of(*self.nodes)

    def url_of(self, *nodes: PrivateRabbitMQ) -> str:
        """Return the URL that names these nodes."""
        return f"amqp://guest:guest@{','.join(f'{_HOST}:{node.port}' for node in nodes)}/%2F"

    def _start(self) -> None:
        self.nodes[0].start()
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(PrivateServer.start, self.nodes[1:]))
        running = json.loads(self.nodes[0].ctl("cluster_status", "--formatter", "json"))["running_nodes"]
        if len(running) != len(self.nodes):
            raise ServerFailed("rabbitmq", f"only {running} are in one cluster", "")

    def _missing(self) -> str:
        node = next((node for node in self.nodes if not node.is_running), None)
        if node is not None:
            return f"{node} does not run"
        for queue in self._queues(self.nodes[0], "name", "type", "online"):
            if queue["type"] == "quorum" and len(queue["online"]) < len(self.nodes):
                return f"{queue['name']} is only on {queue['online']}"
        return ""

    def _queues(self, node: PrivateRabbitMQ, *columns: str) -> list[dict[str, Any]]:
        """Return what a node tells of all queues; it takes seconds."""
        told: list[dict[str, Any]] = json.loads(node.ctl("list_queues", *columns, "--formatter", "json"))
        return told

    def leader_of(self, queue: str) -> PrivateRabbitMQ:
        """Return the node that a quorum queue's leader is on, or where a classic queue is.

        Raises:
            ServerFailed: No running node tells.
        """
        node = next(node for node in self.nodes if node.is_running)
        told = self._queues(node, "name", "leader", "pid")
        names = [f"{each['leader'] or ''} {each['pid']}" for each in told if each["name"] == queue]
        found = [node for node in self.nodes if any(node.node in name for name in names)]
        if not found:
            raise ServerFailed("rabbitmq", f"no node has the queue {queue}", "")
        return found[0]
