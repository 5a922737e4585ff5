"""D and X, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

from tests.mutants.table import mutant, put

_MEMORY = "taskbridge.brokers.memory"


def _park_otherwise(make: Any) -> None:
    """Park other messages for other times than was asked for."""

    def making(park: Any) -> Any:
        def changed(self: Any, messages: Any, *, timeout_s: float) -> None:
            park(
                self, [entry for message, delay_s in messages for entry in make(message, delay_s)], timeout_s=timeout_s
            )

        return changed

    put(_MEMORY, "MemoryBroker.park", making)


@mutant("D1", "delays_are_kept")
def delays_are_rounded_down() -> None:
    """What is delayed starts up to a second early."""
    _park_otherwise(lambda message, delay_s: [(message, float(math.floor(delay_s)))])


@mutant("D1", "delays_are_kept")
def delays_are_a_little_short() -> None:
    """What is delayed starts a little early, but by more than a busy machine is late."""
    _park_otherwise(lambda message, delay_s: [(message, max(0.0, delay_s - 0.15))])


@mutant("D2", "delays_are_kept")
def delays_are_looked_at_seldom() -> None:
    """What is due starts three seconds late."""
    _park_otherwise(lambda message, delay_s: [(message, delay_s + 3)])


@mutant("D3", "workers_do_not_hold_what_is_delayed")
def workers_hold_what_is_delayed() -> None:
    """What is delayed is published, and waits where a worker has it in memory."""

    def make(_: Any) -> Any:
        def hold(self: Any, messages: Any, *, timeout_s: float) -> None:
            held = getattr(self, "held", [])
            self.held = held
            held += [threading.Timer(delay_s, self.publish, ([message],)) for message, delay_s in messages]

        return hold

    put(_MEMORY, "MemoryBroker.park", make)


@mutant("D4", "delays_outlive_workers")
def delays_die_with_the_worker() -> None:
    """When a worker ends, what is delayed is gone."""

    def make(pump: Any) -> Any:
        def forgetful(self: Any, **given: Any) -> None:
            pump(self, **given)
            self._parked.clear()

        return forgetful

    put(_MEMORY, "MemoryBroker.pump", make)


@mutant("D5", "delays_have_a_bound")
def delays_have_no_bound() -> None:
    """Any delay is taken."""
    put("taskbridge.sending", "LONGEST_DELAY_S", lambda _: math.inf)


@mutant("D5", "delays_have_a_bound")
def long_delays_are_cut() -> None:
    """A delay of years is over in a moment."""
    _park_otherwise(lambda message, delay_s: [(message, delay_s if delay_s < 1e6 else 0.1)])


@mutant("D6", "long_delays_run_once")
def a_delay_over_the_lease_runs_twice() -> None:
    """What is delayed for longer than the lease is delivered again when that is over."""
    _park_otherwise(lambda message, delay_s: [(message, delay_s), *([(message, 5.0)] if delay_s > 5 else [])])


@mutant("X1", "what_waited_too_long_is_discarded")
def expiry_is_ignored() -> None:
    """What has expired is run."""
    put(
        "taskbridge.runner",
        "Runner.run",
        lambda run: lambda self, message: run(self, replace(message, expires_at=None)),
    )


@mutant("X1", "what_is_due_too_late_is_discarded")
def a_retry_does_not_expire() -> None:
    """A retry forgets when it expires."""

    def make(next_attempt: Any) -> Any:
        return lambda self, error: replace(next_attempt(self, error), expires_at=None)

    put("taskbridge.message", "Message.next_attempt", make)


@mutant("X1", "what_waited_too_long_is_discarded")
def what_has_expired_is_dead() -> None:
    """What has expired leaves a dead letter, as Dramatiq's does."""

    def make(run: Any) -> Any:
        def strict(self: Any, message: Any) -> Any:
            from taskbridge.retry import Dead, Discarded  # here, for a mutant imports what it breaks

            verdict = run(self, message)
            return Dead("expired") if verdict == Discarded("expired") else verdict

        return strict

    put("taskbridge.runner", "Runner.run", make)
