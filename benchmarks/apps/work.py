"""What the tasks do, and where the servers are; it imports next to nothing, for its own cost is in every figure."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Sequence
from time import monotonic
from typing import Final

URL: Final = os.environ.get("BENCH_URL", "")
"""The broker's URL: `redis://...` or `amqp://...`."""

QUEUE: Final = "bench"
EARLY: Final = os.environ.get("BENCH_EARLY") == "1"
CONFIRMS: Final = os.environ.get("BENCH_CONFIRMS", "1") == "1"
RESULTS: Final = os.environ.get("BENCH_RESULTS") == "1"
"""Whether what tasks return is kept."""

GROUPS: Final = os.environ.get("BENCH_GROUPS") == "1"
"""Whether groups are sent that something follows."""

STORE: Final = os.environ.get("BENCH_STORE") or None
"""Where taskbridge keeps it, if not in its broker."""

OPTION: Final = os.environ.get("BENCH_OPTION", "")
"""Which of several ways a contender is used."""

FAST: Final = os.environ.get("BENCH_FAST", "1") == "1"
"""Whether taskbridge may take the short ways through its engine."""

TRACED: Final = os.environ.get("BENCH_TRACED") == "1"
"""Whether OpenTelemetry's instrumentation of Celery makes a span of each run."""

SPANS: Final = os.environ.get("BENCH_SPANS") == "1"
"""Whether taskbridge's own instrumentation does."""

MORE_QUEUES: Final = int(os.environ.get("BENCH_MORE_QUEUES", "0"))
"""How many more queues the application knows than it uses."""

MORE_TASKS: Final = int(os.environ.get("BENCH_MORE_TASKS", "0"))
"""How many more tasks the application has than it uses."""

WAIT_S: Final = 30.0
"""How long a result is waited for."""

_LOG: Final = os.environ.get("BENCH_LOG", os.devnull)
_SERVER: Final = os.environ.get("BENCH_SERVER_PID", "")
_MARKED: Final = frozenset(int(each) for each in os.environ.get("BENCH_MARKED", "").split(",") if each)
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")

_count = itertools.count(1)
_ended_at = 0.0


def trace() -> None:
    """Have Celery traced by OpenTelemetry's instrumentation of it."""
    from opentelemetry.instrumentation.celery import CeleryInstrumentor  # here, for only who is traced has it

    export()
    CeleryInstrumentor().instrument()


def export() -> None:
    """Have spans exported as in production: gathered, and in batches, here to nowhere."""
    from opentelemetry import trace as traces  # here, as above
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Sequence[object]) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    traces.set_tracer_provider(provider)


def _is_traced() -> bool:
    from opentelemetry import trace as traces  # here, as above

    return traces.get_current_span().is_recording()


def tick() -> None:
    """Count one run in this process; of the first and the last that are measured, write the times."""
    number = next(_count)
    if number in _MARKED:
        if (TRACED or SPANS) and not _is_traced():
            return  # and so nothing is measured, for the benchmark misses the line
        _write(f"tick {number} {monotonic()} {_own_cpu_s()} {server_cpu_s()}")


def tick_last() -> None:
    """Count as `tick` does, and keep in mind when."""
    global _ended_at  # noqa: PLW0603 - as a module's variable it costs least
    tick()
    _ended_at = monotonic()


def followed() -> None:
    """Write when a group is followed, and how long after the last `tick_last` of this process that is, in seconds."""
    _write(f"followed {monotonic()} {monotonic() - _ended_at}")


def mark(label: str, due_at: float) -> None:
    """Write how long after `due_at`, on the system's monotonic clock, the task started, in seconds."""
    _write(f"mark {label} {monotonic() - due_at}")


def _write(line: str) -> None:
    log = os.open(_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{line}\n".encode())
    os.close(log)


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def server_cpu_s() -> float:
    """Return the CPU time that the server has used, in steps of 10 ms; 0 if it is not known."""
    if not _SERVER:
        return 0.0
    with open(f"/proc/{_SERVER}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND
