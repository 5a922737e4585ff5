"""Settings: keywords over environment variables over defaults, each checked, each error naming its key."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from taskbridge.durations import positive, seconds
from taskbridge.exceptions import DeclarationError, SettingsError, UnsupportedError, nearest
from taskbridge.message import checked_priority
from taskbridge.retry import RetryPolicy
from taskbridge.routing import Queue, QueueType, Route, check_queue_name, check_queue_type

if TYPE_CHECKING:
    from taskbridge.schedules.plan import Schedule  # only here, for few settings hold one

ENV_PREFIX: Final = "TASKBRIDGE_"
DEFAULT_URL: Final = "inline://"
DEFAULT_THREADS: Final = 4
ENGINES: Final = ("celery", "dramatiq")  # the built-in engines, but for inline
ENGINE_PLUGINS: Final = "taskbridge.engines"  # entry points: engines by name, packages like those in `engines/`
BROKER_PLUGINS: Final = "taskbridge.brokers"  # entry points: by URL scheme, modules like those in `brokers/`
STORE_PLUGINS: Final = "taskbridge.stores"  # entry points: by URL scheme, modules like those in `stores/`

_NAMESPACE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,49}|\{[A-Za-z_][A-Za-z0-9_-]{0,47}\}")
"""In braces it is a hash tag: on Redis all keys of the namespace are in one slot."""

_ESCAPE: Final = " (in a user's name or password, write / ? # [ ] @ as %2F %3F %23 %5B %5D %40)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a bridge's messages wait and who consumes them: the parts of its URL.

    Attributes:
        engine: Its name, such as `celery`.
        broker: The kind of broker: `redis`, `amqp` or `memory`.
        broker_url: The broker's own URL, normalised, with its credentials.
        threads: How many run the messages of `inline://`; 0 leaves that to the caller.
        at_send: Whether `send` on `inline://` runs messages itself: `1`, or `raise` to raise their errors; else empty.
    """

    engine: str
    broker: str
    broker_url: str
    threads: int = DEFAULT_THREADS
    at_send: str = ""

    @property
    def target(self) -> str:
        """The pair, such as `celery+redis`, without anything secret."""
        return self.engine if self.engine == "inline" else f"{self.engine}+{self.broker}"

    @property
    def safe_url(self) -> str:
        """The URL without its credentials, fit for logs and errors."""
        return DEFAULT_URL if self.engine == "inline" else f"{self.engine}+{without_credentials(self.broker_url)}"

    def __repr__(self) -> str:
        return f"Address({self.safe_url})"


def without_credentials(url: str) -> str:
    """Return a URL without user, password and query, also of a wrong one: they may hold what has to be escaped."""
    scheme, _, rest = url.partition("://")
    _, at, place = rest.rpartition("@")
    place = place.partition("?")[0].partition("#")[0]
    return f"{scheme}://***@{place}" if at else f"{scheme}://{place}"


def plugins(group: str) -> dict[str, str]:
    """Return the modules that installed packages name in a group of entry points, by their names."""
    from importlib.metadata import entry_points  # here, for it takes 20 ms to import and few need it

    return {point.name: point.module for point in entry_points(group=group)}


# URLs


def parse_url(url: Any) -> Address:
    """Return the parts of a bridge's URL, such as `dramatiq+amqp://guest:guest@rabbit//`; else `ValueError`."""
    scheme, separator, rest = _string(url).partition("://")
    if not separator:
        raise ValueError("it must look like 'celery+redis://localhost:6379/0' or 'inline://'")
    if scheme == "inline":
        found = re.fullmatch(r"/*(?:\?(?:threads=(\d+)|at_send=(1|raise)))?", rest)
        if found is None:
            raise ValueError("inline:// takes no host, and one option: threads=N, at_send=1 or at_send=raise")
        threads = 0 if found[2] else DEFAULT_THREADS if found[1] is None else int(found[1])
        at_send = found[2] or ""
        return Address(engine="inline", broker="memory", broker_url="memory://", threads=threads, at_send=at_send)
    engine, _, broker_scheme = scheme.partition("+")
    if engine in _BROKERS:
        raise ValueError(f"{engine} is a broker; name the engine too: celery+{scheme}://... or dramatiq+{scheme}://...")
    if engine not in ENGINES and engine not in (others := plugins(ENGINE_PLUGINS)):
        raise ValueError(f"there is no engine {engine!r}{nearest(engine, (*ENGINES, *others, 'inline'))}")
    broker_url = f"{broker_scheme}://{rest}"
    if broker_scheme in _BROKERS:
        broker, normalise = _BROKERS[broker_scheme]
        return Address(engine=engine, broker=broker, broker_url=normalise(broker_url))
    if broker_scheme in plugins(BROKER_PLUGINS):
        return Address(engine=engine, broker=broker_scheme, broker_url=broker_url)
    hint = f"{nearest(broker_scheme, _BROKERS)} (write {engine}+redis:// or {engine}+amqp://)"
    raise ValueError(f"there is no broker {broker_scheme!r}{hint}")


def _split(url: str) -> SplitResult:
    """Return the parts of a URL that can be read and whose port is a number."""
    try:
        parts = urlsplit(url)
    except ValueError:  # which shows what it has read
        raise ValueError(f"it can't be read: {without_credentials(url)}{_ESCAPE}") from None
    try:
        hosts_of(parts.netloc)
    except ValueError:
        problem = f"its port is not a number from 0 to 65535: {without_credentials(url)}"
        raise ValueError(f"{problem}{_ESCAPE}") from None
    if parts.netloc and parts.fragment:
        raise ValueError(f"there is a # in it{_ESCAPE}")
    return parts


def hosts_of(netloc: str) -> list[tuple[str, int | None]]:
    """Return hosts, and ports if given, of a URL's `user:password@host:port,host:port`; `ValueError` for a bad port."""
    places = [urlsplit(f"//{place}") for place in netloc.rpartition("@")[2].split(",")]
    return [(place.hostname or "", place.port) for place in places]


def each_host(url: str) -> list[str]:
    """Return a URL that names several hosts as one URL for each."""
    parts = urlsplit(url)
    credentials, at, places = parts.netloc.rpartition("@")
    return [urlunsplit(parts._replace(netloc=f"{credentials}{at}{place}")) for place in places.split(",")]


def _memory_url(url: str) -> str:
    if url != "memory://":
        raise ValueError("in memory there is no address: write memory://")
    return url


def _redis_url(url: str) -> str:
    parts = _split(url)
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError("a unix:// URL needs the path of the socket")
        return url
    if not all(host for host, _ in hosts_of(parts.netloc)):
        raise ValueError("the host is missing")
    scheme, path, master = parts.scheme.replace("valkey", "redis"), parts.path.strip("/"), ""
    if scheme.endswith("+sentinel"):
        master, _, path = path.partition("/")
        if not master:
            raise ValueError(f"the master's name is missing: {scheme}://host:26379,host:26379/mymaster/0")
    database = path.strip("/") or "0"
    if not database.isdecimal():
        shown = f"{database!r} " if "@" not in url.partition("://")[2].partition("/")[2] else ""
        raise ValueError(f"the database {shown}is not a number{_ESCAPE}")
    return urlunsplit((scheme, parts.netloc, f"/{master}/{database}" if master else f"/{database}", parts.query, ""))


_TLS_FILES: Final = ("ca_certs", "certfile", "keyfile")


def _amqp_url(url: str) -> str:
    """Return an AMQP URL that kombu and pika read alike: they differ on `//`, `/` and no path (the vhost `/`).

    The files of TLS may be named as Redis URLs name them, `ssl_ca_certs=`; here they are put into pika's `ssl_options`.
    """
    parts = _split(url)
    hosts = [host for host, _ in hosts_of(parts.netloc)]
    if "://" in parts.path or any(";" in host for host in hosts):
        raise ValueError("several hosts are written with commas: amqp://user:password@host1:5672,host2:5672/vhost")
    if not all(hosts):
        raise ValueError("the host is missing" if "," not in parts.netloc else "a host is missing between the commas")
    vhost = parts.path[1:]
    path = "/%2F" if unquote(vhost) in ("", "/") else f"/{vhost}"
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    files = {name: options.pop(f"ssl_{name}") for name in _TLS_FILES if f"ssl_{name}" in options}
    if parts.scheme == "amqp" and (files or "ssl_options" in options):
        raise ValueError("options of TLS need amqps://, or workers would connect without")
    if not files:
        return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
    if "ssl_options" in options:
        raise ValueError("it names files of TLS in ssl_options and beside it: put all into one of the two")
    return urlunsplit((parts.scheme, parts.netloc, path, urlencode({**options, "ssl_options": repr(files)}), ""))


def _sql_url(url: str) -> str:
    """Return the URL of an SQL database as it was given."""
    parts = _split(url)
    if parts.fragment:
        raise ValueError("there is a # in it; in the name of a file, write it as %23")
    if parts.scheme == "sqlite" and parts.query:
        raise ValueError(f"SQLite has no options here; a ? in the name of a file is written as %3F, not ?{parts.query}")
    if parts.scheme == "sqlite" and (parts.netloc or not parts.path.strip("/")):
        raise ValueError("it must name a file: sqlite:///shop.db, or with four slashes sqlite:////var/lib/shop.db")
    if parts.scheme == "postgresql" and not parts.path.strip("/"):
        raise ValueError("it must name a database: postgresql://user:password@host/database")
    return url


_NAMES: Final = ("redis", "rediss", "valkey", "valkeys")

_REDIS: Final[Mapping[str, tuple[str, Callable[[str], str]]]] = dict.fromkeys(
    ["unix", *(f"{name}{kind}" for name in _NAMES for kind in ("", "+sentinel"))], ("redis", _redis_url)
)
_BROKERS: Final = {
    **_REDIS,
    **dict.fromkeys(("amqp", "amqps"), ("amqp", _amqp_url)),
    "memory": ("memory", _memory_url),
}
"""By scheme: the kind of broker, and what checks and normalises its URL."""

_STORES: Final = {
    **dict.fromkeys(_REDIS, ("redis.backend", _redis_url)),
    "memory": ("memory", _memory_url),
    **dict.fromkeys(("sqlite", "postgresql"), ("sql.backend", _sql_url)),
}
"""By scheme: the module of a built-in store, and what checks and normalises its URL."""

STORE_SCHEMES: Final[Mapping[str, str]] = {scheme: module for scheme, (module, _) in _STORES.items()}
"""The schemes of the built-in stores' URLs, and in which module each is."""


# Checks of single values; what they raise gets the setting's key


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"it must be text, not {value!r}")
    return value


def _namespace(value: Any) -> str:
    if not isinstance(value, str) or not _NAMESPACE.fullmatch(value):
        raise ValueError(f"it must be up to 50 letters, digits, '_' or '-', perhaps in braces, not {value!r}")
    return value


def _words(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return list(value)


def _queues(value: Any) -> tuple[Queue, ...]:
    queues = tuple(_queue(item) for item in _words(value))
    types = {each.name: each.type for each in queues if each.type is not None}
    if other := next((each for each in queues if each.type not in (None, types.get(each.name))), None):
        raise ValueError(f"queue {other.name!r} has two types")
    return queues


def _queue(item: Any) -> Queue:
    if not isinstance(item, str):
        return item if isinstance(item, Queue) else Queue(check_queue_name(item))
    name, equals, kind = (part.strip() for part in item.partition("="))
    return Queue(name, type=check_queue_type(kind) if equals else None)


def _route(item: Any) -> Route:
    if isinstance(item, str):
        pattern, equals, queue = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"a route must look like 'shop.email.*=email', not {item!r}")
    else:
        pattern, queue = item
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"a route needs a task-name glob, not {pattern!r}")
    return Route(pattern, check_queue_name(queue))


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"it must be a number of seconds, not {value!r}") from None
    return seconds(value, name="it")


def _duration(value: Any) -> float:
    return positive(_seconds(value), name="it")


def _count(value: Any, *, least: int = 0, unit: str = "") -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"it must be a whole number{unit}, not {value!r}")
    return value


def _store(value: Any) -> str | None:
    if value is None:
        return None
    scheme, separator, _ = _string(value).partition("://")
    if separator and scheme in _STORES:
        return _STORES[scheme][1](value)
    others = plugins(STORE_PLUGINS) if separator else {}
    if scheme in others:
        return str(value)
    hint = nearest(scheme, (*_STORES, *others)) if separator else ""
    raise ValueError(f"it must be a redis://, postgresql://, sqlite:/// or memory:// URL{hint}")


def _retry(value: Any) -> RetryPolicy:
    if isinstance(value, RetryPolicy):
        return value
    if not isinstance(value, str):
        raise TypeError(f"it must be a RetryPolicy, not {value!r}")
    if value == "never":
        return RetryPolicy.never()
    options: dict[str, Any] = {}
    for word in _words(value):
        key, _, text = (part.strip() for part in word.partition("="))
        if key not in ("max_attempts", "min_delay", "factor", "max_delay", "jitter"):
            raise ValueError(f"there is no {key!r} in a policy written as text")
        options[key] = None if text == "none" else int(text) if key == "max_attempts" else float(text)
    return RetryPolicy(**options)


def _switch(value: Any) -> bool:
    words = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if not isinstance(value, bool):
        raise ValueError(f"it must be on or off, not {value!r}")
    return value


def _schedules(value: Any) -> tuple[Schedule, ...]:
    if isinstance(value, str):
        import json  # here, for few environments hold schedules

        try:
            value = json.loads(value)
        except ValueError as exc:
            raise ValueError(f"as text it must be JSON: {exc}") from exc
    if value == ():
        return ()
    if not isinstance(value, Mapping):
        raise TypeError(f"it must hold schedules by name, such as {{'nightly': {{'task': ...}}}}, not {value!r}")
    named = cast("Mapping[str, Any]", value)
    return tuple(_schedule(name, given) for name, given in named.items())


_TIMING_KEYS: Final = ("cron", "every", "timezone", "catch_up", "overlap")
_USING: Final[Mapping[str, Callable[[Any], Any]]] = {"queue": check_queue_name, "priority": checked_priority}
_SCHEDULE_KEYS: Final = ("task", *_TIMING_KEYS, "args", "kwargs", *_USING)


def _schedule(name: Any, given: Any) -> Schedule:
    from taskbridge.schedules.plan import Schedule, check_name, timing_of  # here, for few settings hold one

    try:
        checked = check_name(name)
        if not isinstance(given, Mapping):
            raise DeclarationError(f"it must hold a task, and cron or every, not {given!r}")
        options = {key: value for key, value in cast("Mapping[str, Any]", given).items() if value is not None}
        for key in options:
            if key not in _SCHEDULE_KEYS:
                raise DeclarationError(f"there is no {key!r} in a schedule{nearest(str(key), _SCHEDULE_KEYS)}")
        times = {key: options[key] for key in _TIMING_KEYS if key in options}
        timing = timing_of(name=checked, **times)
        if timing is None or not isinstance(options.get("task"), str):
            raise DeclarationError("it needs a task, by name, and cron or every")
        args: Any = options.get("args", ())
        kwargs: Any = options.get("kwargs", {})
        if not isinstance(args, (list, tuple)) or not isinstance(kwargs, Mapping):
            raise DeclarationError("args must be a list, and kwargs values by name")
        return Schedule(
            name=checked,
            task=options["task"],
            timing=timing,
            args=tuple(cast("list[Any]", args)),
            kwargs=dict(cast("Mapping[str, Any]", kwargs)),
            using={key: check(options[key]) for key, check in _USING.items() if key in options},
        )
    except (DeclarationError, ValueError) as exc:
        raise ValueError(f"{name!r}: {exc}") from exc


def _commit(value: Any) -> tuple[str, ...] | None:
    if value in (None, "none"):
        return None
    from taskbridge.transactions import checked_commit  # here, for few applications have transactions

    return checked_commit(_words(value) if isinstance(value, str) else value)


# The table of settings


def _setting(default: Any, check: Callable[[Any], Any]) -> Any:
    return field(metadata={"default": default, "check": check})


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All settings of a bridge, checked; durations are in seconds.

    A field is a setting: its key is the field's name without `_s`, and its environment variable `TASKBRIDGE_<KEY>`.
    """

    url: Address = _setting(DEFAULT_URL, parse_url)
    namespace: str = _setting("taskbridge", _namespace)
    default_queue: str = _setting("default", check_queue_name)
    queues: tuple[Queue, ...] = _setting((), _queues)
    routes: tuple[Route, ...] = _setting((), lambda value: tuple(map(_route, _words(value))))
    retry: RetryPolicy = _setting(RetryPolicy(), _retry)
    send_timeout_s: float = _setting(5.0, _duration)
    lease_s: float = _setting(60.0, _duration)
    grace_s: float = _setting(25.0, _seconds)
    store: str | None = _setting(None, _store)
    unknown_task_grace_s: float = _setting(600.0, _seconds)
    requeue_pause_s: float = _setting(1.0, _duration)
    dead_ttl_s: float = _setting(7 * 86400.0, _duration)
    max_message_bytes: int = _setting(1024 * 1024, partial(_count, least=1, unit=" of bytes"))
    result_ttl_s: float | None = _setting(86400.0, lambda value: None if value in (None, "none") else _duration(value))
    schedules: tuple[Schedule, ...] = _setting((), _schedules)
    scheduler: bool = _setting(True, _switch)
    fast: bool = _setting(True, _switch)
    remote_control: bool = _setting(False, _switch)
    queue_type: QueueType = _setting("classic", check_queue_type)
    wait_replicas: int = _setting(0, _count)
    commit: tuple[str, ...] | None = _setting(None, _commit)
    listing: bool = _setting(False, _switch)

    def route_of(self, task: str) -> Route | None:
        """Return the route that decides about a task, if one does (rule Q1)."""
        return next((route for route in self.routes if fnmatchcase(task, route.pattern)), None)

    @property
    def goes_along(self) -> bool:
        """Whether a record is in the database of its message, so that one transaction makes both."""
        return self.url.broker == "redis" and self.store in (None, self.url.broker_url)

    @property
    def has_quorum(self) -> bool:
        """Whether a queue is of the type `quorum`."""
        return "quorum" in (self.queue_type, *(each.type for each in self.queues))

    def type_of(self, queue: str) -> QueueType:
        """Return a queue's type on RabbitMQ (rule RQ1)."""
        own: QueueType | None = next((each.type for each in self.queues if each.name == queue and each.type), None)
        return self.queue_type if own is None else own

    def __repr__(self) -> str:
        return f"Settings(url={self.url.safe_url!r}, namespace={self.namespace!r})"


_FIELDS: Final = {each.name.removesuffix("_s"): each for each in fields(Settings)}
SETTING_KEYS: Final = tuple(_FIELDS)  # the names of all settings

_NOT_SETTINGS: Final = (
    *("TASKBRIDGE_APP", "TASKBRIDGE_LOG_FORMAT", "TASKBRIDGE_LOG_CONFIG", "TASKBRIDGE_METRICS_"),
    *("TASKBRIDGE_TEST_", "TASKBRIDGE_CONTRACT_"),
)
"""What variables begin with that are no settings: how a worker is started and logs, and what the tests use."""


def load(given: Mapping[str, Any], *, environ: Mapping[str, str] | None = None) -> tuple[Settings, bool]:
    """Return checked settings, and whether anyone chose the URL; `SettingsError` if a key or a value is wrong.

    They are given by key, and None stands for not given, but for `result_ttl`; `environ` is the process's own if None.
    """
    env = os.environ if environ is None else environ
    chosen: dict[str, Any] = {}
    for name, value in env.items():
        if name.startswith(ENV_PREFIX) and not name.startswith(_NOT_SETTINGS):
            chosen[_known_key(name[len(ENV_PREFIX) :].lower(), name)] = value
    for key, value in given.items():
        if value is not None or key == "result_ttl":  # for which None says: for ever
            chosen[_known_key(key, key)] = value
    values: dict[str, Any] = {}
    for key, known in _FIELDS.items():
        try:
            values[known.name] = known.metadata["check"](chosen.get(key, known.metadata["default"]))
        except (TypeError, ValueError) as exc:
            raise SettingsError(key, str(exc)) from exc
    settings = Settings(**values)
    if settings.wait_replicas and settings.url.broker != "redis":
        raise UnsupportedError("HA2", settings.url.target, "wait_replicas is for Redis only; leave it out")
    return settings, "url" in chosen


def _known_key(key: str, shown: str) -> str:
    if key not in _FIELDS:
        raise SettingsError(shown, f"there is no such setting{nearest(key, _FIELDS)}")
    return key
