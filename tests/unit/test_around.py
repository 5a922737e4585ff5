"""What an application has around its runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from taskbridge import Bridge, Context, DeclarationError, Event, Message, RetryPolicy, TaskFailed, current
from taskbridge.retry import Done
from taskbridge.runner import Runs

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@pytest.fixture
def bridge() -> Bridge:
    return Bridge("inline://?threads=0", retry=RetryPolicy.never())


@pytest.fixture
def said() -> list[str]:
    return []


def a_generator(name: str, said: list[str]) -> Any:
    def around(run: Context) -> Iterator[None]:
        said.append(f"{name} in")
        yield
        said.append(f"{name} out")

    return around


def an_async_generator(name: str, said: list[str]) -> Any:
    async def around(run: Context) -> AsyncIterator[None]:
        said.append(f"{name} in")
        yield
        said.append(f"{name} out")

    return around


def result_of(bridge: Bridge, handle: Any) -> Any:
    bridge.run_until_idle()
    return handle.result(0)


def test_the_bridges_are_outside_in_order_of_declaration_and_then_the_tasks(bridge: Bridge, said: list[str]) -> None:
    bridge.around(a_generator("first", said))
    own = [an_async_generator("third", said), a_generator("fourth", said)]
    bound = bridge.task(name="t", around=own)(lambda: said.append("the task"))
    bridge.around(task="t*")(a_generator("second", said))
    bridge.around(task="u*")(a_generator("never", said))
    result_of(bridge, bound.send())
    names = ["first", "second", "third", "fourth"]
    expected = [*(f"{name} in" for name in names), "the task", *(f"{name} out" for name in reversed(names))]
    assert said == expected


def test_around_a_coroutine_generators_surround_async_generators(bridge: Bridge, said: list[str]) -> None:
    async def run() -> None:
        said.append("the task")

    around = [an_async_generator("second", said), a_generator("first", said)]
    result_of(bridge, bridge.task(around=around)(run).send())
    assert said == ["first in", "second in", "the task", "second out", "first out"]


def test_what_it_is_given_is_the_run(bridge: Bridge) -> None:
    seen: list[Any] = []

    @bridge.around
    def around(run: Context) -> Iterator[None]:
        seen.append((run.id, run.task, run.attempt, dict(run.headers), dict(run.arguments), run == current()))
        yield

    @bridge.task(name="add")
    def add(left: int, right: int = 2) -> int:
        return left + right

    handle = add.using(headers={"tenant": 7}).send(1)
    assert result_of(bridge, handle) == 3
    assert seen == [(handle.id, "add", 1, {"tenant": 7}, {"left": 1, "right": 2}, True)]


def test_contextlibs_decorators_and_methods_are_taken_too(bridge: Bridge, said: list[str]) -> None:
    class Scope:
        def around(self, run: Context) -> Iterator[None]:
            said.append("a method")
            yield

        @contextmanager
        def decorated(self, run: Context) -> Generator[None]:
            said.append("a decorated one")
            yield

        @asynccontextmanager
        async def asynchronous(self, run: Context) -> AsyncGenerator[None]:
            said.append("an asynchronous one")
            yield

    scope = Scope()
    around: list[Any] = [scope.around, scope.decorated, scope.asynchronous]
    result_of(bridge, bridge.task(name="t", around=around)(lambda: None).send())
    assert said == ["a method", "a decorated one", "an asynchronous one"]


def no_parameter() -> Iterator[None]:
    yield


@pytest.mark.parametrize("around", [print, lambda run: None, 5, no_parameter, lambda: (yield)])
def test_what_is_no_generator_function_of_a_run_is_refused(bridge: Bridge, around: Any) -> None:
    with pytest.raises(DeclarationError, match="around takes generator functions"):
        bridge.around(around)
    with pytest.raises(DeclarationError, match="around takes generator functions"):
        bridge.task(name="t", around=[around])(lambda: None)
    with pytest.raises(DeclarationError, match="around must be a list"):
        bridge.task(name="t", around=around)(lambda: None)
    assert bridge.around_of("t") == ()


def test_what_a_hook_does_to_the_arguments_does_not_change_the_run(bridge: Bridge) -> None:
    @bridge.on("before_run")
    def redact(event: Event) -> None:
        assert event.arguments is not None
        event.arguments["order"].pop("card")

    @bridge.task(name="pay")
    def pay(order: dict[str, str]) -> list[str]:
        return list(order)

    assert result_of(bridge, pay.send({"card": "4711"})) == ["card"]


def test_a_plain_call_has_nothing_around_it(bridge: Bridge, said: list[str]) -> None:
    bridge.around(a_generator("any", said))
    assert bridge.task(name="t")(lambda: 5)() == 5
    assert said == []


@pytest.mark.parametrize("is_async", [False, True])
def test_one_that_never_yields_or_twice_fails_the_attempt(bridge: Bridge, is_async: bool) -> None:
    def never(run: Context) -> Iterator[None]:
        if run.attempt == 0:
            yield

    async def never_async(run: Context) -> AsyncIterator[None]:
        if run.attempt == 0:
            yield

    def twice(run: Context) -> Iterator[None]:
        yield
        yield

    async def twice_async(run: Context) -> AsyncIterator[None]:
        yield
        yield

    ran: list[int] = []
    cases = ((never_async, "didn't yield"), (twice_async, "didn't stop"))
    for around, problem in cases if is_async else ((never, "didn't yield"), (twice, "didn't stop")):
        bound = bridge.task(name=f"t{len(ran)}{problem}", around=[around])(lambda: ran.append(1))
        with pytest.raises(TaskFailed, match=problem):
            result_of(bridge, bound.send())
    assert ran == [1]


@pytest.mark.parametrize("is_coroutine", [False, True])
def test_an_async_one_is_entered_and_left_in_one_task_of_the_loop(bridge: Bridge, is_coroutine: bool) -> None:
    tasks: list[Any] = []

    async def around(run: Context) -> AsyncIterator[None]:
        async with getattr(asyncio, "timeout", _nothing)(30):  # there is none before Python 3.11
            tasks.append(asyncio.current_task())
            yield
            tasks.append(asyncio.current_task())

    async def run() -> str:
        return threading.current_thread().name

    function: Any = run if is_coroutine else lambda: threading.current_thread().name
    where = result_of(bridge, bridge.task(name="t", around=[around])(function).send())
    assert tasks[0] is tasks[1] is not None
    assert (where == "taskbridge-loop") is is_coroutine


@asynccontextmanager
async def _nothing(_: float) -> AsyncGenerator[None]:
    yield


@pytest.mark.parametrize("is_coroutine", [False, True])
def test_context_variables_reach_the_task_and_are_as_before_after_it(bridge: Bridge, is_coroutine: bool) -> None:
    seen: list[str] = []

    def outer(run: Context) -> Iterator[None]:
        token = tenant.set("outer")
        yield
        seen.append(tenant.get())
        tenant.reset(token)

    async def inner(run: Context) -> AsyncIterator[None]:
        seen.append(tenant.get())
        tenant.set("inner")
        yield

    async def run() -> None:
        seen.append(tenant.get())

    function: Any = run if is_coroutine else lambda: seen.append(tenant.get())
    result_of(bridge, bridge.task(name="t", around=[outer, inner])(function).send())
    assert seen == ["outer", "inner", "outer"]
    assert tenant.get() == "nobody"


@pytest.mark.parametrize("is_coroutine", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_context_variable_that_is_not_reset_ends_with_the_run(
    bridge: Bridge, is_coroutine: bool, is_async: bool
) -> None:
    seen: list[str] = []

    def around(run: Context) -> Iterator[None]:
        tenant.set("acme")
        yield

    async def around_async(run: Context) -> AsyncIterator[None]:
        tenant.set("acme")
        yield

    async def run() -> None:
        seen.append(tenant.get())

    function: Any = run if is_coroutine else lambda: seen.append(tenant.get())
    bridge.task(name="t", around=[around_async if is_async else around])(function)
    message = Message(id="1", task="t", queue="default", args_json="[]", kwargs_json="{}", enqueued_at=0)
    assert isinstance(Runs().run(bridge.bound("t"), message), Done)
    assert (seen, tenant.get()) == (["acme"], "nobody")


@pytest.mark.parametrize("is_coroutine", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_it_may_refuse_swallow_and_replace(bridge: Bridge, is_coroutine: bool, is_async: bool) -> None:
    def decide(how: str, error: BaseException) -> None:
        if how == "replace":
            raise KeyError("another") from error
        if how != "swallow":
            raise error

    def around(run: Context) -> Iterator[None]:
        if (how := run.arguments["how"]) == "refuse":
            raise PermissionError("no")
        try:
            yield
        except LookupError as exc:
            decide(how, exc)

    async def around_async(run: Context) -> AsyncIterator[None]:
        if (how := run.arguments["how"]) == "refuse":
            raise PermissionError("no")
        try:
            yield
        except LookupError as exc:
            decide(how, exc)

    def fail(how: str) -> None:
        raise IndexError(how)

    async def fail_async(how: str) -> None:
        raise IndexError(how)

    function: Any = fail_async if is_coroutine else fail
    bound = bridge.task(name="t", around=[around_async if is_async else around])(function)
    for how, error in (("refuse", "PermissionError"), ("replace", "KeyError"), ("keep", "IndexError")):
        with pytest.raises(TaskFailed) as caught:
            result_of(bridge, bound.send(how))
        assert caught.value.type == error
    assert result_of(bridge, bound.send("swallow")) is None


def test_a_time_limit_covers_what_is_around(bridge: Bridge) -> None:
    async def slow(run: Context) -> AsyncIterator[None]:
        await asyncio.sleep(30)
        yield

    def spins(run: Context) -> Iterator[None]:
        while True:
            threading.Event().wait(0.01)
        yield

    for around in (slow, spins):
        with pytest.raises(TaskFailed) as caught:
            result_of(bridge, bridge.task(name=around.__name__, around=[around], time_limit=0.1)(lambda: None).send())
        assert caught.value.type.endswith("TimeLimitExceeded")
