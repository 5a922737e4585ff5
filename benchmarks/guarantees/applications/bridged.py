"""The application on taskbridge."""

from __future__ import annotations

from typing import Any

from benchmarks.guarantees.applications.setup import RETRY_DELAY_S, Setup
from benchmarks.guarantees.applications.work import EXPIRED, FOLLOWED, READY, TOLD, Work
from taskbridge import Bridge, Event, FlowEnd, Priority, Results, RetryPolicy, group
from taskbridge.contract.rewriting import garbage, rewriting
from taskbridge.message import Message
from taskbridge.observing import Observer
from taskbridge.retry import Verdict

setup: Setup = Setup.load()
work: Work = Work(setup)


def make_bridge(setup: Setup) -> Bridge:
    """Return a bridge for a setup, without tasks."""
    options: dict[str, Any] = {}
    if setup.lease_s is not None:
        options["lease"] = setup.lease_s
    if setup.store_url is not None:
        options["store"] = setup.store_url
    if not setup.defaults:
        options["retry"] = RetryPolicy(max_attempts=setup.attempts, min_delay=RETRY_DELAY_S, factor=1, jitter=0)
    return Bridge(
        f"{setup.engine}+{setup.broker_url}",
        namespace=setup.name,
        default_queue="work",
        grace=setup.grace_s,
        send_timeout=setup.send_timeout_s,
        **options,
    )


bridge: Bridge = make_bridge(setup)


def _perform(key: str, steps: list[dict[str, Any]]) -> None:
    work.perform(key, steps)


_perform_task = bridge.task(name="guarantees.work")(_perform)
_late_task = bridge.task(name="guarantees.late")(_perform) if setup.late else None


@bridge.task(name="guarantees.follow")
def _follow(results: Results[None], key: str) -> None:
    work.follow(key, FOLLOWED)


@bridge.task(name="guarantees.told")
def _told(end: FlowEnd, key: str) -> None:
    work.follow(key, TOLD)


class Watch(Observer):
    """Hears when a run's end is recorded and marked; the broker is told after this."""

    def settled(self, message: Message, verdict: Verdict) -> None:
        """Hear of it."""
        work.settled()


if setup.groups:
    bridge.observers.append(Watch())


@bridge.on("worker_started")
def _ready(event: Event) -> None:
    work.probe.write(READY)


@bridge.on("discarded")
def _discarded(event: Event) -> None:
    if event.reason == "expired":
        work.probe.write(EXPIRED)


# What a clerk calls


def send(
    key: str,
    steps: list[dict[str, Any]],
    delay_s: float | None = None,
    expires_s: float | None = None,
    priority: Priority = "normal",
    late: bool = False,
) -> None:
    """Send a task."""
    task = (_late_task if late else _perform_task) or _perform_task
    chosen = task.using(priority=priority, expires=expires_s)
    if delay_s is None:
        chosen.send(key, steps)
    else:
        chosen.schedule(delay_s, key, steps)


def send_group(key: str, members: dict[str, list[dict[str, Any]]], expires_s: float | None = None) -> None:
    """Send a group, what follows when all its members are done, and what is told if one of them fails."""
    task = _perform_task.using(expires=expires_s)
    calls = [task.call(member, steps) for member, steps in members.items()]
    group(calls).then(_follow, key).on_failure(_told, key).send()


def send_garbage() -> None:
    """Put bytes that are no message into the queue."""
    with rewriting(bridge, garbage):
        _perform_task.send("garbage", [])


def dead_letters() -> int:
    """Return how many dead messages are kept."""
    return len(bridge.dead_letters())
