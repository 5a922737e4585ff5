"""The brokers of failover runs: which of their servers is killed, and how it comes back."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Generic, TypeVar

from tests.clusters import PrivateCluster, PrivateRabbitMQCluster, PrivateRedisCluster, PrivateSentinels
from tests.failover.account import Limits, Strike
from tests.servers import PrivateServer

AnyCluster = TypeVar("AnyCluster", bound=PrivateCluster)

_AWAY_S: Final = 3.0
"""How long the killed server stays away once another has taken its place."""


class Scene(ABC, Generic[AnyCluster]):
    """A broker some of whose servers are killed.

    Args:
        settings: Of all bridges and workers.

    Attributes:
        namespace: The setting of this name.
        settings: What it was given, or its defaults.
        cluster: The servers.
    """

    namespace: ClassVar[str] = "failover"
    defaults: ClassVar[Mapping[str, str]] = {}
    cluster: AnyCluster

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings: Mapping[str, str] = {**self.defaults, **settings}

    @property
    def url(self) -> str:
        """Where senders and workers go."""
        return self.cluster.url

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """What must hold with these settings."""

    @abstractmethod
    def strike(self, engine: str, number: int) -> tuple[PrivateServer, str]:
        """Kill a server on which all depends, and return it and what it was."""

    def await_heir(self, killed: PrivateServer) -> None:  # not every cluster tells
        """Wait until another server has taken its place."""

    def round(self, engine: str, number: int) -> Strike:
        """Kill a server, start it again, and return when any one may be killed anew."""
        at = time.time()
        killed, what = self.strike(engine, number)
        self.await_heir(killed)
        time.sleep(_AWAY_S)
        killed.start()
        self.cluster.wait_until_whole(120.0)
        return Strike(what=what, at=at)


class Sentinel(Scene[PrivateSentinels]):
    """A Redis master with two replicas, watched by three Sentinels."""

    defaults: ClassVar[Mapping[str, str]] = {"wait_replicas": "1"}

    def __init__(self, settings: Mapping[str, str]) -> None:
        super().__init__(settings)
        self.cluster = PrivateSentinels(replicas=2)

    @property
    def limits(self) -> Limits:
        """Nothing that a replica had was lost; without waiting for one, what was lost is only counted."""
        waits = int(self.settings["wait_replicas"]) > 0
        return Limits(lost=0 if waits else None, sends_s=10.0, runs_s=10.0)

    def strike(self, engine: str, number: int) -> tuple[PrivateServer, str]:
        """Kill the master."""
        master = self.cluster.kill_master()
        return master, f"the master on port {master.port}"

    def await_heir(self, killed: PrivateServer) -> None:
        """Wait until the Sentinels agree on another master."""
        self.cluster.wait_for_master(other_than=killed)


class RedisCluster(Scene[PrivateRedisCluster]):
    """A Redis Cluster of three masters with a replica each."""

    namespace: ClassVar[str] = "{failover}"

    def __init__(self, settings: Mapping[str, str]) -> None:
        super().__init__(settings)
        self.cluster = PrivateRedisCluster()

    @property
    def limits(self) -> Limits:
        """What was lost is only counted: a master without a replica would accept nothing that waits for one."""
        return Limits(lost=None, sends_s=10.0, runs_s=10.0)

    def strike(self, engine: str, number: int) -> tuple[PrivateServer, str]:
        """Kill the master that holds the namespace."""
        master = self.cluster.master_of(self.namespace)
        master.kill()
        return master, f"the master on port {master.port}"

    def await_heir(self, killed: PrivateServer) -> None:
        """Wait until its replica has taken its place."""
        self.cluster.wait_for_master(self.namespace, other_than=killed)


class RabbitMQCluster(Scene[PrivateRabbitMQCluster]):
    """Three RabbitMQ nodes, of which two are named in the URL."""

    defaults: ClassVar[Mapping[str, str]] = {"queue_type": "quorum"}

    def __init__(self, settings: Mapping[str, str]) -> None:
        super().__init__(settings)
        # A node that starts tries a delayed message again after this, if the next queue on its way was not there yet.
        retry = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}]}]."
        self.cluster = PrivateRabbitMQCluster(advanced_config=retry)

    @property
    def url(self) -> str:
        """Name the first two nodes."""
        return self.cluster.url_of(*self.cluster.nodes[:2])

    @property
    def limits(self) -> Limits:
        """Nothing is lost; classic queues are away as long as their node is."""
        is_quorum = self.settings["queue_type"] == "quorum"
        return Limits(lost=0, sends_s=15.0 if is_quorum else None, runs_s=None)

    def strike(self, engine: str, number: int) -> tuple[PrivateServer, str]:
        """Kill the node of a queue's leader, of the engine's queues and the delayed messages' in turn."""
        queue = (f"{self.namespace}.{engine}.chaos", f"{self.namespace}.due.{engine}")[number % 2]
        leader = self.cluster.leader_of(queue)
        leader.kill()
        return leader, f"the node of {queue}, on port {leader.port},"


SCENES: Final[Mapping[str, type[Scene[Any]]]] = {
    "sentinel": Sentinel,
    "redis-cluster": RedisCluster,
    "rabbitmq-cluster": RabbitMQCluster,
}
