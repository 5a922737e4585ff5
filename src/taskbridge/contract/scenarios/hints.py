"""S4, S8, Q7, RS1, H: values of the classes that type hints name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from taskbridge import EncodeError
from taskbridge.contract import typed
from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.registry import ALONE, PROCESSES, RECORDED, scenario, with_processes, with_records
from taskbridge.contract.scenarios.results import result_of
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import TELL, Variant, describe


@scenario("S4", on=(PROCESSES,))
def what_hints_name_arrives_as_it_was(h: Harness) -> None:
    """A value of a class that the parameter's hint names arrives equal and of that class, however deep it is."""
    sent = [(value, h.own(h.tasks.typed.send(value, value, named=value))) for value in typed.VALUES]
    h.final(*(item.id for _, item in sent))
    for value, item in sent:
        h.equal("what arrived", h.starts(item.id)[0].data["values"], [describe(value)] * 3)


@scenario("S4", on=(PROCESSES,))
def subclasses_arrive_as_plain_values(h: Harness) -> None:
    """Text, numbers, lists and dicts of a class of their own, and enums of them, arrive as plain values."""
    sent = [(plain, h.own(h.tasks.echo.send(value, named=[value]))) for value, plain in typed.PLAIN]
    h.final(*(item.id for _, item in sent))
    for plain, item in sent:
        data = h.starts(item.id)[0].data
        seen, expected = [data["values"], data["named"]], [[describe(plain)], describe({"named": [plain]})]
        h.equal("what arrived", seen, expected)


@scenario("S4", on=(ALONE,))
def what_would_change_is_refused(h: Harness) -> None:
    """What no hint names, a subclass of what one names, and what is not equal when it is made again are refused."""
    for value, text in (
        (typed.LargeOrder(1), "annotate the parameter"),
        ([typed.Doubled(1)], "not equal"),
        (object(), "pass what it is made of"),
    ):
        error = h.refused(EncodeError, h.tasks.typed.send, value)
        h.says(error, text)
        h.check(error.path.startswith("args[0]"), f"the path should name the first argument, but is {error.path}")
    error = h.refused(EncodeError, h.tasks.echo.send, typed.Place(1, 2))
    h.says(error, "annotate the parameter")


def _with_the_other_engine(target: Target) -> str:
    other = _OTHER.get(target.address.engine)
    if reason := with_processes(target):
        return reason
    return "" if other and importlib.util.find_spec(other) else f"engine {other} is not installed"


_OTHER = {"celery": "dramatiq", "dramatiq": "celery"}


@scenario("S4", on=(ALONE,), where=_with_the_other_engine)
def what_one_engine_parks_another_makes(h: Harness) -> None:
    """A value that is sent on one engine arrives as it was on the other."""
    value = typed.VALUES[10]
    item = h.own(h.tasks.typed.schedule(1, value, value, named=value))
    scheme, _, broker = h.target.url.partition("+")
    other = Target.of(f"{_OTHER[scheme]}+{broker}", store=h.target.store)
    with h.environment.beside(other, namespace=h.environment.namespace) as beside:
        there = Harness(beside)
        beside.start_worker(answers=False)
        start = there.started(item.id)
        h.equal("who ran it", start.data["engine"], other.address.engine)
        h.equal("what arrived", start.data["values"], [describe(value)] * 3)


@scenario("Q7", on=(ALONE,))
def a_class_that_changed_is_dead(h: Harness) -> None:
    """A value whose class has other fields where it arrives is dead at once, as arguments that don't fit are."""
    sent = h.own(h.tasks.reshaped.send([h.tasks.reshaped_class(1, 2)]))
    if h.target.in_process:
        h.tasks.declare_reshaped(narrow=True)
    h.start_worker(variant=Variant(narrow=True))
    final = h.finished(sent.id)[0]
    h.equal("how it ended", (final.kind, final.data["reason"], final.attempt), ("dead", "bad_arguments", 1))
    h.equal("its starts", h.starts(sent.id), [])
    [letter] = h.letters(sent.id)
    told = "" if letter.error is None else letter.error.message
    h.check("args[0][0]" in told and "'b'" in told, f"the error should tell where and what, but is {told!r}")


@scenario("S9", on=(ALONE,))
def a_class_that_no_hint_names_is_not_made(h: Harness) -> None:
    """A message that names a class which the parameter's hint doesn't name is dead, and nothing is made of it."""
    made = Path(h.environment.folder, "made")
    names = ("pathlib.Path", "Order", "taskbridge.contract.typed.Order", "os.mkdir")
    items: list[Sent] = []
    for name in names:
        text = f'[{{"$":"typed","type":"{name}","v":"{made}"}}]'
        with h.saying(args_json=text, form=2):
            items.append(h.own(h.tasks.echo.send(1)))
    h.start_worker()
    finals = h.finished(*(item.id for item in items))
    h.equal("how they ended", {final.data["reason"] for final in finals}, {"bad_arguments"})
    h.check(not made.exists(), "something was made")


@scenario("S8", on=(ALONE,))
def only_what_needs_a_newer_form_has_it(h: Harness) -> None:
    """A message with a value of a class is of form 2, for which releases before wait; others stay of form 1."""
    for value, form in ((typed.Colour.RED, 2), ("text", 1), (typed.VALUES[14], 1)):
        item = h.own(h.tasks.typed.using(headers={TELL: "yes"}).send(value))
        h.equal(f"the form of {value!r}", h.records(item.id, "after_send")[0].data["form"], form)


@scenario("RS1", on=(RECORDED,), where=with_records)
def results_of_hinted_classes_come_back(h: Harness) -> None:
    """What a task returns of a class that its hint names is the result, equal and of that class."""
    for value in typed.VALUES:
        item = h.own(h.tasks.typed.send(value))
        h.equal("the result", describe(result_of(h, item)), describe([value]))
    h.idle()


@scenario("H", on=(PROCESSES,))
def hooks_see_the_arguments(h: Harness) -> None:
    """Hooks see the arguments by the names of the parameters, as the task gets them; None if they don't fit."""
    value: Any = typed.VALUES[0]
    item = h.own(h.tasks.typed.using(headers={TELL: "yes"}).send(value, 1))
    h.final(item.id)
    expected = describe({"value": value, "more": (1,), "named": None})
    told = {record.kind: record.data["arguments"] for record in h.records(item.id) if "arguments" in record.data}
    h.equal("what they see", told, dict.fromkeys(("before_send", "after_send", "before_run", "succeeded"), expected))
    with h.saying(args_json="[]", headers={TELL: "yes"}):
        dead = h.own(h.tasks.typed.send(value))
    h.equal("what is told of it", h.final(dead.id)[0].data["arguments"], describe(None))
