"""The statements that each message takes, made once: making them takes as long as what the database does."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import bindparam, delete, func, select, update

from taskbridge.stores.sql.database import Database
from taskbridge.stores.sql.tables import RECORDS

CHANNEL: Final = "taskbridge_ended"
"""The channel on which PostgreSQL tells that a record became final, as `namespace:id`."""

_ITS: Final = (RECORDS.c.namespace == bindparam("its_namespace"), RECORDS.c.id == bindparam("its_id"))
_SEEN: Final = (*_ITS, RECORDS.c.state == bindparam("seen_state"), RECORDS.c.rest == bindparam("seen_rest"))
_KEY: Final = ("namespace", "id")


class RecordStatements:
    """Statements about one record. Their parameters: `its_namespace` and `its_id`; `new_` and a column's name.

    Those that change a record take `seen_state` and `seen_rest`, and change nothing where the record has others; those
    that tell take `told`, what is sent to whoever waits. An insert or an update returns a row if it has done something.

    Attributes:
        find: Reads it.
        remove: Removes it.
        inserts: Makes it, unless it is there; by whether it tells.
        updates: Changes it; by whether it tells.
    """

    def __init__(self, database: Database) -> None:
        new = {column.name: bindparam(f"new_{column.name}", type_=column.type) for column in RECORDS.columns}
        changed = {name: value for name, value in new.items() if name not in _KEY}
        notify: Any = func.pg_notify(CHANNEL, bindparam("told"))  # in the same statement, for a round trip less
        answers = {False: RECORDS.c.id, True: notify}
        insert: Any = database.insert(RECORDS).values(new).on_conflict_do_nothing()
        change: Any = update(RECORDS).where(*_SEEN).values(changed)
        self.find: Any = select(RECORDS).where(*_ITS)
        self.remove: Any = delete(RECORDS).where(*_SEEN)
        self.inserts: dict[bool, Any] = {tells: insert.returning(answer) for tells, answer in answers.items()}
        self.updates: dict[bool, Any] = {tells: change.returning(answer) for tells, answer in answers.items()}
