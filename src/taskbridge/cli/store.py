"""`taskbridge store init`: makes the store's tables."""

from __future__ import annotations

import argparse
import os

from taskbridge import Bridge
from taskbridge.cli.arguments import Commands, UsageError, add_command, bridge_of
from taskbridge.loading import APP_VARIABLE
from taskbridge.settings import without_credentials
from taskbridge.stores.base import StoreWithTables

_DESCRIPTION = """\
Look after the store: the database of status, results, cancellations, schedules and attempt marks.

  taskbridge store init --url postgresql://shop:secret@localhost/shop
  taskbridge store init shop.tasks
  TASKBRIDGE_STORE=sqlite:////var/lib/shop/tasks.db taskbridge store init
"""

_INIT_DESCRIPTION = """\
Make the store's tables, or bring those of an earlier release up to date. It may be run again, and by several at once;
what is stored stays. Redis needs none, and SQLite makes its own when it is first used, but not newer ones.

  taskbridge store init --url postgresql://shop:secret@localhost/shop

Its user must be allowed to create tables. Then: `taskbridge check` says whether the store is ready.
"""

_TIMEOUT_S = 60.0
"""How long it may take: another that makes the same tables goes first."""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("store", help="make the store's tables", description=_DESCRIPTION)
    verbs: Commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="verb", required=True)
    title = "make its tables, or bring them up to date"
    init = add_command(verbs, "init", run, help=title, description=_INIT_DESCRIPTION)
    init.add_argument(
        "app",
        nargs="?",
        metavar="MODULE[:BRIDGE]",
        default=os.environ.get(APP_VARIABLE),
        help="the module whose settings name the store; if left out: the environment's TASKBRIDGE_STORE",
    )
    init.add_argument("--url", metavar="URL", help="the store, such as postgresql://user:password@host/database")


def run(arguments: argparse.Namespace) -> int:
    """Make the store ready, and say what was done."""
    bridge = _bridge(arguments)
    store, url = bridge.store, bridge.settings.store or bridge.settings.url.broker_url
    if store is None:
        raise UsageError("there is no store to make ready: set TASKBRIDGE_STORE, or --url to the store's")
    shown = without_credentials(url)
    try:
        if isinstance(store, StoreWithTables):
            before, after = store.init(timeout_s=_TIMEOUT_S)
            print(f"{shown}: {_done(before, after)}")
        else:
            store.ping(timeout_s=bridge.settings.send_timeout_s)
            print(f"{shown}: it answers, and needs no tables")
    finally:
        bridge.close()
    return 0


def _bridge(arguments: argparse.Namespace) -> Bridge:
    if arguments.url is None:
        return bridge_of(argparse.Namespace(app=arguments.app, url=None))
    return Bridge("inline://", store=arguments.url)


def _done(before: int, after: int) -> str:
    if before == after:
        return f"the tables are there, of version {after}"
    if before == 0:
        return f"made the tables, of version {after}"
    return f"brought the tables from version {before} to {after}"
