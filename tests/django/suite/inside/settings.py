"""The settings of a project whose only app is Django's own `tests/tasks`; the environment says where its tasks run."""

from __future__ import annotations

import os
from typing import Any, Final

from taskbridge import RetryPolicy

SECRET_KEY: Final = "only for tests"
USE_TZ: Final = True
INSTALLED_APPS: Final = ["taskbridge.django", "tasks"]
DATABASES: Final[dict[str, Any]] = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD: Final = "django.db.models.BigAutoField"
TEST_RUNNER: Final = "tests.django.suite.inside.runner.Runner"
TASKBRIDGE: Final[dict[str, Any]] = {
    "URL": os.environ["SUITE_URL"],
    "STORE": os.environ.get("SUITE_STORE"),
    "NAMESPACE": os.environ["SUITE_NAMESPACE"],
    "QUEUES": ["held"],
    "RETRY": RetryPolicy.never(),
    "SEND_TIMEOUT": 60,
}
TASKS: Final[dict[str, Any]] = {"default": {"BACKEND": "taskbridge.django.TaskBackend"}}

if "SUITE_LOGS" in os.environ:  # a worker's
    LOGGING: Final[dict[str, Any]] = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"tests": {"class": "tests.django.suite.inside.logs.ToTests", "folder": os.environ["SUITE_LOGS"]}},
        "loggers": {"django.tasks": {"handlers": ["tests"], "level": "DEBUG"}},
    }
