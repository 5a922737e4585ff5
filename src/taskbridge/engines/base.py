"""What every engine does, and what it is given to do it with.

An engine is a package with two modules, so that a process that only sends never imports the engine itself:

- `wire`, which needs nothing installed: `make_wire(kind, settings) -> Wire` for the kinds of broker it can use
  (`redis`, `amqp`, `memory`; for memory it may import the engine);
- `app`, which imports the engine: `make_engine(host) -> Engine`.

An engine that isn't built in is found by the entry point group `taskbridge.engines`, whose values are packages.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol

from taskbridge.brokers.base import Broker, Wire
from taskbridge.declaration import Declaration
from taskbridge.engines.bound import BoundTask
from taskbridge.hooks import Hooks
from taskbridge.schedules.sender import TickHost
from taskbridge.settings import Settings
from taskbridge.stores.base import Marks


class Means(Protocol):
    """What it takes to hand something to the broker: the bridge, or a task bound to it."""

    @property
    def settings(self) -> Settings:
        """The checked settings."""
        ...

    @property
    def broker(self) -> Broker:
        """The connection to the broker."""
        ...

    @property
    def stopping(self) -> threading.Event:
        """Set once this process's worker stops: nothing waits for a broker any longer (rule R5)."""
        ...


class Host(Means, TickHost, Protocol):
    """The bridge, as its engine sees it."""

    @property
    def hooks(self) -> Hooks:
        """The application's hooks."""
        ...

    @property
    def wire(self) -> Wire[Any]:
        """The engine's own wire for this broker."""
        ...

    @property
    def marks(self) -> Marks | None:
        """The attempt marks; None without a store."""
        ...

    def declarations(self) -> Sequence[Declaration]:
        """Return all tasks declared so far."""
        ...

    def knows(self, task: str) -> bool:
        """Return whether a task of this exact name is declared."""
        ...

    def queues(self) -> Sequence[str]:
        """Return the known queues, by taskbridge's own names, the default one first."""
        ...

    def queue_of(self, task: str) -> str:
        """Return the queue that a task's messages go to, unless `using(queue=)` says otherwise."""
        ...

    def bound(self, task: str) -> BoundTask:
        """Return all that runs of a task need; made once, and again after a change."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOptions:
    """What `taskbridge worker` was asked for.

    Attributes:
        app: `MODULE[:BRIDGE]`, where the tasks are.
        queues: The queues to consume; empty is all known ones.
        processes: How many, at least 1.
        threads: Tasks at a time in each, at least 1.
        log_level: A level's name, such as `INFO`.
        scheduler: Whether they send by schedules, if the setting `scheduler` allows it.
    """

    app: str
    queues: tuple[str, ...] = ()
    processes: int = 1
    threads: int = 1
    log_level: str = "INFO"
    scheduler: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command that starts a stock worker.

    Attributes:
        argv: The words of its command line.
        env: Variables to set, over those that it inherits.
        drops: What the names of variables begin with that it does not inherit, because the engine would obey them.
            None drops nothing.
        keeps: Shell patterns of variables that it inherits although `drops` matches them.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    drops: str | None = None
    keeps: tuple[str, ...] = ()

    def dropped(self, inherited: Mapping[str, str]) -> list[str]:
        """Return the names of the variables that the worker does not inherit, in alphabetical order."""
        if self.drops is None:
            return []
        found = (name for name in inherited if name.startswith(self.drops))
        return sorted(name for name in found if not any(fnmatchcase(name, kept) for kept in self.keeps))

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the worker's process, made from the one that it is started in."""
        dropped = set(self.dropped(inherited))
        return {**{name: value for name, value in inherited.items() if name not in dropped}, **self.env}


class Engine(Protocol):
    """An engine, joined to one bridge."""

    @property
    def native(self) -> Any:
        """The Celery app or the Dramatiq broker, with every declared task and known queue."""
        ...

    def register(self, declaration: Declaration) -> None:
        """Make a task known to the engine; called for every task, also those declared later."""
        ...

    def worker_commands(self, options: WorkerOptions) -> list[Command]:
        """Return the commands that together make processes x threads slots, normally one."""
        ...

    def embedded_worker(self, *, queues: Sequence[str], threads: int) -> AbstractContextManager[None]:
        """Run a worker in threads of this process while the block runs; only on memory brokers."""
        ...

    def close(self) -> None:
        """Let go of what the engine holds open."""
        ...
