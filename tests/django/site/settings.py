"""The settings of a small Django project, whose database and bridge the environment chooses."""

from __future__ import annotations

import os
from typing import Any, Final

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
]
DATABASES: Final[dict[str, Any]] = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("SITE_DATABASE", ":memory:")},
}
TASKBRIDGE: Final[dict[str, Any]] = {
    "URL": os.environ.get("SITE_URL", "inline://?threads=0"),
    "NAMESPACE": os.environ.get("SITE_NAMESPACE", "site"),
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
