"""The table of the outbox, and the models of the admin, which have permissions and no table."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Make them."""

    initial = True
    operations = (
        migrations.CreateModel(
            name="OutboxEntry",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("namespace", models.CharField(max_length=52)),
                ("text", models.TextField()),
                ("leased_until", models.FloatField(default=0.0)),
            ],
            options={
                "db_table": "taskbridge_outboxentry",
                "verbose_name": "outbox entry",
                "verbose_name_plural": "outbox entries",
                "indexes": [
                    models.Index(fields=["namespace", "leased_until", "id"], name="taskbridge_outboxentry_due")
                ],
            },
        ),
        migrations.CreateModel(
            name="DeadLetter",
            fields=[("id", models.TextField(primary_key=True, serialize=False))],
            options={
                "verbose_name": "dead letter",
                "permissions": (("replay_deadletter", "Can replay dead letter"),),
                "managed": False,
                "default_permissions": ("view", "delete"),
            },
        ),
        migrations.CreateModel(
            name="Flow",
            fields=[("id", models.TextField(primary_key=True, serialize=False))],
            options={
                "permissions": (("cancel_flow", "Can cancel flow"), ("retry_flow", "Can retry flow")),
                "managed": False,
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="Message",
            fields=[("id", models.TextField(primary_key=True, serialize=False))],
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
            fields=[("name", models.TextField(primary_key=True, serialize=False))],
            options={"managed": False, "default_permissions": ("view",)},
        ),
        migrations.CreateModel(
            name="Schedule",
            fields=[("name", models.CharField(max_length=255, primary_key=True, serialize=False))],
            options={"permissions": (("run_schedule", "Can run schedule now"),), "managed": False},
        ),
    )
