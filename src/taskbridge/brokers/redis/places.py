"""Where the Redis is that has a namespace's keys.

| URL | the server is |
|---|---|
| one host, or a socket | that one |
| several hosts, `redis://h1:6379,h2:6379/0` | the first that answers and is no replica |
| `redis+sentinel://h1:26379,h2:26379/mymaster/0` | the master that the Sentinels name |
| any of these, with a namespace in braces | on Redis Cluster, the node that has its slot, as any node says |

Where it may be another one some day, each new connection is vetted before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
from redis import connection as _connection
from redis import exceptions as errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from taskbridge.exceptions import SettingsError
from taskbridge.settings import hosts_of, without_credentials

Address = tuple[str, int]  # a host and a port

Open = Callable[[Address, float], Any]
"""Makes a connection (`Link`) to an address within so many seconds, about; raises one of `TROUBLE` if it can't."""

TROUBLE: Final = (errors.RedisError, OSError, ValueError, RecursionError)
"""What making or using a connection may raise: the last two if what answers is not Redis."""

REFUSALS: Final = (errors.ResponseError, errors.AuthenticationError, errors.BusyLoadingError)
"""What came as a reply: the command was not carried out."""

_PASSING: Final = (
    *(errors.AskError, errors.TryAgainError, errors.ClusterDownError, errors.ReadOnlyError, errors.MasterDownError),
    *(errors.ConnectionError, errors.TimeoutError, OSError),
)
"""What is over once another server has taken the place of one, or the slot has moved; the first is MOVED, too."""

# Limits of a pool of redis-py's, retries of its own, and what would change the type of replies.
_NOT_FOR_CONNECTIONS: Final = {
    *("max_connections", "timeout", "retry", "retry_on_timeout", "retry_on_error", "health_check_interval"),
    *("decode_responses", "socket_timeout", "socket_connect_timeout"),
}

_FILES: Final = frozenset(  # the options that name files of TLS
    f"{whose}ssl_{name}" for whose in ("", "sentinel_") for name in ("ca_certs", "certfile", "keyfile")
)

_MOST_HOPS: Final = 5  # how often a cluster's nodes may send on who looks for a slot
_redis_py: Final[Any] = _connection  # which has few types


class Place:
    """The server that has a namespace's keys, and how to connect to it; raises `SettingsError` for a URL it can't read.

    So it does for a file of TLS that can't be read. Threads share it. `url` is as the setting `url` has it after the
    engine, normalised; `namespace` counts only if it is in braces.

    `kind` is the class of redis-py's connections to it, and `options` what these are made with, but for host and port.
    """

    def __init__(self, url: str, namespace: str = "") -> None:
        parts = urlsplit(url)
        scheme, _, by_sentinel = parts.scheme.partition("+")
        self._hosts = [(host, port or (26379 if by_sentinel else 6379)) for host, port in hosts_of(parts.netloc)]
        self._known: list[Address] = []  # nodes of the cluster
        self._may_be_replica = bool(by_sentinel) or len(self._hosts) > 1
        master, _, database = parts.path[1:].rpartition("/")
        self._master = master if by_sentinel else ""
        plain, options = url, dict(parse_qsl(parts.query))
        if self._may_be_replica:
            own = {name: value for name, value in options.items() if not name.startswith("sentinel_")}
            credentials, at, _ = parts.netloc.rpartition("@")
            plain = urlunsplit((scheme, f"{credentials}{at}localhost", f"/{database}", urlencode(own), ""))
        try:
            given: dict[str, Any] = {"db": 0, **_redis_py.parse_url(plain)}
            none: Mapping[str, Any] = {}
            self._of_sentinels = _sentinel_options(scheme, options) if by_sentinel else none
            self.kind: Final[Any] = given.pop("connection_class", redis.Connection)
            self.options: Final = {name: value for name, value in given.items() if name not in _NOT_FOR_CONNECTIONS}
            self.kind(**self.options)  # redis-py checks most options only when it makes a connection
        except (TypeError, ValueError, errors.RedisError) as exc:
            problem = f"redis-py can't read {without_credentials(url)} and its options: {exc}"
            raise SettingsError("url", problem) from exc
        _read_files(options)
        # A key in the namespace's slot that never exists, for no queue has this name; empty without a namespace.
        is_node = scheme != "unix" and namespace.startswith("{")
        self.absent: Final = f"{namespace}::absent" if is_node else ""
        self.may_move: Final = self._may_be_replica or bool(self.absent)  # another server may take its place
        self.found: Address | None = None  # where it was last; None if that isn't known, or not any more

    def connect(self, open_at: Open, timeout_s: float) -> Any:
        """Return a connection to the server, made within so many seconds; raises one of `TROUBLE` if there is none."""
        until = monotonic() + timeout_s
        trouble: Exception = errors.ConnectionError("there is no host")
        addresses = [self._named(timeout_s / 2)] if self._master else self._addresses()
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                return self._vetted(open_at, address, max(0.01, (until - monotonic()) / left))
            except TROUBLE as exc:
                if not isinstance(trouble, REFUSALS):
                    trouble = exc
        self.found = None
        raise trouble

    def passes(self, error: BaseException | None) -> bool:
        """Return whether what failed like this may go well elsewhere or later; what it says of where is noted."""
        if isinstance(error, errors.MovedError):
            self.found = self.found and _moved_to(error, self.found)
            return bool(self.absent)
        return self.may_move and isinstance(error, _PASSING) and not isinstance(error, errors.AuthenticationError)

    def _addresses(self) -> list[Address]:
        """Return where the server may be, the likeliest place first."""
        found = [] if self.found is None else [self.found]
        return list(dict.fromkeys([*found, *self._hosts, *self._known]))

    def _named(self, timeout_s: float) -> Address:
        """Return where the Sentinels say that the master is."""
        each_s, why = timeout_s / len(self._hosts), list[str]()
        limits = {"socket_timeout": each_s, "socket_connect_timeout": each_s, "retry": Retry(NoBackoff(), 0)}
        options: dict[str, Any] = {**self._of_sentinels, **limits}
        # Not by redis-py's Sentinel, whose error shows its clients with all of their options.
        for host, port in self._hosts:
            sentinel: Any = redis.Redis(host=host, port=port, **options)
            try:
                known = sentinel.sentinel_masters().get(self._master)
            except (errors.ConnectionError, errors.TimeoutError) as exc:
                cause = exc.__context__
                why.append(f"{host}:{port}: {(isinstance(cause, OSError) and cause.strerror) or exc}")
                continue
            finally:
                sentinel.close()
            if known and known["is_master"] and not known["is_sdown"] and not known["is_odown"]:
                return known["ip"], known["port"]
            if known:
                why.append(f"{host}:{port}: it is down")
        said = ", ".join(why) or "they answer; is that the name in their `sentinel monitor`?"
        raise errors.ConnectionError(f"the Sentinels name no master {self._master!r} that is up: {said}")

    def _vetted(self, open_at: Open, address: Address, timeout_s: float) -> Any:
        """Return a connection to the server that is at an address, or to which that one sends on."""
        for _ in range(_MOST_HOPS):
            link = open_at(address, timeout_s)
            try:
                self._vet(link)
            except errors.MovedError as exc:
                link.close()
                address = _moved_to(exc, address)
            except BaseException:
                link.close()
                raise
            else:
                self.found = address
                return link
        raise errors.ConnectionError("the nodes of the cluster do not agree on who has the namespace's slot")

    def _vet(self, link: Any) -> None:
        """Raise an error if a server has not the slot, or is a replica; what it doesn't tell is no error."""
        if self.absent:
            try:
                link.ask("EXISTS", self.absent)
            except errors.MovedError:
                raise
            except (errors.AskError, errors.TryAgainError, errors.NoPermissionError):
                pass  # it has the slot, which is being moved
            with suppress(errors.ResponseError):  # it is no cluster, or doesn't tell
                nodes = [node for _, _, *nodes in link.ask("CLUSTER", "SLOTS") for node in nodes]
                self._known = [(host.decode(), int(port)) for host, port, *_ in nodes if host]  # the URL's may be gone
        if self._may_be_replica:
            with suppress(errors.ResponseError):
                if b"role:slave" in link.ask("INFO", "replication"):
                    raise errors.ConnectionError("this server is a replica, and no other one answers")


def _read_files(options: Mapping[str, str]) -> None:
    """Raise an error if a file of TLS can't be read, for redis-py tells of it only as it connects, and names none."""
    for name in options.keys() & _FILES:
        try:
            with open(options[name], "rb"):
                pass
        except OSError as exc:
            raise SettingsError("url", f"a file of TLS can't be read, of {name}={options[name]}: {exc}") from exc


def _moved_to(error: Any, address: Address) -> Address:
    """Return where a slot is that is not at an address: MOVED names no host if it is the same one."""
    return error.host or address[0], error.port


def _sentinel_options(scheme: str, options: Mapping[str, str]) -> Mapping[str, Any]:
    """Return what clients of the Sentinels are made with: their own options, and the servers' TLS if they have none."""
    own = {name[9:]: value for name, value in options.items() if name.startswith("sentinel_")}
    tls = own.pop("ssl", "true" if scheme == "rediss" else "false") != "false"
    if tls and not any(name.startswith("ssl_") for name in own):
        own |= {name: value for name, value in options.items() if name.startswith("ssl_")}
    made: dict[str, Any] = {**_redis_py.parse_url(f"redis://?{urlencode(own)}"), "ssl": tls}
    redis.Redis(**made).close()  # redis-py checks options only when it makes a client
    return made
