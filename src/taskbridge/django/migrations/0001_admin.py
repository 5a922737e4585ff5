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
                ("task", models.TextField()),
                ("queue", models.TextField()),
                ("reason", models.TextField()),
                ("error", models.TextField()),
                ("attempts", models.PositiveIntegerField()),
                ("replays", models.PositiveIntegerField()),
                ("enqueued_at", models.DateTimeField(verbose_name="sent")),
                ("expires_at", models.DateTimeField(verbose_name="expires")),
                ("died_at", models.DateTimeField(verbose_name="died")),
                ("worker", models.TextField()),
                ("arguments", models.TextField()),
                ("headers", models.TextField()),
                ("traceback", models.TextField()),
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
                ("task", models.TextField()),
                ("queue", models.TextField()),
                ("state", models.TextField()),
                ("reason", models.TextField()),
                ("progress", models.TextField()),
                ("enqueued_at", models.DateTimeField(verbose_name="sent")),
                ("due_at", models.DateTimeField(verbose_name="due")),
                ("ended_at", models.DateTimeField(verbose_name="ended")),
                ("replays", models.PositiveIntegerField()),
                ("cancel_asked", models.BooleanField(verbose_name="cancelled while it ran")),
                ("attempts", models.TextField()),
                ("error", models.TextField()),
                ("traceback", models.TextField()),
                ("result", models.TextField()),
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
                ("waiting", models.PositiveIntegerField()),
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
                ("task", models.TextField()),
                ("enabled", models.BooleanField(default=True)),
                ("cron", models.CharField(blank=True, max_length=255)),
                ("timezone", models.CharField(blank=True, max_length=255)),
                ("every", models.PositiveIntegerField(blank=True, null=True)),
                ("catch_up", models.CharField(default="one", max_length=255)),
                ("overlap", models.CharField(default="allow", max_length=255)),
                ("expires", models.DateTimeField(blank=True, null=True)),
                ("args", models.TextField(default="[]", verbose_name="positional arguments")),
                ("kwargs", models.TextField(default="{}", verbose_name="keyword arguments")),
                ("queue", models.CharField(blank=True, max_length=255)),
                ("next_run", models.DateTimeField(editable=False)),
                ("last_run", models.DateTimeField(editable=False)),
                ("missed", models.PositiveIntegerField(editable=False)),
                ("source", models.TextField(editable=False)),
            ],
            options={
                "permissions": (("run_schedule", "Can run schedule now"),),
                "managed": False,
            },
        ),
    ]
