"""Scenarios that harm a server, and so start one of their own; `taskbridge verify` has only those on the user's."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from taskbridge.contract.harness import Harness
from taskbridge.contract.ports import free_port
from taskbridge.contract.program import RETURN, Plan
from taskbridge.contract.registry import ALONE, STORED, scenario, with_a_server, with_records
from taskbridge.contract.scenarios.outages import Trouble, outlive
from taskbridge.contract.target import Target
from tests.servers import PrivateRabbitMQ, PrivateRedis, PrivateServer


def _with_a_known_server(target: Target) -> str:
    return with_a_server(target) or ("" if target.address.broker in ("redis", "amqp") else "its server is not known")


@scenario("R5", "S2", on=(ALONE,), where=_with_a_known_server)
def workers_outlive_a_broker_in_trouble(h: Harness) -> None:
    """A broker that is full, or a replica, or is restarted, costs workers and senders nothing but time."""
    if h.target.address.broker == "redis":
        with PrivateRedis() as redis, _beside(h, redis) as own:
            outlive(own, own.target.url, _troubles_of_redis(redis))
    else:
        with PrivateRabbitMQ() as rabbitmq, _beside(h, rabbitmq) as own:
            outlive(own, own.target.url, _troubles_of_rabbitmq(rabbitmq))


def _with_a_known_server_and_records(target: Target) -> str:
    return _with_a_known_server(target) or with_records(target)


@scenario("Z1", "Z2", on=(STORED,), where=_with_a_known_server_and_records)
def a_pause_outlives_the_broker(h: Harness) -> None:
    """What is paused stays so when the broker is restarted, and workers that connect again keep to it."""
    is_redis = h.target.address.broker == "redis"
    with PrivateRedis() if is_redis else PrivateRabbitMQ() as server, _beside(h, server) as own:
        own.start_worker(threads=4)
        own.bridge.pause("left")
        own.bridge.pause(task="contract.program.once")
        own.leave_alone(1.0 + own.slack_s)
        sent = [own.send(Plan(steps=(RETURN,), queue="left")) for _ in range(4)]
        sent += [own.send(Plan(steps=(RETURN,), policy="once")) for _ in range(4)]
        server.shut_down()
        server.start()
        others = [own.send(Plan(steps=(RETURN,), queue="right")) for _ in range(4)]
        own.final(*[item.id for item in others], within_s=own.patience_s + 30.0)
        own.leave_alone(5.0)
        own.equal("the starts of what is paused", [item.id for item in sent if own.starts(item.id)], [])
        own.bridge.resume("left")
        own.bridge.resume(task="contract.program.once")
        own.compare([*sent, *others])


@contextmanager
def _beside(h: Harness, server: PrivateServer) -> Generator[Harness]:
    """Yield a harness like this one on a server that may be harmed."""
    target = Target.of(f"{h.target.address.engine}+{server.url}", store=h.target.store)
    with h.environment.beside(target) as environment:
        own = Harness(environment)
        try:
            yield own
        finally:
            own.close()


class _Room:
    """The room that a server has for clients; one that takes it keeps all others out."""

    def __init__(self, server: PrivateRedis) -> None:
        self._url = server.url
        self._client: Any = None

    def take(self) -> None:
        import redis  # here, for not everyone has it installed

        self._client = redis.Redis.from_url(self._url, single_connection_client=True)
        self._client.config_set("maxclients", 1)
        for kind in ("normal", "pubsub"):
            self._client.client_kill_filter(_type=kind, skipme=True)

    def give_back(self) -> None:
        self._client.config_set("maxclients", 10_000)
        self._client.close()


def _troubles_of_redis(server: PrivateRedis) -> list[Trouble]:
    return [
        Trouble(
            name="out of memory",
            begin=lambda: server.command("CONFIG", "SET", "maxmemory", "1"),
            end=lambda: server.command("CONFIG", "SET", "maxmemory", "0"),
        ),
        Trouble(
            name="a replica",
            begin=lambda: server.command("REPLICAOF", "127.0.0.1", str(free_port())),
            end=lambda: server.command("REPLICAOF", "NO", "ONE"),
        ),
        Trouble(name="a full disk", begin=server.fail_to_save, end=server.save_again),
        Trouble(name="full of clients", begin=(room := _Room(server)).take, end=room.give_back),
        Trouble(name="restarted", begin=server.shut_down, end=server.start),
    ]


def _troubles_of_rabbitmq(server: PrivateRabbitMQ) -> list[Trouble]:
    return [
        Trouble(
            name="a memory alarm",
            begin=lambda: server.ctl("set_vm_memory_high_watermark", "0"),
            end=lambda: server.ctl("set_vm_memory_high_watermark", "0.4"),
        ),
        Trouble(name="restarted", begin=server.shut_down, end=server.start),
    ]
