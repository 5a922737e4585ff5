"""The setting `TASKBRIDGE`: the default bridge's settings, by their names in upper case."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from taskbridge.bridge import Bridge
from taskbridge.exceptions import SettingsError, TaskBridgeError, nearest
from taskbridge.settings import DEFAULT_URL, ENV_PREFIX, SETTING_KEYS

NAME: Final = "TASKBRIDGE"
_KNOWN: Final = tuple(key.upper() for key in SETTING_KEYS)


def given() -> dict[str, Any]:
    """Return what the project's settings say, by the bridge's own names of settings.

    Raises `ImproperlyConfigured` if `TASKBRIDGE` is no dictionary of settings by their names in upper case.
    """
    found: Any = getattr(settings, NAME, {})
    if not isinstance(found, Mapping):
        raise ImproperlyConfigured(f"{NAME} must hold settings by name, such as {{'URL': ...}}, not {found!r}")
    for key in found:
        if key not in _KNOWN:
            hint = nearest(str(key).upper(), _KNOWN)
            raise ImproperlyConfigured(f"{NAME} has {key!r}, and there is no such setting{hint}")
    return {key.lower(): value for key, value in found.items()}


def chosen_url() -> str | None:
    """Return the URL that the project's settings or the environment choose; None if neither does."""
    return given().get("url") or os.environ.get(f"{ENV_PREFIX}URL")


def configure(bridge: Bridge) -> None:
    """Give a bridge the project's settings, over the environment; raises `ImproperlyConfigured` if one is wrong.

    If nothing chooses a URL, tasks run inline, which a system check tells.
    """
    found = given()
    try:
        bridge.reconfigure(**{**found, "url": chosen_url() or DEFAULT_URL})
    except SettingsError as exc:
        name = exc.key.upper()
        where = f"{NAME}[{name!r}]" if exc.key in found else f"variable {ENV_PREFIX}{name.removeprefix(ENV_PREFIX)}"
        raise ImproperlyConfigured(f"{where}: {exc.problem}") from exc
    except TaskBridgeError as exc:
        raise ImproperlyConfigured(f"{NAME}: {exc}") from exc
