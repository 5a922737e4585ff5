"""The permissions that the page on security names are enough for senders, workers and the command line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Final
from uuid import uuid4

import pytest

import taskbridge.contract.scenarios  # fills the table
from taskbridge.contract.environment import Environment, EnvironmentSpec
from taskbridge.contract.harness import Harness
from taskbridge.contract.pace import Pace
from taskbridge.contract.registry import SCENARIOS
from taskbridge.contract.suite import PATIENCE_S
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import Variant
from tests.servers import PrivateRabbitMQ, PrivateRedis
from tests.small_servers import permitting

assert taskbridge.contract.scenarios.NAMES

NAMESPACE: Final = "taskbridge"
"""The page's."""

ANYWHERE: Final = (
    "an_asked_delay_is_kept",
    "a_replay_starts_again",
    "what_is_purged_is_gone",
    "every_end_is_recorded",
    "results_come_back_as_they_were",
    "a_running_task_sees_that_it_is_cancelled",
)
"""Scenarios that need nothing but a worker with four slots."""

PERMITTED: Final = EnvironmentSpec(name="permitted", lease_s=5, grace_s=2, stored=True)


def _use_everything(url: str, store: str | None) -> None:
    target = Target.of(url, store=store)
    with Environment(target, PERMITTED, patience_s=PATIENCE_S, pace=Pace.of_this_run(), namespace=NAMESPACE) as place:
        with closing(Harness(place)) as h:
            schedules = [{"name": "tick", "every": 1.0}]
            h.tasks.declare_schedules(schedules)
            h.start_worker(threads=4, variant=Variant(schedules=schedules))
            assert h.bridge.health("contract", timeout=h.patience_s).is_well
            h.until(lambda: [each for each in place.records.all() if each.kind == "succeeded"], "a tick's run")
            h.bridge.schedules.pause("tick")
            h.in_python(
                f"from taskbridge.cli import main\nfor words in {_COMMANDS}:\n    assert not main(words), words"
            )
            if target.address.engine == "celery":
                control = h.bridge.native.control
                h.until(lambda: control.ping(timeout=h.scaled(2), limit=1), "a worker's answer to Celery")
        for name in ANYWHERE:
            found = [each for each in SCENARIOS.values() if each.name.partition("@")[0] == name]
            with closing(Harness(place)) as h:
                found[0].run(h)


_COMMANDS: Final = [["check"], ["queues"], ["dead", "list"]]


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_redis_lets_through_all_that_is_needed(engine: str) -> None:
    with PrivateRedis() as redis:
        redis.command(*permitting("redis-cli"))
        _use_everything(f"{engine}+redis://shop:secret@127.0.0.1:{redis.port}/0", None)
        assert redis.command("ACL", "LOG") == "*0", "something was refused"


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_rabbitmq_lets_through_all_that_is_needed(
    engine: str, rabbitmq_server: PrivateRabbitMQ, make_redis: Callable[[], PrivateRedis]
) -> None:
    vhost, user = (f"{word}-{engine}-{uuid4().hex[:8]}" for word in ("permitted", "shop"))
    rabbitmq_server.ctl("add_vhost", vhost)
    rabbitmq_server.ctl("add_user", user, "secret")
    given = {"/": vhost, "shop": user}
    rabbitmq_server.ctl(*(given.get(word, word) for word in permitting("rabbitmqctl")))
    url = f"{engine}+amqp://{user}:secret@127.0.0.1:{rabbitmq_server.port}/{vhost}"
    _use_everything(url, make_redis().url)  # the page's namespace is not this test's own
