"""Tasks that end in every way, declared on a bridge: a worker's, and that of the test that sends to it."""

from __future__ import annotations

from dataclasses import dataclass

from taskbridge import Bridge, Discard, RetryPolicy, Task, current


@dataclass(frozen=True, kw_only=True, slots=True)
class Tasks:
    """The tasks; each is named for how it ends."""

    done: Task[[], int]
    dead: Task[[], None]
    retried: Task[[], int]
    discarded: Task[[], None]


def declare(bridge: Bridge) -> Tasks:
    """Declare them."""

    @bridge.task(name="watched.done")
    def done() -> int:
        return 1

    @bridge.task(name="watched.dead", retry=RetryPolicy.never())
    def dead() -> None:
        raise ValueError("on purpose")

    @bridge.task(name="watched.retried", retry=RetryPolicy(delays=[0.1]))
    def retried() -> int:
        if current().attempt == 1:
            raise KeyError("the first time")
        return 1

    @bridge.task(name="watched.discarded")
    def discarded() -> None:
        raise Discard("not needed")

    return Tasks(done=done, dead=dead, retried=retried, discarded=discarded)
