"""Reads what is served for Prometheus."""

from __future__ import annotations

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
