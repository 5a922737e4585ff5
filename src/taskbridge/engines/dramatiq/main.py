"""What `taskbridge worker` names to Dramatiq's command line: the broker of the application in `TASKBRIDGE_APP`."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from taskbridge.engines.base import APP_VARIABLE
from taskbridge.exceptions import TaskBridgeError
from taskbridge.loading import load_bridge
from taskbridge.logs import logger
from taskbridge.schedules import sender

if TYPE_CHECKING:
    from taskbridge.engines.dramatiq.broker import EngineBroker

_log = logger("taskbridge.worker")


def load() -> EngineBroker:
    """Return the broker of the application that the environment names.

    Raises:
        SystemExit: It can't be loaded: code 2, as for Dramatiq's own failures to import.
    """
    root = logging.getLogger()  # noqa: TID251 - it is the root
    root.setLevel(os.environ.get("TASKBRIDGE_APP_LOG_LEVEL", "INFO"))  # Dramatiq knows only INFO and DEBUG
    app = os.environ.get(APP_VARIABLE)
    if app is None:
        _log.critical("the environment variable %s is not set: which module has the tasks?", APP_VARIABLE)
        sys.exit(2)
    try:
        handlers, root.handlers = root.handlers, []  # as Python begins, so that the application can set up its own
        try:
            bridge = load_bridge(app)
        finally:
            root.handlers = root.handlers or handlers
        sender.check(bridge)
        broker: EngineBroker = bridge.native
    except TaskBridgeError as exc:
        _log.critical("%s", exc)
        sys.exit(2)
    return broker


broker: Any = load()
