"""The outbox: what `commit="outbox"` sends, in the application's own database until a worker publishes it."""

from __future__ import annotations

from django.db import models


class OutboxEntry(models.Model):
    """A message that is to be published; see `taskbridge.outbox`.

    Attributes:
        namespace: That of its bridge.
        text: What `taskbridge.stores.entries.Held` makes of the message.
        leased_until: Until when it is left to the worker that was told of it, in seconds since the epoch; 0 if to none.
    """

    id: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    namespace: models.CharField[str, str] = models.CharField(max_length=52)
    text: models.TextField[str, str] = models.TextField()
    leased_until: models.FloatField[float, float] = models.FloatField(default=0.0)

    class Meta:
        """The table."""

        # Not "taskbridge_outbox": a store of taskbridge may be in the same database, and has a table of that name.
        db_table = "taskbridge_outboxentry"
        indexes = (models.Index(fields=["namespace", "leased_until", "id"], name="taskbridge_outboxentry_due"),)
        verbose_name = "outbox entry"
        verbose_name_plural = "outbox entries"
