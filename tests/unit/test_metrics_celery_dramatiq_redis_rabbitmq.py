"""The same program gives the same metrics on the four pairs, from several processes, which may end.

OpenTelemetry is told by one process what broker and store tell, with the values that Prometheus gets.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest

from taskbridge import Bridge
from taskbridge.metrics import Gauges
from taskbridge.metrics.names import READ
from tests.docs.pages import ROOT, blocks_of
from tests.metric_samples import exported, exported_samples, samples, without_a_hit

PAIRS = ("celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp")
WAIT_S = 240.0

SHOP = """
import json
import os

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader

from taskbridge import Bridge, Discard, RetryPolicy
from taskbridge.metrics import observe


class Lines(MetricExporter):
    def export(self, metrics_data, timeout_millis=0, **_):
        line = json.dumps(json.loads(metrics_data.to_json()))
        with open(f"{os.environ['EXPORTED']}.{os.getpid()}", "a") as lines:
            lines.write(f"{line}\\n")
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=0):
        return True

    def shutdown(self, timeout_millis=0, **_):
        pass


# What runs tasks exports as it is told to, for no thread of the SDK may hold its locks as an engine forks.
is_worker = "TASKBRIDGE_APP_READY" in os.environ
reader = PeriodicExportingMetricReader(Lines(), export_interval_millis=float("inf") if is_worker else 500)
provider = MeterProvider(metric_readers=[reader])

bridge = Bridge("inline://", queues=["email"], retry=RetryPolicy(max_attempts=2, min_delay=0.1))

@bridge.task(name="fine", queue="email")
def fine() -> None: ...

@bridge.task(name="fails")
def fails() -> None:
    raise OSError

@bridge.task(name="drops")
def drops() -> None:
    raise Discard

@bridge.task(name="nightly", cron="0 3 29 2 *")
def nightly() -> None: ...

@bridge.task(name="sends")
def sends() -> None:
    fine.send()
    provider.get_meter("shop").create_counter("exports_by_workers").add(1)
    provider.force_flush(240_000)

observe(bridge, meter_provider=provider)
"""

SENT = {"fine": 20, "fails": 3, "drops": 2, "sends": 4}
AGAIN = 5  # of `fine`, just before all processes are started anew
FINE = 'taskbridge_messages_total{queue="email",state="done",task="fine"}'

EXPECTED = {
    'taskbridge_messages_total{queue="email",state="done",task="fine"}': 24,
    'taskbridge_messages_total{queue="email",state="sent",task="fine"}': 4,
    'taskbridge_messages_total{queue="default",state="dead",task="fails"}': 3,
    'taskbridge_messages_total{queue="default",state="discarded",task="drops"}': 2,
    'taskbridge_messages_total{queue="default",state="done",task="sends"}': 4,
    'taskbridge_attempts_total{outcome="done",task="fine"}': 24,
    'taskbridge_attempts_total{outcome="retried",task="fails"}': 3,
    'taskbridge_attempts_total{outcome="dead",task="fails"}': 3,
    'taskbridge_attempts_total{outcome="discarded",task="drops"}': 2,
    'taskbridge_attempts_total{outcome="done",task="sends"}': 4,
    'taskbridge_run_seconds_count{outcome="done",queue="email",task="fine"}': 24,
    'taskbridge_run_seconds_count{outcome="retried",queue="default",task="fails"}': 3,
    'taskbridge_run_seconds_count{outcome="dead",queue="default",task="fails"}': 3,
    'taskbridge_run_seconds_count{outcome="discarded",queue="default",task="drops"}': 2,
    'taskbridge_run_seconds_count{outcome="done",queue="default",task="sends"}': 4,
    'taskbridge_wait_seconds_count{queue="email",task="fine"}': 24,
    'taskbridge_wait_seconds_count{queue="default",task="fails"}': 6,
    'taskbridge_wait_seconds_count{queue="default",task="drops"}': 2,
    'taskbridge_wait_seconds_count{queue="default",task="sends"}': 4,
    'taskbridge_send_seconds_count{outcome="sent",queue="email"}': 4,
    'taskbridge_queue_messages{queue="email",state="waiting"}': 0,
    'taskbridge_queue_messages{queue="default",state="waiting"}': 0,
    'taskbridge_paused{queue="email"}': 0,
    'taskbridge_paused{queue="default"}': 0,
    'taskbridge_schedule_missed_total{schedule="nightly"}': 0,
    'taskbridge_flows{state="running"}': 0,
    'taskbridge_flows{state="stalled"}': 0,
    'taskbridge_messages_total{queue="email",state="dead",task="fine"}': 0,
    'taskbridge_messages_total{queue="default",state="dead",task="drops"}': 0,
    'taskbridge_messages_total{queue="default",state="dead",task="nightly"}': 0,
    'taskbridge_messages_total{queue="default",state="dead",task="sends"}': 0,
    **{f'taskbridge_attempts_total{{outcome="lost",task="{task}"}}': 0 for task in (*SENT, "nightly")},
}

SELDOM = {  # for nothing has failed to be sent, and how old messages are is told with the setting `listing` only
    'taskbridge_send_seconds_count{queue=~"$queue",outcome="failed"}',
    'taskbridge_send_seconds_count{outcome="failed"}',
    'taskbridge_queue_oldest_seconds{queue=~"$queue"}',
}


class Worker:
    """A worker of two processes on a pair, and a bridge that sends to it."""

    def __init__(self, folder: Path, url: str, store: str) -> None:
        self.log = folder / f"{uuid4().hex}.log"
        self.exported = folder / uuid4().hex
        namespace = f"metrics-{uuid4().hex[:8]}"
        env = {
            **os.environ,
            "EXPORTED": str(self.exported),
            "TASKBRIDGE_NAMESPACE": namespace,
            "TASKBRIDGE_STORE": store,
            "TASKBRIDGE_SEND_TIMEOUT": "60",
        }
        words = [sys.executable, "-m", "taskbridge", "worker", "shop", "--url", url, "--processes", "2"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*words, "--metrics-port", "0"], cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        routes = [("fine", "email")]
        self.bridge = Bridge(url, namespace=namespace, store=store, queues=["email"], routes=routes, send_timeout=60)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def scrape(self) -> dict[str, float]:
        found = re.search(r"metrics on (\S+)", self.said())
        assert found is not None
        with urlopen(found[1], timeout=60) as answer:
            return samples(answer.read().decode())

    def scraped(self, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """Return the first scrape that meets a condition."""
        deadline = time.monotonic() + WAIT_S
        while not condition(found := self.scrape()):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, f"{found}\n{self.said()[-5000:]}"
            time.sleep(0.1)
        return found

    def exports(self) -> dict[int, list[str]]:
        """Return what each process has exported by OpenTelemetry: lines of JSON, the latest last."""
        found = self.exported.parent.glob(f"{self.exported.name}.*")
        return {int(each.suffix[1:]): each.read_text().split("\n")[:-1] for each in found}

    def exporters(self, name: str) -> set[int]:
        """Return which processes have exported a metric."""
        return {pid for pid, lines in self.exports().items() if any(f'"name": "{name}"' in line for line in lines)}

    def wait_for(self, text: str) -> None:
        """Wait until the log has a text."""
        deadline = time.monotonic() + WAIT_S
        while text not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()[-5000:]
            time.sleep(0.1)


@contextmanager
def started(folder: Path, url: str, store: str) -> Generator[Worker]:
    worker = Worker(folder, url, store)
    try:
        yield worker
    finally:
        worker.bridge.close()
        worker.process.terminate()
        try:
            worker.process.wait(90)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def told(found: dict[str, float]) -> dict[str, float]:
    """Return what does not depend on how long something took, or on what a kind of broker knows by queue."""
    kept = {name: value for name, value in found.items() if "_bucket" not in name and "_sum" not in name}
    return {
        name: value
        for name, value in kept.items()
        if not re.search('queue_messages.*state="(delayed|dead|running)"}', name)
    }


def test_the_same_program_gives_the_same_metrics(tmp_path: Path, url_of: Callable[[str], str]) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    store = url_of("celery+redis").partition("+")[2]
    scrapes: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        workers = {pair: stack.enter_context(started(tmp_path, url_of(pair), store)) for pair in PAIRS}
        for worker in workers.values():
            worker.wait_for("taskbridge: ready\n")
            calls = [worker.bridge.named(task).call() for task, number in SENT.items() for _ in range(number)]
            worker.bridge.send_many(calls)
        for pair, worker in workers.items():
            scrapes[pair] = worker.scraped(lambda found: told(found) == EXPECTED)
            last = worker.bridge.send_many([worker.bridge.named("fine").call() for _ in range(AGAIN)])
            for handle in last:
                handle.result(timeout=WAIT_S)
            worker.process.send_signal(signal.SIGHUP)  # all processes end, at once after these runs
        for worker in workers.values():
            worker.wait_for("starting the workers anew")
            worker.scraped(lambda found: found[FINE] == EXPECTED[FINE] + AGAIN)
            worker.bridge.named("fine").send().result(timeout=WAIT_S)  # another process runs it
            worker.scraped(lambda found: found[FINE] == EXPECTED[FINE] + AGAIN + 1)

        for pair, worker in workers.items():
            told_alike(worker, pair)
            assert without_a_hit(shown_queries(), worker.scrape()) == SELDOM, pair

    for pair, found in scrapes.items():
        assert found.keys() == scrapes[PAIRS[0]].keys(), pair


def shown_queries() -> list[str]:
    """Return what the dashboard, the alerts and the scaling of workers ask for."""
    dashboard = json.loads((ROOT / "docs/grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    pages = "docs/guide/metrics.md", "docs/operations.md"
    queries += [
        block.text
        for page in pages
        for block in blocks_of(page)
        if "taskbridge_" in block.text and block.info == "yaml"
    ]
    assert len(queries) > 20, queries
    return queries


def told_alike(worker: Worker, pair: str) -> None:
    """Check that OpenTelemetry gets what Prometheus does, and from one process."""
    supervisor, bridge = worker.process.pid, worker.bridge
    bridge.pause("email")
    bridge.named("fine").schedule(3600)
    bridge.named("nightly").using(queue="email").send()

    def last() -> dict[str, float]:
        return exported_samples(exported(json.loads(worker.exports()[supervisor][-1])))

    found = worker.scraped(lambda found: read(found) == last())
    assert found['taskbridge_paused{queue="email"}'] == 1, pair
    assert found['taskbridge_queue_messages{queue="*",state="delayed"}'] >= 1, pair
    assert worker.exporters("exports_by_workers"), pair
    assert supervisor not in worker.exporters("exports_by_workers"), pair
    for name in READ:
        assert worker.exporters(name.removesuffix("_total")) <= {supervisor}, pair

    registry, reader, gauges = CollectorRegistry(), InMemoryMetricReader(), Gauges(bridge)
    provider = MeterProvider(metric_readers=[reader])
    registry.register(gauges)
    gauges.register_with(provider)
    deadline = time.monotonic() + WAIT_S  # for what waited may have been taken just before the worker knew of the pause
    while exported_samples(exported(reader.get_metrics_data())) != samples(text := generate_latest(registry).decode()):
        assert time.monotonic() < deadline, f"{pair}: {text}"
        time.sleep(0.1)
    provider.shutdown()


def read(found: dict[str, float]) -> dict[str, float]:
    """Return what broker and store tell."""
    return {name: value for name, value in found.items() if name.partition("{")[0] in READ}
