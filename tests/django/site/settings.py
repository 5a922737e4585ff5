"""The settings of a small Django project, whose database and bridge the environment chooses."""

from __future__ import annotations

import os
from typing import Any, Final

SECRET_KEY: Final = "only for tests"
USE_TZ: Final = True
DEFAULT_AUTO_FIELD: Final = "django.db.models.BigAutoField"
INSTALLED_APPS: Final = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "taskbridge.django",
    "tests.django.site.shop",
]
DATABASES: Final[dict[str, Any]] = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("SITE_DATABASE", ":memory:")},
}
TASKBRIDGE: Final[dict[str, Any]] = {
    "URL": os.environ.get("SITE_URL", "inline://?threads=0"),
    "NAMESPACE": os.environ.get("SITE_NAMESPACE", "site"),
}
