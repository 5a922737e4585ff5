"""What `taskbridge worker` names to Celery's command line: the app of the application in `TASKBRIDGE_APP`."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from celery.signals import setup_logging

from taskbridge.engines.base import APP_VARIABLE
from taskbridge.exceptions import TaskBridgeError
from taskbridge.loading import load_bridge
from taskbridge.schedules import sender

if TYPE_CHECKING:
    from taskbridge.engines.celery.app import BridgeCelery


def load() -> BridgeCelery:
    """Return the Celery app of the application that the environment names.

    Raises:
        SystemExit: It can't be loaded: code 2, and one line that says why.
    """
    # Unless the application sets it.
    logging.getLogger().setLevel(os.environ.get("TASKBRIDGE_APP_LOG_LEVEL", "INFO"))  # noqa: TID251 - it is the root
    name = os.environ.get(APP_VARIABLE)
    if name is None:
        problem = f"the environment variable {APP_VARIABLE} is not set: which module has the tasks?"
    else:
        try:
            bridge = load_bridge(name)
            sender.check(bridge)
            app: BridgeCelery = bridge.native
            setup_logging.connect(_log_unless_the_application_does, weak=False)
        except TaskBridgeError as exc:
            problem = str(exc)
        else:
            return app
    sys.stderr.write(f"taskbridge: {problem}\n")
    sys.exit(2)


def _log_unless_the_application_does(loglevel: int, format: str, **_: Any) -> None:
    """Log to standard error, or as the application has set it up. As this listens, Celery itself sets up nothing."""
    logging.basicConfig(level=loglevel, format=format, stream=sys.__stderr__)


app: Any = load()
