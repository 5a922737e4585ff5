"""The settings of an application that uses Django: a database, and threadmill where that is the contender."""

from __future__ import annotations

from typing import Final

from benchmarks.apps import work

SECRET_KEY: Final = "for measuring only"
USE_TZ: Final = True
DATABASES: Final = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS: Final = ["threadmill"] if work.OPTION == "threadmill" else []
TASKS: Final = {
    "default": {
        "BACKEND": "threadmill.backends.redis.RedisTaskBackend",
        "REDIS_URL": work.URL,
        "QUEUES": ["default"],
    }
}
