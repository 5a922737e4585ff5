"""Removes from a server what the contract has made there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

from taskbridge import Bridge
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import QUEUES
from taskbridge.settings import each_host
from taskbridge.stores.backend import BackendWithTables

PREFIX: Final = "contract-"
"""What the names of all namespaces begin with."""

_LEVELS: Final = 28
_ENGINES: Final = ("celery", "dramatiq")
_TOGETHER: Final = 500
_TIMEOUT_S: Final = 10.0


def remove(target: Target, namespaces: Collection[str]) -> None:
    """Remove what is left of namespaces; on a broker that is not known here, it stays."""
    if target.address.broker == "redis":
        _remove_keys(target.address.broker_url, namespaces)
    elif target.address.broker == "amqp":
        _remove_queues(target.address.broker_url, namespaces)
    if target.store is not None:
        remove_stored(target.store, namespaces)


def remove_stored(url: str, namespaces: Collection[str]) -> None:
    """Remove what is left of namespaces in a store; in one that is not known here, it stays until its time is over."""
    if url.startswith(("redis", "unix")):
        _remove_keys(url, namespaces)
        return
    for namespace in namespaces:
        bridge = Bridge("inline://", store=url, namespace=namespace)
        try:
            store = bridge.store
            if store is not None and isinstance(store.backend, BackendWithTables):
                store.backend.clear(timeout_s=_TIMEOUT_S)
        finally:
            bridge.close()


def _remove_keys(url: str, namespaces: Collection[str]) -> None:
    for tag in {namespace if namespace.startswith("{") else "" for namespace in namespaces}:
        with _redis(url, tag) as client:
            for key in client.scan_iter(match=f"*{PREFIX}*", count=_TOGETHER):
                if any(namespace in key.decode(errors="replace") for namespace in namespaces):
                    client.unlink(key)


def _redis(url: str, namespace: str) -> Any:
    """Return a client of the Redis that has a namespace's keys."""
    import redis  # here, for not everyone has it installed

    from taskbridge.brokers.redis.client import client_of, pool

    return redis.Redis(connection_pool=pool(client_of(url, namespace).place, protocol=2))


def _rabbitmq(url: str) -> Any:
    """Return a connection to the first host of a URL that answers."""
    import pika  # here, for not everyone has it installed

    return pika.BlockingConnection([pika.URLParameters(each) for each in each_host(url)])


def _remove_queues(url: str, namespaces: Collection[str]) -> None:
    connection = _rabbitmq(url)
    try:
        channel = connection.channel()
        for namespace in namespaces:
            for queue in _queues(namespace):
                channel.queue_delete(queue)
            for exchange in (f"{namespace}.due", *_levels(namespace)):
                channel.exchange_delete(exchange)
    finally:
        connection.close()


def copies(target: Target, namespace: str, mark: str) -> int:
    """Return how many copies of a message are left in a namespace.

    On Redis these are the keys that hold the mark, which is a part of the message; on RabbitMQ the messages in queues
    where an engine keeps dead ones of its own.
    """
    if target.address.broker == "redis":
        with _redis(target.address.broker_url, namespace) as client:
            return sum(mark in repr(_value(client, key)) for key in client.scan_iter(f"*{namespace}*", _TOGETHER))
    if target.address.broker == "amqp":
        kept = [queue for queue in _queues(namespace) if queue.endswith(".XQ")]
        return sum(told.message_count for told in _existing(target.address.broker_url, kept))
    return 0


def _value(client: Any, key: bytes) -> object:
    match client.type(key):
        case b"string":
            return client.get(key)
        case b"hash":
            return client.hgetall(key)
        case b"set":
            return client.smembers(key)
        case b"list":
            return client.lrange(key, 0, -1)
        case _:
            return client.zrange(key, 0, -1)


def is_deserted(target: Target, namespace: str) -> bool:
    """Return whether nobody consumes a namespace's queues on RabbitMQ.

    A worker that was killed is there for the server until it comes to read that its connection has ended; what it gives
    that worker meanwhile waits again afterwards.
    """
    consumed = [queue for engine in _ENGINES for queue in _consumed(namespace, engine)]
    return not any(told.consumer_count for told in _existing(target.address.broker_url, consumed))


def _existing(url: str, queues: Iterable[str]) -> Iterator[Any]:
    """Yield what RabbitMQ tells of each of these queues that is there; of others it logs an error."""
    errors: Any = import_module("pika.exceptions")
    connection = _rabbitmq(url)
    channel = connection.channel()  # one, for a server may allow few
    try:
        for queue in queues:
            channel = channel if channel.is_open else connection.channel()
            with suppress(errors.ChannelClosedByBroker):  # there is no such queue
                yield channel.queue_declare(queue, passive=True).method
    finally:
        connection.close()


def _queues(namespace: str) -> Iterator[str]:
    yield f"{namespace}.dead"
    yield f"{namespace}.sign.levels"
    yield from _levels(namespace)
    for engine in _ENGINES:
        yield from _consumed(namespace, engine)
    for queue in QUEUES:
        yield from (f"{namespace}.dramatiq.{queue}.DQ", f"{namespace}.dramatiq.{queue}.XQ")


def _consumed(namespace: str, engine: str) -> list[str]:
    """Return the queues that workers of an engine consume."""
    return [f"{namespace}.due.{engine}", *(f"{namespace}.{engine}.{queue}" for queue in QUEUES)]


def _levels(namespace: str) -> list[str]:
    return [f"{namespace}.delay.{level}" for level in range(_LEVELS + 1)]
