"""What a bridge is made of: settings, broker, store and engine, each made as it is first used."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from taskbridge import locks
from taskbridge.exceptions import NotInstalledError
from taskbridge.hooks import Hooks

if TYPE_CHECKING:
    from collections import deque

    from taskbridge.brokers.base import Broker, Wire
    from taskbridge.engines.base import Engine
    from taskbridge.engines.inline import InlineEngine
    from taskbridge.observing import Observer
    from taskbridge.pauses import Pauses
    from taskbridge.settings import Settings
    from taskbridge.stores.base import Marks, Store
    from taskbridge.stores.records import Records
    from taskbridge.vitals import Ended

T = TypeVar("T")

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
    "psycopg": ("psycopg, the client of store 'postgresql',", "postgresql"),
}
"""The libraries that may be missing: what the error calls each, and the extra that installs it."""


class Parts:
    """The parts of one bridge. Threads share them.

    Attributes:
        hooks: The application's hooks.
        observers: What is told of messages that are sent, run and settled; see `taskbridge.observing`.
        ended: Where each verdict is noted that was carried out, for `taskbridge.vitals`; a deque, for that is quick.
        stopping: Set once this process's worker stops: nothing waits for a broker any longer (rule R5).
        is_stopping: Returns whether this process's worker was told to stop; what runs has the grace.
        celery_fixups: What a Celery app loads for other libraries, Django above all; None is what Celery has for them.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._lock: AbstractContextManager[Any] = locks.RLock()
        self._made: dict[str, Any] = {}
        self.hooks: Hooks = Hooks()
        self.observers: list[Observer] = []
        self.ended: list[deque[Ended]] = []
        self.stopping: threading.Event = locks.Event()
        self.is_stopping: Callable[[], bool] = bool
        self.celery_fixups: Sequence[str] | None = None

    def _part(self, name: str, make: Callable[[], T]) -> T:
        """Return a part of this name, made when it is first asked for.

        It is imported and made in a block of `locks.no_fork`, so that a forked child can do it too.
        """
        if (found := self._made.get(name)) is None:
            with locks.no_fork(), self._lock:
                if name not in self._made:
                    self._made[name] = make()
                found = self._made[name]
        return cast("T", found)

    def now(self) -> float:
        """Return the time, in seconds since the epoch; see `clock`."""
        return self.clock()

    @property
    def clock(self) -> Callable[[], float]:
        """What tells the time: the store's clock, if others share the store; on `inline://` a virtual one."""
        return self._part("clock", self._make_clock)

    def _make_clock(self) -> Callable[[], float]:
        if self.settings.url.engine == "inline":
            return cast("InlineEngine", self.engine).clock.now
        store = self.store
        return time.time if store is None or store.clock is None else store.clock

    @property
    def settings(self) -> Settings:
        """The checked settings; the default bridge reads its own when they are first needed."""
        return self._part("settings", self._read_settings)

    def _read_settings(self) -> Settings:
        from taskbridge.settings import load  # here, for declaring tasks needs no settings

        settings, is_chosen = load(self._given)
        if not is_chosen:
            warnings.warn(
                "no url is set (TASKBRIDGE_URL or configure(url=...)): tasks run inline, in this process",
                RuntimeWarning,
                stacklevel=5,
            )
        return settings

    @property
    def broker(self) -> Broker:
        """The connection to the broker; connects when it is first used."""
        return self._part("joined", self._join)[0]

    @property
    def wire(self) -> Wire[Any]:
        """The engine's wire for this broker."""
        return self._part("joined", self._join)[1]

    def _join(self) -> tuple[Broker, Wire[Any]]:
        url, settings = self.settings.url, self.settings
        with _libraries():
            if url.engine == "inline":
                engine = import_module("taskbridge.engines.inline").make_engine(self)
                self._made["engine"] = engine
                return engine.broker, engine.wire
            of_engine = _module("taskbridge.engines", url.engine)
            wire = import_module(f"{of_engine}.wire").make_wire(url.broker, settings)
            return self.broker_for(wire), wire

    def broker_for(self, wire: Wire[Any]) -> Broker:
        """Return another connection to the broker, for the words of some engine; whoever asks for it closes it."""
        module = import_module(_module("taskbridge.brokers", self.settings.url.broker))
        return cast("Broker", module.connect(self.settings, wire))

    @property
    def store(self) -> Store | None:
        """What is known beside the messages; None on RabbitMQ without a `store`. Connects when it is first used."""
        return self._part("store", lambda: _open_store(self.settings, self.now))

    @property
    def marks(self) -> Marks | None:
        """The attempt marks, in the store; None without one, and where nothing outlives the process."""
        store = self.store
        return None if store is None or self.settings.url.engine == "inline" else store.marks

    @property
    def records(self) -> Records | None:
        """What became of messages, in the store; None without one."""
        store = self.store
        return None if store is None else store.records

    @property
    def pauses(self) -> Pauses | None:
        """What is paused, as far as this process knows; None without a store."""
        store = self.store
        if store is None:
            return None
        from taskbridge.pauses import Pauses  # here, for few processes need it

        return self._part("pauses", lambda: Pauses(store.backend, self.now, timeout_s=self.settings.send_timeout_s))

    @property
    def engine(self) -> Engine:
        """The engine, joined to this bridge; imports it, or raises `NotInstalledError`."""
        self._part("joined", self._join)
        return self._part("engine", self._make_engine)

    def _make_engine(self) -> Engine:
        name = _module("taskbridge.engines", self.settings.url.engine)
        with _libraries():
            return cast("Engine", import_module(f"{name}.app").make_engine(self))

    @property
    def native(self) -> Any:
        """The Celery app or the Dramatiq broker, for whoever needs the engine itself; imports it, as `engine` does."""
        return self.engine.native

    def close(self) -> None:
        """Close the connections and stop what runs in the background; the next use opens them again."""
        with self._lock:
            names = "engine", "joined", "store", "cancellations", "pauses", "clock"
            engine, joined, store, cancellations, pauses, _ = [self._made.pop(name, None) for name in names]
        for part in (engine, joined and joined[0], store, cancellations, pauses):
            if part is not None:
                part.close()


def _module(group: str, name: str) -> str:
    """Return the module of an engine or a broker, built in or found by entry point."""
    if name in _MODULES:
        return _MODULES[name]
    from taskbridge.settings import plugins  # here, for declaring tasks needs no settings

    return plugins(group)[name]


def _open_store(settings: Settings, now: Callable[[], float]) -> Store | None:
    """Return the store: the setting's, or the broker, if it is Redis or memory."""
    from taskbridge.settings import STORE_PLUGINS, STORE_SCHEMES, plugins

    url = settings.store
    if url is None and settings.url.broker in ("redis", "memory"):
        url = settings.url.broker_url
    if url is None:
        return None
    scheme = url.partition(":")[0]
    own = STORE_SCHEMES.get(scheme)
    clock = {"now": now} if scheme == "memory" else {}  # a server has its own
    with _libraries():
        module = import_module(plugins(STORE_PLUGINS)[scheme] if own is None else f"taskbridge.stores.{own}")
        return cast("Store", module.open_store(settings, url, **clock))


@contextmanager
def _libraries() -> Generator[None, None, None]:
    """Say how to get a library that is missing, where something that needs it is imported and made."""
    "localhost".encode("idna")  # imports what the standard library would import as it first looks a name up
    try:
        yield
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in _CLIENTS:
            raise
        what, extra = _CLIENTS[missing]
        raise NotInstalledError(what, extra) from exc
