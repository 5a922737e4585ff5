"""Probes and signs on RabbitMQ vanish by themselves; and a connection that others begin in vain harms no send."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from taskbridge.contract.proxy import Proxy
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.probe import answer_sign, make_probe
from tests.servers import PrivateRabbitMQ
from tests.unit.test_rabbitmq_broker import PATIENCE_S, Place, a_message, wait_until


@pytest.fixture
def place(rabbitmq_server: PrivateRabbitMQ) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(rabbitmq_server, stack)


def test_a_probe_that_nobody_takes_is_dropped(place: Place) -> None:
    broker = place.broker()
    probe = make_probe("email", now=time.time(), life_s=10)
    began = time.monotonic()
    broker.ask([probe], timeout_s=10)
    assert broker.counts(["email"]).waiting == {"email": 1} or time.monotonic() - began > 10
    wait_until(
        lambda: broker.counts(["email"]).waiting == {"email": 0}, timeout_s=PATIENCE_S, what="the probe to be dropped"
    )


def test_a_sign_is_seen_for_its_life_only(place: Place) -> None:
    broker = place.broker()
    broker.leave_signs(["brief", "long"], life_s=0.3, timeout_s=PATIENCE_S)
    broker.leave_signs(["long"], life_s=10 * PATIENCE_S, timeout_s=PATIENCE_S)
    wait_until(
        lambda: broker.see_signs(["brief", "long", "other"], timeout_s=PATIENCE_S) == {"long"},
        timeout_s=PATIENCE_S,
        what="one sign",
    )


def test_signs_are_removed(place: Place) -> None:
    broker = place.broker()
    probe = make_probe("email", now=time.time(), life_s=PATIENCE_S)
    broker.leave_signs([answer_sign(probe)], life_s=10 * PATIENCE_S, timeout_s=PATIENCE_S)
    assert broker.see_signs([answer_sign(probe)], timeout_s=PATIENCE_S)
    broker.withdraw([probe], [answer_sign(probe)], timeout_s=PATIENCE_S)
    assert not broker.see_signs([answer_sign(probe)], timeout_s=PATIENCE_S)


def test_a_send_connects_by_itself_while_another_one_connects_in_vain(place: Place) -> None:
    with Proxy(("127.0.0.1", place.server.port)) as proxy:
        broker = place.broker(url=place.server.url.replace(str(place.server.port), str(proxy.port)))
        proxy.stall()
        ends: list[BrokerUnavailable | None] = []

        def send() -> None:
            try:
                broker.publish([a_message()], timeout_s=4)
                ends.append(None)
            except BrokerUnavailable as exc:
                ends.append(exc)

        first = threading.Thread(target=send)
        first.start()
        time.sleep(0.5)  # it has begun to connect
        proxy.drop()
        proxy.restore()
        broker.publish([a_message()], timeout_s=PATIENCE_S)
        first.join(PATIENCE_S)
    assert len(ends) == 1
