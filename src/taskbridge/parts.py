"""What a bridge is made of: settings, broker, store and engine, each made as it is first used."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from taskbridge import locks
from taskbridge.exceptions import NotInstalledError
from taskbridge.probe import DECLARATION as PROBE_DECLARATION
from taskbridge.routing import Routing

if TYPE_CHECKING:
    from taskbridge.brokers.base import Broker, Wire
    from taskbridge.engines.base import Engine, Host
    from taskbridge.settings import Settings
    from taskbridge.stores.base import Marks, Store

_MODULES: Final[Mapping[str, str]] = {
    "celery": "taskbridge.engines.celery",
    "dramatiq": "taskbridge.engines.dramatiq",
    "memory": "taskbridge.brokers.memory",
    "redis": "taskbridge.brokers.redis",
    "amqp": "taskbridge.brokers.rabbitmq",
}

_CLIENTS: Final[Mapping[str, tuple[str, str]]] = {
    "celery": ("engine 'celery'", "celery"),
    "dramatiq": ("engine 'dramatiq'", "dramatiq"),
    "redis": ("redis-py, the client of broker 'redis',", "redis"),
    "pika": ("pika, the client of broker 'amqp',", "rabbitmq"),
    "sqlalchemy": ("SQLAlchemy, which SQL stores need,", "sql"),
    "psycopg": ("psycopg, the client of store 'postgresql',", "postgresql"),
}


class Parts:
    """The parts of one bridge. Threads share them.

    What is first used is imported and made in a block of `locks.no_fork`, so that a forked child can do it too.

    Args:
        bridge: What engines are given.
        given: The settings that the application gave.

    Attributes:
        clock: What tells the time, in seconds since the epoch; virtual on `inline://`, once that is joined.
    """

    def __init__(self, bridge: Host, given: Mapping[str, Any]) -> None:
        self.lock: AbstractContextManager[Any] = locks.RLock()
        self.given: Mapping[str, Any] = given
        self._bridge = bridge
        self.clock: Callable[[], float] = time.time
        self._settings: Settings | None = None
        self._routing: Routing | None = None
        self._joined: tuple[Broker, Wire[Any]] | None = None
        self._engine: Engine | None = None
        self._store: tuple[Store | None, Marks | None] | None = None

    @property
    def shown(self) -> str:
        """The bridge's URL without credentials, or that it has none yet."""
        return "not configured yet" if self._settings is None else self._settings.url.safe_url

    @property
    def settings(self) -> Settings:
        """The checked settings."""
        if self._settings is None:
            with locks.no_fork(), self.lock:
                settings, chosen = load(self.given)
                if not chosen:
                    warnings.warn(
                        "no url is set (TASKBRIDGE_URL or configure(url=...)): tasks run inline, in this process",
                        RuntimeWarning,
                        stacklevel=4,
                    )
                self._routing = Routing(
                    default_queue=settings.default_queue, routes=settings.routes, declared=settings.queues
                )
                self._settings = settings
        return self._settings

    def routing(self) -> Routing:
        """Return how messages find their queues."""
        _ = self.settings
        return cast(Routing, self._routing)

    def joined(self) -> tuple[Broker, Wire[Any]]:
        """Return the connection to the broker, which connects when it is first used, and the engine's wire for it."""
        if self._joined is None:
            with locks.no_fork(), self.lock:
                if self._joined is None:
                    self._joined = self._join()
        return self._joined

    def _join(self) -> tuple[Broker, Wire[Any]]:
        settings = self.settings
        _import_the_rest()
        if settings.url.engine == "inline":
            return self._join_inline(settings)
        engine = _module("taskbridge.engines", settings.url.engine)
        wire = _import(f"{engine}.wire").make_wire(settings.url.broker, settings)
        broker: Broker = _import(_module("taskbridge.brokers", settings.url.broker)).connect(settings, wire)
        return broker, wire

    def _join_inline(self, settings: Settings) -> tuple[Broker, Wire[Any]]:
        memory, inline = _import("taskbridge.brokers.memory"), _import("taskbridge.engines.inline")
        clock = _import("taskbridge.clock").VirtualClock()
        wire = inline.InlineWire()
        broker = memory.connect(settings, wire, clock)
        options: Mapping[str, str] = dict(settings.url.options)
        threads: int = int(options["threads"]) if "threads" in options else inline.DEFAULT_THREADS
        self.clock = clock.now
        self._engine = inline.InlineEngine(self._bridge, wire, clock, broker, threads)
        return broker, wire

    def stored(self) -> tuple[Store | None, Marks | None]:
        """Return the store, and its attempt marks; each None if there is none.

        There are no marks where nothing comes twice: nothing outlives the process on `inline://`.
        """
        if self._store is None:
            with locks.no_fork(), self.lock:
                if self._store is None:
                    _import_the_rest()
                    store = _open_store(self.settings, self._bridge.now)
                    nothing_comes_twice = self.settings.url.engine == "inline"
                    self._store = store, None if store is None or nothing_comes_twice else store.marks
        return self._store

    @property
    def engine(self) -> Engine:
        """The engine, joined to the bridge; imports it.

        Raises:
            NotInstalledError: The engine is not installed.
        """
        self.joined()
        if self._engine is None:
            with locks.no_fork(), self.lock:
                if self._engine is None:
                    name = _module("taskbridge.engines", self.settings.url.engine)
                    made: Engine = _with_libraries(lambda: import_module(f"{name}.app").make_engine(self._bridge))
                    self._engine = made
                    made.register(PROBE_DECLARATION)
                    for declaration in self._bridge.declarations():
                        made.register(declaration)
        return self._engine

    @property
    def engine_if_made(self) -> Engine | None:
        """The engine, if it is made."""
        return self._engine

    def close(self) -> None:
        """Close the connections and what the engine runs; the next use makes the parts again."""
        with self.lock:
            engine, joined, stored = self._engine, self._joined, self._store
            self._engine, self._joined, self._store = None, None, None
        if engine is not None:
            engine.close()
        if joined is not None:
            joined[0].close()
        if stored is not None and stored[0] is not None:
            stored[0].close()

    def reload(self, given: Mapping[str, Any]) -> None:
        """Read other settings as they are next needed."""
        with self.lock:
            self.given = given
            self._settings = None


def load(given: Mapping[str, Any]) -> tuple[Settings, bool]:
    """Return the checked settings, and whether a URL was chosen; see `settings.load`."""
    from taskbridge.settings import load  # here, for declaring tasks needs no settings

    return load(given)


def _import_the_rest() -> None:
    """Import what the standard library would import as it first looks a name up."""
    "localhost".encode("idna")


def _module(group: str, name: str) -> str:
    """Return the module of an engine or a broker, built in or found by entry point."""
    if name in _MODULES:
        return _MODULES[name]
    from taskbridge.settings import plugins  # here, for declaring tasks needs no settings

    return plugins(group)[name]


def _store_module(scheme: str) -> str:
    """Return the module of a store, built in or found by entry point."""
    from taskbridge.settings import STORE_PLUGINS, STORE_SCHEMES, plugins

    if scheme in STORE_SCHEMES:
        return f"taskbridge.stores.{STORE_SCHEMES[scheme]}"
    return plugins(STORE_PLUGINS)[scheme]


def _open_store(settings: Settings, now: Callable[[], float]) -> Store | None:
    """Return the store: the setting's, or the broker, if it is Redis or memory."""
    url = settings.store
    if url is None and settings.url.broker in ("redis", "memory"):
        url = settings.url.broker_url
    if url is None:
        return None
    scheme = url.partition(":")[0]
    module = _import(_store_module(scheme))
    store: Store = module.open_store(settings, url, now=now) if scheme == "memory" else module.open_store(settings, url)
    return store


def _import(name: str) -> Any:
    """Import one of our modules that needs a library that may be missing."""
    return _with_libraries(lambda: import_module(name))


def _with_libraries(make: Callable[[], Any]) -> Any:
    """Return what is made with libraries; where one is missing, say how to get it."""
    try:
        return make()
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in _CLIENTS:
            raise
        what, extra = _CLIENTS[missing]
        raise NotInstalledError(what, extra) from exc
