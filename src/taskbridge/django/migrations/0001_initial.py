"""The table of the outbox."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Make it."""

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
                    models.Index(fields=["namespace", "leased_until", "id"], name="taskbridge_outboxentry_due"),
                ],
            },
        ),
    )
