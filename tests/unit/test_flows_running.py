"""What running flows meet where processes are slow, a store is away, or somebody else has written what is stored."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from taskbridge import (
    Bridge,
    BrokerUnavailable,
    Flow,
    NoSuchRecord,
    ResultNotEncodable,
    StoreUnavailable,
    become,
    current,
    group,
)
from taskbridge.flows import running
from taskbridge.flows.plan import PAGE, calls_key, plan_key, row_key, step_id, unpacked
from taskbridge.stores.backend import Commit, Entry
from taskbridge.stores.entries import LOOK
from taskbridge.stores.steps import entry_id
from taskbridge.testing import capture_sent
from tests.unit.flow_shop import Shop


@pytest.fixture
def shop() -> Shop:
    return Shop()


def once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, act: Callable[[], object]) -> list[str]:
    """Have something done before the next call of a method; return what tells whether that has come."""
    stock, called = getattr(owner, name), list[str]()

    def instead(*given: Any, **options: Any) -> Any:
        if not called:
            called.append(name)
            act()
        return stock(*given, **options)

    monkeypatch.setattr(owner, name, instead)
    return called


def away() -> None:
    raise BrokerUnavailable("as the test says", maybe_taken=False)


def broken() -> None:
    raise RuntimeError("as the test says")


def page_keys(shop: Shop, flow_id: str, count: int) -> list[str]:
    """Return the keys of so many pages of the calls of a flow's first stage."""
    row = unpacked(shop.backend.get([row_key(flow_id)], timeout_s=5)[0])
    assert row is not None
    return [calls_key(flow_id, row.get("pages", ""), 0, page) for page in range(count)]


# Sending


def test_a_captured_flow_is_the_messages_of_its_first_stage(shop: Shop) -> None:
    with capture_sent(shop.bridge) as sent:
        handle = shop.load.call(1).then(shop.load).send()
        group(shop.load.call(number) for number in (2, 3)).then_call(shop.load.call(9)).schedule(60)
        group([]).then_call(shop.load.call(9)).send()

    assert [(each.task, each.args, each.delay_s) for each in sent] == [
        ("load", (1,), 0.0),
        ("load", (2,), 60.0),
        ("load", (3,), 60.0),
    ]
    with pytest.raises(NoSuchRecord):
        handle.status()
    assert shop.bridge.run_until_idle() == 0


def test_a_flow_of_an_outbox_that_two_relay_at_once_is_begun_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    flows, calls = shop.bridge.flows, [shop.load.call(number) for number in range(PAGE + 1)]
    flow: Flow[Any] = group(calls).then_call(shop.load.call(-1))
    text, other = flows._kept(flow, "chosen", 0.0), list[bool]()
    once(monkeypatch, flows, "_created", lambda: other.append(flows.begin_kept(text)))

    assert flows.begin_kept(text)
    shop.bridge.run_until_idle()
    assert other == [True]
    assert sorted(shop.runs) == list(range(-1, PAGE + 1))


def test_a_flow_whose_group_can_not_be_sent_yet_is_sent_by_a_relay(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "taskbridge")
    once(monkeypatch, shop.bridge.flows, "look_after", away)
    handle = group([shop.load.call(number) for number in range(3)]).send()
    assert f"flow {handle.id} is stored, and is sent when broker and store are back" in caplog.text
    assert sum(shop.bridge.counts().waiting.values()) == 0

    shop.bridge.run_schedules(10)
    assert (list(handle.result(timeout=0)), shop.runs) == ([0, 1, 2], [0, 1, 2])


# What is due


@pytest.mark.parametrize("fails", [away, broken])
def test_what_follows_and_fails_is_left_to_a_relay(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: Callable[[], None]
) -> None:
    caplog.set_level(logging.WARNING, "taskbridge")
    handle = group([shop.load.call(1)]).then_call(shop.load.call(2)).send()
    called = once(monkeypatch, shop.bridge.flows, "advance", fails)
    shop.bridge.run_until(lambda: bool(called))
    assert "what follows in a flow waits" in caplog.text

    shop.bridge.run_schedules(10)
    assert (handle.result(timeout=0), shop.runs) == (2, [1, 2])


def test_what_is_due_may_be_taken_by_another_thread_meanwhile(shop: Shop) -> None:
    class Emptied(deque[str]):
        """One of which another thread has just taken the last."""

        def __len__(self) -> int:
            return 1

    assert shop.bridge.store is not None
    shop.bridge.store.records.flows_due = Emptied()
    shop.bridge.flows.advance_due()


def test_an_entry_of_a_flow_that_is_gone_is_removed(shop: Shop) -> None:
    shop.backend.commit([Commit((), [Entry(entry_id("gone", "0", 0), LOOK)])], timeout_s=5)
    shop.bridge.relay.step()
    shop.bridge.run_schedules(60)
    assert shop.backend.due_entries(most=9, lease_s=1, timeout_s=5) == []


def test_calls_that_were_never_published_are_forgotten_after_their_flow(shop: Shop) -> None:
    shop.bridge = Bridge("inline://?threads=0", result_ttl=60)
    load = shop.bridge.task(name="load")(shop.runs.append)
    handle = group([load.call(number) for number in range(3 * PAGE)], at_once=1).send()
    keys = page_keys(shop, handle.id, 3)
    handle.cancel()
    shop.bridge.run_until_idle()
    assert None not in shop.backend.get(keys, timeout_s=5)

    shop.bridge.run_schedules(2 * 3600)
    shop.bridge.relay.step()
    assert shop.backend.get([*keys, row_key(handle.id)], timeout_s=5) == [None] * 4
    assert shop.runs == []


def test_calls_of_a_flow_whose_sender_has_died_before_it_was_stored_are_forgotten(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = list[str]()

    def die() -> None:
        raise KeyboardInterrupt

    create = shop.backend.create

    def noted(texts: Any, *, timeout_s: float) -> None:
        pages.extend(key for key, _, _ in texts)
        create(texts, timeout_s=timeout_s)

    monkeypatch.setattr(shop.backend, "create", noted)
    once(monkeypatch, shop.bridge.flows, "_created", die)
    with pytest.raises(KeyboardInterrupt):
        group([shop.load.call(number) for number in range(3 * PAGE)]).send()
    assert len([text for text in shop.backend.get(pages, timeout_s=5) if text is not None]) == 3

    shop.bridge.run_schedules(2 * 3600)
    shop.bridge.relay.step()
    assert shop.backend.get(pages, timeout_s=5) == [None] * 3


@pytest.mark.parametrize("text", [None, "1\nodd", '1\n{"stages":[{"total":1}]}', '1\n{"stages":[{},{}]}'])
def test_a_flow_whose_plan_can_not_be_read_fails_and_calls_nothing_back(shop: Shop, text: str | None) -> None:
    handle = shop.load.call(0).then(shop.load).on_end(shop.tell).send()
    shop.bridge.flows._seen.clear()  # as in another process
    shop.backend.remove([plan_key(handle.id)], timeout_s=5)
    if text is not None:
        shop.backend.create([(plan_key(handle.id), text, None)], timeout_s=5)
    shop.bridge.run_until_idle()

    status = handle.status()
    assert status.end is not None
    assert (status.state, status.end.reason, shop.runs, shop.ends) == ("failed", "undecodable", [0], [])
    assert shop.backend.get([plan_key(handle.id)], timeout_s=5) == [None]


def test_the_end_of_a_step_is_recorded_though_the_store_was_away_as_what_follows_was_read(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = shop.load.call(0).then(shop.load).send()
    shop.bridge.flows._seen.clear()  # so that it is read
    called = once(monkeypatch, shop.bridge.flows, "_ended_with_what_follows", away)
    shop.bridge.run_until_idle()
    assert (called, handle.result(timeout=0), shop.runs) == (["_ended_with_what_follows"], 0, [0, 0])


def test_flows_that_are_too_many_to_be_remembered_are_read_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_MOST_SEEN", 1)
    handles = [shop.load.call(number).then(shop.load).then(shop.load).send() for number in range(3)]
    shop.bridge.run_until_idle()
    assert [handle.result(timeout=0) for handle in handles] == [0, 1, 2]
    assert len(shop.bridge.flows._seen) <= 1
    assert sorted(shop.runs) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


# Ends


@pytest.mark.parametrize("takes", [False, True])
def test_a_result_that_can_not_be_kept_is_lost_and_what_would_take_it_is_given_up(shop: Shop, takes: bool) -> None:
    @shop.bridge.task(name="odd")
    def odd() -> Any:
        return object()

    @shop.bridge.task(name="outer")
    def outer() -> Any:
        return become(shop.load.call(0).then_call(odd.call()))

    flow: Flow[Any] = outer.call().then(shop.load) if takes else outer.call().then_call(shop.load.call(1))
    handle = flow.send()
    shop.bridge.run_until_idle()

    step = shop.bridge.flows.steps(handle.id)[0]
    inner = shop.bridge.flow(step.became)
    assert inner.status().state == "done"
    with pytest.raises(ResultNotEncodable):
        inner.result(timeout=0)
    assert (step.state, handle.status().state) == (("dead", "failed") if takes else ("done", "done"))
    assert step.reason == "gave_up" or not takes
    assert shop.runs == ([0] if takes else [0, 1])


def test_the_first_member_that_ended_badly_is_told_of_a_group_of_any_width(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_BATCH", 2)  # at a time
    shop.sick = {3, 4}
    handle = group([shop.load.call(number) for number in range(6)], on_error="wait").send()
    shop.bridge.run_until_idle()
    end = handle.status().end
    assert end is not None
    assert (end.step, end.ended, end.error) == (step_id(handle.id, "0/3"), "dead", "3")


def test_a_group_of_which_it_is_lost_how_its_members_ended_has_failed_all_the_same(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shop.backend, "members", lambda key, first, count, **_: [None] * count)
    shop.sick = {1}
    handle = group([shop.load.call(number) for number in range(3)], on_error="wait").on_end(shop.tell).send()
    shop.bridge.run_until_idle()
    assert (handle.status().state, handle.status().end, shop.ends) == ("failed", None, ["failed"])


def test_a_flow_that_goes_on_as_it_is_cancelled_is_cancelled(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = shop.load.call(0).then(shop.load).send()
    called = once(monkeypatch, shop.bridge.flows, "_ended", lambda: shop.bridge.run_until(lambda: shop.has_run(1)))
    assert handle.cancel().state == "cancelled"
    assert called
    shop.bridge.run_until_idle()
    assert (handle.status().state, shop.runs) == ("cancelled", [0])


def test_a_step_whose_large_first_argument_is_gone_with_its_flow_is_dead(shop: Shop) -> None:
    @shop.bridge.task(name="large")
    def large() -> str:
        return "x" * 70_000

    @shop.bridge.task(name="measure")
    def measure(text: str) -> int:
        shop.runs.append(len(text))
        return len(text)

    handle = large.call().then(measure).send()
    shop.bridge.run_until(lambda: handle.status().stage == 2)
    shop.backend.remove([row_key(handle.id)], timeout_s=5)
    shop.bridge.run_until_idle()
    assert shop.runs == []
    assert shop.bridge.handle(step_id(handle.id, "1")).status().reason == "undecodable"


# What a task returns by `become`


def test_a_message_that_was_cancelled_as_it_ran_and_becomes_a_flow_cancels_that(shop: Shop) -> None:
    @shop.bridge.task(name="ends")
    def ends() -> Any:
        shop.bridge.handle(current().id).cancel()
        return become(shop.load.call(0).then(shop.load))

    handle = ends.send()
    shop.bridge.run_until_idle()
    assert (handle.status().state, shop.runs) == ("cancelled", [])
    assert shop.bridge.flow(handle.status().became).status().state == "cancelled"


def test_a_message_that_has_ended_becomes_no_flow(shop: Shop) -> None:
    messages = list[Any]()

    @shop.bridge.task(name="ends")
    def ends() -> None:
        messages.append(current().message)

    handle = ends.send()
    shop.bridge.run_until_idle()
    shop.bridge.flows.become(messages[0], shop.load.call(0).then(shop.load), timeout_s=1)
    shop.bridge.run_until_idle()
    assert (handle.status().state, handle.status().became, shop.runs) == ("done", "", [])
    with pytest.raises(NoSuchRecord):
        shop.bridge.flow(step_id(messages[0].life, "became")).status()


def test_a_message_becomes_a_flow_once(shop: Shop) -> None:
    @shop.bridge.task(name="becomes")
    def becomes() -> Any:
        shop.bridge.flows.become(current().message, shop.load.call(1).then(shop.load), timeout_s=5)
        return become(shop.load.call(2).then(shop.load))

    handle = becomes.send()
    shop.bridge.run_until_idle()
    assert (handle.result(timeout=0), shop.runs) == (1, [1, 1])


def test_a_message_whose_record_others_change_again_and_again_becomes_a_flow_in_time_or_not_at_all(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = list[Any]()

    @shop.bridge.task(name="becomes")
    def becomes() -> int:
        messages.append(current().message)
        with monkeypatch.context() as changed:
            changed.setattr(shop.bridge.flows, "_committed", lambda *_, **__: False)
            with pytest.raises(StoreUnavailable, match="others change the same record"):
                shop.bridge.flows.become(messages[0], shop.load.call(0).then(shop.load), timeout_s=0.05)
        return become(shop.load.call(0).then(shop.load))

    handle = becomes.send()
    shop.bridge.run_until_idle()
    assert (handle.result(timeout=0), shop.runs) == (0, [0, 0])
