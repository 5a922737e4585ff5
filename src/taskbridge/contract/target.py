"""Targets: an engine on a broker, by URL."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from typing_extensions import Self

from taskbridge import Bridge
from taskbridge.settings import Address

ON_TIME_S = 1.0
"""How late a due message may start on an idle worker (rule D2)."""

_PING_S: Final = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """An engine on a broker.

    Attributes:
        url: What a bridge is given; a secret, for it may hold a password.
        address: Its parts.
        store: Where attempt marks live, if not in the broker; None for nowhere. A secret too.
        braces: Whether namespaces are in braces, which put all keys of one into a single slot of a Redis Cluster.
    """

    url: str
    address: Address
    store: str | None = None
    braces: bool = False

    @classmethod
    def of(cls, url: str, *, store: str | None = None, braces: bool = False) -> Self:
        """Return the target of a URL.

        Args:
            url: The URL.
            store: Where attempt marks live; the variable `TASKBRIDGE_STORE` if None.
            braces: Whether namespaces are in braces.

        Raises:
            SettingsError: It is not one.
        """
        settings = Bridge(url).settings
        address = settings.url
        store = settings.store if store is None else store
        # Without threads of its own: the harness starts and stops the worker.
        own = "inline://?threads=0" if address.engine == "inline" else url
        return cls(url=own, address=address, store=store, braces=braces)

    def __repr__(self) -> str:
        return f"<Target {self.name}>"

    @property
    def name(self) -> str:
        """The pair, such as `celery+redis`."""
        return self.address.target

    @property
    def shown(self) -> str:
        """The URL without what is secret."""
        return self.address.safe_url

    @property
    def in_process(self) -> bool:
        """Whether messages and workers live in the process that sends."""
        return self.address.broker == "memory"

    @property
    def is_encrypted(self) -> bool:
        """Whether the broker is reached by TLS."""
        return urlsplit(self.address.broker_url).scheme.partition("+")[0] in ("rediss", "amqps")

    @property
    def keeps_marks(self) -> bool:
        """Whether there are attempt marks without a store being named: the broker is one."""
        return self.address.broker == "redis" or (self.in_process and self.address.engine != "inline")

    @property
    def whole_seconds(self) -> bool:
        """Whether delays are rounded up to whole seconds (rule D2)."""
        return self.address.broker == "amqp"

    def latest_s(self, delay_s: float) -> float:
        """Return how long after it was asked for a delayed message may start on an idle worker (rule D2)."""
        return (math.ceil(delay_s) if self.whole_seconds else delay_s) + ON_TIME_S

    def checked(self) -> Self:
        """Return the target as its broker needs it: on a Redis Cluster, with namespaces in braces.

        Raises:
            NotInstalledError: The engine, or the broker's client library, is missing.
            BrokerUnavailable: The broker doesn't answer.
        """
        bridge = Bridge(self.url, namespace="contract")
        try:
            bridge.broker.ping(timeout_s=_PING_S)
            _ = bridge.engine
            return self if self.braces else replace(self, braces=_is_cluster(bridge))
        finally:
            bridge.close()

    def at_port(self, *ports: int) -> str:
        """Return the URL of the same target behind another port of this machine, or several."""
        parts = urlsplit(self.url)
        credentials = parts.netloc.rpartition("@")[0]
        place = ",".join(f"127.0.0.1:{port}" for port in ports)
        return urlunsplit(parts._replace(netloc=f"{credentials}@{place}" if credentials else place))

    def beating(self, url: str, every_s: int) -> str:
        """Return a URL of the target by which dead connections are found out soon: with heartbeats, if it has none."""
        if self.address.broker != "amqp" or "heartbeat=" in url:
            return url
        return f"{url}{'&' if '?' in url else '?'}heartbeat={every_s}"

    @property
    def place(self) -> tuple[str, int] | None:
        """Where the broker listens; None if it is no host and port, or more than one."""
        parts = urlsplit(self.address.broker_url)
        if not parts.hostname or "," in parts.netloc or self.braces:
            return None
        ports = {"redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671}
        port = parts.port or ports.get(parts.scheme)
        return None if port is None else (parts.hostname, port)


def _is_cluster(bridge: Bridge) -> bool:
    """Tell whether a broker is a Redis Cluster, as far as it tells."""
    if bridge.settings.url.broker != "redis":
        return False
    broker: Any = bridge.broker
    found = broker.examine((), management=None, timeout_s=_PING_S)
    return any(remark.subject == "cluster" for remark in found)
