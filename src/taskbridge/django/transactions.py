"""Django's transactions, for `commit`: what is sent in one is published by a callback of `transaction.on_commit`.

Django keeps the callbacks in `connection.run_on_commit`, each with the savepoints that were open as it was added, and
drops those of a savepoint that is rolled back. A callback that several messages share must not outlive any of them. So
a message is added to the last callback if the same savepoints decide about both: those that are open still, for one
that was released can't be rolled back by itself any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

from asgiref.sync import sync_to_async
from django.core import mail
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from taskbridge.bridge import Bridge
from taskbridge.django.outbox import DjangoOutbox
from taskbridge.exceptions import SettingsError, nearest

T = TypeVar("T")

_Callback: TypeAlias = tuple[set[str], Any, bool]
"""What Django keeps of a callback: the savepoints that were open, the callback, and whether its errors are logged."""


class _Batch(list[Any]):
    """What is held together: a callback that publishes it."""

    def __init__(self, held: Sequence[Any], publish: Callable[[Sequence[Any]], None]) -> None:
        super().__init__(held)
        self.publish = publish

    def __call__(self) -> None:
        self.publish(self)


class DjangoTransactions:
    """What a bridge is told of Django's transactions; see `taskbridge.transactions.Transactions`.

    Attributes:
        outbox: The outbox in Django's database.
    """

    def __init__(self, bridge: Bridge) -> None:
        self.outbox: DjangoOutbox = DjangoOutbox(bridge)

    def open_on(self, databases: Sequence[str]) -> Sequence[str]:
        """Return those databases on which this thread has an open transaction; none is asked."""
        for name in databases:
            if name not in connections.settings:
                raise SettingsError("commit", f"there is no database {name!r}{nearest(name, connections.settings)}")
        return [name for name in databases if _is_open(connections[name])]

    def hold(self, database: str, held: Sequence[T], publish: Callable[[Sequence[T]], None]) -> None:
        """Have `publish` called with what is held, when the transaction on a database is committed."""
        connection = connections[database]
        callbacks = cast("list[_Callback]", connection.run_on_commit)
        open_now = set(filter(None, connection.savepoint_ids))  # None is of `atomic(savepoint=False)`

        def deciding(callback: _Callback) -> set[str] | None:
            """Return the open savepoints that decide about a callback; None if it does not publish this."""
            savepoints, batch, _ = callback
            return savepoints & open_now if isinstance(batch, _Batch) and batch.publish == publish else None

        if hasattr(mail, "outbox"):  # in a test: what captures callbacks must find one of each send
            connection.on_commit(_Batch(held, publish))
        elif callbacks and deciding(callbacks[-1]) == open_now:
            callbacks[-1][1].extend(held)
        else:
            # What was sent in savepoints that are released now goes to what was sent before them: else each turn of a
            # loop with `atomic()` in it would leave a callback.
            while len(callbacks) > 1 and deciding(callbacks[-2]) == deciding(callbacks[-1]) is not None:
                callbacks[-2][1].extend(callbacks.pop()[1])
            connection.on_commit(_Batch(held, publish))

    def put(self, texts: Sequence[str], then: Callable[[], object] | None) -> None:
        """Insert entries into the outbox; see `DjangoOutbox.put`."""
        self.outbox.put(texts, then)

    async def aside(self, act: Callable[[], T]) -> T:
        """Return what an act returns, done in the thread where the caller's transactions are.

        That is asgiref's, in which all is run that `sync_to_async` calls; or this one, if the coroutine itself has
        begun a transaction, which Django allows in notebooks.
        """
        if any(_is_open(each) for each in connections.all(initialized_only=True)):
            return act()
        return await sync_to_async(act)()


def _is_open(connection: BaseDatabaseWrapper) -> bool:
    # Outside of `atomic` without autocommit, Django refuses callbacks, and so a send.
    return connection.in_atomic_block or (connection.connection is not None and not connection.autocommit)
