"""The settings of a small Django project, whose database and bridge the environment chooses."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import urlsplit

SECRET_KEY: Final = "only for tests"
USE_TZ: Final = True
TIME_ZONE: Final = "UTC"
DEFAULT_AUTO_FIELD: Final = "django.db.models.BigAutoField"
ROOT_URLCONF: Final = "tests.django.site.urls"
STATIC_URL: Final = "static/"
INSTALLED_APPS: Final = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "taskbridge.django",
    "tests.django.site.office",
    "tests.django.site.shop",
    "tests.django.site.ledger",
    "tests.django.site.reports",
    *(("django_tasks",) if find_spec("django.tasks") is None else ()),
    "tests.django.site.post",
]


def _database(address: str) -> dict[str, Any]:
    """Return what Django is to know of a PostgreSQL database by its URL, or of an SQLite one by its file."""
    url = urlsplit(address)
    if url.scheme != "postgresql":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": address, "OPTIONS": {"timeout": 60}}
    connections = os.environ.get("SITE_CONNECTIONS")
    pool = {"pool": {"min_size": 1, "max_size": 8}} if connections == "pool" else {}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.path.strip("/"),
        "USER": url.username,
        "HOST": url.hostname,
        "PORT": url.port,
        "CONN_MAX_AGE": None if connections == "kept" else 0,
        "CONN_HEALTH_CHECKS": connections == "pool",
        "OPTIONS": {"application_name": "site", **pool},
    }


DATABASES: Final[dict[str, Any]] = {
    "default": _database(os.environ.get("SITE_DATABASE", ":memory:")),
    "archive": _database(":memory:"),
}
TASKBRIDGE: Final[dict[str, Any]] = {
    "URL": os.environ.get("SITE_URL", "inline://?threads=0"),
    "NAMESPACE": os.environ.get("SITE_NAMESPACE", "site"),
    "QUEUES": ["bulk"],
}
TASKS: Final[dict[str, Any]] = {
    "default": {
        "BACKEND": "taskbridge.django.TaskBackend",
        "QUEUES": ["default", "mail", "bulk"],
        "OPTIONS": {
            "backoff": 0.2,
            "tasks": {
                "*.twice": {"max_attempts": 2},
                "*.fails": {"max_attempts": 1},
                "*.stubborn": {"max_attempts": 60, "backoff": [0]},
            },
        },
    },
    "reserve": {"BACKEND": "taskbridge.django.TaskBackend", "QUEUES": []},
}
MIDDLEWARE: Final = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES: Final[list[dict[str, Any]]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
