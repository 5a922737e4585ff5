"""The Django app: it configures the default bridge in every process of a project, and finds its tasks."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules

from taskbridge.bridge import default_bridge
from taskbridge.django import conf


class TaskbridgeConfig(AppConfig):
    """What `INSTALLED_APPS` names as `taskbridge.django`."""

    name = "taskbridge.django"
    label = "taskbridge"
    verbose_name = "Tasks"

    def ready(self) -> None:
        """Configure the default bridge, and import the module `tasks` of each app."""
        from taskbridge.django.transactions import DjangoTransactions  # here, for it needs the model

        conf.configure(default_bridge())
        default_bridge().transactions = DjangoTransactions(default_bridge())
        autodiscover_modules("tasks")
