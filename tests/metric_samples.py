"""Reads what is served for Prometheus, and what is exported by OpenTelemetry."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

_MATCHES: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "=": lambda value, wanted: value == wanted,
    "!=": lambda value, wanted: value != wanted,
    "=~": lambda value, wanted: re.fullmatch(wanted, value) is not None,
    "!~": lambda value, wanted: re.fullmatch(wanted, value) is None,
}


def without_a_hit(queries: Iterable[str], found: Iterable[str]) -> set[str]:
    """Return what queries of Prometheus select that is none of these samples; a variable of Grafana is any value."""
    named = [
        (name, dict(re.findall(r'(\w+)="([^"]*)"', labels))) for name, _, labels in (s.partition("{") for s in found)
    ]
    missed: set[str] = set()
    for query in queries:
        for name, matchers in re.findall(r"(taskbridge_\w+)(?:\{([^}]*)\})?", query):
            wanted = [
                (label, _MATCHES[how], re.sub(r"\$\w+", ".*", value))
                for label, how, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers)
            ]
            if not any(
                name == each and all(matches(labels.get(label, ""), value) for label, matches, value in wanted)
                for each, labels in named
            ):
                missed.add(f"{name}{{{matchers}}}")
    return missed


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
