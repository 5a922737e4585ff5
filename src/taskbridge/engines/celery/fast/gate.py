"""Decides whether the shortcuts of this room may be taken, and says in the log why they are not."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

_log = logging.getLogger("taskbridge.celery")

TESTED: Final[Mapping[str, Sequence[str]]] = {
    "celery": ("5.5", "5.6", "5.7"),
    "kombu": ("5.5", "5.6", "5.7"),
    "amqp": ("5.3", "5.4"),
}
"""The versions with which the shortcuts were tested; with others, the plain way is taken."""

_TASKS: Final[Mapping[str, Sequence[str]]] = {
    "celery._state:_task_stack": ("push", "pop"),
    "celery.app.trace": ("build_tracer", "task_has_custom", "LOG_RECEIVED", "LOG_SUCCESS", "logger"),
    "celery.app.task:Context": ("_get_custom_headers",),
    "celery.worker.request:Request": ("_terminate_on_ack",),
    "celery.worker.strategy": ("logger",),
    "kombu.message:Message": ("_decoded_cache",),
}
"""What `tasks` uses of Celery and kombu, and by which attributes."""

_READER: Final[Mapping[str, Sequence[str]]] = {
    "amqp.channel:Channel": ("_on_basic_deliver",),
    "amqp.serialization": ("decode_properties_basic",),
    "amqp.transport:TCPTransport": ("_setup_transport",),
}
"""What `reader` uses of py-amqp."""

_DELIVERED: Final = ("self", "consumer_tag", "delivery_tag", "redelivered", "exchange", "routing_key", "msg")
_SOCKET_HAS: Final = ("_read_buffer",)
"""What py-amqp's socket is given as it is connected."""


def obstacle_for_tasks(*, is_wanted: bool) -> str | None:
    """Return why the shortcut past Celery's tracer is not taken; None if it may be.

    Args:
        is_wanted: The setting `fast`.
    """
    return _obstacle(("celery", "kombu"), _missing_for_tasks) if is_wanted else "the setting fast is off"


def obstacle_for_reader(*, is_wanted: bool) -> str | None:
    """Return why py-amqp reads deliveries itself; None if `reader` may."""
    return _obstacle(("kombu", "amqp"), _missing_for_reader) if is_wanted else "the setting fast is off"


def tell(what: str, why: str) -> None:
    """Log, once for each reason in a process, that the plain way is taken."""
    _told(what, why)


@lru_cache(maxsize=64)
def _told(what: str, why: str) -> None:
    _log.info("%s the plain way: %s", what, why)


def _obstacle(packages: Sequence[str], missing: Callable[[], str | None]) -> str | None:
    for package in packages:
        try:
            found = version(package)
        except PackageNotFoundError:
            return f"the version of {package} is not known"
        if ".".join(found.split(".")[:2]) not in TESTED[package]:
            return f"{package} {found} is none of the versions that were tested ({', '.join(TESTED[package])})"
    lacking = missing()
    return None if lacking is None else f"there is no {lacking} any more"


def _missing_for_tasks() -> str | None:
    return _missing(_TASKS)


def _missing_for_reader() -> str | None:
    lacking = _missing(_READER)
    if lacking is not None:
        return lacking
    deliver: Any = _found("amqp.channel:Channel")._on_basic_deliver
    if tuple(inspect.signature(deliver).parameters) != _DELIVERED:
        return "Channel._on_basic_deliver with its six arguments"
    set_up: Any = _found("amqp.transport:TCPTransport")._setup_transport
    return next((name for name in _SOCKET_HAS if name not in set_up.__code__.co_names), None)


def _missing(needed: Mapping[str, Sequence[str]]) -> str | None:
    for place, names in needed.items():
        found = _found(place)
        for name in names:
            if not hasattr(found, name):
                return f"{place.replace(':', '.')}.{name}"
    return None


def _found(place: str) -> Any:
    """Return a module, or what it has under a name; None if it has none."""
    module, _, name = place.partition(":")
    try:
        found = import_module(module)
    except ImportError:
        return None
    return getattr(found, name, None) if name else found
