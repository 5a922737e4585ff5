"""The form that puts a schedule at run time."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, get_args

from django import forms
from django.contrib.admin.widgets import AdminSplitDateTime

from taskbridge import codec
from taskbridge.bridge import default_bridge
from taskbridge.django.models import Schedule
from taskbridge.exceptions import DeclarationError, TaskBridgeError
from taskbridge.message import TYPED_FORM
from taskbridge.schedules.listing import ScheduleEntry
from taskbridge.schedules.plan import CatchUp, Cron, Every, Overlap, check_name, named, timing_of, zone_of
from taskbridge.schedules.plan import Schedule as Planned
from taskbridge.tasks import Call, SendOptions

_TEXT: Final = forms.Textarea({"rows": 2, "class": "vLargeTextField"})


def _choices(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(each, each) for each in names]


if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[Schedule]
else:
    _ModelForm = forms.ModelForm  # which takes no parameters


class ScheduleForm(_ModelForm):
    """A schedule, whose errors are the library's own. Options that it doesn't show stay as they were."""

    task = forms.ChoiceField(choices=lambda: _choices(each.name for each in default_bridge().declarations()))
    enabled = forms.BooleanField(required=False, initial=True)
    cron = forms.CharField(
        required=False,
        help_text="Five fields: minute, hour, day of the month, month, day of the week, such as 0 8 * * mon-fri.",
    )
    timezone = forms.CharField(
        required=False, help_text="The zone of the expression, such as Europe/Rome; UTC if left empty."
    )
    every = forms.IntegerField(
        required=False, help_text="In place of an expression: seconds, counted from 1970-01-01 00:00 UTC."
    )
    expires = forms.SplitDateTimeField(
        required=False, widget=AdminSplitDateTime, help_text="It sends no more after this."
    )
    catch_up = forms.ChoiceField(
        choices=_choices(get_args(CatchUp)),
        initial="one",
        help_text="What is sent of that which was due while no worker was there: none, the latest one, or all.",
    )
    overlap = forms.ChoiceField(
        choices=_choices(get_args(Overlap)),
        initial="allow",
        help_text="What becomes of a tick while the message before has not ended: it is sent, or skipped.",
    )
    args = forms.CharField(label="Positional arguments", initial="[]", widget=_TEXT, help_text="A JSON array.")
    kwargs = forms.CharField(label="Keyword arguments", initial="{}", widget=_TEXT, help_text="A JSON object.")
    queue = forms.ChoiceField(
        choices=lambda: [("", "the task's own"), *_choices(default_bridge().queues())], required=False
    )

    class Meta:
        model = Schedule
        fields = ("name",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._former = default_bridge().schedules.planned().get(self.instance.pk or "")
        self._options = SendOptions() if self._former is None else SendOptions(**self._former.using)
        if self._former is not None and self._former.encoded is not None:
            self.initial.update(_initial(self._former, self._options, self.instance.found))

    def validate_unique(self) -> None:
        """Look for the name among the schedules that there are, for there is no table."""
        name = self.cleaned_data.get("name")  # absent in the form of one that is there already
        if name in [each.name for each in default_bridge().schedules.list()]:
            self.add_error("name", "There is a schedule of this name already.")

    def clean(self) -> dict[str, Any]:
        """Check the fields together, and make of them what `put` takes."""
        data: dict[str, Any] = super().clean() or {}
        if self.errors:
            return data
        bridge = default_bridge()
        declaration = bridge.declaration_of(data["task"])
        assert declaration is not None, "it was one of the choices"
        kept = None if isinstance(self._options.expires, datetime) else self._options.expires  # it is not shown
        options = replace(self._options, queue=data["queue"] or None, expires=data["expires"] or kept)
        self._name: str = data.get("name", self.instance.pk)
        keys = ("cron", "every", "timezone", "catch_up", "overlap")
        self._time = {key: None if data[key] == "" else data[key] for key in keys}
        with self._errors_of("name"):
            check_name(self._name)
        with self._errors_of("timezone"):
            zone_of(data["timezone"] or "UTC")
            with self._errors_of("cron" if self._time["cron"] else "every"):
                if self._time["cron"] is None and self._time["every"] is None:
                    raise DeclarationError("Give an expression, or this.")
                timing = timing_of(**self._time)
                assert timing is not None
                with self._errors_of("overlap"):
                    named(None, declaration.name, timing, results=declaration.results)
        args_json, kwargs_json = data.get("args", "[]"), data.get("kwargs", "{}")
        if "args" not in self.fields and self._former is not None and self._former.encoded is not None:
            args_json, kwargs_json, _ = self._former.encoded  # the user may not see them
        args, kwargs = list[Any](), dict[str, Any]()
        with self._errors_of("args"):
            args = codec.loads_array(args_json)
        with self._errors_of("kwargs"):
            kwargs = codec.loads_object(kwargs_json)
        with self._errors_of("args"):
            args, kwargs = declaration.fitted(args, kwargs, TYPED_FORM)
            self._call: Call[Any] = Call(declaration=declaration, args=tuple(args), kwargs=kwargs, options=options)
            self._call.encoded()
        return data

    def put(self) -> None:
        """Keep the schedule in the store; raises as `Schedules.put`."""
        default_bridge().schedules.put(self._name, self._call, **self._time, enabled=self.cleaned_data["enabled"])

    @contextmanager
    def _errors_of(self, field: str) -> Generator[None, None, None]:
        try:
            yield
        except (TaskBridgeError, TypeError, ValueError) as exc:
            self.add_error(field if field in self.fields else None, str(exc))


def _initial(former: Planned, options: SendOptions, entry: ScheduleEntry) -> dict[str, Any]:
    """Return what the form shows of a schedule that is there."""
    assert former.encoded is not None
    timing, expires = former.timing, options.expires
    return {
        "task": former.task,
        "enabled": not entry.paused,
        "cron": timing.expression if isinstance(timing, Cron) else "",
        "timezone": timing.timezone if isinstance(timing, Cron) else "",
        "every": timing.interval_s if isinstance(timing, Every) else None,
        "expires": expires if isinstance(expires, datetime) else None,
        "catch_up": timing.catch_up,
        "overlap": timing.overlap,
        "args": former.encoded[0],
        "kwargs": former.encoded[1],
        "queue": options.queue or "",
    }
