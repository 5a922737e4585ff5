"""The app's models."""

from __future__ import annotations

from datetime import datetime

from django.db import models
from typing_extensions import Self

from taskbridge.schedules.plan import LONGEST_NAME

# What the admin shows of broker and store: its models have permissions, a name and columns, but no table.


class Shown(models.Model):
    """Something that broker or store know; an instance is a copy that is made for one page, and is never saved."""

    class Meta:
        abstract = True
        managed = False

    def __str__(self) -> str:
        return str(self.pk)

    @classmethod
    def of(cls, found: object, **more: object) -> Self:
        """Return what the library's own object tells, by the names of its attributes; `more` wins over it."""
        names = [field.attname for field in cls._meta.concrete_fields]
        values = [more[name] if name in more else getattr(found, name) for name in names]
        made: Self = cls.from_db(None, names, values)
        return made


class Queue(Shown):
    """A known queue."""

    name: models.TextField[str, str] = models.TextField(primary_key=True)
    waiting: models.PositiveIntegerField[int, int] = models.PositiveIntegerField()

    class Meta(Shown.Meta):
        default_permissions = ("view",)


class DeadLetter(Shown):
    """A message that failed for good, as `Bridge.dead` has it."""

    id: models.TextField[str, str] = models.TextField(primary_key=True)
    task: models.TextField[str | None, str | None] = models.TextField()
    queue: models.TextField[str | None, str | None] = models.TextField()
    reason: models.TextField[str, str] = models.TextField()
    error: models.TextField[str, str] = models.TextField()
    attempts: models.PositiveIntegerField[int | None, int | None] = models.PositiveIntegerField()
    replays: models.PositiveIntegerField[int, int] = models.PositiveIntegerField()
    enqueued_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField("sent")
    expires_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField("expires")
    died_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField("died")
    worker: models.TextField[str | None, str | None] = models.TextField()
    arguments: models.TextField[str, str] = models.TextField()
    headers: models.TextField[str, str] = models.TextField()
    traceback: models.TextField[str, str] = models.TextField()

    class Meta(Shown.Meta):
        default_permissions = ("view", "delete")
        permissions = (("replay_deadletter", "Can replay dead letter"),)
        verbose_name = "dead letter"


class Message(Shown):
    """A message whose id is known, as its record in the store tells of it."""

    id: models.TextField[str, str] = models.TextField(primary_key=True)
    task: models.TextField[str, str] = models.TextField()
    queue: models.TextField[str, str] = models.TextField()
    state: models.TextField[str, str] = models.TextField()
    reason: models.TextField[str, str] = models.TextField()
    progress: models.TextField[str, str] = models.TextField()
    enqueued_at: models.DateTimeField[datetime, datetime] = models.DateTimeField("sent")
    due_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField("due")
    ended_at: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField("ended")
    replays: models.PositiveIntegerField[int, int] = models.PositiveIntegerField()
    cancel_asked: models.BooleanField[bool, bool] = models.BooleanField("cancelled while it ran")
    attempts: models.TextField[str, str] = models.TextField()
    error: models.TextField[str, str] = models.TextField()
    traceback: models.TextField[str, str] = models.TextField()
    result: models.TextField[str, str] = models.TextField()

    class Meta(Shown.Meta):
        default_permissions = ("view",)
        permissions = (
            ("cancel_message", "Can cancel message"),
            ("view_arguments", "Can view arguments, headers and results of messages"),
        )


class Schedule(Shown):
    """A schedule, as `Bridge.schedules` has it."""

    name: models.CharField[str, str] = models.CharField(primary_key=True, max_length=LONGEST_NAME)
    task: models.TextField[str, str] = models.TextField()
    enabled: models.BooleanField[bool, bool] = models.BooleanField(default=True)
    cron: models.CharField[str, str] = models.CharField(blank=True, max_length=255)
    timezone: models.CharField[str, str] = models.CharField(blank=True, max_length=255)
    every: models.PositiveIntegerField[int | None, int | None] = models.PositiveIntegerField(blank=True, null=True)
    catch_up: models.CharField[str, str] = models.CharField(default="one", max_length=255)
    overlap: models.CharField[str, str] = models.CharField(default="allow", max_length=255)
    expires: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(blank=True, null=True)
    args: models.TextField[str, str] = models.TextField("positional arguments", default="[]")
    kwargs: models.TextField[str, str] = models.TextField("keyword arguments", default="{}")
    queue: models.CharField[str, str] = models.CharField(blank=True, max_length=255)
    next_run: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(editable=False)
    last_run: models.DateTimeField[datetime | None, datetime | None] = models.DateTimeField(editable=False)
    missed: models.PositiveIntegerField[int, int] = models.PositiveIntegerField(editable=False)
    source: models.TextField[str, str] = models.TextField(editable=False)

    class Meta(Shown.Meta):
        permissions = (("run_schedule", "Can run schedule now"),)
