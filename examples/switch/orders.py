"""The shop's own records: what happened to each order, in a file that web and worker share."""

import os
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager

REMIND_AFTER_S = float(os.environ.get("REMIND_AFTER", "2"))


@contextmanager
def _database() -> Generator[sqlite3.Connection, None, None]:
    with closing(sqlite3.connect(os.environ.get("SHOP_DB", "shop.sqlite"), timeout=30)) as database, database:
        database.execute("create table if not exists events (order_id text, what text)")
        yield database


def record(order_id: str, what: str) -> None:
    with _database() as database:
        database.execute("insert into events values (?, ?)", (order_id, what))


def history(order_id: str) -> list[str]:
    with _database() as database:
        rows = database.execute("select what from events where order_id = ? order by rowid", (order_id,))
        return [str(what) for (what,) in rows]
