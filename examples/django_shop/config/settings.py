"""The settings of the shop. What differs between machines comes from the environment."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).parents[1]

DEBUG = True
SECRET_KEY = "only for trying things out"  # in production from the environment, as ALLOWED_HOSTS and DEBUG
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "taskbridge.django",
    "shop",
]

TASKBRIDGE = {
    "URL": os.environ.get("TASKBRIDGE_URL", "inline://"),  # threads of this process; in production a server
    "NAMESPACE": os.environ.get("TASKBRIDGE_NAMESPACE", "shop"),
}
TASKS = {"default": {"BACKEND": "taskbridge.django.TaskBackend"}}  # for the tasks of Django's own decorator

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DB", BASE_DIR / "shop.sqlite3"),
        # Web and worker write to one file: wait for one another, rather than fail at once.
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL"},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "Europe/Rome"

EMAIL_BACKEND = "django.core.mail.backends.console.EmailBackend"
DEFAULT_FROM_EMAIL = "shop@example.org"
SHOP_OWNER = "owner@example.org"
SHOP_REFUND_LIMIT_CENTS = int(os.environ.get("SHOP_REFUND_LIMIT_CENTS", "50000"))

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
STATIC_URL = "static/"
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
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
