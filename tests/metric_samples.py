"""Reads what is served for Prometheus, and what is exported by OpenTelemetry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


def samples(text: str) -> dict[str, float]:
    """Return the values by name and labels, as in `taskbridge_paused{queue="email"}`, but for times of creation."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            if not each.name.endswith("_created"):
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(each.labels.items()))
                found[f"{each.name}{{{labels}}}"] = each.value
    return found


def exported(data: Any) -> list[dict[str, Any]]:
    """Return the metrics in OpenTelemetry's `MetricsData`, or in its JSON; None is none."""
    read = {"resource_metrics": []} if data is None else data if isinstance(data, dict) else json.loads(data.to_json())
    return [
        each
        for resource in read["resource_metrics"]
        for scope in resource["scope_metrics"]
        for each in scope["metrics"]
    ]


def exported_samples(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the values of what was exported, but for histograms, by the names and labels that Prometheus has."""
    found: dict[str, float] = {}
    for metric in metrics:
        end = "_total" if metric["data"].get("is_monotonic") else ""
        for each in metric["data"]["data_points"]:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(each["attributes"].items()))
            if "value" in each:
                found[f"{metric['name']}{end}{{{labels}}}"] = each["value"]
    return found
