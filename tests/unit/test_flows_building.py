"""Rule W1: a flow is checked as it is built. And its parts by themselves: handles, results, `become`."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Protocol

import pytest

from taskbridge import (
    Bridge,
    Call,
    DecodeError,
    Flow,
    FlowEnd,
    FlowHandle,
    IdempotencyConflict,
    NoCurrentTaskError,
    NoSuchRecord,
    Results,
    ResultTimeout,
    TaskBridgeError,
    become,
    codec,
    group,
)
from taskbridge.context import current, entered
from taskbridge.declaration import declare
from taskbridge.flows.plan import LONGEST_FLOW_ID
from taskbridge.results import outcome_of
from taskbridge.retry import Become
from taskbridge.stores.states import Status
from taskbridge.testing import capture_sent, fake_run, inline

bridge = Bridge("inline://?threads=0", store="memory://")
stranger = Bridge("inline://?threads=0", store="memory://")


class Animal: ...


class Dog(Animal): ...


class Loud(Protocol):
    volume: int


@bridge.task(name="load")
def load(number: int) -> int:
    return number


@bridge.task(name="loads")
async def aload(number: int) -> int:
    return number


@bridge.task(name="total")
def total(numbers: Results[int], scale: float = 1.0) -> float:
    return sum(numbers) * scale


@bridge.task(name="alarm")
def alarm(end: FlowEnd, room: str = "") -> None: ...


@bridge.task(name="untyped")
def untyped(value, *more, **others):  # type: ignore[no-untyped-def]  # as many tasks are
    return value


@bridge.task(name="unique", unique=True)
def unique(number: int) -> int:
    return number


@stranger.task(name="foreign")
def foreign(number: int) -> int:
    return number


def shape(flow: Flow[Any]) -> list[Any]:
    """Return a flow's stages: task, arguments, whether the result comes first; of a group, its members' arguments."""
    return [
        [call.args for call in stage.members or ()]
        if stage.call is None
        else (stage.call.declaration.name, stage.call.args, dict(stage.call.kwargs), stage.takes_result)
        for stage in flow.stages
    ]


# What is built


def test_each_word_adds_a_stage_and_leaves_the_flow_as_it_was() -> None:
    first = group(load.call(number) for number in range(3))
    second = first.then(total, scale=2.0)
    third = second.then_call(load.call(7)).on_failure(alarm, "ops").on_end(alarm, room="end").using(id="nightly")

    assert shape(third) == [
        [(0,), (1,), (2,)],
        ("total", (), {"scale": 2.0}, True),
        ("load", (7,), {}, False),
    ]
    assert (third.id, second.id) == ("nightly", None)
    assert third.failure is not None
    assert third.end is not None
    assert (third.failure.args, third.end.kwargs) == (("ops",), {"room": "end"})
    assert (len(first.stages), len(second.stages), second.failure, second.end) == (1, 2, None, None)
    assert repr(third) == "<Flow of group, total, load>"


def test_a_call_is_a_flow_of_one_step() -> None:
    assert shape(load.call(1).then(load)) == [("load", (1,), {}, False), ("load", (), {}, True)]
    assert shape(load.call(1).then_call(aload.call(2))) == [("load", (1,), {}, False), ("loads", (2,), {}, False)]
    assert shape(load.call(1).on_failure(alarm)) == shape(load.call(1).on_end(alarm)) == [("load", (1,), {}, False)]


def test_the_stages_of_a_flow_go_on_with_those_of_another_one() -> None:
    joined = load.call(1).then_call(group([load.call(2)], at_once=5, on_error="wait").then(total))

    assert shape(joined) == [("load", (1,), {}, False), [(2,)], ("total", (), {}, True)]
    assert (joined.stages[1].at_once, joined.stages[1].on_error) == (5, "wait")


def test_options_of_a_step_are_those_of_its_task() -> None:
    flow = load.using(queue="slow", priority="low").call(1).then(total_of_anything().using(expires=5, headers={"a": 1}))

    first, second = (stage.call for stage in flow.stages)
    assert first is not None
    assert second is not None
    assert (first.options.queue, first.options.priority) == ("slow", "low")
    assert (second.options.expires, second.options.headers) == (5, {"a": 1})


def total_of_anything() -> Any:
    return untyped


def test_a_call_is_sent_as_one_message_like_its_task() -> None:
    with capture_sent(bridge) as sent:
        now, later = load.call(1).send(), load.using(queue="default").call(2).schedule(60)
        with pytest.raises(TypeError, match="send is for now"):
            load.call(3).schedule(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    assert [(each.id, each.args, each.delay_s) for each in sent] == [(now.id, (1,), 0.0), (later.id, (2,), 60.0)]


def test_calls_are_equal_whoever_sends_them_and_do_not_show_it() -> None:
    call = load.call(1)

    assert call == load.call(1)
    assert call == replace(call, sender=foreign.call(1).sender)
    assert "sender" not in repr(call)


# Groups


def test_a_generator_is_read_once_and_its_first_call_alone_before_the_flow_is_sent() -> None:
    drawn: list[int] = []

    def calls() -> Iterator[Call[int]]:
        for number in range(5):
            drawn.append(number)
            yield load.call(number)

    flow = group(calls()).then(total)
    assert drawn == [0]
    [members, _] = (stage.members for stage in flow.stages)
    assert members is not None
    assert [call.args for call in members] == [(0,), (1,), (2,), (3,), (4,)]
    with pytest.raises(TaskBridgeError, match="make the flow anew"):
        iter(members)


def test_the_calls_of_a_list_can_be_read_again_and_are_its_own() -> None:
    given = [load.call(1)]
    flow = group(given)
    given.clear()

    assert shape(flow) == shape(flow) == [[(1,)]]


def test_a_group_of_no_calls_can_be_made_of_a_list_and_of_a_generator() -> None:
    nobody: list[Call[int]] = []
    for flow in (group(nobody), group(call for call in nobody)):
        assert (shape(flow), flow.sender) == ([[]], None)
        assert flow.then(total).sender is load.call(1).sender


@pytest.mark.parametrize("at_once", [0, -1, True, 1.5, "5"])
def test_at_once_is_a_whole_number_of_at_least_one(at_once: Any) -> None:
    with pytest.raises(ValueError, match="at_once must be a whole number of at least 1"):
        group([load.call(1)], at_once=at_once)


def test_how_errors_are_met_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="on_error must be one of fail, wait, collect, not 'ignore'"):
        group([load.call(1)], on_error="ignore")  # type: ignore[call-overload]  # pyright: ignore


@pytest.mark.parametrize("calls", [5, None, load, load.call(1)], ids=["number", "nothing", "task", "call"])
def test_a_group_of_what_is_no_iterable_is_refused(calls: Any) -> None:
    with pytest.raises(TypeError, match="group takes calls, such as"):
        group(calls)


@pytest.mark.parametrize(
    "calls", [[load], ["load"], "load", [load.call(1), 5], {1: 2}], ids=["task", "name", "text", "mixed", "dict"]
)
def test_a_group_of_what_is_no_call_is_refused(calls: Any) -> None:
    with pytest.raises(TypeError, match=r"a flow is made of what task.call\(...\) returns, not of"):
        group(calls)


def test_what_a_generator_gives_that_is_no_call_is_refused_as_it_is_read() -> None:
    given: list[Any] = [load.call(1), foreign.call(2)]
    [stage] = group(each for each in given).stages
    assert stage.members is not None
    with pytest.raises(ValueError, match="of one bridge"):
        list(stage.members)
    with pytest.raises(TypeError, match="a flow is made of"):
        group(each for each in ["a"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# What is refused

step: Any = load  # of no type: what checkers refuse too is tried

_REFUSED: list[tuple[Callable[[], object], type[Exception], str]] = [
    (
        lambda: step.call(1).then(len),
        TypeError,
        "then takes a task and its other arguments, not <built-in function len>",
    ),
    (lambda: step.call(1).on_end(print), TypeError, r"on_end takes a task .* is it a @task\?"),
    (lambda: step.call(1).then(load.call(2)), TypeError, r"not a call: write then\(load, ...\), or then_call"),
    (
        lambda: step.call(1).then_call(load),
        TypeError,
        r"a flow is what group\(...\), task.call\(...\) and their methods return, not",
    ),
    (lambda: step.call(1).then(load, 2), TypeError, r"load\(number\) can't be called .*too many positional arguments"),
    (lambda: step.call(1).then(untyped_pair()), TypeError, "missing a required argument: 'second'"),
    (lambda: step.call(1).then(load, colour=2), TypeError, "unexpected keyword argument 'colour'"),
    (lambda: step.call(1).on_failure(alarm, place="ops"), TypeError, "unexpected keyword argument 'place'"),
    (lambda: step.call(1).then(unique), ValueError, "task 'unique' is unique"),
    (lambda: unique.call(1).then(load), ValueError, "task 'unique' is unique"),
    (lambda: group([unique.call(1)]), ValueError, "task 'unique' is unique"),
    (lambda: load.using(id="x").call(1).then(load), ValueError, r"leave 'x' out, and use flow.using\(id=...\)"),
    (lambda: step.call(1).then(load.using(id="x")), ValueError, "the flow gives its steps their ids"),
    (lambda: group([load.using(id="x").call(1)]), ValueError, "the flow gives its steps their ids"),
    (lambda: load.on_commit.call(1).then(load), ValueError, r"use transaction.on_commit\(flow.send\)"),
    (lambda: step.call(1).on_end(alarm.using(commit="outbox")), ValueError, "no step waits for a commit"),
    (lambda: step.call(1).then(foreign), ValueError, "tasks of one bridge"),
    (lambda: step.call(1).then_call(foreign.call(1)), ValueError, "tasks of one bridge"),
    (lambda: step.call(1).then_call(group([foreign.call(1)])), ValueError, "tasks of one bridge"),
    (lambda: group([load.call(1), foreign.call(1)]), ValueError, "tasks of one bridge"),
    (lambda: step.call(1).on_end(alarm).on_end(alarm), ValueError, "a flow has one on_end"),
    (lambda: step.call(1).on_failure(alarm).on_failure(alarm), ValueError, "a flow has one on_failure"),
    (lambda: step.call(1).then_call(load.call(2).on_end(alarm)), ValueError, "one id and one set of callbacks"),
    (lambda: step.call(1).then_call(load.call(2).then(load).using(id="x")), ValueError, "one id and one set"),
    (lambda: step.call(1).then(load).using(id=""), ValueError, f"a flow's id is text of 1 to {LONGEST_FLOW_ID} bytes"),
    (
        lambda: step.call(1).then(load).using(id="x" * (LONGEST_FLOW_ID + 1)),
        ValueError,
        f"a flow's id is text of 1 to {LONGEST_FLOW_ID} bytes",
    ),
    (lambda: step.call(1).then(load).using(id="a\tb"), ValueError, "without control characters"),
]


def untyped_pair() -> Any:
    def pair(first, second):  # type: ignore[no-untyped-def]
        return first

    return Bridge("inline://").task(name="pair")(pair)


@pytest.mark.parametrize(("build", "error", "says"), _REFUSED, ids=[str(number) for number in range(len(_REFUSED))])
def test_what_can_not_work_is_refused_as_it_is_built(
    build: Callable[[], object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        build()


# Results that the next task does not take, as the hints say


def _of(gives: Any, takes: Any) -> Callable[[], object]:
    """Return what joins a task that returns values of one type to one that takes those of another."""

    def source() -> None: ...

    def sink(value) -> None: ...  # type: ignore[no-untyped-def]

    source.__annotations__, sink.__annotations__ = {"return": gives}, {"value": takes}
    own = Bridge("inline://")
    return lambda: own.task(name="source")(source).call().then(own.task(name="sink")(sink))


@pytest.mark.parametrize(
    ("gives", "takes"),
    [
        (int, int),
        (int, float),
        (bool, int),
        (float, complex),
        (Dog, Animal),
        (Animal, Dog),  # it may be one
        (object, int),
        (Any, int),
        (int, Any),
        (int, int | str),
        (int | None, int),
        (list[int], list[str]),  # what is inside is not looked at
        (dict[str, int], dict),
        (int, Loud),
        (int, "Unknown"),
        ("Unknown", int),
        (type(None), None),
    ],
    ids=repr,
)
def test_a_result_that_may_fit_is_taken(gives: Any, takes: Any) -> None:
    _of(gives, takes)()


@pytest.mark.parametrize(
    ("gives", "takes"),
    [(int, str), (float, int), (None, int), (list[int], dict[str, int]), ("str", "int"), (Results[int], list[int])],
    ids=repr,
)
def test_a_result_that_can_not_fit_is_refused(gives: Any, takes: Any) -> None:
    with pytest.raises(TypeError, match=r"task 'sink' takes .* first, and then gives it .*, as type hints say"):
        _of(gives, takes)()


def test_a_group_gives_results_and_callbacks_get_a_flow_end() -> None:
    group([load.call(1)]).then(untyped)
    load.call(1).on_end(untyped)
    with pytest.raises(TypeError, match=r"task 'load' takes int first, and then gives it .*Results"):
        group([step.call(1)]).then(step)
    with pytest.raises(TypeError, match=r"task 'load' takes int first, and on_failure gives it .*FlowEnd"):
        load.call(1).on_failure(step)


def test_a_task_known_by_its_name_alone_takes_any_result() -> None:
    flow = load.call(1).then(bridge.named("elsewhere"), 5, channel="ops")

    assert shape(flow)[1] == ("elsewhere", (5,), {"channel": "ops"}, True)


def test_the_words_of_flows_on_a_task_say_what_to_write() -> None:
    for word in ("then", "on_failure", "link"):
        with pytest.raises(AttributeError, match=r"write call\(...\), which has then, then_call"):
            getattr(load, word)


# Become


def test_become_is_for_running_tasks() -> None:
    flow = load.call(1).then(load)
    with pytest.raises(NoCurrentTaskError, match="send the flow instead"):
        become(flow)
    with fake_run():
        made: Any = become(flow)
        of_call: Any = become(load.call(1))
        with pytest.raises(TypeError, match="a flow is what group"):
            become(load)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert type(made) is Become
    assert made.flow is flow
    assert shape(of_call.flow) == [("load", (1,), {}, False)]


# Handles


def test_a_handle_is_a_value() -> None:
    handle = bridge.flow("nightly")

    assert handle == FlowHandle(id="nightly", is_new=False)
    assert len({handle, FlowHandle(id="nightly")}) == 1
    assert handle != FlowHandle(id="other")
    assert handle.bridge is bridge
    assert copy.copy(handle) is copy.deepcopy(handle) is handle
    assert repr(handle) == "FlowHandle(id='nightly')"


def test_a_handle_that_was_pickled_has_lost_its_bridge_and_says_so() -> None:
    handle: FlowHandle[Any] = pickle.loads(pickle.dumps(FlowHandle(id="nightly", is_new=False, bridge=bridge)))

    assert (handle.id, handle.is_new, handle.bridge) == ("nightly", False, None)
    for ask in (handle.status, handle.result, handle.cancel, handle.retry):
        with pytest.raises(TaskBridgeError, match=r"use bridge.flow\(handle.id\)"):
            ask()


# Results

THEN = datetime(2026, 11, 28, tzinfo=timezone.utc)
ASKED: list[tuple[int, int]] = []


def _members(flow: str, stage: int, first: int, count: int) -> list[str]:
    ASKED.append((first, count))
    return [f"{flow}/{stage}/{index}" for index in range(first, first + count)]


@pytest.fixture
def results() -> Results[str]:
    ASKED.clear()
    return Results("f", 2, 250, False, _members)


def test_results_are_a_sequence_read_in_pages_of_a_hundred(results: Results[str]) -> None:
    assert len(results) == 250
    assert ASKED == []
    assert list(results) == [f"f/2/{index}" for index in range(250)]
    assert ASKED == [(0, 100), (100, 100), (200, 50)]
    assert (results[-1], results[1], results[249]) == ("f/2/249", "f/2/1", "f/2/249")
    assert ASKED[3:] == [(0, 100), (200, 50)]
    assert results[98:102] == ["f/2/98", "f/2/99", "f/2/100", "f/2/101"]
    assert list(reversed(results))[:2] == ["f/2/249", "f/2/248"]
    assert "f/2/7" in results
    with pytest.raises(IndexError):
        results[250]
    assert list(Results("f", 0, 0, False, _members)) == []


def test_results_are_values(results: Results[str]) -> None:
    same: Results[str] = Results("f", 2, 250, False)

    assert results == same == pickle.loads(pickle.dumps(results))
    assert hash(results) == hash(same)
    assert results != Results("f", 3, 250, False)
    assert results != list(results)
    assert repr(results) == "<Results of 250 calls, of stage 3 of flow f>"


def test_results_that_nobody_can_read_say_so() -> None:
    with pytest.raises(TaskBridgeError, match=r"elsewhere ask bridge.flow\(id\).result\(\)"):
        list(Results("f", 0, 1, False))
    with fake_run(), pytest.raises(TaskBridgeError, match="are read by the task"):
        list(Results("f", 0, 1, False))


def test_results_in_a_task_are_read_by_its_worker_and_then_in_its_threads_too() -> None:
    results: Results[str] = Results("f", 0, 250, False)
    with fake_run() as run, entered(run.message, replace(current().runner, members=_members)):
        assert results[0] == "f/0/0"
    assert results[249] == "f/0/249"


@pytest.mark.parametrize("function", [total.declaration.function, untyped.declaration.function], ids=["typed", "not"])
def test_results_travel_as_a_reference_with_and_without_hints(function: Callable[..., Any], results: Any) -> None:
    declaration = declare(function)
    for value in (results, {"deep": [results, (results,)]}):
        call: Call[Any] = Call(declaration=declaration, args=(value,), kwargs={}, options=load.call(1).options)
        args_json, kwargs_json, form = call.encoded()
        assert form == 3
        assert '{"$":"results","v":["f",2,250,false]}' in args_json
        args, _ = declaration.fitted(codec.loads_array(args_json), codec.loads_object(kwargs_json), form)
        assert args == [value]


@pytest.mark.parametrize(("function", "form"), [(alarm.declaration.function, 2), (untyped.declaration.function, 3)])
def test_the_end_of_a_flow_can_be_sent_on(function: Callable[..., Any], form: int) -> None:
    declaration, end = declare(function), FlowEnd(id="f", name="load", state="failed", error="x")
    call: Call[Any] = Call(declaration=declaration, args=(end,), kwargs={}, options=load.call(1).options)
    args_json, _, found = call.encoded()

    assert found == form
    assert declaration.fitted(codec.loads_array(args_json), {}, form)[0] == [end]


@pytest.mark.parametrize(
    "value", [{"$": "results", "v": ["f", 0, 1, False]}, '{"$":"results"', '{"$":"flow end"', b"x"]
)
def test_what_only_looks_like_a_reference_is_what_it_is_and_of_the_first_form(value: object) -> None:
    args_json, _, form = untyped.call(value).encoded()

    assert form == 1
    assert untyped.declaration.fitted(codec.loads_array(args_json), {}, form)[0] == [value]


def test_a_task_that_returns_the_results_it_got_returns_the_reference(results: Results[str]) -> None:
    text = codec.dumps(results, "result")
    record = Status(id="m", task="untyped", queue="default", state="done", enqueued_at=THEN, result_json=text)

    assert outcome_of(record, untyped.declaration) == results


@pytest.mark.parametrize(
    "parts",
    [
        None,
        [],
        ["f", 0, 1],
        [5, 0, 1, False],
        ["f", -1, 1, False],
        ["f", 0, -1, False],
        ["f", 0, 10**30, False],
        ["f", 0, 1.0, False],
        ["f", 0, 1, 0],
        ["f", 0, 1, False, 5],
        {"flow": "f"},
    ],
    ids=repr,
)
def test_what_is_no_reference_is_refused(parts: Any) -> None:
    plain = codec.loads_array(json.dumps([{"$": "results", "v": parts}]))
    with pytest.raises(TypeError, match=r"args\[0\]: no results of a flow"):
        untyped.declaration.fitted(plain, {}, 3)
    with pytest.raises(DecodeError):
        codec.loads('{"$":"results"}')


# Imports


def test_flows_are_imported_by_those_alone_who_make_some() -> None:
    program = """
import sys
from taskbridge import Bridge, Handle, Message, Status, configure, task
@task
def add(left: int) -> int:
    return left
call = add.call(1)
call.encoded()
{}
print(*sorted(each for each in sys.modules if each.startswith("taskbridge.flows.")))
"""
    assert _printed(program.format("")).split() == []
    assert "taskbridge.flows.building" in _printed(program.format("call.then(add)")).split()


def _printed(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


# On a bridge


@pytest.fixture
def shop() -> Iterator[Bridge]:
    with inline(bridge) as found:
        yield found


def test_a_handle_tells_of_its_flow_and_gives_the_last_result(shop: Bridge) -> None:
    handle = group([load.call(1), load.call(2)]).then(total, scale=2.0).then(untyped).using(id="nightly").send()

    assert (handle.id, handle.is_new, handle.status().state) == ("nightly", True, "running")
    assert handle.result(timeout=60) == 6.0
    assert (handle.status().state, handle.status().done, handle.status().is_final) == ("done", 4, True)
    assert shop.flow("nightly").result(timeout=60) == 6.0
    assert pickle.loads(pickle.dumps(handle)) == handle


async def _awaited(flow: Flow[Any]) -> list[Any]:
    first = await flow.asend()
    later = await flow.aschedule(3600)
    return [
        (await first.astatus()).state,
        await first.aresult(60),
        (await later.acancel()).state,
        (await later.astatus()).is_final,
        (await later.aretry()).state,
    ]


@pytest.mark.usefixtures("shop")
def test_each_word_has_one_to_be_awaited() -> None:
    assert asyncio.run(_awaited(load.call(5).then(load))) == ["running", 5, "cancelled", True, "running"]


@pytest.mark.usefixtures("shop")
def test_a_scheduled_flow_starts_later() -> None:
    handle = load.call(1).then(load).schedule(3600)

    first = bridge.flows.steps(handle.id)[0]
    assert (first.state, first.due_at is not None) == ("scheduled", True)
    with pytest.raises(TypeError, match="send is for now"):
        load.call(1).then(load).schedule(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("shop")
def test_the_results_of_a_group_are_read_by_who_has_its_handle_and_by_a_task() -> None:
    flow = group([load.call(number) for number in range(120)])

    assert list(flow.send().result(timeout=60)) == list(range(120))
    assert flow.then(total).send().result(timeout=60) == sum(range(120))
    assert flow.then(pack).send().result(timeout=60) == list(range(120))


@pytest.mark.usefixtures("shop")
def test_results_that_are_found_in_results_are_read_as_these_are() -> None:
    nested = group([nest.call(2), nest.call(3)], on_error="collect").send().result(timeout=60)
    assert [list(each.value or ()) for each in nested] == [[0, 1], [0, 1, 2]]
    assert list(group([nest.call(2)]).send().result(timeout=60)[0]) == [0, 1]
    assert list(nest.send(2).result(timeout=60)) == [0, 1]


@bridge.task(name="nest")
def nest(width: int) -> Results[int]:
    return become(group(load.call(number) for number in range(width)))


@bridge.task(name="pack")
def pack(numbers):  # type: ignore[no-untyped-def]  # results need no hint
    return list(numbers)


@pytest.mark.usefixtures("shop")
def test_errors_say_that_they_are_about_a_flow() -> None:
    with pytest.raises(NoSuchRecord, match="nothing is known of a flow 'nobody'"):
        bridge.flow("nobody").status()
    with pytest.raises(ResultTimeout, match="flow later has no result in time: it is running"), fake_run():
        load.call(1).then(load).using(id="later").schedule(60).result(timeout=0)
    with pytest.raises(IdempotencyConflict, match="there is a flow 'later' already"):
        load.call(2).then(load).using(id="later").send()
    assert load.call(1).then(load).using(id="later").send().is_new is False


@pytest.mark.usefixtures("shop")
def test_what_a_generator_gives_that_is_no_call_is_told_by_the_send() -> None:
    given: list[Any] = [load.call(1), "load"]
    with pytest.raises(TypeError, match="a flow is made of"):
        group(each for each in given).send()


@pytest.mark.usefixtures("shop")
def test_a_flow_of_a_generator_is_sent_once() -> None:
    flow = group(load.call(number) for number in range(2)).then(total)
    flow.send()
    with pytest.raises(TaskBridgeError, match="make the flow anew"):
        flow.send()


def test_an_empty_group_that_nothing_follows_belongs_to_the_default_bridge() -> None:
    nobody: list[Call[int]] = []
    with inline():
        assert list(group(nobody).send().result(timeout=60)) == []
