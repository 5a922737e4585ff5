"""The app's models: the outbox, and what the admin shows."""

from __future__ import annotations

from typing import Any

from django.db import models

from taskbridge.schedules.plan import LONGEST_NAME


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


# What the admin shows of broker and store: the models give it names and permissions, and there are no tables.


class Shown(models.Model):
    """Something that broker or store know; it is made for one page, and never saved.

    Attributes:
        found: The library's own object that tells of it; None if only the id is known.
    """

    found: Any = None

    class Meta:
        abstract = True
        managed = False

    def __str__(self) -> str:
        return str(self.pk)


class Queue(Shown):
    """A known queue; `found` is its `QueueNow`."""

    name: models.TextField[str, str] = models.TextField(primary_key=True)

    class Meta(Shown.Meta):
        default_permissions = ("view",)
        permissions = (("pause_queue", "Can pause queue"),)


class DeadLetter(Shown):
    """A message that failed for good; `found` is its `DeadEntry`."""

    id: models.TextField[str, str] = models.TextField(primary_key=True)

    class Meta(Shown.Meta):
        default_permissions = ("view", "delete")
        permissions = (("replay_deadletter", "Can replay dead letter"),)
        verbose_name = "dead letter"


class Message(Shown):
    """A message; `found` is its `Status`, or its `Running` in a list of what runs."""

    id: models.TextField[str, str] = models.TextField(primary_key=True)

    class Meta(Shown.Meta):
        default_permissions = ("view",)
        permissions = (
            ("cancel_message", "Can cancel message"),
            ("view_arguments", "Can view arguments, headers and results of messages"),
        )


class Flow(Shown):
    """A flow; `found` is its `FlowStatus`."""

    id: models.TextField[str, str] = models.TextField(primary_key=True)

    class Meta(Shown.Meta):
        default_permissions = ("view",)
        permissions = (("cancel_flow", "Can cancel flow"), ("retry_flow", "Can retry flow"))


class Schedule(Shown):
    """A schedule; `found` is its `ScheduleEntry`."""

    name: models.CharField[str, str] = models.CharField(primary_key=True, max_length=LONGEST_NAME)

    class Meta(Shown.Meta):
        permissions = (("run_schedule", "Can run schedule now"),)
