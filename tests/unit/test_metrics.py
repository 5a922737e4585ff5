"""Metrics count what is sent and run, with bounded labels, and are handed on to Prometheus and OpenTelemetry."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from taskbridge import (
    Bridge,
    BrokerUnavailable,
    Discard,
    NotInstalledError,
    RetryPolicy,
    UniqueConflict,
    WorkerLost,
    default_bridge,
    observing,
)
from taskbridge.cli import main
from taskbridge.engines.base import METRICS_VARIABLE
from taskbridge.engines.settle import NotRun
from taskbridge.hooks import Event
from taskbridge.message import Message
from taskbridge.metrics import Gauges, observe
from taskbridge.metrics.counts import Batch, Counts
from taskbridge.metrics.gauges import text_of
from taskbridge.metrics.names import BUCKETS_S, COUNTED, MISSED, READ
from taskbridge.metrics.tree import Totals, report, row_of, served
from taskbridge.retry import CancelledVerdict, Dead, Done, GivenBack, RunAgain
from tests.metric_samples import exported, exported_samples, samples, without_a_hit
from tests.unit.test_transactions import Ledger

DOCS = Path(__file__).parents[2] / "docs"


def shop() -> Bridge:
    """Return a bridge whose tasks end in many ways."""
    bridge = Bridge("inline://?threads=0", queues=["email"], retry=RetryPolicy(max_attempts=2, min_delay=60, jitter=0))

    @bridge.task(name="fine", queue="email")
    def fine() -> None: ...

    @bridge.task(name="fails")
    def fails() -> None:
        raise OSError

    @bridge.task(name="drops")
    def drops() -> None:
        raise Discard

    return bridge


def message(**changes: Any) -> Message:
    plain = Message(id="m1", task="fine", queue="email", args_json="[]", kwargs_json="{}", enqueued_at=1.0)
    return replace(plain, **changes)


def counted(bridge: Bridge, *acts: Callable[[Counts], object]) -> dict[str, float]:
    """Return the samples of what is counted while something is done."""
    registry = CollectorRegistry()
    counts = observe(bridge, registry=registry)
    for act in acts:
        act(counts)
    counts.flush()
    return samples(generate_latest(registry).decode())


def test_messages_attempts_and_times_are_counted_by_how_they_ended() -> None:
    bridge = shop()

    def work(_: Counts) -> None:
        for name in ("fine", "fine", "fails", "drops"):
            bridge.send(name)
        bridge.run_until_idle()

    found = counted(bridge, work)

    assert {name: value for name, value in found.items() if not re.search("_sum|_bucket", name)} == {
        'taskbridge_messages_total{queue="email",state="sent",task="fine"}': 2,
        'taskbridge_messages_total{queue="email",state="done",task="fine"}': 2,
        'taskbridge_messages_total{queue="default",state="sent",task="fails"}': 1,
        'taskbridge_messages_total{queue="default",state="dead",task="fails"}': 1,
        'taskbridge_messages_total{queue="default",state="sent",task="drops"}': 1,
        'taskbridge_messages_total{queue="default",state="discarded",task="drops"}': 1,
        'taskbridge_attempts_total{outcome="done",task="fine"}': 2,
        'taskbridge_attempts_total{outcome="retried",task="fails"}': 1,
        'taskbridge_attempts_total{outcome="dead",task="fails"}': 1,
        'taskbridge_attempts_total{outcome="discarded",task="drops"}': 1,
        'taskbridge_run_seconds_count{outcome="done",queue="email",task="fine"}': 2,
        'taskbridge_run_seconds_count{outcome="retried",queue="default",task="fails"}': 1,
        'taskbridge_run_seconds_count{outcome="dead",queue="default",task="fails"}': 1,
        'taskbridge_run_seconds_count{outcome="discarded",queue="default",task="drops"}': 1,
        'taskbridge_wait_seconds_count{queue="email",task="fine"}': 2,
        'taskbridge_wait_seconds_count{queue="default",task="fails"}': 2,
        'taskbridge_wait_seconds_count{queue="default",task="drops"}': 1,
        'taskbridge_send_seconds_count{outcome="sent",queue="email"}': 2,
        'taskbridge_send_seconds_count{outcome="sent",queue="default"}': 2,
    }


def test_a_wait_counts_from_when_a_run_is_due() -> None:
    bridge = shop()

    def work(_: Counts) -> None:
        bridge.named("fine").schedule(timedelta(hours=1))
        bridge.named("fails").send()  # again after a minute, by the same clock, and then once more
        bridge.run_until_idle()
        bridge.dead.replay_all()
        bridge.run_until_idle()

    found = counted(bridge, work)

    assert found['taskbridge_wait_seconds_count{queue="default",task="fails"}'] == 4
    assert found['taskbridge_wait_seconds_sum{queue="default",task="fails"}'] < 30
    assert found['taskbridge_wait_seconds_sum{queue="email",task="fine"}'] < 30


def test_that_replays_are_staggered_is_no_wait() -> None:
    bridge = shop()

    def work(_: Counts) -> None:
        bridge.send_many([bridge.named("fails").call() for _ in range(3)])
        bridge.run_until_idle()
        bridge.dead.replay_all(per_second=0.001)
        bridge.run_until_idle()

    found = counted(bridge, work)

    assert found['taskbridge_wait_seconds_count{queue="default",task="fails"}'] == 12
    assert found['taskbridge_wait_seconds_sum{queue="default",task="fails"}'] < 120


def test_what_an_outbox_holds_counts_as_sent_when_it_is_published() -> None:
    bridge = shop()
    bridge.transactions = Ledger()
    bridge.task(name="table", unique=True)(lambda: None)

    def work(_: Counts) -> None:
        for name in ("fine", "table"):
            bridge.named(name).using(commit="outbox").send()
        bridge.run_until_idle()

    found = counted(bridge, work)

    assert found['taskbridge_messages_total{queue="email",state="sent",task="fine"}'] == 1
    assert found['taskbridge_messages_total{queue="default",state="sent",task="table"}'] == 1
    assert found['taskbridge_send_seconds_count{outcome="sent",queue="email"}'] == 1


def test_times_are_in_the_buckets_of_their_lengths() -> None:
    runs = (0.0, 0.001, 0.0011, 3.0, 99_999.0)

    def work(counts: Counts) -> None:
        for each in runs:
            counts.ran(message(due_at=0.0), Done(), each, each)

    found = counted(shop(), work)

    for metric, labels in (("run", 'outcome="done",queue="email",task="fine"'), ("wait", 'queue="email",task="fine"')):
        bucket = f"taskbridge_{metric}_seconds_bucket{{%s}}"
        named = [",".join(sorted(f'le="{bound}",{labels}'.split(","))) for bound in ("0.001", "2.5", "1800.0", "+Inf")]
        assert [found[bucket % each] for each in named] == [2, 3, 4, 5]
        assert found[f"taskbridge_{metric}_seconds_sum{{{labels}}}"] == pytest.approx(sum(runs))


def test_what_ends_no_attempt_is_not_counted() -> None:
    found = counted(
        shop(),
        lambda counts: counts.ran(message(), GivenBack(), 2.0, 1.0),
        lambda counts: counts.settled(message(), GivenBack()),
        lambda counts: counts.settled(message(), NotRun("running elsewhere")),
        lambda counts: counts.settled(message(), RunAgain(1.0, OSError())),
    )
    assert found == {}


def test_an_expired_message_ends_and_was_no_attempt() -> None:
    bridge = shop()

    def work(_: Counts) -> None:
        bridge.named("fine").using(expires=1).schedule(60)
        bridge.run_until_idle()

    found = counted(bridge, work)

    assert found['taskbridge_messages_total{queue="email",state="discarded",task="fine"}'] == 1
    assert not any("attempts" in name or "run_seconds" in name or "wait_seconds" in name for name in found)


def test_cancelled_messages_and_lost_attempts_are_counted() -> None:
    found = counted(
        shop(),
        lambda counts: counts.settled(message(), CancelledVerdict()),
        lambda counts: counts.settled(message(), RunAgain(1.0, WorkerLost("gone"))),
        lambda counts: counts.settled(message(), Dead("exhausted", WorkerLost("gone"))),
    )
    assert found == {
        'taskbridge_messages_total{queue="email",state="cancelled",task="fine"}': 1,
        'taskbridge_messages_total{queue="email",state="dead",task="fine"}': 1,
        'taskbridge_attempts_total{outcome="lost",task="fine"}': 2,
    }


def test_names_that_anybody_makes_up_share_one_label() -> None:
    def work(counts: Counts) -> None:
        for number in range(500):
            odd = message(task=f"odd{number}", queue=f'q{number}"}}\n')
            counts.sent([odd], 0.1, None)
            counts.ran(odd, Done(), 2.0, 1.0)
            counts.settled(odd, Done())

    found = counted(shop(), work)

    assert {name for name in found if "_total" in name} == {
        'taskbridge_messages_total{queue="unknown",state="sent",task="unknown"}',
        'taskbridge_messages_total{queue="unknown",state="done",task="unknown"}',
        'taskbridge_attempts_total{outcome="done",task="unknown"}',
    }
    assert all(labels in name for name in found for labels in ("unknown",))


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (BrokerUnavailable("away"), "failed"),
        (UniqueConflict(id="m2", task="fine", state="queued"), "refused"),
    ],
)
def test_what_could_not_be_sent_is_timed_and_not_counted_as_sent(error: Exception, outcome: str) -> None:
    found = counted(shop(), lambda counts: counts.sent([message()], 0.1, error))

    assert found[f'taskbridge_send_seconds_count{{outcome="{outcome}",queue="email"}}'] == 1
    assert not any("messages_total" in name for name in found)


def test_nothing_is_lost_between_threads() -> None:
    threads, each = 8, 2_000

    def work(counts: Counts) -> None:
        def run() -> None:
            for _ in range(each):
                counts.ran(message(), Done(), 2.0, 1.0)
                counts.settled(message(), Done())

        running = [threading.Thread(target=run) for _ in range(threads)]
        for thread in running:
            thread.start()
        while any(thread.is_alive() for thread in running):
            counts.flush()
        for thread in running:
            thread.join()

    found = counted(shop(), work)

    assert found['taskbridge_messages_total{queue="email",state="done",task="fine"}'] == threads * each
    assert found['taskbridge_run_seconds_count{outcome="done",queue="email",task="fine"}'] == threads * each


def test_what_was_heard_is_handed_on_without_being_asked() -> None:
    bridge, registry = shop(), CollectorRegistry()
    observe(bridge, registry=registry)
    bridge.send("fine")

    deadline = time.monotonic() + 60
    while "sent" not in (text := generate_latest(registry).decode()):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def test_a_deliverer_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    errors = [OSError("no")]  # one, for the thread goes on after this test

    def fail(_: Batch) -> None:
        if errors:
            raise errors.pop()

    counts = Counts(shop(), lambda: fail)
    counts.settled(message(), Done())
    counts.flush()
    assert "metrics could not be handed on" in caplog.text


def test_a_worker_that_stops_hands_on_what_it_has_heard() -> None:
    bridge, registry = shop(), CollectorRegistry()
    observe(bridge, registry=registry)
    bridge.send("fine")
    bridge.hooks.call(Event(name="worker_stopping"))

    assert samples(generate_latest(registry).decode())[
        'taskbridge_messages_total{queue="email",state="sent",task="fine"}'
    ]


def test_a_worker_that_stops_does_not_wait_for_an_exporter_that_hangs() -> None:
    is_over = threading.Event()
    provider = MeterProvider()
    provider.force_flush = lambda timeout_millis=0: is_over.wait(600)  # type: ignore[method-assign]
    bridge = shop()
    observe(bridge, meter_provider=provider)
    began = time.monotonic()
    try:
        bridge.hooks.call(Event(name="worker_stopping"))
    finally:
        is_over.set()

    assert time.monotonic() - began < 300
    provider.shutdown()


def test_deaths_and_losses_of_known_tasks_begin_at_0() -> None:
    bridge, registry = shop(), CollectorRegistry()
    counts = observe(bridge, registry=registry)
    bridge.hooks.call(Event(name="worker_started"))
    counts.flush()

    assert samples(generate_latest(registry).decode()) == {
        'taskbridge_messages_total{queue="email",state="dead",task="fine"}': 0,
        'taskbridge_messages_total{queue="default",state="dead",task="fails"}': 0,
        'taskbridge_messages_total{queue="default",state="dead",task="drops"}': 0,
        'taskbridge_attempts_total{outcome="lost",task="fine"}': 0,
        'taskbridge_attempts_total{outcome="lost",task="fails"}': 0,
        'taskbridge_attempts_total{outcome="lost",task="drops"}': 0,
    }


def test_without_a_thread_what_is_heard_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    batches: list[Batch] = []
    counts = Counts(shop(), lambda: batches.append)
    monkeypatch.setattr(threading.Thread, "start", fail)
    for _ in range(25_000):
        counts.settled(message(), Done())

    assert sum(values[0] for batch in batches for *_, values in batch) >= 20_000


def test_opentelemetry_gets_the_same_counts() -> None:
    bridge, reader = shop(), InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    counts = observe(bridge, meter_provider=provider)
    bridge.send("fine")
    bridge.run_until_idle()
    counts.flush()

    data: Any = reader.get_metrics_data()
    metrics = {each.name: each for each in data.resource_metrics[0].scope_metrics[0].metrics}
    assert metrics.keys() == {name.removesuffix("_total") for name in COUNTED}
    by_state = {each.attributes["state"]: each.value for each in metrics["taskbridge_messages"].data.data_points}
    assert by_state == {"sent": 1, "done": 1}
    [run] = metrics["taskbridge_run_seconds"].data.data_points
    assert run.attributes == {"task": "fine", "queue": "email", "outcome": "done"}
    assert (run.count, run.explicit_bounds, metrics["taskbridge_run_seconds"].unit) == (1, BUCKETS_S, "s")
    provider.shutdown()


# Several processes


def test_sums_of_processes_look_as_what_one_process_counts() -> None:
    bridge, registry, together = shop(), CollectorRegistry(), CollectorRegistry()
    totals = Totals()
    together.register(totals)
    parts = [Counts(bridge, lambda: lambda batch: totals.add((n, ls, row_of(n, vs)) for n, ls, vs in batch))] * 2
    whole = observe(bridge, registry=registry)
    for number, seconds in enumerate((0.0, 0.001, 0.3, 7.0, 5000.0)):
        for counts in (whole, parts[number % 2]):
            counts.sent([message()], seconds, None)
            counts.ran(message(), Done(), 1.0 + seconds, seconds)
            counts.settled(message(), Done())
    for counts in (whole, *parts):
        counts.flush()

    assert samples(generate_latest(together).decode()) == pytest.approx(samples(generate_latest(registry).decode()))


def test_what_another_release_counts_is_left_out() -> None:
    totals, registry = Totals(), CollectorRegistry()
    registry.register(totals)
    known: tuple[str, list[str], list[float]] = ("taskbridge_attempts_total", ["fine", "done"], [1.0])
    totals.add(
        [
            ("taskbridge_other_total", ["fine"], [1.0]),
            ("taskbridge_attempts_total", ["fine", "done", "more"], [1.0]),
            ("taskbridge_send_seconds", ["email", "sent"], [1.0, 2.0]),
            known,
        ]
    )

    assert samples(generate_latest(registry).decode()) == {'taskbridge_attempts_total{outcome="done",task="fine"}': 1}


def test_what_the_supervisor_did_not_take_is_sent_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bridge = shop()
    with served(bridge, host="127.0.0.1", port=0) as (url, env):
        monkeypatch.setenv(METRICS_VARIABLE, str(tmp_path / "nobody"))
        report(bridge)
        [counts] = bridge.observers
        assert isinstance(counts, Counts)
        counts.settled(message(), Done())
        counts.flush()  # nobody is there
        (tmp_path / "nobody").symlink_to(env[METRICS_VARIABLE])
        counts.settled(message(), Done())
        counts.flush()
        counts.flush()  # adds nothing

        done = 'taskbridge_messages_total{queue="email",state="done",task="fine"}'
        deadline = time.monotonic() + 60
        while (found := samples(urlopen(url, timeout=30).read().decode())).get(done) != 2:
            assert time.monotonic() < deadline, found


def test_half_a_line_is_dropped() -> None:
    with served(shop(), host="127.0.0.1", port=0) as (url, env):
        row = ["taskbridge_attempts_total", ["fine", "done"], [1]]
        for end in ("", "\n"):
            with socket.socket(socket.AF_UNIX) as sender:
                sender.settimeout(60)
                sender.connect(env[METRICS_VARIABLE])
                sender.sendall(f"{json.dumps([row])}{end}".encode())
                sender.shutdown(socket.SHUT_WR)
                assert sender.recv(1) == b""  # it has read that
        deadline = time.monotonic() + 60
        while 'outcome="done"' not in (text := urlopen(url, timeout=30).read().decode()):
            assert time.monotonic() < deadline, text
        assert samples(text)['taskbridge_attempts_total{outcome="done",task="fine"}'] == 1


def test_what_only_another_release_counts_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, totals = CollectorRegistry(), Totals()
    registry.register(totals)
    totals.add(
        [
            ("taskbridge_unheard_of_total", ["fine"], [1.0]),
            ("taskbridge_run_seconds", ["fine", "email", "done"], [1.0, 2.0]),
            ("taskbridge_attempts_total", ["fine", "done", "new"], [1.0]),
            ("taskbridge_attempts_total", ["fine", "done"], [3.0]),
        ]
    )

    assert samples(generate_latest(registry).decode()) == {'taskbridge_attempts_total{outcome="done",task="fine"}': 3}


# What broker and store tell


def test_queues_and_schedules_are_read() -> None:
    bridge = shop()
    bridge.task(name="nightly", every=3600)(lambda: None)
    bridge.send("fine")
    bridge.named("fine").schedule(60)

    found = samples(text_of(bridge))

    assert found['taskbridge_queue_messages{queue="email",state="waiting"}'] == 1
    assert found['taskbridge_queue_messages{queue="default",state="waiting"}'] == 0
    assert sum(number for name, number in found.items() if 'state="delayed"' in name) == 1
    assert found['taskbridge_paused{queue="email"}'] == 0
    assert any(name.startswith(MISSED) for name in found)


def test_flows_that_have_not_ended_are_counted() -> None:
    bridge = shop()
    fine = bridge.named("fine")
    for _ in range(3):
        fine.call().then_call(fine.call()).send()

    assert samples(text_of(bridge))['taskbridge_flows{state="running"}'] == 3
    bridge.run_until_idle()
    assert samples(text_of(bridge))['taskbridge_flows{state="running"}'] == 0
    assert samples(text_of(bridge))['taskbridge_flows{state="stalled"}'] == 0


def test_what_is_known_of_each_queue_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = SimpleNamespace(name="email", waiting=3, oldest_s=7.5, running=1, paused=object())
    monkeypatch.setattr(Bridge, "operations", SimpleNamespace(queues=lambda _: (queue,)))

    found = samples(text_of(shop()))

    assert found == {
        'taskbridge_queue_messages{queue="email",state="waiting"}': 3,
        'taskbridge_queue_messages{queue="email",state="running"}': 1,
        'taskbridge_queue_messages{queue="*",state="delayed"}': 0,
        'taskbridge_queue_messages{queue="*",state="dead"}': 0,
        'taskbridge_queue_oldest_seconds{queue="email"}': 7.5,
        'taskbridge_paused{queue="email"}': 1,
        'taskbridge_flows{state="running"}': 0,
        'taskbridge_flows{state="stalled"}': 0,
    }


def test_a_scrape_leaves_out_what_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    bridge = Bridge("celery+redis://127.0.0.1:1/0", send_timeout=0.2)
    registry = CollectorRegistry()
    registry.register(Gauges(bridge))

    with caplog.at_level(logging.WARNING, "taskbridge.metrics"):
        assert samples(generate_latest(registry).decode()) == {}

    assert "metrics of queues are left out of a scrape" in caplog.text
    with pytest.raises(BrokerUnavailable):
        text_of(bridge)


def test_a_broker_that_hangs_does_not_hold_a_scrape_up(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as hung:
        hung.bind(("127.0.0.1", 0))
        hung.listen()
        bridge = Bridge(f"celery+redis://127.0.0.1:{hung.getsockname()[1]}/0", send_timeout=120)
        registry = CollectorRegistry()
        registry.register(Gauges(bridge))
        began = time.monotonic()
        with caplog.at_level(logging.WARNING, "taskbridge.metrics"):
            assert samples(generate_latest(registry).decode()) == {}

        assert time.monotonic() - began < 60
        assert "metrics of queues are left out of a scrape" in caplog.text


# The same for OpenTelemetry


class Exports:
    """A provider of OpenTelemetry with two readers, and what it exports."""

    def __init__(self) -> None:
        self.first, self.second = InMemoryMetricReader(), InMemoryMetricReader()
        self.provider = MeterProvider(metric_readers=[self.first, self.second])

    def metrics(self) -> list[dict[str, Any]]:
        return exported(self.first.get_metrics_data())

    def samples(self, reader: InMemoryMetricReader | None = None) -> dict[str, float]:
        return exported_samples(exported((reader or self.first).get_metrics_data()))


@pytest.fixture
def exports() -> Iterator[Exports]:
    made = Exports()
    yield made
    made.provider.shutdown()


def scraped(gauges: Gauges) -> str:
    """Return what Prometheus would get."""
    registry = CollectorRegistry()
    registry.register(gauges)
    return generate_latest(registry).decode()


def test_opentelemetry_is_told_what_a_scrape_tells(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = SimpleNamespace(name="email", waiting=3, oldest_s=7.5, running=1, paused=object())
    monkeypatch.setattr(Bridge, "operations", SimpleNamespace(queues=lambda _: (queue,)))
    bridge = shop()
    bridge.task(name="nightly", every=3600)(lambda: None)
    bridge.named("fine").call().then_call(bridge.named("fine").call()).send()
    bridge.named("fine").schedule(60)
    gauges = Gauges(bridge)
    gauges.register_with(exports.provider)

    metrics, text = exports.metrics(), scraped(gauges)

    assert exported_samples(metrics) == samples(text)
    families = {each.name: each for each in text_string_to_metric_families(text)}
    assert {each["name"] for each in metrics} == families.keys() == {name.removesuffix("_total") for name in READ}
    for each in metrics:
        about = families[each["name"]]
        assert each["description"] == about.documentation
        assert each["unit"] == ("s" if each["name"].endswith("_seconds") else "")
        assert (about.type == "counter") == ("is_monotonic" in each["data"])
    found = exported_samples(metrics)
    assert found['taskbridge_queue_oldest_seconds{queue="email"}'] == 7.5
    assert found['taskbridge_queue_messages{queue="*",state="delayed"}'] == 1
    assert found['taskbridge_flows{state="running"}'] == 1
    assert found['taskbridge_paused{queue="email"}'] == 1


def test_each_export_reads_broker_and_store_once(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, readings = shop(), list[Bridge]()
    counts = Bridge.counts

    def counted_counts(of: Bridge) -> Any:
        readings.append(of)
        return counts(of)

    monkeypatch.setattr(Bridge, "counts", counted_counts)
    Gauges(bridge).register_with(exports.provider)
    waiting = 'taskbridge_queue_messages{queue="email",state="waiting"}'
    assert readings == []

    for number in range(3):
        assert exports.samples()[waiting] == number
        assert len(readings) == 2 * number + 1
        bridge.send("fine")
        assert exports.samples(exports.second)[waiting] == number + 1
        assert len(readings) == 2 * number + 2


def test_an_export_leaves_out_what_cannot_be_read(exports: Exports, caplog: pytest.LogCaptureFixture) -> None:
    bridge = Bridge("celery+redis://127.0.0.1:1/0", send_timeout=0.2)
    Gauges(bridge).register_with(exports.provider)
    exports.provider.get_meter("shop").create_counter("orders").add(1)

    assert exports.samples() == {"orders_total{}": 1}
    assert "metrics of queues are left out of a scrape" in caplog.text


def test_what_is_not_known_any_more_is_not_exported(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = SimpleNamespace(name="email", waiting=1, oldest_s=7.5, running=None, paused=None)
    monkeypatch.setattr(Bridge, "operations", SimpleNamespace(queues=lambda _: (queue,)))
    Gauges(shop()).register_with(exports.provider)
    oldest = 'taskbridge_queue_oldest_seconds{queue="email"}'

    assert exports.samples()[oldest] == 7.5
    queue.waiting, queue.oldest_s = 0, None
    assert oldest not in exports.samples()


def test_only_the_process_that_supervises_workers_exports_gauges_by_itself(exports: Exports) -> None:
    bridge = shop()
    observe(bridge, registry=CollectorRegistry())
    observe(bridge, meter_provider=exports.provider)
    bridge.hooks.call(Event(name="worker_started"))
    assert not any(each["name"].removesuffix("_total") in READ for each in exports.metrics())

    observing.tell(bridge.observers, "supervising")
    assert exports.samples()['taskbridge_paused{queue="email"}'] == 0


def test_a_forked_process_exports_no_gauges(exports: Exports) -> None:
    Gauges(shop()).register_with(exports.provider)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, that there are threads
        child = os.fork()
    if child == 0:
        os._exit(0 if exports.samples() == {} else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert exports.samples()['taskbridge_paused{queue="email"}'] == 0


ENDS = r"""
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from taskbridge import Bridge
from taskbridge.metrics import Gauges

exporter = ConsoleMetricExporter(formatter=lambda data: " ".join(
    metric.name for scope in data.resource_metrics[0].scope_metrics for metric in scope.metrics
) + "\n")
provider = MeterProvider(metric_readers=[PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)])
provider.get_meter("shop").create_counter("orders").add(1)
Gauges(Bridge("inline://?threads=0")).register_with(provider)
provider.force_flush(120_000)
"""


def test_the_last_export_of_a_process_that_ends_reads_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], check=False, capture_output=True, text=True, timeout=180)

    assert (done.returncode, done.stderr) == (0, "")
    first, last = (set(line.split()) for line in done.stdout.splitlines())
    assert {"orders", "taskbridge_paused"} <= first
    assert last == {"orders"}


# The command line


def test_the_command_prints_what_prometheus_reads(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("TASKBRIDGE_URL", "celery+redis://127.0.0.1:1/0")
    monkeypatch.setenv("TASKBRIDGE_SEND_TIMEOUT", "0.2")
    assert main(["metrics"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("port", ["70000", "x", "-1"])
def test_what_is_no_port_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "shop", f"--metrics-port={port}"]) == 2
    assert f"it must be a number from 0 to 65535, not {port!r}" in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics_shop.py").write_text("from taskbridge import task\n@task\ndef fine() -> None: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TASKBRIDGE_SEND_TIMEOUT", "0.2")
    monkeypatch.setenv("TASKBRIDGE_URL", "inline://")  # which `--url` sets anew
    former = signal.getsignal(signal.SIGTERM)
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            words = ["worker", "metrics_shop", "--url", "celery+redis://127.0.0.1:1/0", f"--metrics-port={port}"]
            assert main(words) == 2
    finally:
        signal.signal(signal.SIGTERM, former)
        default_bridge().reconfigure()
    assert f"taskbridge: --metrics-port: can't listen on 127.0.0.1, port {port}" in capsys.readouterr().err


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prometheus_client", "prometheus_client.core"):
        monkeypatch.setitem(sys.modules, name, None)
    for act in (lambda: observe(shop()), lambda: text_of(shop()), served(shop(), host="127.0.0.1", port=0).__enter__):
        with pytest.raises(NotInstalledError, match=r"taskbridge-queue\[metrics\]"):
            act()


# The pages


def test_the_dashboard_asks_for_what_there_is() -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    known = {
        name + end: {*about.labels, *(["le"] if end == "_bucket" else [])}
        for name, about in {**COUNTED, **READ}.items()
        for end in (("_bucket", "_count", "_sum") if about.is_histogram else ("",))
    }
    used: set[str] = set()
    for query in queries:
        names = set(re.findall(r"taskbridge_\w+", query))
        assert names, query
        assert names <= known.keys(), query
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query)) | {
            label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")
        }
        labels |= set(re.findall(r"label_values\(\S+, (\w+)\)", query))
        assert labels <= set().union(*(known[name] for name in names)), query
        used |= {re.sub("_(bucket|count|sum)$", "", name) for name in names}
    assert used == {*COUNTED, *READ}, "some metric is on no panel"


def test_a_query_that_hits_no_sample_is_found() -> None:
    served = ['taskbridge_messages_total{queue="email",state="dead",task="shop.mail"}']
    hits = (
        'sum by (task) (rate(taskbridge_messages_total{queue=~"$queue",state!="sent"}[1h]))',
        'taskbridge_messages_total{task="shop.mail"}',
        "label_values(taskbridge_messages_total, task)",
    )
    missed = 'taskbridge_messages_total{state="failed"}', 'taskbridge_messages_total{state!~"d.*"}', "taskbridge_runs{}"

    assert without_a_hit(hits, served) == set()
    assert without_a_hit(missed, served) == set(missed)


def test_the_page_names_each_metric_with_its_labels() -> None:
    page = (DOCS / "guide" / "metrics.md").read_text()
    for name, about in {**COUNTED, **READ}.items():
        assert f"`{name}{{{','.join(about.labels)}}}`" in page, name


def test_what_is_printed_can_be_parsed() -> None:
    names = {family.name for family in text_string_to_metric_families(text_of(shop()) + "\n")}
    assert names == {name.removesuffix("_total") for name in READ}
