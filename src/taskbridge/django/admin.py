"""The section "Tasks" of Django's admin: views over broker and store, which keep no second copy.

They are Django's own views of lists and forms. Only where these would ask a table, they are given what the library
tells: a page of rows, or one object. Each act is an action of the list, or Django's own `delete`, so that permissions,
questions and log entries are Django's. A forbidden act is answered with 403.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from copy import copy
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import wraps
from http import HTTPStatus
from itertools import starmap
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, get_args

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, connections, router, transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern

from taskbridge import acts
from taskbridge.acts import Outcome, some
from taskbridge.bridge import Bridge, default_bridge
from taskbridge.dead import DeadEntry
from taskbridge.django.forms import ScheduleForm
from taskbridge.django.models import DeadLetter, Flow, Message, Queue, Schedule, Shown
from taskbridge.exceptions import (
    BrokerUnavailable,
    NoSuchDeadLetter,
    NoSuchRecord,
    NotInstalledError,
    TaskBridgeError,
    UnknownQueue,
    UnknownSchedule,
    UnsupportedError,
)
from taskbridge.flows.states import FlowStatus
from taskbridge.logs import logger
from taskbridge.operations import QueueNow
from taskbridge.schedules.listing import ScheduleEntry
from taskbridge.schedules.plan import Cron
from taskbridge.stores.states import State, Status

_AWAY: Final = (BrokerUnavailable, UnsupportedError, NotInstalledError)
"""What is raised where broker or store don't answer, or are not there."""
_GONE: Final = (NoSuchRecord, UnknownQueue, UnknownSchedule)

_log = logger("taskbridge.django")

M = TypeVar("M", bound=Shown)
Found: TypeAlias = Iterable[tuple[str, object]]

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin  # which takes no parameters


class Rows(QuerySet[M]):
    """Objects that no table holds, where Django's views want a query's."""

    @classmethod
    def of(cls, model: type[M], objects: Iterable[M]) -> Rows[M]:
        """Return rows that are these objects."""
        rows = cls(model)
        rows._result_cache = [*objects]
        return rows

    @property
    def ordered(self) -> bool:
        """Whether they have an order: that of the library."""
        return True

    def filter(self, *args: Any, pk__in: Iterable[str], **kwargs: Any) -> Rows[M]:
        """Return the rows of these ids, which may be of another page, or gone since the page was shown."""
        known = {each.pk: each for each in self}
        return Rows.of(self.model, [known.get(each) or self.model(pk=each) for each in pk__in])


class Page(ChangeList):
    """One page of a list.

    Attributes:
        after: Where the next page begins; None if this is the last one, or there are no pages.
        is_later: Whether there is a page before it.
        remark: What is said above the list.
    """

    after: str | None = None
    remark: str = ""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> Rows[Any]:
        """Return the rows, read once for each request."""
        if not hasattr(self, "rows"):
            shown_admin: Any = self.model_admin  # a `ShownAdmin`
            self.filter_specs, self.has_filters, _, _, self.has_active_filters = self.get_filters(request)
            self.is_later = "after" in self.params
            for each in (self.params, self.filter_params):
                each.pop("after", None)  # what is chosen or looked for has a first page of its own
            self.clear_all_filters_qs = self.get_query_string(remove=[*self.get_filters_params()])
            found: Found = ()
            try:
                found = shown_admin.read(request, self)
            except ValueError as exc:
                if isinstance(exc, TaskBridgeError) or not self.is_later:
                    raise  # else `after` is no page's
            self.rows = Rows.of(self.model, starmap(shown_admin.shown, found))
        return self.rows

    def get_results(self, request: HttpRequest) -> None:
        """Set what Django's template shows of a list."""
        self.result_list = self.rows
        self.result_count = self.full_result_count = len(self.rows)
        self.show_full_result_count = self.can_show_all = self.multi_page = False
        self.show_admin_actions = bool(self.rows)
        self.paginator = self.model_admin.get_paginator(request, self.rows, max(1, len(self.rows)))
        self.first_page = self.get_query_string()
        self.next_page = self.get_query_string({"after": self.after})


def _problem(exc: TaskBridgeError) -> str:
    return exc.problem if isinstance(exc, BrokerUnavailable) else str(exc)  # without what became of a message


def _words(name: str) -> str:
    return name.replace("_", " ")


def column(name: str, read: str | Callable[[Any], Any] = "") -> Callable[[Any], Any]:
    """Return a column: the attribute of that name of what was found, or another one, or what is read of it."""

    @admin.display(description=_words(name))
    def value(shown: Shown) -> Any:
        return read(shown.found) if callable(read) else getattr(shown.found, read or name)

    value.__name__ = name  # which Django makes a class of, for style sheets
    return value


def _error(entry: DeadEntry) -> str:
    return "" if entry.error is None else f"{entry.error.type.rpartition('.')[2]}: {entry.error.message}"


def _when(entry: ScheduleEntry) -> str:
    zone = f" {entry.timing.timezone}" if isinstance(entry.timing, Cron) else ""
    return entry.timing.spec.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{NON-BREAKING HYPHEN}") + zone


def _queue_state(queue: QueueNow) -> str | None:
    if queue.paused is not None or queue.engine:
        return "paused" if queue.paused is not None else "consumed"
    return None if queue.running is None else "no worker"  # without a store it is not known


def choice(name: str, values: Callable[[], Iterable[str]]) -> type[admin.SimpleListFilter]:
    """Return a filter beside a list; its rows are read by what was chosen."""

    class Choice(admin.SimpleListFilter):
        title = parameter_name = name

        def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
            return [(each, each) for each in values()]

        def queryset(self, request: HttpRequest, queryset: Any) -> Any:
            return queryset

    return Choice


def action(label: str, permission: str, act: Callable[[Bridge, str], Outcome]) -> Any:
    """Return an action of a list, which does something to each row, and says and logs what came of it."""

    @admin.action(description=label, permissions=[permission])
    def do(self: ShownAdmin, request: HttpRequest, rows: Rows[Any]) -> None:
        for each in rows:
            try:
                outcome = act(default_bridge(), each.pk)
            except _GONE as exc:
                if len(rows) == 1:
                    raise
                outcome = Outcome(text=str(exc), is_done=False)  # the other rows may be there
            self.tell(request, act.__name__, outcome, [each] if outcome.is_done else [])

    do.__name__ = label.lower().replace(" ", "_")
    return do


def _may(action: str) -> Callable[[Any, HttpRequest], bool]:
    return lambda self, request: self.may(request, f"{action}_{self.opts.model_name}")


def _task(asked: str) -> str:
    return asked if "*" in asked else f"*{asked}*"


class ShownAdmin(_ModelAdmin):
    """An admin of what broker or store know; what nobody may do is left out of the model's `default_permissions`.

    A subclass has `read`, which returns the ids of a page of the list, each with what was found of it.
    """

    list_per_page = 50
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()
    fields = ()  # templates show what there is
    actions: Any = ()
    details: Sequence[Callable[[Any], Any]] = ()  # columns, of which the page of one object has a line each
    removal = ""  # the act that deletes
    # What Django asks before actions: whether the user has the model's permission of that name.
    has_replay_permission, has_cancel_permission = _may("replay"), _may("cancel")
    has_retry_permission, has_run_permission, has_pause_permission = _may("retry"), _may("run"), _may("pause")

    class Media:
        css = {"all": ("taskbridge/admin.css",)}

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return Page

    def get_urls(self) -> list[URLPattern]:
        urls = super().get_urls()
        for each in urls:
            each.callback = self._answering(each.callback)
        return urls

    def _answering(self, view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
        """Return a view that says so if broker or store are away, or refuse."""

        @wraps(view)
        def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            try:
                return view(request, *args, **kwargs)
            except TaskBridgeError as exc:
                if request.method == "POST":  # a part may be done
                    ids = some(request.POST.getlist(ACTION_CHECKBOX_NAME))
                    act = " ".join(filter(None, (request.path, request.POST.get("action"), ids)))
                    _log.warning("%s tried %s: %s", request.user.get_username(), act, exc)
                is_away = isinstance(exc, _AWAY)
                title = "Not available" if is_away else "Not done"
                about = {"title": title, "opts": self.opts, "problem": _problem(exc)}
                context = {**self.admin_site.each_context(request), **about}
                status = HTTPStatus.SERVICE_UNAVAILABLE if is_away else HTTPStatus.CONFLICT
                return TemplateResponse(request, "admin/taskbridge/problem.html", context, status=status)

        return answer

    def shown(self, id: str, found: object) -> Any:
        """Return what the admin takes for an object of the model."""
        made = self.model(pk=id)
        made.found = found
        return made

    def find(self, id: str) -> object | None:
        """Return what is known of an id; the errors that say that there is nothing are raised."""
        return None

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        with suppress(NoSuchDeadLetter, NoSuchRecord):
            found = self.find(object_id)
            return None if found is None else self.shown(object_id, found)
        return None

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        asked = {"delete_selected", *self.actions}.intersection(request.POST.getlist("action"))
        if not asked <= self.get_actions(request).keys():  # Django would ignore it
            raise PermissionDenied
        title = str(self.opts.verbose_name_plural).capitalize()
        return super().changelist_view(request, {"title": title, **(extra_context or {})})

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        choices = self.get_action_choices(request, default_choices=[])
        context["shows_errors"] = not default_bridge().dead.redacts or self.may(request, "view_arguments")
        found = getattr(context.get("original"), "found", None)
        context["headers"] = [*getattr(found, "headers", {}).items()]
        details = () if found is None else self.details
        context["details"] = [(_words(each.__name__).capitalize(), each(context["original"])) for each in details]
        context["acts"] = [each for each in choices if each[0] != "delete_selected"]  # for which there is a button
        return super().render_change_form(request, context, *args, **kwargs)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return "add" in self.opts.default_permissions and super().has_add_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return "change" in self.opts.default_permissions and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return "delete" in self.opts.default_permissions and super().has_delete_permission(request, obj)

    def may(self, request: HttpRequest, what: str) -> bool:
        """Return whether the user has a permission of this app."""
        user: Any = request.user  # untyped
        return bool(user.has_perm(f"{self.opts.app_label}.{what}"))

    def log_deletions(self, request: HttpRequest, queryset: Any) -> list[Any]:
        return []  # Django asks for it before it deletes, which may fail

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        self.delete_queryset(request, Rows.of(self.model, [obj]))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        rows = {each.pk: each for each in queryset}
        for each in self.remove([*rows]):
            super().log_deletions(request, Rows.of(self.model, [rows[each]]))
            self.note(request, self.removal, each)

    def remove(self, ids: list[str]) -> Iterable[str]:
        """Delete what has these ids, and give the ids of those that were there, each after it was deleted."""
        raise NotImplementedError

    def tell(self, request: HttpRequest, act: str, outcome: Outcome, objects: Iterable[Shown]) -> None:
        """Say what came of an act, and log it for the objects to which it was done."""
        text = f"{outcome.text[:1].upper()}{outcome.text[1:]}."
        is_good = outcome.is_done and outcome.is_whole
        self.message_user(request, text, messages.SUCCESS if is_good else messages.WARNING)
        for each in objects:
            self.log_change(request, each, text)
            self.note(request, act, each.pk)

    def note(self, request: HttpRequest, act: str, id: str) -> None:
        """Tell the hook `operated` who did what; acts have the names that the page and the commands give them."""
        connection = connections[router.db_for_write(self.model)]
        # A hook's database error breaks the transaction of a form, in which Django writes more; a savepoint undoes it.
        undoing = transaction.atomic(connection.alias) if connection.in_atomic_block else nullcontext()
        with suppress(DatabaseError), undoing:
            default_bridge().hooks.operated(request.user.get_username(), act, id)


@admin.register(Queue)
class QueueAdmin(ShownAdmin):
    """The known queues: how much waits in each and runs of it, and whether it is paused."""

    list_display = (
        *("name", column("engine"), column("waiting"), column("running")),
        column("oldest", lambda queue: None if queue.oldest_s is None else timedelta(seconds=int(queue.oldest_s))),
        column("state", _queue_state),
        column("paused_until", lambda queue: queue.paused and queue.paused.until),
    )
    list_display_links = None
    actions = ("pause", "resume")
    pause, resume = action("Pause", "pause", acts.pause), action("Resume", "pause", acts.resume)

    def read(self, request: HttpRequest, page: Page) -> Found:
        if ACTION_CHECKBOX_NAME in request.POST and request.POST.get("select_across") != "1":
            return ()  # acts on what is chosen need the store alone
        bridge = default_bridge()
        counts = bridge.counts()
        page.remark = f"In all queues, {counts.delayed} delayed and {counts.dead} dead."
        try:
            found = bridge.operations.queues(counts)
        except _AWAY as exc:  # of the store, for the broker has just answered
            page.remark += f" What runs and is paused is not known: {_problem(exc)}"
            found = tuple(QueueNow(name=name, engine="", waiting=count) for name, count in counts.waiting.items())
        return ((each.name, each) for each in found)


@admin.register(DeadLetter)
class DeadLetterAdmin(ShownAdmin):
    """The dead letters, the oldest first. To delete one is to purge it."""

    list_display = (
        "id",
        *map(column, ("task", "queue", "reason")),
        column("error", _error),
        *map(column, ("attempts", "died_at")),
    )
    details = (
        *map(column, ("task", "queue", "priority", "reason", "attempts", "replays")),
        *(column("sent", "enqueued_at"), column("expires", "expires_at"), column("died", "died_at"), column("worker")),
    )
    search_fields = ("task",)
    search_help_text = "a part of a task's name, or a glob such as shop.*"
    actions = ("replay",)
    removal = "purge"

    def read(self, request: HttpRequest, page: Page) -> Found:
        is_all = request.POST.get("select_across") == "1"
        limit, after = (None, None) if is_all else (self.list_per_page, request.GET.get("after"))
        found = default_bridge().dead.list(task=_task(page.query) if page.query else None, limit=limit, after=after)
        page.after = found.next
        return ((each.id, each) for each in found.entries)

    def find(self, id: str) -> DeadEntry:
        return default_bridge().dead.get(id)

    @admin.action(description="Replay", permissions=["replay"])
    def replay(self, request: HttpRequest, rows: Rows[DeadLetter]) -> None:
        found = default_bridge().dead.replay([each.pk for each in rows])
        self.tell(request, "replay", acts.replayed(found), [each for each in rows if each.pk in found.ids])

    def remove(self, ids: list[str]) -> Iterable[str]:
        return default_bridge().dead.purge(ids)


@admin.register(Message)
class MessageAdmin(ShownAdmin):
    """The messages, the latest first, if the setting `listing` is on; those that run, and one by its id, without it."""

    list_display = ("id", *map(column, ("task", "queue", "state", "enqueued_at", "ended_at")))
    details = (
        *map(column, ("task", "queue", "state", "reason")),
        column("cancelled", lambda status: "while it ran" if status.cancel_asked else None),
        *(column("sent", "enqueued_at"), column("due", "due_at"), column("ended", "ended_at"), column("replays")),
    )
    list_filter = (choice("state", lambda: get_args(State)), choice("queue", lambda: default_bridge().queues()))
    search_fields = ("id",)
    search_help_text = "the whole id of a message, a part of a task's name, or a glob such as shop.*"
    actions = ("cancel",)
    cancel = action("Cancel", "cancel", acts.cancel)

    def get_list_display(self, request: HttpRequest) -> Any:
        running = ("id", *map(column, ("task", "queue", "attempt", "since", "worker")))
        return running if request.GET.get("state") == "running" else self.list_display

    def read(self, request: HttpRequest, page: Page) -> Found:
        asked, bridge = page.query.strip(), default_bridge()
        queue, state = request.GET.get("queue"), request.GET.get("state")
        state = state if state in get_args(State) else None
        if state == "running":
            runs = [each for each in bridge.operations.running() if queue in (None, each.queue)]
            return ((each.id, each) for each in runs if each.id == asked or fnmatchcase(each.task, _task(asked)))
        if asked:
            with suppress(NoSuchRecord):
                found = self.find(asked)
                return [(asked, found)] if state in (None, found.state) and queue in (None, found.queue) else ()
        if not bridge.settings.listing and bridge.store is not None:
            page.remark = "Without the setting listing, only those that run are listed, and one by its whole id."
            page.remark = "No message of this id is known." if asked else page.remark
            return ()
        filters: dict[str, Any] = {"task": _task(asked), "state": state, "queue": queue}
        listed = bridge.operations.messages(**filters, cursor=request.GET.get("after", ""), most=self.list_per_page)
        page.after = listed.cursor or None
        return ((each.id, each) for each in listed.items)

    def find(self, id: str) -> Status:
        return default_bridge().handle(id).status()


_FLOW_STATE: Final = column("state", lambda flow: "stalled" if flow.is_stalled else flow.state)


@admin.register(Flow)
class FlowAdmin(ShownAdmin):
    """The flows, the latest first."""

    list_display = (
        *("id", column("name")),
        _FLOW_STATE,
        column("stage", lambda flow: f"{flow.stage} of {flow.stages}"),
        *map(column, ("total", "done", "dead", "created_at", "ended_at")),
    )
    details = (
        *(column("flow", "name"), _FLOW_STATE, *map(column, ("stage", "stages")), column("steps", "total")),
        *map(column, ("done", "dead", "discarded", "cancelled", "running", "waiting")),
        *(column("sent", "created_at"), column("ended", "ended_at"), column("waits_for", "oldest")),
        column("part_of", "parent"),
    )
    actions = ("cancel", "retry")
    cancel, retry = action("Cancel", "cancel", acts.cancel_flow), action("Retry", "retry", acts.retry_flow)

    def read(self, request: HttpRequest, page: Page) -> Found:
        found = default_bridge().operations.flows(cursor=request.GET.get("after", ""), most=self.list_per_page)
        page.after = found.cursor or None
        return ((each.id, each) for each in found.items)

    def find(self, id: str) -> FlowStatus:
        return default_bridge().dead.shown_flow(default_bridge().flows.status(id))


@admin.register(Schedule)
class ScheduleAdmin(ShownAdmin):
    """All schedules. Those that were put at run time can be changed and deleted; the others are in code or settings."""

    form = ScheduleForm
    _columns = (
        column("task"),
        column("when", _when),
        column("state", lambda entry: "paused" if entry.paused else "enabled"),
        column("next_run", lambda entry: next(iter(entry.next_runs), None)),
        column("last_run", "last_planned_at"),
        *map(column, ("missed", "source")),
    )
    list_display = ("name", *_columns)
    details = (
        *(column("task"), column("when", lambda entry: entry.timing.spec)),  # which may be copied
        column("zone", lambda entry: getattr(entry.timing, "timezone", None)),
        *(*_columns[2:], column("last_message", "last_id")),
    )
    actions = ("pause", "resume", "run_now")
    removal = "remove_schedule"
    pause = action("Pause", "change", acts.pause_schedule)
    resume = action("Resume", "change", acts.resume_schedule)
    run_now = action("Run now", "run", acts.run_schedule)

    def read(self, request: HttpRequest, page: Page) -> Found:
        return ((each.name, each) for each in default_bridge().schedules.list())

    def find(self, id: str) -> ScheduleEntry | None:
        return next((each for each in default_bridge().schedules.list() if each.name == id), None)

    def get_fieldsets(self, request: HttpRequest, obj: Schedule | None = None) -> Any:
        shows_arguments = obj is None or self.may(request, "view_arguments")
        return [
            (None, {"fields": ("name", "task", "enabled")}),
            ("When", {"fields": ("cron", "timezone", "every", "expires", "catch_up", "overlap")}),
            ("The message", {"fields": ("args", "kwargs", "queue") if shows_arguments else ("queue",)}),
        ]

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **{**kwargs, "fields": ("name",)})  # it declares the others
        shown = [name for _, options in self.get_fieldsets(request, obj) for name in options["fields"]]
        form.base_fields = {name: copy(each) for name, each in form.base_fields.items() if name in shown}
        if "task" in form.base_fields:  # else another one would get arguments that the user may not see
            form.base_fields["task"].disabled = "args" not in shown
        return form

    def get_readonly_fields(self, request: HttpRequest, obj: Schedule | None = None) -> tuple[str, ...]:
        return () if obj is None else ("name",)

    def has_change_permission(self, request: HttpRequest, obj: Schedule | None = None) -> bool:
        found = None if obj is None else obj.found
        can_be = found is None or (found.source == "store" and default_bridge().knows(found.task))
        return can_be and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Schedule | None = None) -> bool:
        can_be = obj is None or obj.found is None or obj.found.source == "store"
        return can_be and super().has_delete_permission(request, obj)

    def save_model(self, request: HttpRequest, obj: Schedule, form: Any, change: bool) -> None:
        form.put()
        self.note(request, "add_schedule", obj.pk)

    def remove(self, ids: list[str]) -> Iterable[str]:
        return filter(default_bridge().schedules.delete, ids)
