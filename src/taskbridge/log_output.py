"""How `taskbridge worker` logs: on every engine the same, as text or as JSON, to standard error (rule LG1).

An application may use the formatters in a set-up of its own, such as
`{"formatters": {"json": {"()": "taskbridge.log_output.JsonFormatter"}}}`.
"""

from __future__ import annotations

import json
import logging.config
import os
import socket
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from types import TracebackType
from typing import Any, Final, cast

from taskbridge.context import running
from taskbridge.exceptions import SettingsError
from taskbridge.failures import clipped, traceback_of
from taskbridge.logs import about, escaped

FORMAT_VARIABLE: Final = "TASKBRIDGE_LOG_FORMAT"  # `text` or `json`
CONFIG_VARIABLE: Final = "TASKBRIDGE_LOG_CONFIG"  # the path of a file, see `read_config`


@dataclass
class Process:
    """What is known of this process: its engine, and whether a file has set up its log."""

    engine: str | None = None
    is_by_file: bool = False


process: Final = Process()

_host: Final = cache(socket.gethostname)


class _Formatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__()  # without the options of the base, which a format of its own leaves no place for

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - it is logging's
        """Return what was logged; a message that doesn't fit its arguments makes a line, too."""
        try:
            text = record.getMessage()
        except Exception as exc:
            text = f"{clipped(record.msg)} (its arguments don't fit: {clipped(exc)})"
        return text.encode("utf-8", "backslashreplace").decode()  # halves of surrogate pairs can't be written

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - it is logging's
        """Return when it was logged: ISO 8601, in UTC, to the millisecond."""
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(_Formatter):
    """Formats records as JSON, one a line, in ASCII.

    The keys are `time`, `level`, `logger`, `message`, `task`, `id`, `attempt`, `queue`, `engine`, `worker`
    (`host:process id`) and `exception` (the traceback), each left out if it doesn't apply.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line."""
        shown = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": self.formatMessage(record),
            **_about(record),
            "engine": process.engine,
            "worker": f"{_host()}:{record.process}",
            "exception": _exception(record),
        }
        return json.dumps({name: value for name, value in shown.items() if value is not None}, default=clipped)


class TextFormatter(_Formatter):
    """Formats records as text: time, level, process id, logger, message; then the run that has logged it, if one has.

    Further lines, as of a traceback, are indented, so that none looks like a record; control characters are escaped.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line, or as several ones."""
        text = self.formatMessage(record)
        found = None if getattr(record, "taskbridge", None) else running.get()  # else the message tells it
        if found is not None:
            text += " [task {task} id {id} attempt {attempt}]".format(**about(found[0]))
        if (exception := _exception(record)) is not None:
            text += f"\n{exception}"
        text = f"{self.formatTime(record)} {record.levelname} {record.process} {record.name}: {text}"
        return escaped(text, keep="\n\t").replace("\n", "\n  ")


_FORMATTERS: Final[Mapping[str, type[_Formatter]]] = {"text": TextFormatter, "json": JsonFormatter}
FORMATS: Final = tuple(_FORMATTERS)


def _about(record: logging.LogRecord) -> Mapping[str, Any]:
    """Return of which message a record tells, as far as it is known: task, id, attempt and queue."""
    told: Any = getattr(record, "taskbridge", None)
    if isinstance(told, dict):  # it may be the application's
        given = cast("dict[str, Any]", told)
        known = {name: value for name in ("task", "id", "attempt", "queue") if (value := given.get(name)) is not None}
        return {name: value if type(value) is int else clipped(value) for name, value in known.items()}
    if (found := running.get()) is not None:
        return about(found[0])
    if isinstance(record.args, Mapping) and {"name", "id"} <= record.args.keys():  # as Celery says it
        return {"task": clipped(record.args["name"]), "id": clipped(record.args["id"])}
    return {}


def _exception(record: logging.LogRecord) -> str | None:
    error = record.exc_info[1] if record.exc_info else None
    text = dedent(record.exc_text or "") if error is None else traceback_of(error)
    return (text + (record.stack_info or "")).rstrip() or None


def _stderr_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.__stderr__)  # not what an engine has put in its place
    handler.setFormatter(_FORMATTERS.get(os.environ.get(FORMAT_VARIABLE, ""), TextFormatter)())
    return handler


def is_plain() -> bool:
    """Return whether this process logs as text, and not as a file says."""
    return os.environ.get(FORMAT_VARIABLE) != "json" and not process.is_by_file


def read_config(path: str) -> dict[str, Any]:
    """Return what a file holds for `logging.config.dictConfig`: TOML if its name says so, else JSON.

    Unless it says otherwise, loggers that exist already stay enabled. Raises `SettingsError` if it can't be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        found: Any = _toml().loads(text) if path.endswith(".toml") else json.loads(text)
        return {"disable_existing_loggers": False, **found}
    except (OSError, TypeError, ValueError) as exc:
        raise SettingsError(CONFIG_VARIABLE, f"{path!r} can't be read: {exc}") from exc


def _toml() -> Any:
    for name in ("tomllib", "tomli"):  # the former is in Python from 3.11 on
        with suppress(ModuleNotFoundError):
            return import_module(name)
    raise ValueError("for TOML on Python 3.10, pip install tomli; or write JSON")


@contextmanager
def set_up(level: str) -> Generator[None]:
    """Have this process log to standard error, or as the block sets it up, which loads the application.

    A file that the environment names wins over both. Raises `SettingsError` if it names a wrong format or file.
    """
    name, path = os.environ.get(FORMAT_VARIABLE) or "text", os.environ.get(CONFIG_VARIABLE)
    if name not in _FORMATTERS:
        raise SettingsError(FORMAT_VARIABLE, f"it must be text or json, not {name!r}")
    config = read_config(path) if path else None
    root, handler = logging.getLogger(), _stderr_handler()
    root.setLevel(level)
    if isinstance(handler.formatter, JsonFormatter):
        _log_all_else(root)
    last_resort, logging.lastResort = logging.lastResort, handler
    root.handlers = []  # as Python begins, so that the application can set up its own
    try:
        yield
        if config is not None:
            try:
                logging.config.dictConfig(config)
                process.is_by_file = True
            except (AttributeError, ImportError, TypeError, ValueError) as exc:
                raise SettingsError(CONFIG_VARIABLE, f"{path!r} is refused: {exc.__cause__ or exc}") from exc
        elif not root.handlers:
            root.addHandler(handler)
    finally:
        logging.lastResort = last_resort


def own_lines() -> logging.Logger:
    """Return the logger of lines about a worker's processes, such as that they are ready.

    It logs to standard error, whatever level or other place an application has chosen; but as a file says that the
    environment names.
    """
    if process.is_by_file:
        return logging.getLogger("taskbridge")
    apart = logging.Logger("taskbridge")  # noqa: LOG001 - none of its like is above it
    apart.addHandler(_stderr_handler())
    return apart


def _log_all_else(root: logging.Logger) -> None:
    """Log what Python itself would write to standard error: warnings, and exceptions that nobody has caught."""

    def uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        root.critical("uncaught exception", exc_info=(kind, error, traceback))

    def uncaught_in_thread(told: threading.ExceptHookArgs) -> None:
        if told.exc_type is not SystemExit and told.exc_value is not None:
            text, name = "uncaught exception in thread %s", None if told.thread is None else told.thread.name
            root.critical(text, name, exc_info=(told.exc_type, told.exc_value, told.exc_traceback))

    logging.captureWarnings(True)
    sys.excepthook, threading.excepthook = uncaught, uncaught_in_thread
