"""The Django app: it configures the default bridge in every process of a project, and finds its tasks."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.utils.module_loading import autodiscover_modules

from taskbridge.bridge import default_bridge
from taskbridge.django import checks, conf, connections


class TaskbridgeConfig(AppConfig):
    """What `INSTALLED_APPS` names as `taskbridge.django`."""

    name = "taskbridge.django"
    label = "taskbridge"
    verbose_name = "Tasks"

    def ready(self) -> None:
        """Configure the default bridge, and import the module `tasks` of each app; this opens no connection."""
        from taskbridge.django.transactions import DjangoTransactions  # here, for it needs the models

        bridge = default_bridge()
        if bridge.transactions is None:  # else a test changes INSTALLED_APPS, for which Django calls this again
            bridge.transactions = DjangoTransactions(bridge)
            connections.look_after(bridge)  # first, so that all other hooks and surroundings find what works
            conf.configure(bridge)
        register(checks.check_settings, checks.TAG)
        register(checks.check_pools, checks.TAG)
        register(checks.check_outbox, checks.TAG, Tags.database)
        autodiscover_modules("tasks")
