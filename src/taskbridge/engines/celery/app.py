"""The engine: a Celery app of its own, in which each task is a Celery task."""

from __future__ import annotations

import ast
import functools
import logging
import multiprocessing
import os
import ssl
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from celery import signals

from taskbridge import failures
from taskbridge.declaration import Declaration
from taskbridge.engines.base import APP_VARIABLE, LEVEL_VARIABLE, UNIQUE, Command, Host, WorkerOptions
from taskbridge.engines.celery import fast, wire
from taskbridge.engines.celery.carrier import CARRIED, STRATEGY, Carrier, ChildRuns, NotCarried, call_task, is_logged
from taskbridge.engines.celery.control import Control
from taskbridge.engines.celery.life import CeleryLife
from taskbridge.engines.celery.stock import AMQP, Celery, Exchange, Queue, stock
from taskbridge.engines.celery.transport import Transport, Waker, own_connection, own_transport
from taskbridge.engines.settle import prepare_marks
from taskbridge.exceptions import SettingsError
from taskbridge.hooks import Event
from taskbridge.settings import Address, each_host

_FOREIGN_URLS: Final = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL")
"""Variables that Celery reads before an app's own settings (celery/app/utils.py); `celery -b` sets the first."""

_KEPT_VARIABLES: Final = (*_FOREIGN_URLS, "CELERY_SKIP_CHECKS", "CELERY_RDB*")
"""The variables of Celery's own that `taskbridge worker` leaves to its workers.

Celery's command line reads an option from each `CELERY_*` variable (celery/bin/celery.py, `auto_envvar_prefix`), so
that `CELERY_WORKER_PURGE=1` would delete the queues. Kept are the broker URLs, which `_connection` ignores and an
application may read for a Celery app of its own, Django's checks, and the remote debugger.
"""

_GLOBAL_OPTIONS: Final = ("--quiet", "--broker=", "--result-backend=", "--loader=", "--config=")
"""No banner; and empty, or Celery takes them from the variables BROKER_URL, RESULT_BACKEND, LOADER, CONFIG_MODULE."""

_HEARTBEAT_S: Final = 10
"""After two of these without a sign of life a connection to RabbitMQ is dead; Celery's own default is 120."""

_SOCKET_S: Final = 10
"""How long RabbitMQ may take to answer; without a limit a silent server holds Celery's main loop for ever."""

_CHILD_STARTS_S: Final = 86_400.0
"""After how long Celery kills a child that has not started, and starts another: `worker_started` hooks run in it."""

_CHILD_LOST_S: Final = 2.0
"""How long after a child's death its message goes back. What the child had sent before is read first (asynpool.py)."""


_trace_log: Final = logging.getLogger("celery.app.trace")  # noqa: TID251 - it is Celery's


class BridgeCelery(Celery):
    """The Celery app of a bridge; `engine` is the engine."""

    engine: CeleryEngine

    def connection_for_read(self, url: Any = None, **options: Any) -> Any:
        """Return a connection to the bridge's broker, even where Celery's variables name another one."""
        return stock(super()).connection_for_read(**self._own(url, options))

    def connection_for_write(self, url: Any = None, **options: Any) -> Any:
        """Return a connection to the bridge's broker, even where Celery's variables name another one."""
        return stock(super()).connection_for_write(**self._own(url, options))

    def _own(self, url: Any, options: dict[str, Any]) -> dict[str, Any]:
        foreign = {os.environ.get(name) for name in _FOREIGN_URLS}
        own = self.engine.broker_url if url is None or url in foreign else url
        return {**options, "transport": self.engine.transport, "url": own}

    def __getattr__(self, name: str) -> Any:
        if name == "add_middleware":
            raise AttributeError(
                "bridge.native is Celery's app here; hooks, as @bridge.on('dead'), hold on both engines"
            )
        return object.__getattribute__(self, name)

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        """Have a child that doesn't fork load the application anew."""
        return _load_again, ()


def _load_again() -> Any:
    from taskbridge.engines.celery.main import app  # here, for it loads the application

    return app


class CeleryEngine:
    """Celery, joined to one bridge."""

    def __init__(self, host: Host) -> None:
        self.host: Final = host
        self.settings: Final = host.settings
        broker_url, tls = kombu_url(host.settings.url)
        # The broker's URL, as kombu reads it; with several hosts, one for each, with semicolons.
        self.broker_url: Final = broker_url
        self.tls: Final = tls  # what connections to RabbitMQ need to know of TLS; None without
        # kombu's transport, with taskbridge's rules where it needs them.
        is_amqp = host.settings.url.broker == "amqp"
        base = fast.amqp_transport(is_wanted=host.settings.fast) if is_amqp else Transport
        self.transport: Final[Any] = own_transport(self, base)
        self.waker: Final = Waker()  # ends the sleep of the event loop
        # Ends the sleep of the worker's main loop; an embedded worker has no event loop. Fit for a signal handler.
        self.wake: Final[Callable[[], None]] = getattr(host.wire, "wake", self.waker.wake)
        self._redis_queues: Any = None  # `queues`, once they were asked for, if they are Redis'
        self.consumer: Any = None  # the worker's consumer (`worker.Consumer`); None while there is no worker
        self._runs = ChildRuns(host)
        self.carrier: Final = Carrier(host, self._runs)  # runs messages where Celery's pool runs tasks
        self.life: Final = CeleryLife(self, host, self._runs)
        self._queues: dict[str, Any] = {}
        self.native: Final = self._make_app()  # the Celery app
        self._declare_queues()
        self._receivers: Final[Mapping[Any, Callable[..., None]]] = {
            signals.worker_shutting_down: self._on_shutting_down,
            signals.worker_process_init: self._on_child_started,
            signals.worker_process_shutdown: self._on_child_stopping,
        }
        for signal, receiver in self._receivers.items():
            signal.connect(receiver, weak=False)
        self._log_filter = functools.partial(is_logged, self.native)
        _trace_log.addFilter(self._log_filter)

    @functools.cached_property
    def queues(self) -> Any:
        """The queues as channels use them: `MemoryQueues` or `RedisQueues`."""
        if self.settings.url.broker == "memory":
            return self.host.wire
        from taskbridge.engines.celery.redis_queues import RedisQueues  # here, for it imports redis

        self._redis_queues = RedisQueues(self.settings)
        return self._redis_queues

    def running_tags(self) -> set[str]:
        """Return the tags of messages whose tasks go on running, whatever becomes of a connection."""
        if self.life.draining:
            return set()
        return {request.message.delivery_tag for request in self.life.active_requests()}

    # The app

    def _make_app(self) -> BridgeCelery:
        settings = self.settings
        connections: Any = own_connection(self)
        amqp_class: Any = type("BridgeAMQP", (AMQP,), {"Connection": connections, "BrokerConnection": connections})
        app = BridgeCelery(
            settings.namespace,
            broker=self.broker_url,
            set_as_current=False,
            amqp=amqp_class,
            control=Control,
            fixups=self.host.celery_fixups,
        )
        app.engine = self
        app.conf.update(self._conf())
        return app

    def _conf(self) -> dict[str, Any]:
        settings = self.settings
        broker = settings.url.broker
        prefix = f"{settings.namespace}.{wire.ENGINE}"
        default_queue = self._native_queue(settings.default_queue)
        conf: dict[str, Any] = {
            "accept_content": ["json"],
            "task_serializer": "json",
            "task_default_queue": default_queue,
            "task_default_exchange": "",
            "task_default_routing_key": default_queue,
            "task_create_missing_queues": False,
            "task_routes": (self._route,),
            "worker_consumer": "taskbridge.engines.celery.consumer:Consumer",
            "worker_prefetch_multiplier": 1,
            "worker_proc_alive_timeout": _CHILD_STARTS_S,
            "worker_lost_wait": _CHILD_LOST_S,
            "worker_enable_prefetch_count_reduction": False,  # `Consumer.on_close` does it, in the main loop's thread
            "worker_enable_remote_control": broker != "memory",
            "worker_hijack_root_logger": False,  # the application's logging is its own
            "worker_redirect_stdouts": False,
            "broker_connection_retry_on_startup": True,
            "broker_connection_max_retries": None,
            "broker_channel_error_retry": True,
            "control_exchange": prefix,
            "event_exchange": f"{prefix}.events",
            "event_queue_prefix": f"{prefix}.events",
        }
        if broker == "amqp":
            conf["broker_transport_options"] = {
                "confirm_publish": True,
                "read_timeout": _SOCKET_S,
                "write_timeout": _SOCKET_S,
            }
            conf["broker_heartbeat"] = _HEARTBEAT_S
            query = dict(parse_qsl(urlsplit(settings.url.broker_url).query))
            if query.get("heartbeat", "").isdecimal():
                conf["broker_heartbeat"] = int(query["heartbeat"])
        if self.tls is not None:
            conf["broker_use_ssl"] = dict(self.tls)
        return conf

    def _native_queue(self, queue: str) -> str:
        return wire.native_queue(self.settings.namespace, queue)

    def _declare_queues(self) -> None:
        """Declare the queues that are known since; a worker that is told of none consumes all."""
        old = [queue.name for queue in self._queues.values()]
        new = [queue for queue in self.host.queues() if queue not in self._queues]
        for queue in new:
            self._queues[queue] = self._queue(queue)
        self.native.conf.task_queues = tuple(self._queues.values())
        known = self.native.amqp.queues  # made of those in the settings when it is first asked for
        consumes_all = all(name in known.consume_from for name in old)  # else the worker was told what to consume
        for queue in (self._queues[name] for name in new):
            if queue.name not in known:
                (known.select_add if consumes_all else known.add)(queue)

    def _queue(self, queue: str) -> Any:
        native = self._native_queue(queue)
        options: dict[str, Any] = {"alias": queue, "durable": True}
        if self.settings.url.broker != "amqp":
            return Queue(native, Exchange(""), native, **options)
        if self.settings.type_of(queue) == "classic":
            return Queue(native, Exchange(""), native, queue_arguments=wire.queue_arguments("classic"), **options)
        from taskbridge.engines.celery.rabbitmq import QuorumQueue  # here, for other brokers need none of it

        return QuorumQueue(native, Exchange(""), native, **options)

    def _route(self, name: str, *_: Any, **__: Any) -> dict[str, Any] | None:
        declaration = next((found for found in self.host.declarations() if found.name == name), None)
        if declaration is None:
            return None
        numbers = wire.REDIS_STEPS if self.settings.url.broker == "redis" else wire.RANKS
        return {"queue": self._native_queue(self.host.queue_of(name)), "priority": numbers[declaration.priority]}

    def register(self, declaration: Declaration) -> None:
        if declaration.name in self.native.tasks:  # its module was imported twice, and Celery keeps the first
            self.native.tasks.unregister(declaration.name)
        self.native.task(
            name=declaration.name,
            bind=True,
            shared=False,  # else Celery registers it on every app of the process
            lazy=False,
            acks_late=True,
            reject_on_worker_lost=True,
            ignore_result=True,
            max_retries=None,
            on_failure=_told("on_failure", signals.task_failure),
            on_retry=_told("on_retry", signals.task_retry),
            time_limit=0,  # none of Celery's, whatever its settings say: those are not retried (rule T1)
            soft_time_limit=0,
            Strategy=STRATEGY,
            __call__=call_task,
            __header__=staticmethod(declaration.signature.bind),
        )(self._body(declaration))
        self._declare_queues()

    def _body(self, declaration: Declaration) -> Callable[..., Any]:
        carrier = self.carrier

        def run(task: Any, /, *args: Any, **kwargs: Any) -> Any:
            request = task.request
            carried = (request.delivery_info or {}).pop(CARRIED, None)
            if carried is None:  # called directly, perhaps by itself while its message is carried
                return declaration.function(*args, **kwargs)
            return carrier.carry(carried, request)

        functools.update_wrapper(run, declaration.function)
        if not run.__name__.isidentifier():  # a lambda; Celery makes a `def` of the name (utils/functional.py)
            run.__name__ = "run"
        return run

    # Workers

    def _on_shutting_down(self, **_: Any) -> None:
        if self._runs.worker_pid == os.getpid():
            self.life.drain()

    def _on_child_started(self, **_: Any) -> None:
        if self._is_child():
            multiprocessing.current_process().daemon = False  # so that tasks may start processes
            if self.host.pauses is not None:
                self.host.pauses.on_change = bool  # the consumer is the parent's
            # Celery kills a child that doesn't answer for 4 s, and a store that is away may take longer.
            threading.Thread(target=prepare_marks, args=(self.host,), name="taskbridge-prepare", daemon=True).start()
            self.host.ended.clear()  # what the parent counts
            self.life.vitals.start()
            self.host.hooks.call(Event(name="worker_started"))

    def _on_child_stopping(self, **_: Any) -> None:
        if self._is_child():
            self.host.stopping.set()
            self.host.hooks.call(Event(name="worker_stopping"))
            self.life.vitals.stop()

    def _is_child(self) -> bool:
        return bool(self._runs.worker_pid) and self._runs.worker_pid == os.getppid() != os.getpid()

    def worker_commands(self, options: WorkerOptions) -> list[Command]:
        if options.threads == 1:
            return [self._command(options, "prefork", options.processes)]
        return [self._command(options, "threads", options.threads) for _ in range(options.processes)]

    def _command(self, options: WorkerOptions, pool: str, slots: int) -> Command:
        argv = [
            sys.executable,
            *("-m", "celery", "--app", "taskbridge.engines.celery.main", *_GLOBAL_OPTIONS, "worker"),
            *("--pool", pool),
            *("--concurrency", str(slots)),
            *("--hostname", f"{self.settings.namespace}-{UNIQUE}@%h"),
            *("--loglevel", options.log_level.upper()),
            *("--without-gossip", "--without-mingle"),
            *(("--queues", ",".join(options.queues)) if options.queues else ()),
        ]
        env = {APP_VARIABLE: options.app, LEVEL_VARIABLE: options.log_level.upper()}
        if pool == "threads":
            env |= options.limits
        else:  # Celery ends a child by itself, and counts in KiB
            tasks, memory = options.max_tasks_per_child, options.max_memory_per_child
            argv += ["--max-tasks-per-child", str(tasks)] if tasks else []
            argv += ["--max-memory-per-child", str(memory * 1024)] if memory else []
        return Command(argv=tuple(argv), env=env, drops="CELERY_", keeps=_KEPT_VARIABLES)

    def embedded_worker(self, *, queues: Sequence[str], threads: int) -> AbstractContextManager[None]:
        from taskbridge.engines.celery.embedded import embedded_worker  # here, for only memory brokers need it

        return embedded_worker(self, queues=[self._native_queue(queue) for queue in queues], threads=threads)

    def close(self) -> None:
        """Close connections, and forget the app."""
        for signal, receiver in self._receivers.items():
            signal.disconnect(receiver)
        _trace_log.removeFilter(self._log_filter)
        if self._redis_queues is not None:
            self._redis_queues.stop()
        self.waker.close()
        self.native.close()


def _told(name: str, signal: Any) -> Callable[..., Any]:
    """Return a method of tasks that drops the frames from an account of an error, unless somebody listens for it.

    Nobody else looks at them, and they are most of what such an account costs, above all where a child sends it on.
    An error from before the carrier (of a task class's `before_start`, say) is raised again as `NotCarried`.
    """

    def tell(task: Any, *about: Any) -> None:
        error, *_, account = about
        if account is not None and CARRIED in (task.request.delivery_info or {}):
            what = "" if error is None else failures.text_of(error)
            raise NotCarried(f"{failures.type_of(type(error))}: {what}") from error
        if account is not None and not signal.receivers:
            account.tb = None
        getattr(stock(super(type(task), task)), name)(*about)

    return tell


def kombu_url(address: Address) -> tuple[str, Mapping[str, Any] | None]:
    """Return the URL that kombu is to be given, or several with semicolons, and what it needs to know of TLS.

    On Redis it is only to be shown: the transport reads the bridge's own URL, as redis-py does. The options in an AMQP
    URL are pika's; kombu doesn't know them. Raises `SettingsError` if those for TLS are no such thing.
    """
    parts = urlsplit(address.broker_url)
    if parts.scheme == "memory":
        return "memory://localhost/", None  # kombu logs that it reverts to localhost
    if parts.scheme == "unix" or "+" in parts.scheme or (address.broker == "redis" and "," in parts.netloc):
        return "redis://localhost/", None
    url = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
    if parts.scheme in ("amqp", "amqps"):
        url = ";".join(each_host(url))
    if parts.scheme != "amqps":
        return url, None
    tls: dict[str, Any] = {"server_hostname": None, "cert_reqs": ssl.CERT_REQUIRED}  # None is each host's own name
    text = dict(parse_qsl(parts.query)).get("ssl_options")
    if text is not None:
        try:
            options = ast.literal_eval(text)
            tls |= {name: options[name] for name in _TLS_OPTIONS if name in options}
        except (ValueError, TypeError, SyntaxError) as exc:
            raise SettingsError("url", "its ssl_options are no dict") from exc
    return url, tls


_TLS_OPTIONS: Final = ("ca_certs", "certfile", "keyfile", "cert_reqs", "ciphers", "server_hostname")
"""What pika's and py-amqp's TLS options have in common."""


def make_engine(host: Host) -> CeleryEngine:
    """Return Celery, joined to a bridge."""
    return CeleryEngine(host)
