"""Rule W10 where processes are slow: a flow is reopened while others are about to note what they have done."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from taskbridge import Flow, NoSuchRecord, current, group
from taskbridge.flows.plan import plan_key, row_key, step_id
from taskbridge.stores import transitions
from taskbridge.stores.records import Ending, key_of
from taskbridge.stores.steps import entry_id
from tests.unit.flow_shop import Shop


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


def test_a_flow_that_goes_on_or_is_done_is_left_as_it_is_by_retry(shop: Shop) -> None:
    handle = shop.load.call(0).then(shop.load).send()
    assert handle.retry().state == "running"
    shop.bridge.run_until_idle()
    assert handle.retry().state == "done"
    shop.bridge.run_until_idle()
    assert shop.runs == [0, 0]


def test_of_two_that_reopen_a_flow_at_once_one_does(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.sick = {0}
    handle = shop.load.call(0).then(shop.load).send()
    shop.bridge.run_until_idle()
    shop.sick = set()
    flows, reopen, reopened = shop.bridge.flows, shop.bridge.flows._reopen, list[str]()

    def slow(id: str, *given: Any, **options: Any) -> Any:
        row = reopen(id, *given, **options)
        reopened.append(id)
        if len(reopened) == 1:
            flows.retry(id)
        return row

    monkeypatch.setattr(flows, "_reopen", slow)
    assert handle.retry().state == "running"
    shop.bridge.run_until_idle()
    assert len(reopened) == 2
    assert (handle.result(timeout=0), shop.runs) == (0, [0, 0, 0])


def test_a_dead_step_that_two_replay_at_once_is_followed_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.sick = {0}
    handle = shop.load.call(0).then_call(shop.load.call(7)).send()
    shop.bridge.run_until_idle()
    shop.sick = set()
    flows, done, calls = shop.bridge.flows, shop.bridge.flows._done, list[Any]()
    [letter] = shop.bridge.dead_letters()
    assert letter.message is not None
    message = replace(letter.message, attempt=1, replays=1, relayed=True)

    def slow(act: Any) -> bool:
        calls.append(act)
        if len(calls) == 1:
            assert flows.replay([(message, 0.0)]) == (letter.id,)
        return done(act)

    monkeypatch.setattr(flows, "_done", slow)
    assert flows.replay([(message, 0.0)]) == (letter.id,)
    shop.bridge.run_until_idle()
    assert len(calls) == 3
    assert (handle.result(timeout=0), shop.runs.count(7)) == (7, 1)


def test_what_is_given_again_stays_dead_if_its_flow_is_over_once_more(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who goes on with a flow is so slow that it is cancelled before its dead step is replayed."""
    shop.sick, replay = {0}, shop.bridge.dead.replay
    handle = shop.load.call(0).then(shop.load).send()
    shop.bridge.run_until_idle()

    def slow(ids: Any) -> Any:
        handle.cancel()
        return replay(ids)

    monkeypatch.setattr(shop.bridge.dead, "replay", slow)
    assert handle.retry().state == "cancelled"
    shop.bridge.run_until_idle()
    assert shop.runs == [0]


def test_a_dead_step_that_its_flow_has_gone_on_without_is_replayed_as_a_message(shop: Shop) -> None:
    shop.sick = {1}
    calls = [shop.load.call(number) for number in range(3)]
    handle = group(calls, on_error="collect").then_call(shop.load.call(7)).send()
    shop.bridge.run_until_idle()
    before = handle.status()
    assert (before.state, before.done, before.dead) == ("done", 3, 1)

    shop.sick, dead = set(), shop.dead(1)
    assert shop.bridge.dead.replay(dead).ids == (dead,)
    shop.bridge.run_until_idle()
    assert shop.bridge.handle(dead).result(timeout=0) == 1
    assert (shop.runs, handle.status()) == ([0, 1, 2, 7, 1], before)


def test_a_dead_step_whose_flow_is_forgotten_is_replayed_as_a_message(shop: Shop) -> None:
    shop.sick = {1}
    handle = shop.load.call(1).then(shop.load).send()
    shop.bridge.run_until_idle()
    shop.backend.remove([row_key(handle.id), plan_key(handle.id)], timeout_s=5)

    shop.sick, dead = set(), shop.dead(1)
    assert shop.bridge.dead.replay(dead).ids == (dead,)
    shop.bridge.run_until_idle()
    assert (shop.bridge.handle(dead).result(timeout=0), shop.runs) == (1, [1, 1])


def test_a_dead_callback_is_replayed_and_its_flow_stays_at_its_end(shop: Shop) -> None:
    shop.odd = {"done"}
    handle = shop.load.call(0).then(shop.load).on_end(shop.tell).send()
    shop.bridge.run_until_idle()
    [letter] = shop.bridge.dead_letters()
    before = handle.status()
    assert (before.state, shop.ends) == ("done", ["done"])

    shop.odd = set()
    assert shop.bridge.dead.replay(letter.id).ids == (letter.id,)
    shop.bridge.run_until_idle()
    assert (shop.ends, shop.bridge.handle(letter.id).status().state) == (["done"] * 2, "done")
    assert (handle.status(), shop.runs) == (before, [0, 0])


def test_a_flow_that_a_message_became_is_reopened_with_it(shop: Shop) -> None:
    shop.sick = {0}
    message = shop.nest.send(0)
    shop.bridge.run_until_idle()
    assert message.status().state == "dead"

    shop.sick = set()
    shop.bridge.flow(message.status().became).retry()
    assert message.status().state == "running"
    shop.bridge.run_until_idle()
    assert (message.result(timeout=0), shop.runs) == (0, [0, 0, 0])


def test_a_flow_whose_message_is_forgotten_is_reopened_by_itself(shop: Shop) -> None:
    shop.sick = {0}
    message = shop.nest.send(0)
    shop.bridge.run_until_idle()
    flow = shop.bridge.flow(message.status().became)
    shop.backend.remove([key_of(message.id)], timeout_s=5)

    shop.sick = set()
    flow.retry()
    shop.bridge.run_until_idle()
    assert (flow.result(timeout=0), shop.runs) == (0, [0, 0, 0])
    with pytest.raises(NoSuchRecord):
        message.status()


def test_a_flow_that_another_has_gone_on_without_is_reopened_by_itself(shop: Shop) -> None:
    shop.sick = {0}
    handle = group([shop.nest.call(0)], on_error="collect").then_call(shop.load.call(7)).send()
    shop.bridge.run_until_idle()
    before = handle.status()
    assert (before.state, before.dead, shop.runs) == ("done", 1, [0, 7])
    [member] = [each for each in shop.bridge.flows.steps(handle.id) if each.became]

    shop.sick = set()
    inner = shop.bridge.flow(member.became)
    inner.retry()
    shop.bridge.run_until_idle()
    assert (inner.result(timeout=0), shop.bridge.handle(member.id).status().state) == (0, "done")
    assert (handle.status(), shop.runs) == (before, [0, 7, 0, 0])


def test_a_flow_within_that_has_failed_stays_so_when_another_step_is_replayed(shop: Shop) -> None:
    shop.sick = {0, 1}
    handle = group([shop.nest.call(0), shop.load.call(1)], on_error="wait").send()
    shop.bridge.run_until_idle()
    assert (handle.status().state, handle.status().dead) == ("failed", 2)

    shop.sick = set()
    shop.bridge.dead.replay(shop.dead(1))
    shop.bridge.run_until_idle()
    assert (handle.status().state, handle.status().dead, handle.status().done) == ("failed", 1, 1)
    assert sorted(shop.runs) == [0, 1, 1]

    handle.retry()
    shop.bridge.run_until_idle()
    assert (list(handle.result(timeout=0)), sorted(shop.runs)) == ([0, 1], [0, 0, 0, 1, 1])


def test_a_flow_within_that_fails_as_another_step_is_replayed_stays_so(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still ran as it was looked for what has to be published again, and has failed before it is read how it is."""
    shop.sick, flows, store = {1}, shop.bridge.flows, shop.bridge.store
    handle = group([shop.nest.call(0), shop.load.call(1)]).send()
    shop.bridge.run_until(lambda: handle.status().is_final)
    [member] = [each for each in flows.steps(handle.id) if each.became]
    assert (handle.status().state, shop.runs, member.state) == ("failed", [1], "running")
    give_steps, calls = flows._give_steps, list[Any]()

    def slow(*given: Any, **options: Any) -> int:
        calls.append(given)
        if len(calls) == 1:
            assert store is not None
            failed = Ending(state="dead", at=shop.bridge.now(), reason="flow_failed")
            store.records.change(member.id, lambda old: transitions.flow_ended(old, member.became, failed), timeout_s=5)
        return give_steps(*given, **options)

    monkeypatch.setattr(flows, "_give_steps", slow)
    shop.sick = set()
    shop.bridge.dead.replay(shop.dead(1))
    shop.bridge.run_until_idle()
    assert (handle.status().state, handle.status().dead, handle.status().done) == ("failed", 1, 1)
    assert shop.runs == [1, 1]


def test_a_member_of_a_large_group_whose_record_is_lost_stays_cancelled_and_the_others_run(shop: Shop) -> None:
    """Nobody knows any more how it was called."""
    handle = group([shop.load.call(number) for number in range(130)]).send()
    handle.cancel()
    shop.bridge.run_until_idle()
    shop.backend.remove([key_of(step_id(handle.id, "0/5"))], timeout_s=5)

    handle.retry()
    shop.bridge.run_until_idle()
    assert sorted(shop.runs) == [number for number in range(130) if number != 5]
    assert (handle.status().state, handle.status().done, handle.status().cancelled) == ("failed", 129, 1)


def test_what_waits_for_its_turn_in_a_flow_is_given_up_when_that_is_cancelled(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who publishes it again notes how far it has come, and is told that the flow is over."""
    shop.sick = set(range(6))
    handle = group([shop.load.call(number) for number in range(6)], on_error="wait", at_once=2).send()
    shop.bridge.run_until_idle()
    shop.sick, shop.runs = set(), []
    flows, changed, cancelled = shop.bridge.flows, shop.bridge.flows._changed, list[str]()

    def slow(id: str, row: Any, **changes: Any) -> bool:
        if "left" in changes and not cancelled:
            cancelled.append(id)
            flows.cancel(id)
        return changed(id, row, **changes)

    monkeypatch.setattr(flows, "_changed", slow)
    assert handle.retry().state == "cancelled"
    shop.bridge.run_until_idle()
    assert (cancelled, shop.runs) == ([handle.id], [])


class Called:
    """A flow that was cancelled, whose callback the broker has lost, a long time ago."""

    def __init__(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.handle = shop.load.call(0).then(shop.load).on_end(shop.tell).send()
        with monkeypatch.context() as lost:
            lost.setattr(shop.bridge.broker, "publish", lambda *_, **__: None)
            self.handle.cancel()
        shop.bridge.run_until_idle()
        now = shop.bridge.now
        monkeypatch.setattr(shop.bridge, "now", lambda: now() + 90.0)
        assert self.handle.status().is_stalled
        self.callback = step_id(self.handle.id, "end")

    def ended(self, shop: Shop) -> None:
        """Note that it has run, but not what follows."""
        assert shop.bridge.store is not None
        ending = Ending(state="done", at=shop.bridge.now() - 80.0)
        shop.bridge.store.records.change(
            self.callback, lambda old: old and {**old, "state": ending.state, "ended_at": ending.at}, timeout_s=5
        )


def test_a_callback_that_has_ended_is_not_called_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    called = Called(shop, monkeypatch)
    called.ended(shop)
    assert called.handle.status().is_stalled

    assert not called.handle.retry().is_stalled
    shop.bridge.run_until_idle()
    assert (shop.ends, called.handle.status().state) == ([], "cancelled")


def test_of_two_that_call_back_again_one_does(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    called, flows, call_again = Called(shop, monkeypatch), shop.bridge.flows, shop.bridge.flows._callback
    calls = list[str]()

    def slow(id: str, *given: Any) -> Any:
        message = call_again(id, *given)
        calls.append(id)
        if len(calls) == 1:
            flows.retry(id)
        return message

    monkeypatch.setattr(flows, "_callback", slow)
    assert not called.handle.retry().is_stalled
    assert sum(shop.bridge.counts().waiting.values()) == 1
    shop.bridge.run_until_idle()
    assert (len(calls), shop.ends, shop.runs) == (2, ["cancelled"], [])
