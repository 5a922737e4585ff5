"""Opens environments with records, for tests that take several targets at once."""

from __future__ import annotations

from contextlib import ExitStack

from taskbridge.contract.environment import Environment
from taskbridge.contract.harness import Harness
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
    environment = Environment(Target.of(url, store=store), STORED, patience_s=2 * PATIENCE_S, namespace=namespace)
    return Harness(stack.enter_context(environment))
