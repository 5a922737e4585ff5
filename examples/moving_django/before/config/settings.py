import os
from pathlib import Path

from celery.schedules import crontab

SECRET_KEY = "only for trying things out"
INSTALLED_APPS = ["django_celery_beat", "django_celery_results", "reports"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(__file__).parents[1] / "db.sqlite3",
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL"},
    }
}
USE_TZ = True

CELERY_BROKER_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
CELERY_RESULT_BACKEND = "django-db"
CELERY_TIMEZONE = "Europe/Rome"
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_SCHEDULE = {
    "weekly": {
        "task": "reports.tasks.make_report",
        "schedule": crontab(hour=6, minute=0, day_of_week="mon"),
        "args": ["all"],
    },
}
CELERY_TASK_ROUTES = {"reports.*": {"queue": "reports"}}
