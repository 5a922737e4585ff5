"""The form that puts a schedule at run time."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, get_args

from django import forms

from taskbridge import codec
from taskbridge.bridge import default_bridge
from taskbridge.django.models import Schedule
from taskbridge.exceptions import DeclarationError, TaskBridgeError
from taskbridge.message import FORM
from taskbridge.schedules.plan import CatchUp, Overlap, check_name, named, timing_of, zone_of
from taskbridge.tasks import Call, SendOptions

if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[Schedule]
else:
    _ModelForm = forms.ModelForm  # which takes no parameters


class ScheduleForm(_ModelForm):
    """A schedule, whose errors are the library's own. Options that it doesn't show stay as they were."""

    task = forms.ChoiceField(choices=lambda: [(each.name, each.name) for each in default_bridge().declarations()])
    queue = forms.ChoiceField(
        choices=lambda: [("", "the task's own"), *((each, each) for each in default_bridge().queues())], required=False
    )
    catch_up = forms.ChoiceField(
        choices=[(each, each) for each in get_args(CatchUp)],
        initial="one",
        help_text="What is sent of that which was due while no worker was there: none, the latest one, or all.",
    )
    overlap = forms.ChoiceField(
        choices=[(each, each) for each in get_args(Overlap)],
        initial="allow",
        help_text="What becomes of a tick while the message before has not ended: it is sent, or skipped.",
    )

    class Meta:
        model = Schedule
        fields = "__all__"
        help_texts = {
            "cron": "Five fields: minute, hour, day of the month, month, day of the week, such as 0 8 * * mon-fri.",
            "timezone": "The zone of the expression, such as Europe/Rome; UTC if left empty.",
            "every": "In place of an expression: seconds, counted from 1970-01-01 00:00 UTC.",
            "expires": "It sends no more after this.",
            "args": "A JSON array, such as [7].",
            "kwargs": 'A JSON object, such as {"name": "x"}.',
        }
        widgets = {
            "args": forms.Textarea({"rows": 2, "class": "vLargeTextField"}),
            "kwargs": forms.Textarea({"rows": 2, "class": "vLargeTextField"}),
        }

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
        former = bridge.schedules.planned().get(self.instance.pk or "")
        options = SendOptions() if former is None else SendOptions(**former.using)
        options = replace(options, queue=data["queue"] or None, expires=data["expires"] or _kept(options))
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
        if "args" not in self.fields and former is not None and former.encoded is not None:
            args_json, kwargs_json, _ = former.encoded  # the user may not see them
        args, kwargs = list[Any](), dict[str, Any]()
        with self._errors_of("args"):
            args = codec.loads_array(args_json)
        with self._errors_of("kwargs"):
            kwargs = codec.loads_object(kwargs_json)
        with self._errors_of("args"):
            args, kwargs = declaration.fitted(args, kwargs, FORM)
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


def _kept(options: SendOptions) -> Any:
    """Return after how long each message expires, which the form doesn't show; None if they don't."""
    return None if isinstance(options.expires, datetime) else options.expires
