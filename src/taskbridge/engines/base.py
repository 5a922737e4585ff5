"""What every engine does, and what it is given to do it with.

An engine is a package with two modules, so that a process that only sends never imports the engine itself:

- `wire`, which needs nothing installed: `make_wire(kind, settings) -> Wire` for the kinds of broker it can use
  (`redis`, `amqp`, `memory`; for memory it may import the engine);
- `app`, which imports the engine: `make_engine(host) -> Engine`, where the host is the bridge.

An engine that isn't built in is found by the entry point group `taskbridge.engines`, whose values are packages.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from taskbridge.declaration import Declaration

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge

Host: TypeAlias = "Bridge"
"""What an engine is given: the bridge that it belongs to."""

APP_VARIABLE: Final = "TASKBRIDGE_APP"
"""The environment variable that tells an engine's own worker which application to load."""


READY_VARIABLE: Final = "TASKBRIDGE_APP_READY"
"""The environment variable with the path of a FIFO, to which each process that runs tasks writes its id."""

METRICS_VARIABLE: Final = "TASKBRIDGE_APP_METRICS"
"""The environment variable with the path of the socket to which each process of a worker sends what it has counted."""

INLINE_THREADS: Final = "taskbridge-inline"
"""What the names of the threads begin with in which an inline bridge runs messages, unless their caller does."""

LEVEL_VARIABLE: Final = "TASKBRIDGE_APP_LOG_LEVEL"
"""The environment variable with the least level that a worker logs, unless the application sets one."""

MOST_TASKS: Final = "TASKBRIDGE_APP_MAX_TASKS"
MOST_MEMORY: Final = "TASKBRIDGE_APP_MAX_MEMORY"
"""The environment variables that say after how many runs, and with how many MB, a process ends for another one."""


def tell_supervisor(sign: str = "") -> None:
    """Tell whoever started the worker that this process runs tasks now; or with the sign `-`, that it takes no more."""
    try:
        place = os.open(os.environ[READY_VARIABLE], os.O_WRONLY | os.O_NONBLOCK)
    except (KeyError, OSError):  # nobody reads, or not any more: a supervisor was killed
        return
    with open(place, "w", encoding="ascii") as file:
        file.write(f"{sign}{os.getpid()}\n")


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
        max_tasks_per_child: After how many tasks a process ends, and another takes its place; None is never.
        max_memory_per_child: The same, with how many MB of memory.
    """

    app: str
    queues: tuple[str, ...] = ()
    processes: int = 1
    threads: int = 1
    log_level: str = "INFO"
    scheduler: bool = True
    max_tasks_per_child: int | None = None
    max_memory_per_child: int | None = None

    @property
    def limits(self) -> dict[str, str]:
        """The variables by which a process knows these two itself."""
        most = {MOST_TASKS: self.max_tasks_per_child, MOST_MEMORY: self.max_memory_per_child}
        return {name: str(value) for name, value in most.items() if value is not None}


UNIQUE: Final = "{unique}"
"""Stands for what differs each time that a command is started: one that retires still runs beside its successor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command that starts a stock worker.

    Attributes:
        argv: The words of its command line, in which `UNIQUE` may stand.
        env: Variables to set, over those that it inherits.
        drops: What the names of variables begin with that it does not inherit, because the engine would obey them.
            None drops nothing.
        keeps: Shell patterns of variables that it inherits although `drops` matches them.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    drops: str | None = None
    keeps: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """Return the words of the command line, for one start of it."""
        unique = secrets.token_hex(4)
        return [word.replace(UNIQUE, unique) for word in self.argv]

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
