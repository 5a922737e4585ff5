"""For the tests of Django projects: `taskbridge.testing`, in the transaction and the thread of a `TestCase`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ParamSpec, cast

from django.db import connections
from django.test import SimpleTestCase

from taskbridge import Bridge, Event, default_bridge
from taskbridge.logs import logger
from taskbridge.tasks import Sendable
from taskbridge.testing import Sent, SentMessage, inline, watch_sent

_log = logger("taskbridge.django")

P = ParamSpec("P")


class TasksMixin(SimpleTestCase):
    """Have the default bridge's messages wait in the test: `class OrderTests(TasksMixin, TestCase)`.

    Attributes:
        sent: What the test has sent, in order.
    """

    sent: Sent

    @classmethod
    def setUpClass(cls) -> None:
        """Keep what `setUpTestData` sends from the broker; none of it is run."""
        stack = ExitStack()
        cls.addClassCleanup(stack.close)
        stack.enter_context(inline())
        super().setUpClass()

    def setUp(self) -> None:
        """Begin each test with nothing sent."""
        super().setUp()
        stack = ExitStack()
        self.addCleanup(stack.close)
        stack.enter_context(inline())
        self.sent = stack.enter_context(watch_sent())

    def assertSent(self, task: Sendable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> SentMessage:  # noqa: N802
        """Return the first message of a task with these arguments; fail if there is none, and say what was sent."""
        return self.sent.assert_sent(task, *args, **kwargs)

    def assertNotSent(self, task: Sendable[..., Any]) -> None:  # noqa: N802
        """Fail if any message of a task was sent."""
        if found := self.sent.of(task):
            self.fail(f"{task.name} was sent: {found}")

    def run_tasks(self, *, raise_errors: bool = True) -> int:
        """Run what was sent; see the function of this name."""
        return run_tasks(raise_errors=raise_errors)


def run_tasks(bridge: Bridge | None = None, *, raise_errors: bool = True) -> int:
    """Run what was sent within `inline()`, in this thread and its transactions, and return how many runs there were.

    Delayed messages and retries are run too: the clock jumps to them. What tasks register on commit is called once
    nothing is left to run, and what that sends is run as well. Coroutines use the connections of this thread. In an
    `async def` test, call `await sync_to_async(run_tasks)()`.

    Args:
        bridge: The bridge; the default one if None.
        raise_errors: Whether to raise the error of the first message that died, after all have run.
    """
    of, dead, runs = default_bridge() if bridge is None else bridge, list[Event](), 0
    begins = {alias: len(connections[alias].run_on_commit) for alias in connections}
    with of.hooks.added("dead", dead.append):
        is_idle = False
        while not is_idle:
            runs += of.run_until_idle()
            is_idle = True
            for alias, begin in begins.items():  # for a test's transaction is never committed
                # Looked up each time, for a savepoint that is rolled back leaves another list.
                while len(callbacks := cast("list[Any]", connections[alias].run_on_commit)) > begin:
                    is_idle = False
                    _, callback, is_robust = callbacks.pop(begin)
                    try:
                        callback()
                    except Exception:
                        if not is_robust:
                            raise
                        _log.exception("a robust callback on commit failed")
    if dead and raise_errors:
        raise dead[0].error or AssertionError(f"a message died: {dead[0].reason}, {dead[0].message!r}")
    return runs
