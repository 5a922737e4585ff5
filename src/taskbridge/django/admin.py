"""The section "Tasks" of Django's admin: views over broker and store, which keep no second copy.

They are Django's own views of lists and forms. Only where these would ask a table, they are given what the library
tells: a page of rows, or one object. Each act is an action of the list or Django's own `delete`, so that permissions,
confirmations and log entries are Django's. A forbidden act is answered with 403.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import wraps
from http import HTTPStatus
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern
from django.utils.formats import localize
from django.utils.html import format_html
from django.utils.timezone import localtime

from taskbridge.bridge import default_bridge
from taskbridge.dead import DeadEntry
from taskbridge.django.forms import ScheduleForm
from taskbridge.django.models import DeadLetter, Message, Queue, Schedule, Shown
from taskbridge.exceptions import (
    BrokerUnavailable,
    NoSuchDeadLetter,
    NoSuchRecord,
    NotInstalledError,
    TaskBridgeError,
    UnsupportedError,
)
from taskbridge.retry import ErrorInfo
from taskbridge.schedules.listing import ScheduleEntry
from taskbridge.schedules.plan import Cron, Every
from taskbridge.stores.states import Attempt, Status

M = TypeVar("M", bound=Shown)

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin  # which takes no parameters before it is patched


class Rows(QuerySet[M]):
    """Objects that no table holds, where Django's views want a query's."""

    ordered = True  # by the library

    @classmethod
    def of(cls, model: type[M], objects: Iterable[M]) -> Rows[M]:
        """Return rows that are these objects."""
        rows = cls(model)
        rows._result_cache = [*objects]
        return rows

    def filter(self, *args: Any, pk__in: Iterable[str], **kwargs: Any) -> Rows[M]:
        """Return the rows of these ids, which may be of another page, or gone since the page was shown."""
        known = {each.pk: each for each in self}
        return Rows.of(self.model, [known.get(each) or self.model(pk=each) for each in pk__in])


class Page(ChangeList):
    """What a list shows: one page of what the library tells.

    Attributes:
        after: Where the next page begins; None if this is the last one, or there are no pages.
        remark: What is said above the list.
    """

    after: str | None = None
    remark: str = ""
    model_admin: ShownAdmin

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> Rows[Any]:
        """Return the rows, read once for each request."""
        if not hasattr(self, "rows"):
            self.rows = Rows.of(self.model, self.model_admin.read(request, self))
        return self.rows

    def get_results(self, request: HttpRequest) -> None:
        """Set what Django's template shows of a list."""
        self.result_list = self.rows
        self.result_count = self.full_result_count = len(self.rows)
        self.show_full_result_count = self.can_show_all = self.multi_page = False
        self.show_admin_actions = bool(self.rows)
        self.paginator = self.model_admin.get_paginator(request, self.rows, max(1, len(self.rows)))
        self.first_page = self.get_query_string(remove=["after"])
        self.next_page = self.get_query_string({"after": self.after})


class ShownAdmin(_ModelAdmin):
    """An admin of what broker or store know."""

    change_list_template = "admin/taskbridge/change_list.html"
    change_form_template = "admin/taskbridge/change_form.html"
    list_per_page = 50
    sortable_by = ()
    actions: Sequence[str] = ()

    class Media:
        css = {"all": ("taskbridge/admin.css",)}

    def read(self, request: HttpRequest, page: Page) -> Iterable[Any]:
        """Return the objects of a page of the list, and set what else the page shows."""
        raise NotImplementedError

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return what makes a page of the list."""
        return Page

    def get_urls(self) -> list[URLPattern]:
        """Return Django's pages, which say so if broker or store don't answer."""
        urls = super().get_urls()
        for each in urls:
            each.callback = self._answering(each.callback)
        return urls

    def _answering(self, view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
        @wraps(view)
        def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            try:
                return view(request, *args, **kwargs)
            except TaskBridgeError as exc:
                is_away = isinstance(exc, BrokerUnavailable | UnsupportedError | NotInstalledError)
                title = "Not available" if is_away else "Not done"
                about = {"title": title, "opts": self.opts, "problem": getattr(exc, "problem", exc)}
                context = {**self.admin_site.each_context(request), **about}
                status = HTTPStatus.SERVICE_UNAVAILABLE if is_away else HTTPStatus.CONFLICT
                return TemplateResponse(request, "admin/taskbridge/problem.html", context, status=status)

        return answer

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show a page of the list, or carry out an action, which Django would ignore if it is forbidden."""
        asked = {"delete_selected", *self.actions}.intersection(request.POST.getlist("action"))
        if not asked <= self.get_actions(request).keys():
            raise PermissionDenied
        title = str(self.opts.verbose_name_plural).capitalize()
        return super().changelist_view(request, {"title": title, **(extra_context or {})})

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show one object, with a button for each action."""
        choices = self.get_action_choices(request, default_choices=[])
        acts = [each for each in choices if each[0] != "delete_selected"]  # there is a button for it already
        return super().changeform_view(request, object_id, form_url, {"acts": acts, **(extra_context or {})})

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False: only tasks and schedules make these."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: what is on its way can't be changed."""
        return False

    def may(self, request: HttpRequest, what: str) -> bool:
        """Return whether the user has a permission of this app."""
        return bool(getattr(request.user, "has_perm")(f"{self.opts.app_label}.{what}"))  # noqa: B009 - untyped

    def log_acts(self, request: HttpRequest, objects: Iterable[Any], done: str) -> None:
        """Log and say that something was done with objects."""
        for each in objects:
            self.log_change(request, each, f"{done.capitalize()}.")
            self.say(request, f"{each} {done}", messages.SUCCESS)

    def say(self, request: HttpRequest, text: str, level: int = messages.WARNING) -> None:
        """Say something about an object, whose id comes first in the text."""
        self.message_user(
            request, f"{self.opts.verbose_name} {text}.", level
        )  # Django makes the first letter a capital

    @admin.display(description="traceback")
    def pre_traceback(self, found: Any) -> str:
        """Return a traceback with its line breaks."""
        return format_html("<pre>{}</pre>", found.traceback) if found.traceback else ""


@admin.register(Queue)
class QueueAdmin(ShownAdmin):
    """The known queues, and how much waits in each."""

    list_display = ("name", "waiting")
    list_display_links = None

    def read(self, request: HttpRequest, page: Page) -> Iterable[Queue]:
        """Return all queues."""
        counts = default_bridge().counts()
        page.remark = f"In all queues, {counts.delayed} delayed and {counts.dead} dead."
        return [Queue(name=name, waiting=waiting) for name, waiting in counts.waiting.items()]

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Queue | None:
        """Return a queue by its name."""
        waiting = default_bridge().counts().waiting.get(object_id)
        return None if waiting is None else Queue(name=object_id, waiting=waiting)


@admin.register(DeadLetter)
class DeadLetterAdmin(ShownAdmin):
    """The dead letters, the oldest first; to delete one is `purge`."""

    list_display = ("id", "task", "queue", "reason", "error", "attempts", "died_at")
    search_fields = ("task", "queue")
    search_help_text = "a task's name, or a glob such as shop.*"
    actions = ("replay",)
    readonly_fields = ("pre_traceback",)
    fields = (
        *("id", "task", "queue", "reason", "error", "attempts", "replays", "enqueued_at", "expires_at", "died_at"),
        *("worker", "arguments", "headers", "pre_traceback"),
    )

    def get_fields(self, request: HttpRequest, obj: DeadLetter | None = None) -> list[Any]:
        """Return what is shown of a letter: arguments and headers, which may be secret, only with a permission."""
        shows = self.may(request, "view_arguments")
        return [name for name in self.fields if shows or name not in ("arguments", "headers")]

    def read(self, request: HttpRequest, page: Page) -> Iterable[DeadLetter]:
        """Return a page of the letters, those of some tasks if there is a search."""
        task = page.query if not page.query or "*" in page.query else f"*{page.query}*"
        is_all = request.POST.get("select_across") == "1"
        limit, after = (None, None) if is_all else (self.list_per_page, request.GET.get("after"))
        try:
            found = default_bridge().dead.list(task=task or None, limit=limit, after=after)
        except ValueError:  # `after` is no page's
            return ()
        page.after = found.next
        return map(_letter, found.entries)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> DeadLetter | None:
        """Return a letter by its id."""
        with suppress(NoSuchDeadLetter):
            return _letter(default_bridge().dead.get(object_id))
        return None

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may replay."""
        return self.may(request, "replay_deadletter")

    @admin.action(description="Replay", permissions=["replay"])
    def replay(self, request: HttpRequest, rows: Rows[DeadLetter]) -> None:
        """Send letters again."""
        outcome = default_bridge().dead.replay([each.pk for each in rows])
        self.log_acts(request, (each for each in rows if each.pk in outcome.ids), "replayed")
        for ids, why in (
            (outcome.missing, "is not there any more"),
            (outcome.unreadable, "can't be read as a message"),
            (outcome.held, "stays: another message holds its unique key"),
        ):
            for each in ids:
                self.say(request, f"{each} {why}")

    def delete_model(self, request: HttpRequest, obj: DeadLetter) -> None:
        """Forget a letter for good."""
        default_bridge().dead.purge(obj.pk)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> None:
        """Forget letters for good."""
        default_bridge().dead.purge([each.pk for each in queryset])


@admin.register(Message)
class MessageAdmin(ShownAdmin):
    """Any message whose id is known and that is recorded; stores can't list them."""

    list_display = ("id", "task", "queue", "state", "enqueued_at", "ended_at")
    search_fields = ("id",)
    search_help_text = "the whole id of a message"
    actions = ("cancel",)
    readonly_fields = ("pre_attempts", "pre_traceback")
    fields = (
        *("id", "task", "queue", "state", "reason", "progress", "enqueued_at", "due_at", "ended_at", "replays"),
        *("cancel_asked", "pre_attempts", "error", "result", "pre_traceback"),
    )

    def get_fields(self, request: HttpRequest, obj: Message | None = None) -> list[Any]:
        """Return what is shown of a message: its result, which may be secret, only with a permission."""
        return [name for name in self.fields if name != "result" or self.may(request, "view_arguments")]

    def has_delete_permission(self, request: HttpRequest, obj: Message | None = None) -> bool:
        """Return False: records go when their time is over."""
        return False

    def read(self, request: HttpRequest, page: Page) -> Iterable[Message]:
        """Return the message whose id is searched."""
        found = self.get_object(request, page.query.strip()) if page.query else None
        page.remark = "No message of this id is known." if page.query and found is None else ""
        return [] if found is None else [found]

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Message | None:
        """Return a message by its id."""
        with suppress(NoSuchRecord):
            return _message(default_bridge().handle(object_id).status())
        return None

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may cancel."""
        return self.may(request, "cancel_message")

    @admin.action(description="Cancel", permissions=["cancel"])
    def cancel(self, request: HttpRequest, rows: Rows[Message]) -> None:
        """Cancel messages: what has not started never starts, and what runs is told."""
        for each in rows:
            status = default_bridge().handle(each.pk).cancel()
            if status.state == "cancelled" or (status.cancel_asked and not status.is_final):
                self.log_acts(request, [each], "cancelled" if status.is_final else "told to stop, for it runs")
            else:
                self.say(request, f"{each} is {status.state} already")

    @admin.display(description="attempts")
    def pre_attempts(self, found: Message) -> str:
        """Return the attempts, one on each line."""
        return format_html("<pre>{}</pre>", found.attempts) if found.attempts else ""


@admin.register(Schedule)
class ScheduleAdmin(ShownAdmin):
    """All schedules. Those that were put at run time can be changed and deleted; the others are in code or settings."""

    form = ScheduleForm
    list_display = ("name", "task", "when", "enabled", "next_run", "last_run", "missed", "source")
    actions = ("pause", "resume", "run_now")
    fieldsets = (
        (None, {"fields": ("name", "task", "enabled")}),
        ("When", {"fields": ("cron", "timezone", "every", "expires", "catch_up", "overlap")}),
        ("The message", {"fields": ("args", "kwargs", "queue")}),
    )

    def read(self, request: HttpRequest, page: Page) -> Iterable[Schedule]:
        """Return all schedules."""
        return map(_schedule, default_bridge().schedules.list())

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Schedule | None:
        """Return a schedule by its name."""
        return next((_schedule(each) for each in default_bridge().schedules.list() if each.name == object_id), None)

    def get_fieldsets(self, request: HttpRequest, obj: Schedule | None = None) -> Any:
        """Return what is shown of a schedule: arguments, which may be secret, only with a permission."""
        first, when, call = self.fieldsets
        if obj is None or self.may(request, "view_arguments"):
            return [first, when, call]
        return [first, when, (call[0], {"fields": ("queue",)})]

    def get_readonly_fields(self, request: HttpRequest, obj: Schedule | None = None) -> tuple[str, ...]:
        """Return the name: it is what tells schedules apart."""
        return () if obj is None else ("name",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may put schedules."""
        return self.may(request, "add_schedule")

    def has_change_permission(self, request: HttpRequest, obj: Schedule | None = None) -> bool:
        """Return whether the user may change schedules, this one if it is given."""
        can_be = obj is None or (obj.source == "store" and default_bridge().knows(obj.task))
        return can_be and self.may(request, "change_schedule")

    def has_delete_permission(self, request: HttpRequest, obj: Schedule | None = None) -> bool:
        """Return whether the user may delete schedules, this one if it is given."""
        return self.may(request, "delete_schedule") and (obj is None or obj.source in ("store", ""))

    def has_run_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may run schedules now."""
        return self.may(request, "run_schedule")

    def save_model(self, request: HttpRequest, obj: Schedule, form: ModelForm[Schedule], change: bool) -> None:
        """Put the schedule."""
        assert isinstance(form, ScheduleForm)
        form.put()

    def delete_model(self, request: HttpRequest, obj: Schedule) -> None:
        """Delete the schedule."""
        default_bridge().schedules.delete(obj.pk)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> None:
        """Delete schedules."""
        for each in queryset:
            self.delete_model(request, each)

    @admin.action(description="Pause", permissions=["change"])
    def pause(self, request: HttpRequest, rows: Rows[Schedule]) -> None:
        """Let schedules send nothing until they are resumed."""
        for each in rows:
            default_bridge().schedules.pause(each.pk)
        self.log_acts(request, rows, "paused")

    @admin.action(description="Resume", permissions=["change"])
    def resume(self, request: HttpRequest, rows: Rows[Schedule]) -> None:
        """Let schedules go on."""
        for each in rows:
            default_bridge().schedules.resume(each.pk)
        self.log_acts(request, rows, "resumed")

    @admin.action(description="Run now", permissions=["run"])
    def run_now(self, request: HttpRequest, rows: Rows[Schedule]) -> None:
        """Send the message of schedules now."""
        for each in rows:
            self.log_acts(request, [each], f"sent as message {default_bridge().schedules.run(each.pk)}")

    @admin.display(description="when")
    def when(self, found: Schedule) -> str:
        """Return when a schedule is due."""
        return f"{found.cron} ({found.timezone})" if found.cron else f"every {found.every} s"


# What the library tells, as rows


def _error(error: ErrorInfo | None) -> str:
    return "" if error is None else f"{error.type}: {error.message}"


def _letter(entry: DeadEntry) -> DeadLetter:
    return DeadLetter.of(entry, error=_error(entry.error), headers=", ".join(map(str, entry.headers.items())))


def _message(status: Status) -> Message:
    progress = status.progress
    total = "" if progress is None or progress.total is None else f" of {progress.total:g}"
    return Message.of(
        status,
        error=_error(status.error),
        attempts="\n".join(map(_attempt, status.attempts)),
        progress="" if progress is None else f"{progress.done:g}{total} {progress.note}",
        result=status.result_json or "",
    )


def _attempt(attempt: Attempt) -> str:
    started = localize(localtime(attempt.started_at))
    ended = "..." if attempt.ended_at is None else localize(localtime(attempt.ended_at))
    error = "" if attempt.error is None else f": {_error(attempt.error)}"
    return f"{attempt.number}. {started} to {ended} on {attempt.worker}{error}"


def _schedule(entry: ScheduleEntry) -> Schedule:
    timing, planned = entry.timing, default_bridge().schedules.planned().get(entry.name)
    args, kwargs, _ = ("", "", 0) if planned is None or planned.encoded is None else planned.encoded
    using = {} if planned is None else planned.using
    return Schedule.of(
        entry,
        enabled=not entry.paused,
        cron=timing.expression if isinstance(timing, Cron) else "",
        timezone=timing.timezone if isinstance(timing, Cron) else "",
        every=timing.interval_s if isinstance(timing, Every) else None,
        catch_up=timing.catch_up,
        overlap=timing.overlap,
        expires=None if planned is None or planned.ends_at == inf else planned.using["expires"],
        args=args,
        kwargs=kwargs,
        queue=using.get("queue") or "",
        next_run=entry.next_runs[0] if entry.next_runs else None,
        last_run=entry.last_planned_at,
    )
