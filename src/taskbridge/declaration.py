"""What is known of a task from its decorator."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

from taskbridge.message import Priority
from taskbridge.retry import RetryPolicy

if TYPE_CHECKING:
    from taskbridge.schedules.plan import Schedule  # only here, for few tasks have one


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """A task, as declared.

    Attributes:
        name: What messages call it.
        function: The user's function, or coroutine function.
        signature: The function's.
        is_coroutine: Whether calling it gives an awaitable.
        queue: What the decorator says; None leaves it to the settings.
        priority: Of its messages, unless `using` says otherwise.
        retry: Its policy; None leaves it to the settings.
        expires_s: Seconds after which a message of it no longer starts; None is never.
        time_limit_s: Seconds that a run may take; None is no limit.
        schedules: When messages of it are sent by themselves.
        results: Whether its messages are recorded, where there is a store.
        positional: How many arguments, all of them positional, always fit the signature.
    """

    name: str
    function: Callable[..., Any]
    signature: Signature
    is_coroutine: bool
    queue: str | None = None
    priority: Priority = "normal"
    retry: RetryPolicy | None = None
    expires_s: float | None = None
    time_limit_s: float | None = None
    schedules: tuple[Schedule, ...] = ()
    results: bool = True
    positional: range = range(0)

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Return if the arguments fit the signature.

        Raises:
            TypeError: They don't.
        """
        if kwargs or len(args) not in self.positional:  # else there is no need for `bind`, which takes 2 us
            self.signature.bind(*args, **kwargs)


def positional_of(signature: Signature) -> range:
    """Return how many arguments, all of them positional, always fit a signature."""
    least = most = 0
    for parameter in signature.parameters.values():
        is_needed = parameter.default is Parameter.empty
        if parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD):
            least += is_needed
            most += 1
        elif parameter.kind is Parameter.VAR_POSITIONAL:
            most = sys.maxsize - 1
        elif parameter.kind is Parameter.KEYWORD_ONLY and is_needed:
            return range(0)
    return range(least, most + 1)
