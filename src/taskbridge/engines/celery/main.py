"""What `taskbridge worker` names to Celery's command line: the app of the application in `TASKBRIDGE_APP`."""

from __future__ import annotations

from typing import Any

from celery.apps import worker as command_line
from celery.signals import setup_logging

from taskbridge.loading import worker_bridge


def _do_nothing(*_: Any, **__: Any) -> None:
    """Stand in the place of what Celery would do."""


app: Any = worker_bridge("celery").native
setup_logging.connect(_do_nothing, weak=False)  # it is set up by now, and as this listens, Celery sets up nothing
command_line.safe_say = _do_nothing  # it writes past the log, from a signal handler, that it was told to stop
