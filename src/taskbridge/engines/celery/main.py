"""What `taskbridge worker` names to Celery's command line: the app of the application in `TASKBRIDGE_APP`."""

from __future__ import annotations

import logging
import sys
from typing import Any

from celery.signals import setup_logging

from taskbridge.loading import worker_bridge


def _log_unless_the_application_does(loglevel: int, format: str, **_: Any) -> None:
    """Log to standard error, or as the application has set it up. As this listens, Celery itself sets up nothing."""
    logging.basicConfig(level=loglevel, format=format, stream=sys.__stderr__)


app: Any = worker_bridge().native
setup_logging.connect(_log_unless_the_application_does, weak=False)
