"""What `taskbridge worker` names to Celery's command line: the app of the application in `TASKBRIDGE_APP`."""

from __future__ import annotations

from typing import Any

from celery.apps import worker as command_line
from celery.signals import setup_logging

from taskbridge.loading import worker_bridge


def _say_nothing(*_: Any) -> None:
    """Be silent where Celery prints that it was told to stop: whoever has sent the signal says so."""


def _is_set_up(**_: Any) -> None:
    """Do nothing: logging is set up by now, and as this listens, Celery itself sets up nothing."""


app: Any = worker_bridge("celery").native
setup_logging.connect(_is_set_up, weak=False)
command_line.safe_say = _say_nothing  # it writes past the log, from a signal handler
