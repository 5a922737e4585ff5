"""The permission to pause queues."""

from __future__ import annotations

from django.db import migrations


class Migration(migrations.Migration):
    """Make it."""

    dependencies = (("taskbridge", "0001_initial"),)
    operations = (
        migrations.AlterModelOptions(
            name="Queue",
            options={
                "managed": False,
                "default_permissions": ("view",),
                "permissions": (("pause_queue", "Can pause queue"),),
            },
        ),
    )
