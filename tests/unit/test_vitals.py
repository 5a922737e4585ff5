"""What worker processes tell of themselves: counting, folding, bounds, and texts that somebody else has written."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import pytest

from taskbridge import Bridge, Discard, RetryPolicy, UnsupportedError
from taskbridge.message import new_id
from taskbridge.retry import CancelledVerdict, Dead, Discarded, Done, ErrorInfo, GivenBack, RunAgain, Verdict
from taskbridge.stores.backend import Backend, Write
from taskbridge.vitals import Tally, Vitals, read

LONGEST_S = 60.0


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    made = Bridge("inline://?threads=0")
    yield made
    made.close()


def backend_of(bridge: Bridge) -> Backend:
    assert bridge.store is not None
    return bridge.store.backend


def process(bridge: Bridge, name: str) -> Vitals:
    made = Vitals(bridge, name=lambda: name, queues=lambda: ["default"], slots=lambda: 4)
    made.attach()
    return made


def settle(vitals: Vitals, verdict: Verdict, times: int = 1, task: str = "shop.pay") -> None:
    for _ in range(times):
        error = getattr(verdict, "error", None)
        vitals._ended.append((task, new_id(), type(verdict), None if error is None else ErrorInfo.of(error)))


def look(vitals: Vitals, times: int) -> None:
    for _ in range(times):
        vitals._look_at_neighbours()


def counted(bridge: Bridge) -> dict[str, list[int]]:
    _, tally = read(backend_of(bridge), timeout_s=5)
    return {task: [sum(each) for each in zip(*slots.values(), strict=True)] for task, slots in tally.counts.items()}


def names(bridge: Bridge) -> list[str]:
    return [worker.name for worker, _ in read(backend_of(bridge), timeout_s=5)[0]]


def test_verdicts_are_counted_by_kind(bridge: Bridge) -> None:
    one = process(bridge, "one")
    settle(one, Done(None), 3)
    settle(one, RunAgain(1.0, OSError("no")), 2)
    settle(one, Dead("unknown_task"))
    settle(one, Discarded("expired"))
    settle(one, CancelledVerdict(), 5)
    settle(one, GivenBack(), 5)
    one.tell()

    assert counted(bridge) == {"": [3, 2, 1, 1], "shop.pay": [3, 2, 1, 1]}
    found = {(each.error.type, each.error.message): each for each in bridge.operations.failures()}
    assert {key: (each.count, each.is_dead_count) for key, each in found.items()} == {
        ("OSError", "no"): (2, 0),
        ("unknown_task", ""): (1, 1),
    }
    rates = bridge.operations.rates()
    assert (sum(rates.done), rates.by_task) == (3, {"shop.pay": (3, 2, 1)})
    assert (rates.started_at.second, [len(each) for each in (rates.done, rates.dead)]) == (0, [60, 60])
    assert sum(rates.done[-2:]) == 3


def test_ten_thousand_equal_failures_are_one_line(bridge: Bridge) -> None:
    one = process(bridge, "one")
    settle(one, Dead("exhausted", ValueError("no card")), 10_000)
    one.tell()
    [failure] = bridge.operations.failures()
    assert (failure.count, failure.is_dead_count) == (10_000, 10_000)
    assert len(text_of(bridge, one)) < 1000


def text_of(bridge: Bridge, vitals: Vitals) -> str:
    [text] = backend_of(bridge).get([f"vital:{vitals._name}"], timeout_s=5)
    assert text is not None
    return text


def test_a_text_stays_small_whatever_fails(bridge: Bridge) -> None:
    one = process(bridge, "one")
    for number in range(2000):
        settle(one, RunAgain(1.0, ValueError(f"{number} " + "x" * 5000)), task=f"task {number} " + "y" * 500)
        if number % 100 == 0:
            one.tell(at_once=True)
    one.tell(at_once=True)
    assert len(text_of(bridge, one)) < 120_000
    assert counted(bridge)[""] == [0, 2000, 0, 0]
    found = bridge.operations.failures()
    assert [each.error.message.split()[0] for each in found[:2]] == ["1999", "1998"]
    assert len(found) == 50


def test_nothing_is_written_without_news_before_it_is_time(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    one = process(bridge, "one")
    one.tell()
    text = text_of(bridge, one)
    monkeypatch.setattr(one, "_tell_at", inf)
    one.tell()
    assert text_of(bridge, one) == text
    settle(one, Done(None))
    one.tell()
    assert text_of(bridge, one) != text
    monkeypatch.setattr(one, "_tell_at", 0.0)
    text = text_of(bridge, one)
    one.tell()
    assert text_of(bridge, one) != text


def test_a_process_folds_itself_as_it_ends(bridge: Bridge) -> None:
    vitals = [process(bridge, f"p{number}") for number in range(20)]
    for each in vitals:
        settle(each, Done(None), 5)
        each.tell()
        settle(each, Dead("exhausted", OSError("no")))
    assert len(names(bridge)) == 20
    threads = [threading.Thread(target=each._leave) for each in vitals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONGEST_S)
    for each in vitals:  # one that others were quicker than too often is left to its neighbours
        each._leave()
    assert names(bridge) == []
    assert counted(bridge) == {"": [100, 0, 20, 0], "shop.pay": [100, 0, 20, 0]}
    assert [each.count for each in bridge.operations.failures()] == [20]


def test_a_neighbour_that_was_killed_is_folded_once(bridge: Bridge) -> None:
    killed, *living = [process(bridge, f"p{number}") for number in range(4)]
    for each in (killed, *living):
        settle(each, Done(None), 5)
        each.tell()
    for _ in range(4):
        for each in living:
            each.tell(at_once=True)
            each._look_at_neighbours()
    assert len(names(bridge)) == 4  # it may only be slow
    for each in living:
        each.tell(at_once=True)
        each._look_at_neighbours()
    assert sorted(names(bridge)) == ["p1", "p2", "p3"]
    assert counted(bridge)[""] == [20, 0, 0, 0]


def test_a_process_that_only_stood_still_goes_on_after_it_was_folded(bridge: Bridge) -> None:
    still, living = process(bridge, "still"), process(bridge, "living")
    for each in (still, living):
        settle(each, Done(None), 5)
        each.tell()
    for _ in range(6):
        living.tell(at_once=True)
        living._look_at_neighbours()
    assert names(bridge) == ["living"]
    settle(still, Done(None), 2)
    still.tell()
    still.tell(at_once=True)
    settle(still, Done(None), 3)
    still.tell()
    assert sorted(names(bridge)) == ["living", "still"]
    assert counted(bridge)[""][0] in (13, 15)  # what was counted while it stood still may be lost, nothing counts twice


def test_two_processes_of_one_name_are_counted_each_for_itself(bridge: Bridge) -> None:
    """Containers that share a host's name may have equal process ids."""
    both = [process(bridge, "shop:7") for _ in range(2)]
    for _ in range(10):
        for each in both:
            settle(each, Done(None))
            each.tell()
            each._look_at_neighbours()
    assert names(bridge) == ["shop:7", "shop:7"]
    assert counted(bridge)[""] == [20, 0, 0, 0]


def test_a_process_registers_again_once_the_registry_is_lost(bridge: Bridge) -> None:
    one = process(bridge, "one")
    one.tell()
    backend_of(bridge).remove(["vitals"], timeout_s=5)
    one._look_at_neighbours()
    one.tell(at_once=True)
    assert names(bridge) == ["one"]


def test_all_are_folded_at_once_after_the_whole_machine_stood_still(bridge: Bridge) -> None:
    """Nobody is taken for dead because time has passed: it takes looks, between which it told nothing."""
    both = [process(bridge, f"p{number}") for number in range(2)]
    for _ in range(10):
        for each in both:
            each.tell(at_once=True)
            each._look_at_neighbours()
    assert len(names(bridge)) == 2


HOSTILE: list[Any] = [
    None,
    [],
    "x",
    {"workers": 7},
    {"workers": [7, None, "one", "one", {"a": 1}]},
    {"workers": ["\ud800", "a\x00b"]},
    {"worker": ["celery", "1", ["default", 7], -1, 0, 1e300, 0]},
    {"worker": ["celery", "1", [7, "default"], 4, 0, 1.0, 2.0], "running": [["t"], ["t", "i", "q", 1, 1e99], 7]},
    {"counts": {"t": {"x": [1, 2, 3, 4], "99999999999999": [1, 1, 1, 1], "1": [1, "2", 3, 4], "2": [1]}, "": 7}},
    {"counts": [], "failures": [["t", "E", "x", 1, 1, -5, 0, "i"], ["t"], 7, ["t", "E", "x", True, 1, 0, 0, "i"]]},
]


@pytest.mark.parametrize(
    "text", ["", "\n", "1", "1\n{", "1\n" + "[" * 100_000, *(f"1\n{json.dumps(each)}" for each in HOSTILE)]
)
@pytest.mark.parametrize("store", ["memory", "redis"])
def test_texts_that_somebody_else_has_written_raise_nothing(
    store: str, text: str, request: pytest.FixtureRequest
) -> None:
    url = None if store == "memory" else request.getfixturevalue("redis_server").url
    bridge = Bridge("inline://?threads=0", namespace=f"t{new_id()[:8]}", store=url)
    backend, one = backend_of(bridge), process(bridge, "one")
    settle(one, Done(None))
    one.tell()
    for key in (f"vital:{one._name}", "vitals:past", "vital:two"):
        backend.put(key, text, kept_s=60, timeout_s=5)
    operations = bridge.operations
    assert sum(operations.rates().done) == 0
    assert (operations.running(), operations.failures(), operations.queues()[0].waiting) == ((), (), 0)
    backend.put("vitals", text, kept_s=60, timeout_s=5)
    assert operations.workers() == ()
    settle(one, Done(None))
    one.tell()
    one.tell(at_once=True)
    look(one, 6)
    one._leave()
    assert "one" not in names(bridge)
    bridge.close()


def test_a_tally_read_from_any_text_is_bounded() -> None:
    counts = {f"task {number}": {"1": [1, 1, 1, 1]} for number in range(1000)}
    failures = [["t", "E", str(number), 1, 1, 1.0, float(number), "i"] for number in range(1000)]
    tally = Tally.read("1\n" + json.dumps({"counts": counts, "failures": failures}))
    tally.trim(2000.0)
    assert len(tally.counts) <= 101
    assert len(tally.failures) == 50


def test_what_is_old_is_forgotten() -> None:
    tally, now = Tally(), 1_000_000.0
    tally.count("", int(now // 60), (1, 0, 0, 0))
    tally.count("", int(now // 60) - 61, (1, 0, 0, 0))
    tally.count("t", int(now // 300) - 14, (1, 0, 0, 0))
    tally.fail(("t", "E", "x"), (1, 0, 0.0, now - 86401, "i"))
    tally.fail(("t", "E", "y"), (1, 0, 0.0, now - 86300, "i"))
    tally.trim(now)
    assert tally.counts == {"": {int(now // 60): [1, 0, 0, 0]}}
    assert [key[2] for key in tally.failures] == ["y"]


def test_adding_up_in_any_order_gives_the_same() -> None:
    random.seed(7)
    facts = [(random.choice("abc"), random.randrange(5), random.random()) for _ in range(200)]

    def tally(order: list[tuple[str, int, float]]) -> Tally:
        parts = [Tally() for _ in range(5)]
        for index, (task, slot, at) in enumerate(order):
            parts[index % 5].count(task, slot, (1, 0, 1, 0))
            parts[index % 5].fail((task, "E", "x"), (1, 1, at, at, f"{at}"))
        whole = Tally()
        for part in parts:
            whole.add(part)
        return whole

    one, other = tally(facts), tally(facts[::-1])
    assert one.failures == other.failures
    assert one.counts == other.counts


def test_a_store_that_is_away_costs_no_counts(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskbridge.exceptions import StoreUnavailable

    one, backend = process(bridge, "one"), backend_of(bridge)
    settle(one, Done(None), 5)
    real: Callable[..., Any] = backend.write

    def lost(writes: list[Write], *, timeout_s: float) -> Any:
        real(writes, timeout_s=timeout_s)  # it is done, but nobody hears of it
        raise StoreUnavailable("no answer in time", maybe_taken=True)

    monkeypatch.setattr(backend, "write", lost)
    one._try(one.tell)
    settle(one, Done(None), 5)
    one._try(one.tell)
    monkeypatch.undo()
    settle(one, Done(None), 5)
    one.tell()
    assert counted(bridge)[""] == [15, 0, 0, 0]


def test_inline_runs_are_counted_with_and_without_threads() -> None:
    for url, runs_itself in (("inline://?threads=0", True), ("inline://", False), ("inline://?at_send=1", False)):
        bridge = Bridge(url, retry=RetryPolicy.never())

        @bridge.task(name="drops")
        def drops() -> None:
            raise Discard

        for _ in range(3):
            drops.send()
        if runs_itself:
            bridge.run_until_idle()
        deadline = time.monotonic() + LONGEST_S
        while sum(bridge.operations.rates().discarded) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        bridge.close()
        assert bridge.ended == []


@pytest.mark.parametrize("url", ["inline://?threads=0", "celery+memory://", "dramatiq+memory://"])
def test_an_embedded_worker_tells_what_it_does(url: str) -> None:
    bridge, go_on = Bridge(url), threading.Event()

    @bridge.task(name="waits")
    def waits() -> None:
        go_on.wait(LONGEST_S)

    def until(look: Callable[[], object], wanted: object) -> None:
        deadline = time.monotonic() + LONGEST_S
        while (seen := look()) != wanted:
            assert time.monotonic() < deadline, seen
            time.sleep(0.02)

    with bridge.embedded_worker(threads=3):
        handle = waits.send()
        operations = bridge.operations
        until(lambda: [each.id for each in operations.running()], [handle.id])
        until(lambda: [(each.slots, each.queues) for each in operations.workers()], [(3, ("default",))])
        go_on.set()
        until(operations.running, ())
        until(lambda: sum(operations.rates().done), 1)
    assert operations.workers() == ()
    assert sum(operations.rates().done) == 1
    bridge.close()


def test_background_threads_go_on_and_are_told_of_after_an_embedded_worker() -> None:
    bridge, ran = Bridge("inline://?threads=2"), list[threading.Event]()

    @bridge.task(name="rings")
    def rings(number: int) -> None:
        ran[number].set()

    def runs(delay_s: float) -> None:
        ran.append(threading.Event())
        rings.schedule(delay_s, len(ran) - 1)
        assert ran[-1].wait(LONGEST_S)

    runs(0)
    with bridge.embedded_worker(threads=3):
        runs(0)
        assert [each.slots for each in bridge.operations.workers()] == [5]
    runs(0.1)
    assert [each.slots for each in bridge.operations.workers()] == [2]
    bridge.close()


def test_without_a_store_what_workers_do_is_unsupported() -> None:
    pytest.importorskip("pika")
    operations = Bridge("celery+amqp://localhost//").operations
    for ask in (operations.rates, operations.running, operations.failures, operations.workers, operations.messages):
        with pytest.raises(UnsupportedError, match="needs a store"):
            ask()


def test_messages_are_listed_by_setting_only(bridge: Bridge) -> None:
    with pytest.raises(UnsupportedError, match="listing=True"):
        bridge.operations.messages()
