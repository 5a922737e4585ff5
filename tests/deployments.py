"""How the broker of a run's targets is deployed: one server, or several that stand in for one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.certificates import Certificates
from tests.clusters import PrivateCluster, PrivateRabbitMQCluster, PrivateRedisCluster, PrivateSentinels
from tests.servers import MANAGED, PrivateRabbitMQ, PrivateRedis, PrivateServer
from tests.small_servers import SmallRabbitMQ, SmallRedis

SINGLE: Final = "single"

_STAYS_S: Final = 10.0  # no member ends here, and one that a busy machine holds up is not to be replaced

_MAKERS: Final[Mapping[tuple[str, str], Callable[[Path], PrivateServer | PrivateCluster]]] = {
    ("managed", "redis"): lambda _: PrivateRedis(extra_args=MANAGED),
    ("tls", "redis"): lambda folder: PrivateRedis(tls=Certificates(folder)),
    ("tls", "amqp"): lambda folder: PrivateRabbitMQ(tls=Certificates(folder)),
    ("small", "redis"): lambda folder: SmallRedis(Certificates(folder)),
    ("small", "amqp"): lambda folder: SmallRabbitMQ(Certificates(folder)),
    ("sentinel", "redis"): lambda _: PrivateSentinels(down_after_s=_STAYS_S),
    ("cluster", "redis"): lambda _: PrivateRedisCluster(down_after_s=_STAYS_S),
    ("cluster", "amqp"): lambda _: PrivateRabbitMQCluster(),
}

NAMES: Final = (SINGLE, *dict.fromkeys(name for name, _ in _MAKERS))


def exists(deployment: str, broker: str) -> bool:
    """Tell whether a broker can be deployed in this way."""
    return deployment == SINGLE or (deployment, broker) in _MAKERS


def make(deployment: str, broker: str, folder: Path) -> PrivateServer | PrivateCluster:
    """Return a broker that is not one plain server; it is not started yet.

    Args:
        deployment: How.
        broker: `redis` or `amqp`.
        folder: Where its certificates may be.
    """
    return _MAKERS[deployment, broker](folder)


def needs_braces(deployment: str, broker: str) -> bool:
    """Tell whether all keys of a namespace must be in one slot."""
    return (deployment, broker) == ("cluster", "redis")


def has_one_place(deployment: str) -> bool:
    """Tell whether the broker is at one host and port, so that a test may put a proxy in front of it."""
    return deployment not in ("sentinel", "cluster")


def is_encrypted(deployment: str) -> bool:
    """Tell whether the broker takes TLS alone."""
    return deployment in ("tls", "small")
