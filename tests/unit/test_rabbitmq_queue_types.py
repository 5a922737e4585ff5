"""Every queue is declared with its type, so a virtual host whose default type is quorum is one like any other."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from itertools import product
from typing import Any
from urllib.parse import quote

import pytest

from taskbridge import Bridge
from tests.servers import PrivateRabbitMQ
from tests.unit.dead_letter_tests import bury


@pytest.fixture
def quorum_host(rabbitmq_server: PrivateRabbitMQ) -> Iterator[str]:
    """The name of a virtual host in which a queue without a type is a quorum queue."""
    name = f"quorum{uuid.uuid4().hex[:8]}"
    rabbitmq_server.ctl("add_vhost", name, "--default-queue-type", "quorum")
    rabbitmq_server.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    yield name
    rabbitmq_server.ctl("delete_vhost", name, timeout_s=240.0)


def _consume_with_celery(bridge: Bridge) -> None:
    app: Any = bridge.native
    with app.connection_for_read() as connection:
        for queue in app.amqp.queues.values():
            queue(connection.default_channel).declare()


def _consume_with_dramatiq(bridge: Bridge) -> None:
    broker: Any = bridge.native
    broker.opens(1)
    broker.booted.set()
    for name in sorted(broker.queues):
        broker.consume(name).close()


def _send_with_celery(bridge: Bridge) -> None:
    app: Any = bridge.native
    app.send_task("shop.mail", (1,), queue=f"{bridge.settings.namespace}.celery.native")


def _send_with_dramatiq(bridge: Bridge) -> None:
    broker: Any = bridge.native
    broker.enqueue(broker.get_actor("shop.mail").message(1))


_CONSUME: Mapping[str, Callable[[Bridge], None]] = {
    "celery": _consume_with_celery,
    "dramatiq": _consume_with_dramatiq,
}
_SEND: Mapping[str, Callable[[Bridge], None]] = {"celery": _send_with_celery, "dramatiq": _send_with_dramatiq}


def test_all_queues_are_declared_with_their_type(rabbitmq_server: PrivateRabbitMQ, quorum_host: str) -> None:
    url = rabbitmq_server.url.replace("%2F", quote(quorum_host, safe=""))
    patient: dict[str, Any] = {"send_timeout": 60}  # a dozen quorum queues are made at once
    for number, (engine, first) in enumerate(product(_CONSUME, ("sent", "sent natively", "consumed"))):
        with closing(
            Bridge(f"{engine}+{url}", namespace=f"types{number}", queues=["email", "native"], **patient)
        ) as bridge:
            mail = bridge.task(name="shop.mail", queue="native")(lambda number: number)
            if first == "sent":
                mail.send(1)
            elif first == "sent natively":
                _SEND[engine](bridge)
            _CONSUME[engine](bridge)
            mail.send(2)
            mail.schedule(3000, 3)
            bury(bridge, 1)
            assert bridge.counts().delayed == 1

    listed = rabbitmq_server.ctl("list_queues", "-p", quorum_host, "name", "arguments", "--formatter", "json")
    # rabbitmqctl writes a table as a list of name, type, value
    types = {
        each["name"]: {name: value for name, _, value in each["arguments"]}.get("x-queue-type")
        for each in json.loads(listed)
        if each["name"].startswith("types")
    }
    assert len(types) >= 6 * 5
    levels = {name for name in types if ".delay." in name}
    assert {name for name, kind in types.items() if kind != "classic"} == levels
    assert {types[name] for name in levels} == {"quorum"}
