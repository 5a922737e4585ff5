"""The application that `taskbridge worker` and other commands load where no module is named: a Django project.

Importing this module sets Django up by `DJANGO_SETTINGS_MODULE`; the bridge is the default one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import django
from django.apps import apps
from django.db import Error, connections

from taskbridge.django import checks
from taskbridge.loading import LoadError, reason

_PACKAGES: Final = {"site-packages", "dist-packages"}


def watched() -> list[Path]:
    """Return the folders of the project's own apps, those outside of site-packages, for `--watch`."""
    folders = [Path(each.path).resolve() for each in apps.get_app_configs()]
    return [folder for folder in folders if _PACKAGES.isdisjoint(folder.parts)]


def problems() -> list[str]:
    """Return what system checks say that a worker can go on without."""
    try:
        found = [*checks.check_pools(), *checks.check_outbox([*connections])]
    except Error as exc:
        return [f"the database does not answer: {str(exc).strip()}"]
    finally:
        connections.close_all()
    return [f"{each.msg} {each.hint}" for each in found]


def _set_up() -> None:
    name = os.environ.get("DJANGO_SETTINGS_MODULE", "")
    try:
        django.setup()
    except (Exception, SystemExit) as exc:
        why = reason(exc, library=Path(django.__file__).parent)
        raise LoadError(__name__, f"Django can't be set up with the settings {name!r}: {why}") from exc
    if not apps.is_installed("taskbridge.django"):
        problem = "'taskbridge.django' is not in INSTALLED_APPS: add it, or name the MODULE that declares the tasks"
        raise LoadError(__name__, f"settings {name!r}: {problem}")
    # What an app has opened as it was imported is not for the children that Celery forks.
    for each in connections.all(initialized_only=True):
        wrapper: Any = each  # only PostgreSQL's has a pool
        wrapper.close()
        if hasattr(wrapper, "close_pool"):
            wrapper.close_pool()


_set_up()
