"""Where a check runs: a store, opened as often as there are processes in its story."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

from typing_extensions import Self

from taskbridge import Bridge, Message
from taskbridge.contract.cleaning import PREFIX
from taskbridge.contract.failure import ContractFailure
from taskbridge.contract.preloading import PRELOAD, without_settings
from taskbridge.stores.base import Store

T = TypeVar("T")

TIMEOUT_S: Final = 10.0
"""How long a call may take, where that isn't what is checked."""


class Server(Protocol):
    """What is behind a store, and may be taken away; its data stays."""

    def kill(self) -> None:
        """End it at once."""
        ...

    def start(self) -> object:
        """Start it again, and return when it answers."""
        ...

    def pause(self) -> None:
        """Stop its process where it is: connections stay open, and nothing answers."""
        ...

    def resume(self) -> None:
        """Let it go on."""
        ...


class Place:
    """A namespace of its own in a store.

    Args:
        url: The store's.
        server: What is behind it, if it may be taken away.

    Attributes:
        url: The store's.
        server: As given.
        namespace: The namespace.
    """

    def __init__(self, url: str, *, server: Server | None = None) -> None:
        self.url: str = url
        self.server: Server | None = server
        self.namespace: str = PREFIX + secrets.token_hex(6)
        self._bridges: list[Bridge] = []
        self._shared: dict[str, Store] = {}
        self._actors: list[Actor] = []

    @property
    def in_process(self) -> bool:
        """Whether the store ends with this process, and nobody else sees it."""
        return self.url.startswith("memory:")

    def store(self, **settings: Any) -> Store:
        """Return the store as another process would open it; in memory, the same one for the same settings."""
        if not self.in_process:
            return self._opened(settings)
        return self._shared.setdefault(repr(settings), self._opened(settings))

    def actor(self, verb: str, *words: str, **settings: Any) -> Actor:
        """Start a process that does something with the store; see `taskbridge.contract.stores.actor`."""
        actor = Actor(self, verb, words, settings)
        self._actors.append(actor)
        return actor

    def _opened(self, settings: dict[str, Any]) -> Store:
        bridge = Bridge("inline://", store=self.url, namespace=self.namespace, **settings)
        self._bridges.append(bridge)
        store = bridge.store
        if store is None:
            raise ContractFailure(f"{self.url} opens no store")
        return store

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes and close what was opened."""
        for actor in self._actors:
            actor.end()
        for bridge in self._bridges:
            bridge.close()


class Actor:
    """A process that does something with a store, and writes what it sees, a line at a time."""

    def __init__(self, place: Place, verb: str, words: tuple[str, ...], settings: dict[str, Any]) -> None:
        given = {"store": place.url, "namespace": place.namespace, **settings}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "taskbridge.contract.stores.actor", json.dumps(given), verb, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=without_settings(),
        )

    def line(self) -> str:
        """Return the next line it writes; an empty text if it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def lines(self) -> list[str]:
        """Return all that it still writes until it ends."""
        assert self._process.stdout is not None
        return self._process.stdout.read().split()

    def go_on(self) -> None:
        """Let it take its next step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Stop it where it is."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it if it hasn't ended, and close its pipes."""
        if self._process.poll() is None:
            self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def a_message(**fields: Any) -> Message:
    """Return a message that nobody else has."""
    given: dict[str, Any] = {
        "id": secrets.token_hex(16),
        "task": "shop.tasks.confirm",
        "queue": "mail",
        "args_json": "[]",
        "kwargs_json": "{}",
        "enqueued_at": time.time(),
    }
    return Message(**{**given, **fields})


def patience_s() -> float:
    """Return how long something may take that should happen at once, on a busy machine; less for what must fail."""
    return 3.0 if PRELOAD in os.environ else 20.0


def expect(seen: object, wanted: object, what: str) -> None:
    """Fail if something isn't as it should be.

    Raises:
        ContractFailure: It says what was expected and what was seen.
    """
    if seen != wanted:
        raise ContractFailure(f"{what}: expected {wanted!r}, saw {seen!r}")


def soon(look: Callable[[], T], wanted: Callable[[T], bool], what: str) -> T:
    """Return what is seen as soon as it is as it should be.

    Raises:
        ContractFailure: It isn't within `patience_s()`.
    """
    deadline = time.monotonic() + patience_s()
    while not wanted(seen := look()):
        if time.monotonic() > deadline:
            raise ContractFailure(f"{what}: not within {patience_s():g} s, saw {seen!r}")
        time.sleep(0.01)
    return seen
