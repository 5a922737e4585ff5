"""How a scenario fails."""

from __future__ import annotations

from taskbridge import TaskBridgeError


class ContractFailure(TaskBridgeError, AssertionError):
    """A target broke a promise; the text says what was expected and what was seen."""


class NotIdle(ContractFailure):
    """A target did not come to rest; `own` says whether the scenario's own messages are what kept it busy."""

    def __init__(self, seen: str, *, own: bool) -> None:
        super().__init__(seen)
        self.own = own
