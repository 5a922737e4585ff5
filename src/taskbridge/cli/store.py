"""`taskbridge store init`: makes the store's tables."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from taskbridge import Bridge
from taskbridge.cli.command import Command, Output, UsageError, any_bridge, argument, command
from taskbridge.settings import without_credentials
from taskbridge.stores.backend import BackendWithTables

_DESCRIPTION = """\
Look after the store: the database of status, results, cancellations, schedules and attempt marks.

  taskbridge store init --url postgresql://shop:secret@localhost/shop
  taskbridge store init shop.tasks
  TASKBRIDGE_STORE=sqlite:////var/lib/shop/tasks.db taskbridge store init
"""

_TIMEOUT_S: Final = 60.0  # how long it may take: another that makes the same tables goes first


@command(
    "make its tables, or bring them up to date",
    argument(
        "app",
        "MODULE[:BRIDGE]",
        "the module whose settings name the store; if left out: the environment's TASKBRIDGE_STORE",
        nargs="?",
    ),
    argument("--url", "URL", "the store, such as postgresql://user:password@host/database"),
    opens=lambda given: any_bridge(given) if given.url is None else Bridge("inline://", store=given.url),
)
def _init(bridge: Bridge, arguments: Namespace) -> Output:
    """Make the store's tables, or bring those of an earlier release up to date.

    It may be run again, and by several at once; what is stored stays. Redis needs none, and SQLite makes its own when
    it is first used, but not newer ones.

      taskbridge store init --url postgresql://shop:secret@localhost/shop

    Its user must be allowed to create tables. Then: `taskbridge check` says whether the store is ready.
    """
    store = bridge.store
    if store is None:
        raise UsageError("there is no store to make ready: set TASKBRIDGE_STORE, or --url to the store's")
    if isinstance(store.backend, BackendWithTables):
        done = _done(*store.backend.init(timeout_s=_TIMEOUT_S))
    else:
        store.ping(timeout_s=bridge.settings.send_timeout_s)
        done = "it answers, and needs no tables"
    return Output(text=f"{without_credentials(bridge.settings.store or bridge.settings.url.broker_url)}: {done}")


def _done(before: int, after: int) -> str:
    if before == after:
        return f"the tables are there, of version {after}"
    if before == 0:
        return f"made the tables, of version {after}"
    return f"brought the tables from version {before} to {after}"


store: Command = Command(name="store", help="make the store's tables", description=_DESCRIPTION, below=(_init,))
