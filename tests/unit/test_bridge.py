"""Declaring and sending, on the inline engine with its virtual clock."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime, timedelta, timezone
from importlib import import_module
from typing import Any

import pytest

from taskbridge import (
    Bridge,
    DeclarationError,
    Discard,
    EncodeError,
    Event,
    MessageTooLarge,
    NoCurrentTaskError,
    Retry,
    RetryPolicy,
    SendError,
    TaskBridgeError,
    TimeLimitExceeded,
    UnknownQueue,
    UnsupportedError,
    current,
)
from taskbridge.contract.ports import free_port


def a_bridge(**settings: Any) -> Bridge:
    return Bridge("inline://?threads=0", **settings)


def test_a_task_is_called_sent_scheduled_and_sent_in_numbers() -> None:
    bridge = a_bridge()
    seen: list[tuple[int, float]] = []

    @bridge.task
    def note(number: int) -> int:
        seen.append((number, bridge.now()))
        return number

    start = bridge.now()
    assert note(1) == 1
    handle = note.send(2)
    note.schedule(timedelta(hours=1), 3)
    note.schedule(datetime.fromtimestamp(start + 60, timezone.utc), 4)
    handles = note.send_many(note.call(number) for number in (5, 6))
    assert bridge.run_until_idle() == 5

    assert handle.task == note.name
    assert len({handle.id, *(each.id for each in handles)}) == 3
    assert [number for number, _ in seen] == [1, 2, 5, 6, 4, 3]
    assert seen[-2][1] >= start + 60
    assert seen[-1][1] >= start + 3600


def test_hour_long_backoffs_end_in_milliseconds() -> None:
    bridge = a_bridge()

    @bridge.task(retry=RetryPolicy(max_attempts=10, min_delay=timedelta(hours=1), max_delay=timedelta(days=7)))
    def fail() -> None:
        raise ValueError

    fail.send()
    began = time.monotonic()
    runs = bridge.run_until_idle()

    assert runs == 10
    assert time.monotonic() - began < 5
    assert [letter.reason for letter in bridge.dead_letters()] == ["exhausted"]


def test_a_task_that_retries_for_ever_does_not_hang_a_test() -> None:
    bridge = a_bridge()

    @bridge.task(retry=RetryPolicy(max_attempts=None))
    def fail() -> None:
        raise ValueError

    fail.send()

    with pytest.raises(TaskBridgeError, match="not idle after 50 runs"):
        bridge.run_until_idle(max_runs=50)


def test_background_threads_run_what_is_sent() -> None:
    bridge = Bridge("inline://?threads=2")
    seen: list[int] = []

    @bridge.task
    def note(number: int) -> None:
        seen.append(number)

    note.send(1)
    note.schedule(0.2, 2)
    deadline = time.monotonic() + 60
    while len(seen) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    bridge.close()

    assert sorted(seen) == [1, 2], "there are two threads, and the first may take longer to start"


def test_a_test_may_take_over_from_the_background_threads() -> None:
    bridge = Bridge("inline://")
    seen: list[int] = []

    @bridge.task
    def note(number: int) -> None:
        seen.append(number)

    for number in range(20):
        note.send(number)
    note.schedule(3600, 20)
    bridge.run_until_idle()
    bridge.close()

    assert sorted(seen) == list(range(21))


def test_what_a_task_sets_of_context_variables_ends_with_it() -> None:
    bridge, seen = a_bridge(), list[str]()
    variable: ContextVar[str] = ContextVar("variable", default="unset")

    @bridge.task
    def note() -> None:
        seen.append(variable.get())
        variable.set("by a task")

    variable.set("by the caller")
    note.send()
    note.send()
    bridge.run_until_idle()

    assert seen == ["by the caller"] * 2
    assert variable.get() == "by the caller"


def test_an_embedded_worker_runs_the_queues_it_is_given() -> None:
    bridge = a_bridge(queues=["a", "b"])
    seen: list[str] = []

    @bridge.task
    def note() -> None:
        seen.append(current().queue)

    note.using(queue="a").send()
    note.using(queue="b").send()
    with bridge.embedded_worker(queues=["b"], threads=1):
        deadline = time.monotonic() + 60
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)

    assert seen == ["b"]
    assert bridge.counts().waiting == {"default": 0, "a": 1, "b": 0}


def test_a_stopping_worker_gives_back_what_is_not_done_after_the_grace() -> None:
    bridge = a_bridge(grace=0.2)
    runs: list[tuple[int, int]] = []

    @bridge.task
    def long(number: int) -> None:
        runs.append((number, current().attempt))
        for _ in range(1000 if len(runs) == 1 else 0):
            time.sleep(0.01)

    for number in range(3):
        long.send(number)
    with bridge.embedded_worker(threads=1):
        while not runs:
            time.sleep(0.01)
    assert bridge.counts().waiting == {"default": 3}
    bridge.run_until_idle()

    assert runs == [(0, 1), (0, 1), (1, 1), (2, 1)], "what was interrupted is the next"


def misuse(bridge: Bridge) -> dict[str, tuple[type[Exception], str, Callable[[], object]]]:
    @bridge.task
    def ship(parcel: object, *, queue: str = "x") -> None: ...

    naive = datetime(2026, 1, 1)
    return {
        "unknown queue": (UnknownQueue, "did you mean 'email'", lambda: ship.using(queue="emial").send(1)),
        "wrong queue name": (ValueError, "queue name", lambda: ship.using(queue="a b")),
        "wrong priority": (ValueError, "did you mean 'high'", lambda: ship.using(priority="hihg")),  # type: ignore[arg-type]
        "missing argument": (TypeError, "parcel", lambda: ship.send(queue="y")),  # type: ignore[call-arg]
        "unknown argument": (TypeError, "colour", lambda: ship.send(1, colour=2)),  # type: ignore[call-arg]
        "unencodable argument": (EncodeError, r"args\[0\]\[1\]", lambda: ship.send([1, object()])),
        "unencodable keyword": (EncodeError, r'kwargs\["queue"\]', lambda: ship.send(1, queue=object())),  # type: ignore[arg-type]
        "naive datetime": (ValueError, "naive", lambda: ship.schedule(naive, 1)),
        "naive expiry": (ValueError, "naive", lambda: ship.using(expires=naive)),
        "negative delay": (ValueError, "at least 0", lambda: ship.schedule(-1, 1)),
        "endless delay": (ValueError, "8 years", lambda: ship.schedule(timedelta(days=3000), 1)),
        "no delay": (TypeError, "timedelta", lambda: ship.schedule("1 h", 1)),  # type: ignore[arg-type]
        "too large": (MessageTooLarge, "max_message_bytes", lambda: ship.send("x" * 2000)),
        "header": (TypeError, "headers", lambda: ship.using(headers={"a": 1.5})),  # type: ignore[dict-item]
        "one bad call of many": (EncodeError, "object", lambda: ship.send_many([ship.call(1), ship.call(object())])),
    }


@pytest.mark.parametrize("case", list(misuse(a_bridge())))
def test_misuse_is_refused_and_nothing_is_sent(case: str) -> None:
    bridge = a_bridge(queues=["email"], max_message_bytes=1000)
    kind, match, act = misuse(bridge)[case]

    with pytest.raises(kind, match=match):
        act()

    assert bridge.run_until_idle() == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"retries": 3}, "write retry=RetryPolicy"),
        ({"quue": "a"}, "did you mean 'queue'"),
        ({"queue": "a b"}, "queue name"),
        ({"priority": "urgent"}, "priority"),
        ({"retry": 3}, "RetryPolicy"),
        ({"expires": 0}, "expires"),
        ({"time_limit": -1}, "time_limit"),
        ({"time_limit": "1 h"}, "time_limit"),
        ({"name": ""}, "name"),
        ({"name": "half a pair: \ud800"}, "UTF-8"),
        ({"name": "nul\0"}, "control characters"),
        ({"name": "two\nlines"}, "control characters"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_where_the_task_is_declared(options: dict[str, Any], match: str) -> None:
    bridge = a_bridge()

    with pytest.raises(DeclarationError, match=match):

        @bridge.task(**options)
        def ship() -> None: ...

    assert bridge.declarations() == ()


def test_two_tasks_of_one_name_are_refused() -> None:
    bridge = a_bridge()
    bridge.task(name="ship")(lambda: None)

    with pytest.raises(DeclarationError, match="'ship' already"):
        bridge.task(name="ship")(lambda: 5)


def test_two_bridges_do_not_interfere() -> None:
    one, other = a_bridge(), a_bridge()
    seen: list[str] = []
    one_task = one.task(name="same")(lambda: seen.append("one"))
    other_task = other.task(name="same")(lambda: seen.append("other"))

    one_task.send()
    other_task.send()
    other.run_until_idle()

    assert seen == ["other"]
    assert one.counts().waiting == {"default": 1}


def test_the_queue_is_chosen_by_using_then_routes_then_the_task_then_the_default() -> None:
    bridge = a_bridge(routes=[("shop.mail.*", "mail"), ("shop.*", "shop")], queues=["vip"])
    mail = bridge.task(name="shop.mail.send", queue="own")(lambda: None)
    own = bridge.task(name="other.own", queue="own")(lambda: None)
    plain = bridge.task(name="other.plain")(lambda: None)

    assert mail.send().queue == "mail"
    assert mail.using(queue="vip").send().queue == "vip"
    assert own.send().queue == "own"
    assert plain.send().queue == "default"
    assert bridge.queues() == ("default", "vip", "mail", "shop", "own")


def test_a_queue_is_known_as_soon_as_a_task_or_a_setting_names_it() -> None:
    bridge = a_bridge()
    plain = bridge.task(name="plain")(lambda: None)
    with pytest.raises(UnknownQueue):
        plain.using(queue="later").send()

    bridge.task(name="late", queue="later")(lambda: None)
    assert plain.using(queue="later").send().queue == "later"
    bridge.reconfigure(url="inline://?threads=0", queues=["set"])
    assert bridge.queues() == ("default", "set", "later")
    assert plain.using(queue="set").send().queue == "set"


def test_using_leaves_the_task_as_it_was() -> None:
    bridge = a_bridge(queues=["vip"])
    note = bridge.task(name="note")(lambda: None)

    changed = note.using(queue="vip").using(priority="high", headers={"a": "1"}).using(headers={"b": "2"})
    seen: list[Event] = []
    bridge.on("before_run")(seen.append)
    changed.send()
    note.send()
    bridge.run_until_idle()

    messages = [event.message for event in seen]
    assert [message.queue for message in messages if message] == ["vip", "default"]
    assert [message.priority for message in messages if message] == ["high", "normal"]
    assert messages[0] is not None
    assert messages[0].headers == {"a": "1", "b": "2"}


def test_what_would_start_too_late_is_discarded() -> None:
    bridge = a_bridge()
    note = bridge.task(name="note")(lambda: None)
    seen: list[str] = []
    bridge.on("discarded")(lambda event: seen.append(event.reason))

    note.using(expires=3600).schedule(3500)  # the clock goes on by itself, too
    note.using(expires=3600).schedule(3601)
    note.using(expires=datetime.now(timezone.utc) + timedelta(hours=2)).schedule(7201)
    runs_with_discards = bridge.run_until_idle()

    assert runs_with_discards == 3
    assert seen == ["expired", "expired"]


def test_the_context_tells_a_run_what_it_is() -> None:
    bridge = a_bridge()
    seen: list[Any] = []

    @bridge.task(queue="email", retry=RetryPolicy(max_attempts=2))
    def note() -> None:
        seen.append(current())
        if current().attempt == 1:
            raise Retry(after=30, reason="not yet")

    handle = note.using(priority="critical", headers={"trace": "t"}).send()
    bridge.run_until_idle()

    first, second = seen
    assert (first.id, first.task, first.queue, first.priority) == (handle.id, note.name, "email", "critical")
    assert (first.attempt, second.attempt, first.max_attempts) == (1, 2, 2)
    assert first.previous_error is None
    assert (second.previous_error.type, second.previous_error.message) == ("taskbridge.retry.Retry", "not yet")
    assert first.enqueued_at == second.enqueued_at
    assert second.headers == {"trace": "t"}
    with pytest.raises(NoCurrentTaskError):
        current()


def test_hooks_are_called_in_order_and_a_failing_one_changes_nothing() -> None:
    bridge = a_bridge()
    seen: list[str] = []
    for name in ("before_send", "after_send", "before_run", "succeeded", "retrying", "dead", "discarded"):
        bridge.on(name)(lambda event: seen.append(event.name))

        @bridge.on(name)
        def fail(event: Event) -> None:
            raise RuntimeError("a hook's own error")

    @bridge.task(retry=RetryPolicy(max_attempts=2))
    def note(how: str) -> None:
        if how == "discard":
            raise Discard("enough")
        if how == "fail":
            raise ValueError

    for how in ("ok", "discard", "fail"):
        note.send(how)
        bridge.run_until_idle()

    start = ["before_send", "after_send", "before_run"]
    assert seen == [*start, "succeeded", *start, "discarded", *start, "retrying", "before_run", "dead"]


def test_a_hook_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'before_run'"):
        a_bridge().on("before_runn")  # type: ignore[arg-type]


def test_a_run_that_takes_too_long_fails_and_may_be_tried_again() -> None:
    bridge = a_bridge()
    seen: list[BaseException] = []

    @bridge.task(time_limit=0.1, retry=RetryPolicy(max_attempts=2, min_delay=0))
    def slow() -> None:
        while True:
            time.sleep(0.005)

    @bridge.task(time_limit=0.1, retry=RetryPolicy.never())
    async def slow_coroutine() -> None:
        await asyncio.sleep(60)

    bridge.on("retrying")(lambda event: seen.append(event.error))
    bridge.on("dead")(lambda event: seen.append(event.error))
    slow.send()
    slow_coroutine.send()
    bridge.run_until_idle()

    assert [type(error) for error in seen] == [TimeLimitExceeded] * 3
    assert all("0.1 s" in str(error) for error in seen)


def test_coroutines_share_one_loop_and_keep_their_context() -> None:
    bridge = a_bridge()
    seen: list[tuple[int, str]] = []

    @bridge.task
    async def note() -> str:
        await asyncio.sleep(0)
        seen.append((id(asyncio.get_running_loop()), current().id))
        return "done"

    handles = [note.send(), note.send()]
    bridge.run_until_idle()

    assert len({loop for loop, _ in seen}) == 1
    assert [message_id for _, message_id in seen] == [handle.id for handle in handles]


@pytest.mark.parametrize("error", [TimeoutError("mine"), asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt()])
def test_whatever_a_coroutine_raises_is_its_own_failure(error: BaseException) -> None:
    bridge = a_bridge()
    seen: list[object] = []

    @bridge.task(retry=RetryPolicy.never())
    async def fail() -> None:
        raise error

    @bridge.task
    async def fine() -> None: ...

    bridge.on("dead")(lambda event: seen.append(type(event.error)))
    bridge.on("succeeded")(lambda event: seen.append("fine"))
    fail.send()
    fine.send()
    bridge.run_until_idle()

    assert seen == [type(error), "fine"]


def test_sending_from_a_coroutine_does_not_block_the_loop() -> None:
    bridge = a_bridge()

    @bridge.task
    async def note(number: int) -> int:
        return number

    async def main() -> list[str]:
        one = await note.asend(1)
        two = await note.aschedule(5, 2)
        rest = await note.asend_many([note.call(3), note.call(4)])
        return [one.id, two.id, *(handle.id for handle in rest)]

    ids = asyncio.run(main())

    assert len(set(ids)) == 4
    assert bridge.run_until_idle() == 4


def test_run_until_idle_is_for_inline_bridges() -> None:
    with pytest.raises(UnsupportedError, match="inline://"):
        Bridge("celery+redis://127.0.0.1:1/0").run_until_idle()


def test_health_is_for_servers() -> None:
    with pytest.raises(UnsupportedError, match="this very process"):
        a_bridge().health()


def test_no_task_can_have_the_name_of_the_probe() -> None:
    with pytest.raises(DeclarationError, match=r"taskbridge\.probe"):
        a_bridge().task(name="taskbridge.probe")(len)


def test_embedded_workers_are_for_memory() -> None:
    with pytest.raises(UnsupportedError, match="taskbridge worker"):
        Bridge("celery+redis://127.0.0.1:1/0").embedded_worker()


def run_alone(code: str) -> None:
    """Run code in a Python of its own, which is to end well."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_taskbridge_imports_no_engine_no_client_and_no_asyncio() -> None:
    run_alone(
        "import sys, taskbridge\n"
        "@taskbridge.task\n"
        "def note(): ...\n"
        "names = {'celery', 'kombu', 'dramatiq', 'redis', 'pika', 'asyncio'} & sys.modules.keys()\n"
        "raise SystemExit(f'imported: {names}' if names else 0)\n"
    )


def test_importing_taskbridge_alone_loads_nothing_yet() -> None:
    run_alone(
        "import sys, taskbridge\n"
        "loaded = sorted(name for name in sys.modules if name.startswith('taskbridge.') or name == 'inspect')\n"
        "raise SystemExit(f'imported: {loaded}' if loaded else 0)\n"
    )


def test_every_public_name_is_there_and_no_other() -> None:
    package = import_module("taskbridge")

    assert {name for name in package.__all__ if getattr(package, name, None) is None} == set()
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="has no attribute 'tasque'"):
        _ = package.tasque


@pytest.mark.parametrize("number", [1, 2])
def test_any_number_that_cannot_be_sent_is_a_send_error(number: int) -> None:
    pytest.importorskip("redis", reason="a broker that refuses connections needs a client")
    bridge = Bridge(f"celery+redis://127.0.0.1:{free_port()}/0", send_timeout=0.5)
    before: list[str] = []
    bridge.on("before_send")(lambda event: before.append("" if event.message is None else event.message.id))

    @bridge.task
    def note(number: int) -> None: ...

    with pytest.raises(SendError, match=f"0 sent, {number} unsent") as caught:
        bridge.send_many(note.call(index) for index in range(number))

    assert caught.value.unsent == tuple(before)
    assert caught.value.maybe_taken is False


def test_a_message_wakes_a_thread_that_serves_its_queue() -> None:
    bridge = a_bridge(queues=("left", "right"))
    ran = threading.Event()

    @bridge.task(queue="right")
    def note() -> None:
        ran.set()

    with bridge.embedded_worker(queues=["left"], threads=1):
        time.sleep(0.1)  # it waits first, so it would be the one to be woken
        with bridge.embedded_worker(queues=["right"], threads=1):
            time.sleep(0.1)
            note.send()
            assert ran.wait(60)
