"""What comes on Celery's control channel."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from taskbridge import Bridge


@pytest.mark.parametrize("odd", [2**63 - 1, 2**64, -1, 1.5, float("inf"), "9", None, []])
def test_a_clock_that_is_none_does_not_set_the_workers(odd: Any) -> None:
    """A worker whose clock is at 2**63 answers nothing on RabbitMQ, for ever."""
    bridge = Bridge("celery+memory://")
    node: Any = bridge.native.control.mailbox.Node("this worker", state=SimpleNamespace(app=bridge.native))
    node.handle_message({"method": "ping", "destination": ["another"]}, SimpleNamespace(headers={"clock": 41}))
    assert node.mailbox.clock.value == 42
    node.handle_message({"method": "ping", "destination": ["another"]}, SimpleNamespace(headers={"clock": odd}))
    assert node.mailbox.clock.value == 42
    bridge.close()


def test_all_names_of_remote_control_begin_with_the_namespace() -> None:
    with closing(Bridge("celery+memory://", namespace="shop")) as bridge:
        mailbox: Any = bridge.native.control.mailbox
        queue, answers = mailbox.get_queue("worker@host"), mailbox.get_reply_queue()

    names = [queue.name, queue.exchange.name, answers.name, answers.exchange.name]
    assert all(name.startswith("shop.celery.") for name in names), names
    assert [(each.exclusive, each.durable) for each in (queue, answers)] == [(True, False)] * 2
    assert answers.name == f"{answers.exchange.name}.{mailbox.oid}", "where workers on Redis answer"


def test_a_worker_that_connects_anew_does_not_wait_for_the_queue_of_its_lost_connection() -> None:
    with closing(Bridge("celery+memory://", namespace="shop")) as bridge:
        mailbox: Any = bridge.native.control.mailbox
        assert mailbox.get_queue("worker@host").name != mailbox.get_queue("worker@host").name


@pytest.mark.parametrize(
    "odd",
    [
        5,
        {"method": "ping", "arguments": "text"},
        {"method": "ping", "pattern": "(", "matcher": "pcre"},
        {"method": "ping", "pattern": "*", "matcher": "none"},
        {"method": "ping", "destination": 5},
        {"method": "ping", "reply_to": "nobody"},
        {"method": "ping", "reply_to": {"exchange": "x"}},
        {"unknown": 1},
    ],
)
def test_an_odd_command_raises_nothing(odd: Any) -> None:
    """Celery closes the channel for what is raised, and loses what waits there."""
    bridge = Bridge("celery+memory://")
    node: Any = bridge.native.control.mailbox.Node("this worker", state=SimpleNamespace(app=bridge.native))
    assert node.handle_message(odd) is None
    bridge.close()


@pytest.mark.parametrize(("obeyed", "answers"), [(False, ["*"]), (True, ["*", ".*"])])
def test_workers_are_named_by_a_regular_expression_only_where_remote_control_is_obeyed(
    obeyed: bool, answers: list[str]
) -> None:
    """One such as `(\\w+)+!` takes a worker's main loop for ever."""
    bridge = Bridge("celery+memory://", remote_control=obeyed)
    seen: list[str] = []
    state = SimpleNamespace(app=bridge.native)
    node: Any = bridge.native.control.mailbox.Node(
        "this worker", state=state, handlers={"ping": lambda _, pattern: seen.append(pattern)}
    )
    for matcher, pattern in (("glob", "*"), ("pcre", ".*")):
        node.handle_message(
            {"method": "ping", "arguments": {"pattern": pattern}, "pattern": pattern, "matcher": matcher}
        )
    assert seen == answers
    bridge.close()


@pytest.mark.parametrize(
    "url",
    [
        "celery+redis://shop:open-sesame@127.0.0.1/0",
        "celery+amqp://shop:open-sesame@127.0.0.1/shop",
        "celery+amqp://shop:open-sesame@127.0.0.1,127.0.0.2:5673/shop",
    ],
)
def test_what_a_worker_answers_of_its_broker_holds_no_password(url: str) -> None:
    """Celery takes out the password itself, but before 5.7 it leaves those in the URLs of several hosts."""
    with closing(Bridge(url, store="redis://shop:open-sesame@127.0.0.1/1")) as bridge:
        connection: Any = bridge.native.connection_for_read()
        shown: dict[str, Any] = {**connection.info(), "password": None}
        conf = bridge.native.conf.table(with_defaults=True)

    assert len(shown["alternates"]) == (2 if "," in url else 0)
    assert shown["hostname"] == "127.0.0.1"
    assert "sesame" not in f"{shown} {conf}"
