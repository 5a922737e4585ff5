"""One port for all processes of `taskbridge worker`.

Each process sends what it has counted since the last time to the supervisor, once a second: a line of JSON through a
socket in a folder that only this user can open. The supervisor adds up, so that what a process has counted outlives it.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate, chain
from operator import add
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

from taskbridge import locks
from taskbridge.engines.base import METRICS_VARIABLE
from taskbridge.exceptions import needs
from taskbridge.logs import logger
from taskbridge.metrics.counts import Batch, Counts
from taskbridge.metrics.gauges import Gauges
from taskbridge.metrics.names import BUCKETS_S, COUNTED

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

    from taskbridge.bridge import Bridge

_log = logger("taskbridge.metrics")

_SEND_S: Final = 5.0  # how long the supervisor may take to read, before a process tries again a second later


class Totals:
    """What was counted by all processes: a row of numbers for each metric and the values of its labels.

    A counter's row is one number. A histogram's are how many times are in each bucket alone, and their sum.
    """

    def __init__(self) -> None:
        self._lock = locks.Lock()
        self._rows: dict[tuple[str, tuple[str, ...]], list[float]] = {}

    def add(self, rows: Iterable[tuple[str, Sequence[str], list[float]]]) -> None:
        """Add rows to those that are there; those of a form that only another release knows are dropped."""
        with self._lock:
            for name, labels, row in rows:
                about = COUNTED.get(name)
                if about is None or len(labels) != len(about.labels) or len(row) != len(row_of(name, ())):
                    continue
                key = name, tuple(labels)
                former = self._rows.get(key)
                self._rows[key] = row if former is None else [*map(add, former, row)]

    def rows(self) -> list[tuple[str, tuple[str, ...], list[float]]]:
        """Return all rows."""
        with self._lock:
            return [(name, labels, row) for (name, labels), row in self._rows.items()]

    def clear(self) -> None:
        """Begin at nothing."""
        self._rows = {}

    def collect(self) -> Iterator[Family]:
        """Yield the metrics for Prometheus' client."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        bounds = [*map(str, BUCKETS_S), "+Inf"]
        families: dict[str, Any] = {}
        for name, about in COUNTED.items():
            kind = HistogramMetricFamily if about.is_histogram else CounterMetricFamily
            families[name] = kind(name, about.help, labels=about.labels)
        for name, labels, row in self.rows():
            if COUNTED[name].is_histogram:
                buckets = [*zip(bounds, accumulate(row[:-1]), strict=True)]
                families[name].add_metric(labels, buckets=buckets, sum_value=row[-1])
            else:
                families[name].add_metric(labels, row[0])
        yield from families.values()


def row_of(name: str, values: Sequence[float]) -> list[float]:
    """Return the row of a counter's number, or of a histogram's times; see `Totals`."""
    if not COUNTED[name].is_histogram:
        return [sum(values)]
    ordered = sorted(values)
    up_to = [bisect_right(ordered, bound) for bound in BUCKETS_S]
    return [
        *(after - before for before, after in zip(chain([0], up_to), [*up_to, len(ordered)], strict=True)),
        sum(ordered),
    ]


# In a worker's process


def report(bridge: Bridge) -> None:
    """Have this process and its children report to the supervisor that has started them."""
    Counts(bridge, partial(_Reporter, os.environ[METRICS_VARIABLE])).begin()


class _Reporter:
    """Sends batches to the supervisor; what it didn't take is sent with the next one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._unsent = Totals()
        self._socket: socket.socket | None = None

    def __call__(self, batch: Batch) -> None:
        self._unsent.add((name, labels, row_of(name, values)) for name, labels, values in batch)
        if not (rows := self._unsent.rows()):
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(_SEND_S)
                self._socket.connect(self._path)
            self._socket.sendall(json.dumps(rows).encode() + b"\n")
        except OSError as exc:  # if it was a part of the line, the supervisor drops that
            _log.debug("metrics are sent later: %s", exc)
            if self._socket is not None:
                self._socket.close()
                self._socket = None
        else:
            self._unsent.clear()


# In the supervisor


@contextmanager
def served(bridge: Bridge, *, host: str, port: int) -> Generator[tuple[str, dict[str, str]], None, None]:
    """Serve what workers count, and the gauges, while the block runs; yield the URL, and variables for the workers.

    A port of 0 is any that is free. Raises `NotInstalledError`, or `OSError` if it can't listen there.
    """
    with needs("prometheus-client", "metrics"):
        from prometheus_client import CollectorRegistry, start_http_server

    totals = Totals()

    class Reading(StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                if line.endswith(b"\n"):
                    totals.add(json.loads(line))

    with ExitStack() as stack:
        path = str(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskbridge-"))) / "metrics")
        server = stack.enter_context(ThreadingUnixStreamServer(path, Reading))
        server.daemon_threads = True
        Thread(target=server.serve_forever, name="taskbridge-metrics", daemon=True).start()
        stack.callback(server.shutdown)
        registry = CollectorRegistry()
        registry.register(totals)
        registry.register(Gauges(bridge))
        http, _ = start_http_server(port, addr=host, registry=registry)
        stack.callback(http.server_close)
        stack.callback(http.shutdown)
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{http.server_port}/metrics", {METRICS_VARIABLE: path}
