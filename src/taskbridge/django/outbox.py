"""The outbox in Django's database: what `commit="outbox"` sends is a row there until a worker publishes it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from typing import Final

from django.db import Error, connections, router, transaction
from django.db.models import QuerySet

from taskbridge.bridge import Bridge
from taskbridge.django.models import OutboxEntry
from taskbridge.exceptions import BrokerUnavailable

_TOGETHER: Final = 1000  # rows in one INSERT


class DjangoOutbox:
    """What a bridge's relay looks into, and sends write to; see `taskbridge.outbox.ApplicationOutbox`.

    It is in the database that the project's routers choose for `OutboxEntry`.

    Attributes:
        may_hold: Whether this process has put something there.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self.may_hold: bool = False

    @property
    def _database(self) -> str:
        return router.db_for_write(OutboxEntry)

    def _entries(self) -> QuerySet[OutboxEntry]:
        namespace = self._bridge.settings.namespace
        entries: QuerySet[OutboxEntry] = OutboxEntry.objects.using(self._database).filter(namespace=namespace)
        return entries

    def put(self, texts: Sequence[str], then: Callable[[], object] | None) -> None:
        """Insert entries, in the caller's transaction if one is open; call `then` when they are committed.

        Raises what Django raises, and `BrokerUnavailable` if the table is missing.
        """
        self.may_hold = True
        database, namespace = self._database, self._bridge.settings.namespace
        rows = [OutboxEntry(namespace=namespace, text=text) for text in texts]
        try:
            OutboxEntry.objects.using(database).bulk_create(rows, batch_size=_TOGETHER)
        except Error as exc:
            if OutboxEntry._meta.db_table in str(exc):  # all databases name the table that they miss
                raise BrokerUnavailable(_problem(database, exc)) from exc
            raise
        connection = connections[database]
        if then is not None and (connection.in_atomic_block or connection.get_autocommit()):  # else Django refuses
            transaction.on_commit(then, using=database)

    def due_entries(self, *, most: int, lease_s: float, timeout_s: float) -> list[tuple[str, str]]:
        """Return ids and texts of due entries; where the database can, those that others claim now are passed over."""
        now = self._bridge.now()
        due = self._entries().filter(leased_until__lte=now).order_by("leased_until", "id")
        with self._asked() as database:
            found = list(due[:most])
            if not found:
                return []
            features, until = connections[database].features, now + lease_s
            with transaction.atomic(using=database):
                if features.has_select_for_update_skip_locked and features.supports_select_for_update_with_limit:
                    found = list(due.select_for_update(skip_locked=True)[:most])
                    self._entries().filter(pk__in=[each.pk for each in found]).update(leased_until=until)
                else:
                    found = [each for each in found if due.filter(pk=each.pk).update(leased_until=until)]
        return [(str(each.pk), each.text) for each in found]

    def remove_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Delete entries."""
        with self._asked():
            self._entries().filter(pk__in=ids).delete()

    def hand_on_entries(self, ids: Collection[str], *, timeout_s: float) -> None:
        """Have entries be due at once."""
        with self._asked():
            self._entries().filter(pk__in=ids).update(leased_until=0.0)

    def leave(self) -> None:
        """Close this thread's connection, unless it is in a transaction, as that of a test is."""
        if not connections[self._database].in_atomic_block:
            connections[self._database].close()

    @contextmanager
    def _asked(self) -> Generator[str, None, None]:
        """Enter with the database; raise its errors as `BrokerUnavailable`, and connect anew after one.

        Else the relay's thread keeps its connection, whatever `CONN_MAX_AGE` says, for it looks all the time; but not
        one of a pool, of which others may be in need.
        """
        database = self._database
        connection = connections[database]
        is_kept = not connection.settings_dict["OPTIONS"].get("pool")
        try:
            yield database
            if not connection.settings_dict["AUTOCOMMIT"] and not connection.in_atomic_block:
                connection.commit()
        except Error as exc:
            is_kept = False
            raise BrokerUnavailable(_problem(database, exc)) from exc
        finally:
            if not is_kept and not connection.in_atomic_block:
                connection.close()


def _problem(database: str, error: Error) -> str:
    is_missing = OutboxEntry._meta.db_table in str(error)
    remedy = "; if its table is missing, run: manage.py migrate taskbridge" if is_missing else ""
    return f"the outbox in database {database!r}: {str(error).strip()}{remedy}"
