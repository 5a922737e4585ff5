"""kombu's connections and transports, for one bridge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from taskbridge.engines.celery.stock import KombuConnection, stock
from taskbridge.settings import without_credentials

if TYPE_CHECKING:
    from taskbridge.engines.celery.app import CeleryEngine


_PAUSES: Final = {"interval_start": 0.5, "interval_step": 0.5, "interval_max": 1.5}
"""Seconds between tries; by kombu's default they grow to 30, and a worker idles long after its broker is back.

kombu before 5.7 goes beyond the maximum by the start (kombu/utils/functional.py, retry_over_time): to 2 s.
"""


def own_transport(engine: CeleryEngine, stock: Any) -> Any:
    """Return a transport class of an engine's own, so that its channels know the engine.

    kombu makes connections of connections, and hands on nothing of its own but the class of the transport
    (kombu/connection.py, PooledConnection); two bridges' connections differ by it, so that they share no pool.
    """

    def shown(cls: type[Any]) -> str:
        """Return the name that `celery inspect stats` shows."""
        return str(stock.driver_type)

    return type("Transport", (stock,), {"engine": engine, "__json__": classmethod(shown)})


def own_connection(engine: CeleryEngine) -> Any:
    """Return a connection class of an engine's own, which shows the bridge's own URL."""
    url = engine.settings.url.broker_url

    class Connection(KombuConnection):
        """A connection of one bridge."""

        def ensure_connection(self, *args: Any, **options: Any) -> Any:
            """Connect, however often that takes; Celery asks for it without saying how long to rest between."""
            return stock(super()).ensure_connection(*args, **{**_PAUSES, **options})

        def as_uri(self, include_password: bool = False, **_: Any) -> str:
            """Return the URL that Celery shows, or with the password the one that Flower uses."""
            if include_password:
                return url.replace("unix://", "redis+socket://", 1)
            return without_credentials(url)

        def info(self) -> dict[str, Any]:
            """Return what `celery inspect stats` shows."""
            shown: dict[str, Any] = stock(super()).info()
            return {**shown, "transport": self.transport.driver_type}

    return Connection
