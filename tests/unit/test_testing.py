"""`taskbridge.testing`: what the tests of applications use, and its pytest plugin."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from importlib.metadata import entry_points
from threading import Barrier, Thread
from typing import Any

import pytest

from taskbridge import (
    Bridge,
    Discard,
    NoCurrentTaskError,
    ResultInTask,
    Retry,
    RetryPolicy,
    SettingsError,
    TaskBridgeError,
    UnknownQueue,
    configure,
    current,
)
from taskbridge.testing import capture_sent, fake_run, inline, watch_sent


class Shop:
    """An application; `ran` has what its tasks did."""

    def __init__(self, url: str) -> None:
        self.bridge = Bridge(url, queues=["vip"])
        self.ran: list[Any] = []
        policy = RetryPolicy(max_attempts=3, min_delay=timedelta(hours=1))
        self.pack = self.bridge.task(name="pack", retry=policy)(self._pack)
        self.order = self.bridge.task(name="order")(self._order)
        self.later = self.bridge.task(name="later")(self._later)

    def _pack(self, item: str, times: int = 1) -> str:
        self.ran.append((item, current().attempt))
        if item == "broken":
            raise KeyError(item)
        if item == "heavy" and current().attempt < 3:
            raise Retry(after=timedelta(days=1))
        if item == "gone":
            raise Discard("sold out")
        return item * times

    def _order(self, *items: str) -> None:
        self.pack.send_many(self.pack.call(item) for item in items)
        self.ran.append("ordered")

    async def _later(self, item: str) -> None:
        await self.pack.asend(item)
        self.ran.append("later")


# inline://?at_send=


def test_a_message_is_run_before_send_returns_and_so_is_what_it_sends() -> None:
    shop = Shop("inline://?at_send=1")

    assert shop.pack.send("book", times=2).result(0) == "bookbook"
    shop.order.send("pen", "cup")
    shop.pack.send_many([shop.pack.call("a"), shop.pack.call("b")])
    asyncio.run(shop.later.asend("c"))

    # what a task sends runs after it, as on a worker with one slot
    assert shop.ran == [
        *(("book", 1), "ordered", ("pen", 1), ("cup", 1)),
        *(("a", 1), ("b", 1), "later", ("c", 1)),
    ]


def test_retries_and_delays_are_over_when_send_returns() -> None:
    shop = Shop("inline://?at_send=1")
    before = shop.bridge.now()

    shop.pack.send("heavy")
    shop.pack.schedule(timedelta(days=7), "book")
    shop.pack.send("gone")

    assert shop.ran == [("heavy", 1), ("heavy", 2), ("heavy", 3), ("book", 1), ("gone", 1)]
    assert shop.bridge.now() - before >= 9 * 86400
    assert shop.bridge.counts().delayed == 0


def test_an_error_ends_as_a_dead_letter_and_is_raised_only_if_that_is_asked_for() -> None:
    shop, raising = Shop("inline://?at_send=1"), Shop("inline://?at_send=raise")

    shop.pack.send("broken")
    with pytest.raises(KeyError, match="broken"):
        raising.pack.send("broken")
    with pytest.raises(KeyError, match="broken"):
        raising.order.send("fine", "broken")
    raising.pack.send("fine")

    assert [letter.reason for letter in shop.bridge.dead_letters()] == ["exhausted"]
    assert raising.ran.count(("broken", 3)) == 2
    assert raising.ran[-1] == ("fine", 1)


def test_each_of_two_threads_that_send_raises_what_it_has_run() -> None:
    bridge = Bridge("inline://?at_send=raise")
    both, raised = Barrier(2), list[str]()

    @bridge.task(name="fail", retry=RetryPolicy(max_attempts=1))
    def fail(name: str) -> None:
        both.wait(30)
        raise KeyError(name)

    def send(name: str) -> None:
        try:
            fail.send(name)
        except KeyError as exc:
            raised.append(exc.args[0])

    threads = [Thread(target=send, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(raised) == ["one", "two"]


def test_a_task_that_sends_itself_for_ever_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskbridge.engines.inline._MOST_RUNS", 50)
    bridge = Bridge("inline://?at_send=1")

    @bridge.task(name="again")
    def again() -> None:
        tasks[0].schedule(60)

    tasks = [again]
    with pytest.raises(TaskBridgeError, match="not idle after 50 runs"):
        again.send()


def test_a_replay_is_run_at_once_too() -> None:
    shop = Shop("inline://?at_send=1")
    handle = shop.pack.send("broken")
    shop.bridge.dead.replay(handle.id)

    assert shop.ran == 2 * [("broken", 1), ("broken", 2), ("broken", 3)]


@pytest.mark.parametrize("option", ["at_send=2", "at_send=", "at_send=1&threads=2", "threads=0&at_send=1"])
def test_other_options_are_refused(option: str) -> None:
    with pytest.raises(SettingsError, match="at_send=1 or at_send=raise"):
        Bridge(f"inline://?{option}")


# inline()


def test_a_bridge_is_inline_while_the_block_runs_and_then_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKBRIDGE_STORE", "redis://127.0.0.1:1/0")
    shop = Shop("celery+redis://127.0.0.1:1/0")

    with inline(shop.bridge) as bridge:
        assert bridge is shop.bridge
        shop.pack.using(queue="vip").send("book")
        assert shop.bridge.counts().waiting["vip"] == 1
        assert shop.bridge.run_until_idle() == 1
        shop.pack.send("pen")
    with inline(shop.bridge, at_send="raise"), pytest.raises(KeyError):
        shop.pack.send("broken")
    with inline(shop.bridge, at_send=True):
        shop.pack.send("broken")

    assert shop.bridge.settings.url.target == "celery+redis"
    assert shop.bridge.settings.store == "redis://127.0.0.1:1/0"
    assert shop.ran[0] == ("book", 1)
    assert ("pen", 1) not in shop.ran


def test_the_default_bridge_reads_its_settings_no_sooner_than_without_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    configure("inline://?threads=0", namespace="mine")
    with inline() as bridge, inline() as nested:
        assert bridge is nested
        assert bridge.settings.namespace == "mine"
    assert bridge.settings.url.threads == 0
    bridge._take_settings({})
    with inline():
        pass
    monkeypatch.setenv("TASKBRIDGE_URL", "inline://?threads=3")  # else there would be a warning, which is an error here
    assert bridge.settings.url.threads == 3
    configure("inline://?threads=0")


# capture_sent


def test_what_is_sent_is_kept_and_no_broker_or_store_is_asked() -> None:
    shop = Shop("dramatiq+redis://127.0.0.1:1/0")
    until = datetime.now(timezone.utc) + timedelta(hours=1)

    with capture_sent(shop.bridge) as sent:
        handle = shop.pack.using(queue="vip", priority="high", expires=until, headers={"a": "b"}).send("book", times=2)
        shop.order.schedule(timedelta(minutes=5), "pen")
        shop.order.schedule(until, "cup")
        shop.pack.send_many(shop.pack.call(item) for item in "xy")

    first, second, third, *rest = sent
    assert (first.id, first.task, first.args, first.kwargs) == (handle.id, "pack", ("book",), {"times": 2})
    assert (first.queue, first.priority, first.headers, first.delay_s) == ("vip", "high", {"a": "b"}, 0.0)
    assert first.expires_at is not None
    assert abs((first.expires_at - until).total_seconds()) < 0.001
    assert (second.task, second.args, second.delay_s) == ("order", ("pen",), 300.0)
    assert 3590 < third.delay_s <= 3600
    assert [message.args for message in rest] == [("x",), ("y",)]
    assert [message.task for message in sent.of(shop.order)] == ["order", "order"]
    assert shop.ran == []


def test_a_priority_is_taken_without_asking_what_a_quorum_queue_keeps() -> None:
    bridge = Bridge("celery+amqp://127.0.0.1:1//", queue_type="quorum")
    pack = bridge.task(name="pack")(lambda: None)
    with capture_sent(bridge) as sent:
        pack.using(priority="high").send()
    assert [message.priority for message in sent] == ["high"]


def test_settings_come_back_though_a_connection_can_not_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = Bridge("celery+redis://127.0.0.1:1/0")

    def refuse() -> None:
        raise OSError("away")

    with pytest.raises(OSError, match="away"), inline(bridge):
        monkeypatch.setattr(bridge, "close", refuse)
    assert bridge.settings.url.target == "celery+redis"


def test_a_message_is_found_by_its_arguments_however_they_were_passed() -> None:
    shop = Shop("inline://")
    with capture_sent(shop.bridge) as sent:
        shop.pack.send("book")
        shop.pack.send(item="pen", times=3)

    assert sent.assert_sent(shop.pack, "book", 1).args == ("book",)
    assert sent.assert_sent(shop.pack, "pen", times=3).kwargs == {"item": "pen", "times": 3}
    with pytest.raises(AssertionError, match=r"pack \('cup',\).* was not sent; sent was:\n  pack \('book',\)"):
        sent.assert_sent(shop.pack, "cup")
    with pytest.raises(AssertionError, match="sent was: nothing"), capture_sent(shop.bridge) as none:
        none.assert_sent(shop.pack, "cup")


@dataclass
class Order:
    id: int


def test_arguments_are_what_the_task_would_get() -> None:
    bridge = Bridge("inline://")

    @bridge.task(name="pack_order")
    def pack_order(order: Order) -> None: ...

    with capture_sent(bridge) as sent:
        pack_order.send(Order(7))
    assert sent.assert_sent(pack_order, order=Order(7)).args == (Order(7),)


def test_what_could_not_be_sent_is_an_error_here_too() -> None:
    shop = Shop("inline://")
    wrong: Any = shop.pack
    with capture_sent(shop.bridge) as sent:
        with pytest.raises(TypeError):
            wrong.send()
        with pytest.raises(UnknownQueue):
            shop.pack.using(queue="nowhere").send("book")
    assert sent == []


def test_blocks_may_be_nested_and_sending_goes_on_after_them() -> None:
    shop = Shop("inline://?threads=0")
    with capture_sent(shop.bridge) as outer:
        shop.pack.send("a")
        with capture_sent(shop.bridge) as inner:
            shop.pack.send("b")
        shop.pack.send("c")
    shop.pack.send("d")

    assert [[message.args[0] for message in sent] for sent in (outer, inner)] == [["a", "c"], ["b"]]
    assert shop.bridge.run_until_idle() == 1
    assert shop.ran == [("d", 1)]


def test_what_is_sent_can_be_watched_and_run_too() -> None:
    shop = Shop("inline://?threads=0")

    with watch_sent(shop.bridge) as sent:
        shop.pack.send("a")
        shop.pack.using(queue="vip").schedule(60, item="b")
        runs = shop.bridge.run_until_idle()
    shop.pack.send("c")

    assert runs == 2
    assert [(each.args, dict(each.kwargs), each.queue, each.delay_s) for each in sent] == [
        (("a",), {}, "default", 0.0),
        ((), {"item": "b"}, "vip", 60.0),
    ]
    sent.assert_sent(shop.pack, "b")


# fake_run


def test_a_function_that_asks_for_its_run_can_be_called() -> None:
    shop = Shop("inline://?threads=0")

    with fake_run(shop.pack, attempt=3, max_attempts=None, queue="vip", headers={"a": "b"}, cancelled=True) as run:
        assert shop.pack("heavy") == "heavy"
        assert current().id == run.id
        with pytest.raises(ResultInTask):
            shop.bridge.handle("x").result()
    assert (run.task, run.attempt, run.max_attempts, run.queue) == ("pack", 3, None, "vip")
    assert (dict(run.headers), run.cancelled, run.previous_error) == ({"a": "b"}, True, None)
    with pytest.raises(NoCurrentTaskError):
        current()
    with fake_run(id="m1", previous_error=ValueError("no")) as run:
        error = run.previous_error
        assert error is not None
        assert (run.id, run.attempt, run.cancelled, error.type, error.message) == ("m1", 1, False, "ValueError", "no")


# The pytest plugin

_IS_INSTALLED = any(point.value == "taskbridge.testing.plugin" for point in entry_points(group="pytest11"))
PLUGIN = () if _IS_INSTALLED else ("-p", "taskbridge.testing.plugin")
"""Loads the plugin where the package was installed by a release that had none."""

APPLICATION = """
from taskbridge import Bridge, task

bridge = Bridge("celery+redis://127.0.0.1:1/0")
ran = []

@bridge.task(name="pack")
def pack(item: str) -> None:
    ran.append(item)

@task(name="of_the_default_bridge")
def other() -> None:
    ran.append("other")
"""

TESTS = """
import application as shop

def test_it_runs(taskbridge_inline):
    shop.pack.send("book")
    assert taskbridge_inline is shop.bridge
    assert taskbridge_inline.run_until_idle() == 1
    assert shop.ran == ["book"]
    shop.pack.send("left")

def test_nothing_is_left(taskbridge_inline):
    assert taskbridge_inline.run_until_idle() == 0

def test_it_sends(taskbridge_sent):
    shop.pack.send("pen")
    taskbridge_sent.assert_sent(shop.pack, "pen")

def test_both(taskbridge_inline, taskbridge_sent):
    shop.pack.send("cup")
    assert taskbridge_inline.run_until_idle() == 0
    assert len(taskbridge_sent) == 1

def test_afterwards():
    assert shop.bridge.settings.url.target == "celery+redis"
"""


def test_the_fixtures_serve_an_applications_own_bridge(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(application=APPLICATION, test_shop=TESTS)
    pytester.makeconftest("""
        import pytest, application

        @pytest.fixture
        def taskbridge_app():
            return application.bridge
    """)
    pytester.runpytest_subprocess(*PLUGIN).assert_outcomes(passed=5)


def test_the_fixtures_serve_the_default_bridge_and_are_described(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        application=APPLICATION,
        test_shop="""
        import application as shop

        def test_it_runs(taskbridge_inline):
            shop.other.send()
            assert taskbridge_inline.run_until_idle() == 1
        """,
    )
    pytester.runpytest_subprocess(*PLUGIN).assert_outcomes(passed=1)
    described = pytester.runpytest_subprocess(*PLUGIN, "--fixtures").stdout.str()
    for name in ("taskbridge_app", "taskbridge_inline", "taskbridge_sent"):
        assert name in described
        assert f"{name} -- no docstring" not in described
