"""The product with one of the acts undone that keep a flow whole while processes are killed.

`tests.flows.kills` must find out each of them at an instant.
"""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.mutants.flows import a_step_is_published_before_its_flow_is_stored
from tests.mutants.table import put

_RUNNING = "taskbridge.flows.running"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """The product, broken.

    Attributes:
        title: What is broken, as a sentence.
        instant: The name of the instant at which processes are killed.
        flows: For how many flows.
        says: What is then told to be wrong, in part.
        apply: Breaks it, in this process.
    """

    title: str
    instant: str
    flows: int
    says: str
    apply: Callable[[], None]


def _short_lived() -> None:
    def make(write: Any) -> Any:
        def short(key: str, seen: str, text: Any, kept_s: Any = None, *given: Any, **named: Any) -> Any:
            return write(key, seen, text, 1.0 if key.endswith(":plan") else kept_s, *given, **named)

        return short

    put(_RUNNING, "Write", make)


def _not_suspect() -> None:
    put("taskbridge.engines.settle", "_decided_before", lambda _: lambda *given, **named: None)


MUTANTS: Final[Mapping[str, Mutant]] = {
    "published first": Mutant(
        title="The broker has a step before the store knows of its flow",
        instant="3 a sender of a first step, at each of its calls",
        flows=8,
        says="a step ran of a flow that is not known",
        apply=a_step_is_published_before_its_flow_is_stored,
    ),
    "plans expire": Mutant(
        title="A flow's plan is kept for a second",
        instant="1 after the last one was counted",
        flows=1,
        says="was given up",
        apply=_short_lived,
    ),
    "nobody looks at marks": Mutant(
        title="What the outbox has published twice is run twice",
        instant="2 after it was, before that is noted",
        flows=2,
        says="an attempt ran twice",
        apply=_not_suspect,
    ),
}
"""Each by its name."""
