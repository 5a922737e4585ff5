"""What of a Redis server's settings puts messages at risk, as far as the server tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final

from redis.exceptions import ResponseError

from taskbridge.brokers.base import Remark
from taskbridge.brokers.redis.client import Client
from taskbridge.exceptions import BrokerUnavailable

_AT_START_S: Final = 5  # a save within this time of the server's start is none: it begins by noting one


def examine(client: Client, namespace: str, *, timeout_s: float) -> Iterator[Remark]:
    """Yield what is to be said of a server; raises `BrokerUnavailable` if it doesn't answer."""
    try:
        text: bytes = client.execute([("INFO",)], timeout_s=timeout_s)
    except BrokerUnavailable as exc:
        if not isinstance(exc.__cause__, ResponseError):
            raise
        yield Remark("server", "note", f"what it evicts and saves was not looked at: {exc.problem}")
        return
    pairs = (line.partition(":") for line in text.decode(errors="replace").splitlines())
    info = {name: value for name, colon, value in pairs if colon}
    saves: str | None = None
    with suppress(BrokerUnavailable, LookupError):  # hosted servers have no CONFIG, and an application's user may not
        saves = client.execute([("CONFIG", "GET", "save")], timeout_s=timeout_s)[1].decode()
    yield from judge(info, namespace, saves=saves)


def judge(info: Mapping[str, str], namespace: str, *, saves: str | None) -> Iterator[Remark]:
    """Yield what is to be said of a server, by its `INFO`, and by its setting `save`; None if it may not be asked."""
    version = info.get("valkey_version")
    shown = f"Redis {info.get('redis_version', '?')}" if version is None else f"Valkey {version}"
    yield Remark("server", "ok", f"{shown}, {info.get('role', 'of unknown role')}")
    if info.get("cluster_enabled") == "1" and not namespace.startswith("{"):
        text = f"this is a Redis Cluster, where namespace {namespace!r} would lie on several nodes: set it to"
        yield Remark("cluster", "failed", f"{text} '{{{namespace}}}', with the braces")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        text = f"maxmemory-policy is {policy}: when memory is full, Redis evicts messages and marks; set noeviction"
        yield Remark("eviction", "failed", text)
    if info.get("aof_enabled") == "1":
        return
    started_at = _number(info, "server_time_usec") / 1e6 - _number(info, "uptime_in_seconds")
    has_saved = saves is None and _number(info, "rdb_last_save_time") > started_at + _AT_START_S
    if saves or has_saved or _number(info, "connected_slaves"):
        text = "appendonly is no: a crash of Redis loses what no snapshot and no replica has yet"
        yield Remark("saving", "note", text)
    else:
        text = "appendonly is no and no snapshot is taken: a restart of Redis loses all messages; set appendonly yes"
        yield Remark("saving", "failed", text)


def _number(info: Mapping[str, str], name: str) -> int:
    value = info.get(name, "")
    return int(value) if value.isdecimal() else 0
