"""Measuring: each cell with a private server, several at a time where that disturbs none."""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any, Final

from typing_extensions import Self

from benchmarks.guarantees.columns import Column
from benchmarks.guarantees.outcome import Outcome
from benchmarks.guarantees.results import Cell
from benchmarks.guarantees.table import Row, ServerKind
from benchmarks.guarantees.trial import Trial
from taskbridge.contract.failure import ContractFailure
from tests.servers import PrivateRabbitMQ, PrivateRedis

PARALLEL: Final = 8
"""How many cells are measured at a time: they mostly wait."""

_LOGGER: Final = logging.getLogger("benchmarks.guarantees")

_IMPATIENT: Final = "consumer_timeout = 5000"
_LOOKS_EACH_SECOND: Final = "[{rabbit, [{channel_tick_interval, 1000}]}]."


class Servers:
    """The private servers of a measurement: a Redis for each cell, RabbitMQ nodes that cells share."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._nodes: dict[ServerKind, PrivateRabbitMQ] = {}
        self._own = threading.Lock()
        self._versions: dict[type[PrivateRedis | PrivateRabbitMQ], dict[str, str]] = {}

    def __enter__(self) -> Self:
        """Start none yet."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop those that were started."""
        self._stack.close()

    @contextmanager
    def server(self, broker: str, kind: ServerKind) -> Generator[PrivateRedis | PrivateRabbitMQ]:
        """Give a cell its server."""
        if broker == "redis":
            with PrivateRedis() as redis:
                yield redis
        elif kind == "own":
            with self._own:
                yield self._node(kind)
        else:
            yield self._node(kind)

    def version(self, server: PrivateRedis | PrivateRabbitMQ) -> dict[str, str]:
        """Return the version of a server, by its program's name."""
        with self._lock:
            if type(server) not in self._versions:
                self._versions[type(server)] = _server_version(server)
            return self._versions[type(server)]

    def _node(self, kind: ServerKind) -> PrivateRabbitMQ:
        with self._lock:
            if kind not in self._nodes:
                node = PrivateRabbitMQ()
                if kind == "impatient":
                    node = PrivateRabbitMQ(extra_config=(_IMPATIENT,), advanced_config=_LOOKS_EACH_SECOND)
                self._nodes[kind] = self._stack.enter_context(node)
            return self._nodes[kind]


def measure_cell(row: Row, column: Column, servers: Servers) -> Cell:
    """Measure a cell.

    A worker that does not even start, or a message that can't be sent where that is not the question, is an outcome
    too: the guarantee is broken.
    """
    began = time.monotonic()
    with servers.server(column.broker, row.server) as server, Trial(column, row, server) as trial:
        try:
            outcome = row.run(trial)
        except ContractFailure as exc:
            _LOGGER.info("%s in column %s: %s", row.name, column.name, exc)
            outcome = Outcome(kept=False, sent=0, remark=str(exc).partition("\n")[0])
        server_version = servers.version(server)
    return Cell(
        row=row.name,
        column=column.name,
        outcome=outcome,
        measured_at=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        took_s=round(time.monotonic() - began, 1),
        versions={**_libraries(column), **server_version},
    )


def measure(
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    done: Callable[[Cell], None],
    parallel: int = PARALLEL,
) -> list[Cell]:
    """Measure cells, and return them.

    Args:
        rows: Which rows.
        columns: Which columns.
        done: Told of each cell as it comes, from several threads.
        parallel: How many are measured at a time.
    """
    with Servers() as servers, ThreadPoolExecutor(parallel, "guarantees") as pool:

        def one(place: tuple[Row, Column]) -> Cell:
            cell = measure_cell(*place, servers)
            done(cell)
            return cell

        try:
            return list(pool.map(one, _mixed(rows, columns)))
        except BaseException:  # Ctrl-C: only what is measured now is waited for, so that its workers are ended
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _mixed(rows: Iterable[Row], columns: Sequence[Column]) -> list[tuple[Row, Column]]:
    """Return the places, first those for which a server must be had alone: they are measured one after another."""
    return [(row, column) for row in sorted(rows, key=lambda row: row.server != "own") for column in columns]


def _libraries(column: Column) -> dict[str, str]:
    engine = ("celery", "kombu") if column.engine == "celery" else ("dramatiq",)
    amqp_client = "amqp" if column.engine == "celery" and column.raw else "pika"
    client = "redis" if column.broker == "redis" else amqp_client
    names = (*engine, client, *(() if column.raw else ("taskbridge-queue",)))
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _server_version(server: PrivateRedis | PrivateRabbitMQ) -> dict[str, str]:
    if isinstance(server, PrivateRabbitMQ):
        return {"rabbitmq-server": server.ctl("version").strip()}
    import redis  # here, for not everyone has it installed

    client: Any = redis.Redis.from_url(server.url)  # pyright: ignore[reportUnknownMemberType] - of redis-py
    try:
        return {"redis-server": str(client.info("server")["redis_version"])}
    finally:
        client.close()
