"""Values of hinted classes, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import importlib
from typing import Any

from taskbridge import codec
from tests.mutants.table import mutant, put

_CODEC = "taskbridge.codec"
_HINTS = "taskbridge.hints"


@mutant("S4", "what_hints_name_arrives_as_it_was")
def values_of_classes_arrive_as_their_fields() -> None:
    """A value of a class arrives as what it is made of."""

    def make(made: Any) -> Any:
        return lambda self, value, path: made(self, getattr(value, "value", value), path)

    put(_HINTS, "Forms.made", make)


@mutant("S4", "what_one_engine_parks_another_makes", "celery+redis")
def parked_messages_forget_their_form() -> None:
    """A message that is parked says that it is of the first form, and is read as such."""
    put("taskbridge.declaration", "Declaration.fitted", lambda _: lambda self, args, kwargs, form: (args, kwargs))


@mutant("S4", "subclasses_arrive_as_plain_values")
def subclasses_arrive_as_text() -> None:
    """A value of a subclass arrives as its text."""

    def make(plain_copy: Any) -> Any:
        return lambda value: value if (plain := plain_copy(value)) is value else str(plain)

    put(_CODEC, "plain_copy", make)


@mutant("S4", "what_would_change_is_refused")
def subclasses_are_cut_down() -> None:
    """A value of a subclass of what a hint names arrives as one of the class that is named."""

    def make(lowered: Any) -> Any:
        def lenient(self: Any, value: Any, *left: int) -> Any:
            base = next((cls for cls in type(value).__mro__ if cls in self.of), None)
            self.of.setdefault(type(value), self.of.get(base)) if base else None
            return lowered(self, value, *left)

        return lenient

    put(_HINTS, "Forms.lowered", make)
    nobody_tries_whether_a_value_can_be_made_again()  # else that would refuse it


@mutant("S4", "what_would_change_is_refused")
def nobody_tries_whether_a_value_can_be_made_again() -> None:
    """What is another value when it is made again is sent all the same."""
    put(_HINTS, "Form.checked_parts", lambda _: lambda self, value: self.parts(value))


@mutant("Q7", "a_class_that_changed_is_dead")
def fields_that_are_not_known_are_left_out() -> None:
    """Of a value that has other fields on the worker, those are taken that are known."""

    def make(of_fields: Any) -> Any:
        return lambda cls, names, parts: of_fields(cls, names, {key: parts[key] for key in parts if key in names})

    put(_HINTS, "_of_fields", make)


@mutant("S9", "a_class_that_no_hint_names_is_not_made")
def classes_are_imported_by_their_names() -> None:
    """A class that a message names is imported if no hint names it."""

    def make(made: Any) -> Any:
        def trusting(self: Any, value: Any, path: Any) -> Any:
            name = getattr(value, "type", "")
            if name and name not in self.by_name:
                module, _, attribute = name.rpartition(".")
                return getattr(importlib.import_module(module or "taskbridge.contract.typed"), attribute)(value.value)
            return made(self, value, path)

        return trusting

    put(_HINTS, "Forms.made", make)


@mutant("S8", "only_what_needs_a_newer_form_has_it")
def values_of_classes_are_sent_in_the_first_form() -> None:
    """A release before is given what it can't read."""
    put("taskbridge.tasks", "TYPED_FORM", lambda _: 1)


@mutant("RS1", "results_of_hinted_classes_come_back")
def results_are_not_made() -> None:
    """A result of a class is what it travels as."""
    put("taskbridge.results", "value_of", lambda _: lambda task, text, declaration: codec.loads(text))


@mutant("H", "hooks_see_the_arguments")
def hooks_see_what_was_given_alone() -> None:
    """Hooks don't see what parameters are by default."""
    put(
        "taskbridge.declaration",
        "Declaration.bound",
        lambda _: lambda self, args, kwargs: dict(self.signature.bind(*args, **kwargs).arguments),
    )
