"""The metrics: names, labels, meanings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

BUCKETS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
"""The upper bounds of all histograms; what is above the last one is in one more."""

UNKNOWN: Final = "unknown"
"""The label of a task that is not declared in the process that counts, and of a queue that is not known there."""

ALL_QUEUES: Final = "*"
"""The label of what is known of all queues together only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What is counted, or read at each scrape."""

    help: str
    labels: tuple[str, ...]
    is_histogram: bool = False


MESSAGES: Final = "taskbridge_messages_total"
ATTEMPTS: Final = "taskbridge_attempts_total"
RUN: Final = "taskbridge_run_seconds"
WAIT: Final = "taskbridge_wait_seconds"
SEND: Final = "taskbridge_send_seconds"

COUNTED: Final[Mapping[str, Metric]] = {
    MESSAGES: Metric(help="Messages that were sent, and that have ended, by how.", labels=("task", "queue", "state")),
    ATTEMPTS: Metric(help="Attempts that have ended, by how.", labels=("task", "outcome")),
    RUN: Metric(help="How long runs took.", labels=("task", "queue", "outcome"), is_histogram=True),
    WAIT: Metric(help="From when a run was due to its start.", labels=("task", "queue"), is_histogram=True),
    SEND: Metric(help="How long sends took.", labels=("queue", "outcome"), is_histogram=True),
}
"""What processes count."""

QUEUE_MESSAGES: Final = "taskbridge_queue_messages"
QUEUE_OLDEST: Final = "taskbridge_queue_oldest_seconds"
PAUSED: Final = "taskbridge_paused"
MISSED: Final = "taskbridge_schedule_missed_total"
FLOWS: Final = "taskbridge_flows"

READ: Final[Mapping[str, Metric]] = {
    QUEUE_MESSAGES: Metric(help="Messages by queue and state.", labels=("queue", "state")),
    QUEUE_OLDEST: Metric(help="How long the oldest waiting message has waited.", labels=("queue",)),
    PAUSED: Metric(help="Whether a queue is paused: 1 if so.", labels=("queue",)),
    MISSED: Metric(help="Ticks of schedules that were not sent.", labels=("schedule",)),
    FLOWS: Metric(help="Flows that are not at their end, and those of them that are stalled.", labels=("state",)),
}
"""What is read from broker and store."""


def in_opentelemetry(name: str) -> dict[str, str]:
    """Return a metric's name, unit and description there; exporters for Prometheus append `_total` themselves."""
    unit = "s" if name.endswith("_seconds") else ""
    return {"name": name.removesuffix("_total"), "unit": unit, "description": {**COUNTED, **READ}[name].help}
