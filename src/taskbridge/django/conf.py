"""The setting `TASKBRIDGE`: the default bridge's settings, by their names in upper case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from taskbridge.bridge import Bridge
from taskbridge.exceptions import TaskBridgeError

NAME: Final = "TASKBRIDGE"


def given() -> dict[str, Any]:
    """Return what the project's settings say, by the bridge's own names of settings.

    Raises `ImproperlyConfigured` if `TASKBRIDGE` is no dictionary with names in upper case.
    """
    found: Any = getattr(settings, NAME, {})
    if not isinstance(found, Mapping):
        raise ImproperlyConfigured(f"{NAME} must hold settings by name, such as {{'URL': ...}}, not {found!r}")
    for key in found:
        if not isinstance(key, str) or key != key.upper():
            raise ImproperlyConfigured(f"{NAME}: settings have names in upper case, such as 'URL', not {key!r}")
    return {key.lower(): value for key, value in found.items()}


def configure(bridge: Bridge) -> None:
    """Give a bridge the project's settings, over the environment; raises `ImproperlyConfigured` if one is wrong."""
    try:
        bridge.reconfigure(**given())
    except TaskBridgeError as exc:
        raise ImproperlyConfigured(f"{NAME}: {exc}") from exc
