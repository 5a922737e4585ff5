"""What an application has around its runs (rule AR): generators with one `yield`, entered before and left after.

A run goes on as if the task's body stood in a `with` statement for each of them. For a coroutine function that would
have to be two kinds of statements, so generators surround async generators there. A function is called in a thread, and
async generators around it are entered and left on the process's event loop, each in one task of asyncio.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from functools import partial
from inspect import isasyncgenfunction, isgeneratorfunction, unwrap
from typing import Any, Final, TypeAlias

from taskbridge.context import Context, current
from taskbridge.signatures import signature_of

Around: TypeAlias = Callable[
    [Context],
    Iterator[Any] | AsyncIterator[Any] | AbstractContextManager[Any] | AbstractAsyncContextManager[Any],
]
"""A generator function, or async generator function, of the run, as `@bridge.around` decorates."""

_CAN_BE: Final = "around takes generator functions with one parameter, the run, and one yield"


@dataclass(frozen=True, slots=True)
class Surrounding:
    """One of what an application has around runs.

    Attributes:
        make: Makes a context manager for a run.
        is_async: Whether that is an asynchronous one.
        glob: The names of the tasks that it is for.
    """

    make: Callable[[Context], Any]
    is_async: bool
    glob: str = "*"


def surrounding(function: Any, glob: str = "*") -> Surrounding:
    """Return what a generator function, or an async one, does around runs of the tasks whose names match a glob.

    `contextlib`'s decorators may stand above it. If it is neither, or can't be called with the run: `TypeError`.
    """
    inner = unwrap(function)
    is_async = isasyncgenfunction(inner)
    if not is_async and not isgeneratorfunction(inner):
        raise TypeError(f"{_CAN_BE}, not {function!r}")
    try:
        signature_of(function).bind(None)
    except TypeError as exc:
        raise TypeError(f"{_CAN_BE}; {function!r} can't be called with it: {exc}") from None
    if inner is function:
        function = contextlib.asynccontextmanager(function) if is_async else contextlib.contextmanager(function)
    return Surrounding(function, is_async, glob)


def call(around: Sequence[Surrounding], function: Callable[[], Any], *, is_coroutine: bool) -> Any:
    """Call a function with what is around it, and return what it returns; None if one of them swallows its error."""
    run, inner = current(), list[Surrounding]()
    with contextlib.ExitStack() as stack:
        for each in around:
            if each.is_async and is_coroutine:
                inner.append(each)
            else:
                stack.enter_context(_entered(each.make(run)) if each.is_async else each.make(run))
        return run_coroutine(partial(_surrounded, run, inner, function)) if is_coroutine else function()


async def _surrounded(run: Context, inner: Sequence[Surrounding], function: Callable[[], Awaitable[Any]]) -> Any:
    async with contextlib.AsyncExitStack() as stack:
        for each in inner:
            await stack.enter_async_context(each.make(run))
        return await function()


def run_coroutine(make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Make a coroutine and run it on the process's loop; return its result."""
    from taskbridge import coroutines  # here, for it imports asyncio; before it is made, for an interruption may come

    return coroutines.run(make())


def _entered(manager: AbstractAsyncContextManager[Any]) -> AbstractContextManager[None]:
    from taskbridge import coroutines  # here, as above

    return coroutines.entered(manager)
