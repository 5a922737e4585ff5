"""Opens environments with records, for tests that take several targets at once."""

from __future__ import annotations

from contextlib import ExitStack

from taskbridge.contract.environment import Environment
from taskbridge.contract.harness import Harness
from taskbridge.contract.pace import Pace
from taskbridge.contract.registry import STORED
from taskbridge.contract.suite import PATIENCE_S
from taskbridge.contract.target import Target


def open_stored(stack: ExitStack, url: str, *, store: str | None = None, namespace: str | None = None) -> Harness:
    """Open an environment with records on a target, until the stack is closed.

    Args:
        stack: What closes it.
        url: The target's.
        store: Where the records are, if not in the broker.
        namespace: That of another environment, to share its records; one of its own if None.
    """
    target, pace = Target.of(url, store=store), Pace.of_this_run()
    environment = Environment(target, STORED, patience_s=2 * PATIENCE_S, pace=pace, namespace=namespace)
    return Harness(stack.enter_context(environment))
