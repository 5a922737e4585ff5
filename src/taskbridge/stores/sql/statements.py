"""The statements that each message takes, made once: making them takes as long as what the database does."""

from __future__ import annotations

from itertools import product
from typing import Any, Final

from sqlalchemy import bindparam, func, select, update

from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.tables import RECORDS

CHANNEL: Final = "taskbridge_ended"
"""The channel on which PostgreSQL tells that a record became final, as `namespace:id`."""

_ITS: Final = (RECORDS.c.namespace == bindparam("its_namespace"), RECORDS.c.id == bindparam("its_id"))
_SEEN: Final = (RECORDS.c.state == bindparam("seen_state"), RECORDS.c.rest == bindparam("seen_rest"))
_KEY: Final = ("namespace", "id")


class RecordStatements:
    """Statements about one record. Their parameters: `its_namespace` and `its_id`; `new_` and a column's name.

    Those that compare take `seen_state` and `seen_rest`, and change nothing where the record has others; those that
    tell take `told`, what is sent to whoever waits. An insert or an update returns a row if it has done something.

    Attributes:
        find: Reads it.
        find_and_lock: The same, and keeps others from changing it until the transaction ends.
        inserts: Makes it, unless it is there; by whether it tells.
        updates: Changes it; by whether it compares, and whether it tells.
    """

    def __init__(self, database: Database) -> None:
        new = {column.name: bindparam(f"new_{column.name}", type_=column.type) for column in RECORDS.columns}
        changed = {name: value for name, value in new.items() if name not in _KEY}
        notify: Any = func.pg_notify(CHANNEL, bindparam("told"))  # in the same statement, for a round trip less
        answer = {False: RECORDS.c.id, True: notify}
        self.find: Any = select(RECORDS).where(*_ITS)
        self.find_and_lock: Any = self.find.with_for_update()
        self.inserts: dict[bool, Any] = {
            tells: database.insert(RECORDS).values(new).on_conflict_do_nothing().returning(answer[tells])
            for tells in (False, True)
        }
        self.updates: dict[tuple[bool, bool], Any] = {
            (compares, tells): update(RECORDS)
            .where(*_ITS, *(_SEEN if compares else ()))
            .values(changed)
            .returning(answer[tells])
            for compares, tells in product((False, True), repeat=2)
        }
