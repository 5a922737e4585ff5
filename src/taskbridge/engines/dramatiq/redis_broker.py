"""Dramatiq's Redis broker with four priorities, and with leases that a busy worker keeps.

A queue's list of ids and its bodies are Dramatiq's own (dramatiq/brokers/redis/dispatch.lua), so plain clients can send
to it. That list is the one for `normal`; beside it are those of the other priorities, `{namespace}:{queue}:{priority}`.
What a worker holds is not in Dramatiq's sets `__acks__` but on lease (`engines.redis_leases`).
"""

from __future__ import annotations

from collections.abc import Sequence
from time import sleep
from typing import Final

import redis
from dramatiq import Consumer
from dramatiq.brokers.redis import DEFAULT_DEAD_MESSAGE_TTL, RedisBroker
from dramatiq.middleware import Middleware
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from taskbridge.brokers.redis.client import client_of, pool
from taskbridge.engines.dramatiq.broker import Arrival, EngineBroker, EngineConsumer
from taskbridge.engines.dramatiq.deliveries import Delivery
from taskbridge.engines.dramatiq.wire import LEVELS, level_list
from taskbridge.engines.redis_leases import DRAMATIQ, STRANGERS, Leases, Lists
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.logs import logger
from taskbridge.settings import Settings

_log = logger("taskbridge.dramatiq")

_LOOK_S: Final = 0.2
"""How long an idle consumer waits before it looks at all lists again; at that for `normal` it looks all the time."""

_LOOK_DELAYED_S: Final = 0.5  # the same for the queues of delayed messages, in which only plain clients put anything

_TIMEOUT_S: Final = 10.0
"""How long one command may take. Each is short; without a limit a silent server would hold a thread for ever."""

_NEXT_S: Final = 2.0
"""How long a thread that has a message in hand waits for the next ones; what was taken later comes back by the beat."""

_FORGOTTEN_S: Final = 3600.0  # how long a plain client stays in Dramatiq's list of heartbeats after its last one


class LeveledRedisBroker(EngineBroker, RedisBroker):
    """Dramatiq's broker, with consumers of its own."""

    def __init__(self, settings: Settings, middleware: list[Middleware]) -> None:
        self._calls = client_of(settings.url.broker_url, settings.namespace)
        connections = pool(
            self._calls.place,
            protocol=2,  # needs no round trip to be agreed upon
            retry=Retry(NoBackoff(), 0),  # for what Dramatiq itself sends: sent twice, it would be there twice
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
        )
        super().__init__(
            client=redis.Redis(connection_pool=connections),
            middleware=middleware,
            namespace=settings.namespace,
            maintenance_chance=0,  # `look_after` does it, by the server's clock
        )
        self._lease_s = settings.lease_s
        self.leases: Leases = Leases(settings, DRAMATIQ, each_minute=self.look_after)  # what this worker holds
        self._can_wait = True

    def key(self, queue_name: str) -> str:
        """Return the key of a queue's list of ids."""
        return f"{self.namespace}:{queue_name}"

    def lists(self, queue_name: str) -> list[str]:
        """Return the keys of a queue's lists, in the order in which they are fetched."""
        key = self.key(queue_name)
        if self.reception.own_queue(queue_name) is not None and not queue_name.endswith(".DQ"):
            return [level_list(key, level) for level in LEVELS]
        return [key]

    def flush(self, queue_name: str) -> None:
        super().flush(queue_name)
        self._calls.execute([("DEL", *self.lists(queue_name))], timeout_s=_TIMEOUT_S)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        return _LeveledConsumer(self, queue_name, prefetch, timeout)

    def wait(self, queue_name: str, timeout_s: float) -> None:
        """Return when there is something in a queue's list for `normal`, or after so many seconds.

        Raises `BrokerUnavailable` if Redis doesn't do it.
        """
        if not self._can_wait:
            sleep(timeout_s / 4)
            return
        key = self.key(queue_name)
        try:
            # Moves the first to where it was, so that nothing is taken; Redis has no waiting that only looks.
            self._calls.execute([("BLMOVE", key, key, "LEFT", "LEFT", timeout_s)], timeout_s=_TIMEOUT_S)
        except BrokerUnavailable as exc:
            if "unknown command" not in str(exc) and not isinstance(exc.__cause__, NoPermissionError):
                raise
            _log.warning("Redis does not wait for messages (BLMOVE), so it is asked every 0.05 s: %s", exc.problem)
            self._can_wait = False  # before Redis 6.2, or not permitted

    # The worker's life

    def opens(self, threads: int) -> None:
        """Begin to keep the lease."""
        super().opens(threads)
        self.leases.start()

    def closed(self) -> None:
        """Give back all that is still in hand, and end the lease."""
        self.leases.stop()

    def look_after(self) -> None:
        """Give back what plain workers held that died, and forget Dramatiq's own dead messages in their time.

        Raises `BrokerUnavailable` if Redis doesn't do it, or nobody knows.
        """
        forgotten_s = max(_FORGOTTEN_S, 2 * self._lease_s)
        after_ms = int(self._lease_s * 1000), int(forgotten_s * 1000), DEFAULT_DEAD_MESSAGE_TTL
        queues = (*self.get_declared_queues(), *self.get_declared_delay_queues())
        call = STRANGERS([f"{self.namespace}:__heartbeats__"], self.namespace, *after_ms, *queues)
        self._calls.execute([call], timeout_s=_TIMEOUT_S, once=True)

    def close(self) -> None:
        """Close the connections; the next use makes new ones."""
        self.client.close()
        self._calls.close()


class _LeveledConsumer(EngineConsumer):
    """Takes messages from the lists of one queue, in order. Their places are the tags of their leases."""

    def __init__(self, broker: LeveledRedisBroker, queue_name: str, prefetch: int, timeout_ms: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout_ms)
        self._broker = broker
        self._leases = broker.leases
        self._lists = Lists([broker.lists(queue_name)])

    def take(self, most: int, *, soon: bool) -> Sequence[Arrival]:
        if soon and self._leases.is_away:
            return ()
        held = self._leases.take(self._lists, most, timeout_s=_NEXT_S if soon else _TIMEOUT_S, once=soon)
        return [Arrival(self, each.tag, each.text, each.suspect) for each in held]

    def wait(self) -> None:
        self._broker.wait(self._queue_name, _LOOK_DELAYED_S if self._is_delayed else _LOOK_S)

    def end(self, place: str) -> None:
        self._leases.end_soon(place)

    def flush(self) -> None:
        self._leases.flush()

    def give_back(self, places: Sequence[str], *, suspect: bool = False) -> None:
        self._leases.give_back(*places, suspect=suspect)

    def fail(self, message: Delivery) -> None:
        self._leases.end(message.place, dead=message.task_message is None)
