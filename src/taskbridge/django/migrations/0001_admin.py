"""The models of the admin, which have permissions and no table."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Make the models known."""

    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="DeadLetter",
            fields=[
                ("id", models.TextField(primary_key=True, serialize=False)),
            ],
            options={
                "verbose_name": "dead letter",
                "permissions": (("replay_deadletter", "Can replay dead letter"),),
                "managed": False,
                "default_permissions": ("view", "delete"),
            },
        ),
        migrations.CreateModel(
            name="Message",
            fields=[
                ("id", models.TextField(primary_key=True, serialize=False)),
            ],
            options={
                "permissions": (
                    ("cancel_message", "Can cancel message"),
                    ("view_arguments", "Can view arguments, headers and results of messages"),
                ),
                "managed": False,
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="Queue",
            fields=[
                ("name", models.TextField(primary_key=True, serialize=False)),
            ],
            options={
                "managed": False,
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="Schedule",
            fields=[
                ("name", models.CharField(max_length=255, primary_key=True, serialize=False)),
            ],
            options={
                "permissions": (("run_schedule", "Can run schedule now"),),
                "managed": False,
            },
        ),
    ]
