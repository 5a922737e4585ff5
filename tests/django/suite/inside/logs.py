"""Brings what a worker logs of a task to the process of the tests."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any


class ToTests(logging.Handler):
    """Writes what a worker logs of each task into a file by the task's id."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = Path(folder)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; the first argument of each that Django logs of a task is its id."""
        exc_text = None if record.exc_info is None else logging.Formatter().formatException(record.exc_info)
        names = {name: getattr(record, name) for name in ("name", "levelno", "levelname")}
        told = {**names, "msg": record.getMessage(), "exc_text": exc_text}
        arguments: Any = record.args
        with (self._folder / str(arguments[0])).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(told)}\n")


def log_again(folder: Path, id: str) -> None:
    """Log in this process what a worker has logged of a task."""
    place = folder / id
    for line in place.read_text(encoding="utf-8").splitlines() if place.exists() else ():
        record = logging.makeLogRecord(json.loads(line))
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
