"""The settings of a small Django project, whose database and bridge the environment chooses."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import urlsplit

SECRET_KEY: Final = "only for tests"
USE_TZ: Final = True
DEFAULT_AUTO_FIELD: Final = "django.db.models.BigAutoField"
INSTALLED_APPS: Final = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "taskbridge.django",
    "tests.django.site.shop",
    "tests.django.site.ledger",
    "tests.django.site.reports",
    *(("django_tasks",) if find_spec("django.tasks") is None else ()),
]


def _database(address: str) -> dict[str, Any]:
    """Return what Django is to know of a PostgreSQL database by its URL, or of an SQLite one by its file."""
    url = urlsplit(address)
    if url.scheme != "postgresql":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": address}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.path.strip("/"),
        "USER": url.username,
        "HOST": url.hostname,
        "PORT": url.port,
        "CONN_MAX_AGE": None if os.environ.get("SITE_CONNECTIONS") == "kept" else 0,
        "OPTIONS": {"application_name": "site"},
    }


DATABASES: Final[dict[str, Any]] = {"default": _database(os.environ.get("SITE_DATABASE", ":memory:"))}
TASKBRIDGE: Final[dict[str, Any]] = {
    "URL": os.environ.get("SITE_URL", "inline://?threads=0"),
    "NAMESPACE": os.environ.get("SITE_NAMESPACE", "site"),
    "QUEUES": ["bulk"],
}
TASKS: Final[dict[str, Any]] = {
    "default": {
        "BACKEND": "taskbridge.django.TaskBackend",
        "QUEUES": ["default", "mail", "bulk"],
        "OPTIONS": {"backoff": 0.2, "tasks": {"*.twice": {"max_attempts": 2}, "*.fails": {"max_attempts": 1}}},
    },
    "reserve": {"BACKEND": "taskbridge.django.TaskBackend", "QUEUES": []},
}
