"""Decides whether the shortcuts of this room may be taken, and says in the log why they are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pkgutil import resolve_name
from typing import Final, Literal

from taskbridge.logs import logger

_log = logger("taskbridge.celery")

Shortcut = Literal["tasks", "reader"]

TESTED: Final[Mapping[str, Sequence[str]]] = {
    "celery": ("5.5", "5.6", "5.7"),
    "kombu": ("5.5", "5.6", "5.7"),
    "amqp": ("5.3", "5.4"),
}
"""The versions with which the shortcuts were tested; with others, the plain way is taken."""

_PACKAGES: Final[Mapping[Shortcut, Sequence[str]]] = {"tasks": ("celery",), "reader": ("kombu", "amqp")}

NEEDED: Final[Mapping[Shortcut, Mapping[str, Sequence[str]]]] = {
    "tasks": {
        "celery._state:_task_stack": ("push", "pop"),
        "celery.app.trace": ("build_tracer", "task_has_custom", "LOG_SUCCESS", "info", "logger"),
        "celery.app.task:Context": ("_get_custom_headers",),
    },
    "reader": {
        "amqp.channel:Channel": ("_on_basic_deliver",),
        "amqp.serialization": ("decode_properties_basic",),
        "amqp.transport:TCPTransport": ("_setup_transport",),
    },
}
"""What they use of upstream, by where it is."""


def obstacle(shortcut: Shortcut, *, is_wanted: bool) -> str | None:
    """Return why a shortcut is not taken; None if it may be. `is_wanted` is the setting `fast`."""
    if not is_wanted:
        return "the setting fast is off"
    for package in _PACKAGES[shortcut]:
        try:
            found = version(package)
        except PackageNotFoundError:
            return f"the version of {package} is not known"
        if ".".join(found.split(".")[:2]) not in TESTED[package]:
            return f"{package} {found} is none of the versions that were tested ({', '.join(TESTED[package])})"
    for place, names in NEEDED[shortcut].items():
        for name in names:
            try:
                getattr(resolve_name(place), name)
            except (ImportError, AttributeError):
                return f"there is no {place.replace(':', '.')}.{name} any more"
    return None


@lru_cache(maxsize=64)
def tell(what: str, why: str) -> None:
    """Log, once for each reason in a process, that the plain way is taken."""
    _log.info("%s the plain way: %s", what, why)
