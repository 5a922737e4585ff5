"""What `send` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Handle(Generic[R_co]):
    """A message that was sent; its type says what the task returns.

    Attributes:
        id: The message's id, known at once and the same for all attempts.
        task: The task's name.
        queue: The queue it was sent to.
    """

    id: str
    task: str
    queue: str
