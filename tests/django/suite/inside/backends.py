"""taskbridge's backend in the place of the two that Django's tests were written for.

The tests are as Django has them. What they expect of these two, and of no backend whose tasks run elsewhere and later,
is added here, and nothing else.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

from taskbridge.django import TaskBackend
from tests.django.suite.inside.logs import log_again

_PATIENCE_S: Final = 120.0


class WaitingBackend(TaskBackend):
    """Stands for the immediate backend: `enqueue` returns when a worker has run the task, and its logs are here."""

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Send a task, and wait for its end."""
        result, deadline = super().enqueue(task, args, kwargs), time.monotonic() + _PATIENCE_S
        while not result.is_finished:
            assert time.monotonic() < deadline, f"no worker has run {result}"
            time.sleep(0.01)
            result.refresh()
        if "SUITE_FOLDER" in os.environ:
            log_again(Path(os.environ["SUITE_FOLDER"]), result.id)
        return result


class HeldBackend(TaskBackend):
    """Stands for the dummy backend: what it sends waits in a queue that no worker consumes, and it knows the ids."""

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._ids: list[str] = []

    def queue_of(self, task: Any) -> str:
        """Return the queue that no worker consumes."""
        return "held"

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Send a task, and remember its id."""
        result = super().enqueue(task, args, kwargs)
        self._ids.append(result.id)
        return result

    @property
    def results(self) -> list[Any]:
        """The results of what was sent, as the store has them."""
        return [self.get_result(each) for each in self._ids]

    def clear(self) -> None:
        """Forget what was sent."""
        self._ids.clear()
