"""Rule W10 where processes are slow: a flow is reopened while others are about to note what they have done."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest

from taskbridge import Bridge, Flow, RetryPolicy, become, current, group
from taskbridge.stores import transitions
from taskbridge.stores.backend import Backend
from taskbridge.stores.steps import entry_id


class Shop:
    """A bridge on which nothing runs by itself, and tasks that fail as they are told.

    Attributes:
        bridge: The bridge.
        sick: The numbers that fail.
        runs: The numbers that have run.
    """

    def __init__(self) -> None:
        self.bridge = Bridge("inline://?threads=0")
        self.sick: set[int] = set()
        self.runs: list[int] = []

        @self.bridge.task(name="load", retry=RetryPolicy.never())
        def load(number: int) -> int:
            self.runs.append(number)
            if number in self.sick:
                raise ValueError(number)
            return number

        @self.bridge.task(name="nest")
        def nest(number: int) -> int:
            return become(load.call(number).then(load))

        self.load = load
        self.nest = nest

    def has_run(self, times: int) -> bool:
        return len(self.runs) >= times

    @property
    def backend(self) -> Backend:
        assert self.bridge.store is not None
        return self.bridge.store.backend


@pytest.fixture
def shop() -> Shop:
    return Shop()


def test_members_that_were_published_and_not_noted_are_published_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender may be killed, or stand still, between both; meanwhile the flow fails and is reopened."""
    shop.sick = {0}
    monkeypatch.setattr(shop.backend, "note_sent", lambda *_, **__: None)
    handle = group([shop.load.call(number) for number in range(3)]).send()
    shop.bridge.run_until(lambda: handle.status().is_final)
    assert (handle.status().state, shop.runs) == ("failed", [0])

    monkeypatch.undo()
    shop.sick = set()
    handle.retry()
    shop.bridge.run_until_idle()

    assert list(handle.result(timeout=0)) == [0, 1, 2]
    assert sorted(shop.runs) == [0, 0, 1, 2]


def test_what_waits_of_the_life_before_is_not_run_beside_what_is_published_again(shop: Shop) -> None:
    shop.sick = {0}
    handle = group([shop.load.call(number) for number in range(3)]).send()
    shop.bridge.run_until(lambda: handle.status().is_final)
    shop.sick = set()
    handle.retry()
    shop.bridge.run_until_idle()

    assert list(handle.result(timeout=0)) == [0, 1, 2]
    assert sorted(shop.runs) == [0, 0, 1, 2]


def test_a_dead_step_is_replayed_once_in_a_life_though_two_go_on_with_the_flow(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is so slow that the other has replayed it, and it has died again, before it replays what it found dead."""
    shop.sick, replay, calls = {0, 1}, shop.bridge.dead.replay, list[Any]()
    handle = group([shop.load.call(number) for number in range(2)], on_error="wait").send()
    shop.bridge.run_until_idle()
    assert (handle.status().state, shop.runs) == ("failed", [0, 1])

    def slow(ids: Any) -> Any:
        calls.append(ids)
        if len(calls) == 1:
            shop.bridge.flows.advance(entry_id(handle.id, "again", 1), resumes=True)
            shop.bridge.run_until(lambda: shop.runs.count(0) == 2)
        return replay(ids)

    monkeypatch.setattr(shop.bridge.dead, "replay", slow)
    handle.retry()
    shop.bridge.run_until_idle()

    assert len(calls) == 2
    assert (handle.status().state, shop.runs) == ("failed", [0, 1, 0, 1])


def test_a_flow_that_is_reopened_as_its_end_is_told_has_not_ended(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who tells the message that became the flow may have read that it has ended before it was reopened."""
    flow_ended, told = transitions.flow_ended, list[str]()

    def slow(old: Any, flow_id: str, ending: Any) -> Any:
        found = flow_ended(old, flow_id, ending)
        told.append(ending.state)
        if len(told) == 1:
            shop.sick = set()
            shop.bridge.flows.retry(flow_id)
        return found

    monkeypatch.setattr(transitions, "flow_ended", slow)
    shop.sick = {0}
    flow: Flow[int] = shop.nest.call(0).then(shop.load)
    handle = flow.send()
    shop.bridge.run_until_idle()

    assert told[0] == "dead"
    assert handle.result(timeout=0) == 0


def test_what_is_published_again_heeds_at_once(shop: Shop) -> None:
    shop.sick = set(range(10))
    handle = group([shop.load.call(number) for number in range(10)], on_error="wait", at_once=2).send()
    shop.bridge.run_until_idle()
    assert (handle.status().state, handle.status().dead) == ("failed", 10)

    shop.sick, shop.runs = {7}, []
    handle.retry()
    waiting = [sum(shop.bridge.counts().waiting.values())]
    for ran in range(1, 10):
        shop.bridge.run_until(partial(shop.has_run, ran))
        waiting.append(sum(shop.bridge.counts().waiting.values()))
    shop.bridge.run_until_idle()

    assert max(waiting) == 2, waiting
    assert (handle.status().state, handle.status().done, handle.status().dead) == ("failed", 9, 1)
    assert sorted(shop.runs) == list(range(10))

    shop.sick = set()
    handle.retry()
    shop.bridge.run_until_idle()
    assert list(handle.result(timeout=0)) == list(range(10))
    assert len(shop.runs) == 11


def test_a_group_that_goes_on_again_fails_at_the_first_new_failure(shop: Shop) -> None:
    shop.sick = {0}
    handle = group([shop.load.call(number) for number in range(8)], at_once=2).send()
    shop.bridge.run_until_idle()
    assert handle.status().state == "failed"

    shop.sick, shop.runs = {3}, []
    handle.retry()
    shop.bridge.run_until_idle()
    assert (handle.status().state, handle.status().dead) == ("failed", 1)
    assert sorted(shop.runs) == [0, 1, 2, 3]


def test_a_member_that_is_given_up_in_a_group_with_at_once_is_published_again(shop: Shop) -> None:
    shop.sick = {0}
    handle = group([shop.load.call(number) for number in range(6)], at_once=3).send()
    shop.bridge.run_until_idle()
    assert (handle.status().state, handle.status().cancelled, shop.runs) == ("failed", 2, [0])

    shop.sick = set()
    handle.retry()
    assert sum(shop.bridge.counts().waiting.values()) == 3
    shop.bridge.run_until_idle()
    assert list(handle.result(timeout=0)) == list(range(6))
    assert sorted(shop.runs) == [0, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("width", [3, 130])
def test_a_member_that_is_published_again_keeps_its_priority_and_its_time_to_expire(shop: Shop, width: int) -> None:
    seen = list[tuple[str, float | None]]()

    @shop.bridge.task(name="look", priority="critical")
    def look(number: int) -> int:
        message = current().message
        lasts_s = None if message.expires_at is None else round(message.expires_at - message.enqueued_at)
        seen.append((message.priority, lasts_s))
        return number

    urgent, plain = look.using(priority="high", expires=5000), look.using(priority="normal")
    calls = [urgent.call(number) if number % 2 else plain.call(number) for number in range(width)]
    handle = group(calls).send()
    handle.cancel()
    shop.bridge.run_until_idle()
    assert seen == []

    handle.retry()
    shop.bridge.run_until_idle()
    assert list(handle.result(timeout=0)) == list(range(width))
    assert Counter(seen) == {("high", 5000): width // 2, ("normal", None): width - width // 2}
