"""Writes the page of rules, scenarios and mutants: `python docs/write_scenarios.py > docs/scenarios.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from taskbridge.contract.matrix import scenarios_of
from taskbridge.contract.rules import RULES

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.mutants.catalogue import mutants_of

HEAD = """\
# Scenarios

<!-- Written by docs/write_scenarios.py: change the contract, not this page. -->

How each rule is proved. A **scenario** observes from outside: what starts, when, in which order, and what the broker
holds. It runs on every [target](guide/settings.md#urls) on which it makes sense, on Redis and RabbitMQ with real worker
processes. A **mutant** is taskbridge with the rule broken, in which the named scenario must fail: so it is known that
the suite can fail.

`taskbridge verify --list` prints the rules with their scenarios; `taskbridge verify URL --rule R5` runs those
of a rule.
"""


def page() -> str:
    """Return the page."""
    return "\n".join([HEAD, *(line for rule in RULES for line in _section(rule))])


def _section(name: str) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{RULES[name]} [The rule](#rule-{name.lower()}).\n"
    yield "| scenario | what it shows |\n|---|---|"
    yield from (f"| `{scenario.name}` | {scenario.title} |" for scenario in scenarios_of(name))
    yield "\n| mutant | what is broken | found by |\n|---|---|---|"
    for mutant in mutants_of(name):
        yield f"| `{mutant.name}` | {mutant.title} | `{mutant.scenario}` on `{mutant.target}` |"
    yield ""


if __name__ == "__main__":
    sys.stdout.write(page())
