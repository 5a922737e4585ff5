"""CR8: schedules that are put at run time, as they are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from math import inf, nan
from typing import Any
from zlib import crc32

import pytest

from taskbridge import (
    Bridge,
    Cron,
    DeclarationError,
    EncodeError,
    Every,
    StoreUnavailable,
    UnknownQueue,
    UnknownSchedule,
    UnsupportedError,
    current,
)
from taskbridge.schedules.stored import StoredSchedules
from taskbridge.testing import inline


def a_bridge(**settings: Any) -> Bridge:
    return Bridge("inline://?threads=0", **settings)


def report(region: str = "all", *, since: datetime | None = None) -> str:
    return f"{region} {since}"


def many_put_and_delete(make: Callable[[], Bridge]) -> None:
    """Check that of what several processes put and delete at once, nothing is lost; to be called with each store."""
    bridges = [make() for _ in range(4)]
    tasks = [bridge.task(name="report")(report) for bridge in bridges]

    def edit(number: int) -> None:
        bridge, task = bridges[number % 4], tasks[number % 4]
        for each in range(5):
            bridge.schedules.put(f"{number} {each}", task.call(str(each)), every=3600 + each)
        bridge.schedules.put(f"{number} 0", task.call("changed"), cron="0 3 * * *", timezone="Europe/Rome")
        assert bridge.schedules.delete(f"{number} 1")
        assert not bridge.schedules.delete(f"{number} 1")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(edit, range(8)))
    for bridge in bridges:
        found = {entry.name: entry for entry in bridge.schedules.list()}
        assert sorted(found) == sorted(f"{number} {each}" for number in range(8) for each in (0, 2, 3, 4))
        assert {str(found[f"{number} 0"].timing.zone) for number in range(8)} == {"Europe/Rome"}
        assert {entry.source for entry in found.values()} == {"store"}
    for bridge in bridges:
        bridge.close()


def test_what_many_put_and_delete_at_once_is_there() -> None:
    one = a_bridge()
    many_put_and_delete(lambda: one)


def test_a_schedule_sends_what_it_was_put_with() -> None:
    bridge = a_bridge(queues=["slow"])
    seen: list[tuple[Any, ...]] = []

    @bridge.task(name="keep")
    def keep(*args: Any, **kwargs: Any) -> None:
        run = current()
        seen.append((args, kwargs, run.queue, run.priority, run.headers["who"], run.headers["taskbridge.schedule"]))

    when = datetime(2026, 1, 1, tzinfo=timezone.utc)
    using = keep.using(queue="slow", priority="high", headers={"who": "me"}, expires=timedelta(minutes=5))
    bridge.schedules.put("kept", using.call((1, {2}), at=when), every=60)
    bridge.run_schedules(60)

    assert seen == [(((1, {2}),), {"at": when}, "slow", "high", "me", "kept")]


@dataclass
class Order:
    id: int


def test_a_value_of_a_class_of_ones_own_is_kept_as_the_type_hint_says() -> None:
    bridge = a_bridge()
    seen: list[Any] = []
    bridge.on("before_send")(lambda event: seen.append(event.arguments))

    @bridge.task(name="pack")
    def pack(order: Order, times: int = 2) -> None:
        seen.append(order)

    bridge.schedules.put("s", pack.call(Order(7)), every=60)
    bridge.run_schedules(60)

    assert seen == [{"order": Order(7), "times": 2}, Order(7)]


def test_arguments_that_fit_another_release_are_sent_as_they_were_put() -> None:
    bridge = a_bridge()

    def another(other: int, more: int) -> None: ...

    bridge.schedules.put("s", bridge.task(name="pack")(report).call("eu"), every=60)
    del bridge._tasks["pack"]
    bridge.task(name="pack")(another)
    bridge.run_schedules(60)

    [letter] = bridge.dead_letters()
    assert letter.message is not None
    assert (letter.reason, json.loads(letter.message.args_json)) == ("bad_arguments", ["eu"])
    assert [entry.missed for entry in bridge.schedules.list()] == [0]


def with_more(other: int, more: int) -> None: ...


def by_name(*, other: int = 0) -> None: ...


@pytest.mark.parametrize("another", [with_more, by_name])
def test_a_tick_of_a_unique_task_whose_arguments_fit_another_release_is_missed(another: Callable[..., None]) -> None:
    """Nobody knows which messages it would be the same as: none without arguments."""
    bridge = a_bridge()

    bridge.schedules.put("s", bridge.task(name="pack", unique=True)(report).call("eu"), every=60)
    del bridge._tasks["pack"]
    bridge.task(name="pack", unique=True)(another)
    bridge.run_schedules(60)

    assert bridge.dead_letters() == []
    assert [entry.missed for entry in bridge.schedules.list()] == [1]


def test_a_change_of_what_is_sent_leaves_the_times_and_counts_as_they_were() -> None:
    bridge = a_bridge()
    seen: list[str] = []
    task = bridge.task(name="note")(seen.append)
    bridge.schedules.put("s", task.call("one"), every=60)
    bridge.run_schedules(150)
    [before] = bridge.schedules.list()
    bridge.schedules.put("s", task.call("two"), every=60)
    [after] = bridge.schedules.list()
    bridge.run_schedules(60)

    assert (before.last_id, before.next_runs) == (after.last_id, after.next_runs)
    assert seen == ["one"] * len(seen[:-1]) + ["two"]


def test_enabled_is_the_pause() -> None:
    bridge = a_bridge()
    task = bridge.task(name="report")(report)

    def paused(**options: Any) -> bool:
        bridge.schedules.put("s", task.call(), every=60, **options)
        [entry] = bridge.schedules.list()
        return entry.paused

    assert [paused(enabled=False), paused(), paused(enabled=True), paused()] == [True, True, False, False]
    assert bridge.run_schedules(150) >= 2
    assert paused(enabled=False)
    assert bridge.run_schedules(150) == 0


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, DeclarationError, "'new' needs cron or every"),
        ({"cron": "61 * * * *"}, DeclarationError, "Bad minute"),
        ({"every": 5, "timezone": "Europe/Rome"}, DeclarationError, "timezone has an effect only with cron"),
        ({"every": 5, "name": " "}, DeclarationError, "name must be text"),
        ({"every": 5, "name": "x" * 256}, DeclarationError, "up to 255"),
        ({"every": 5, "name": "coded"}, DeclarationError, "is in the code: give this one another name"),
        ({"every": 5, "name": "set"}, DeclarationError, "is in the settings: give this one another name"),
        ({"every": 5, "region": object()}, EncodeError, r"args\[0\]"),
        ({"every": 5, "queue": "nowhere"}, UnknownQueue, "nowhere"),
        ({"every": 5, "expires": datetime(2026, 1, 1)}, ValueError, "naive"),
        ({"every": 5, "expires": 0}, ValueError, "more than 0"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_kept(options: dict[str, Any], error: Any, match: str) -> None:
    bridge = a_bridge(schedules={"set": {"task": "report", "every": 60}})
    task = bridge.task(name="report", schedules=[Every(60, name="coded")])(report)
    given: dict[str, Any] = {"name": "new", "region": "eu", "queue": None, **options}
    name, region, queue = given.pop("name"), given.pop("region"), given.pop("queue")

    with pytest.raises(error, match=match):
        bridge.schedules.put(name, task.using(queue=queue).call(region), **given)
    assert [entry.name for entry in bridge.schedules.list()] == ["coded", "set"]


def test_what_the_code_or_the_settings_have_can_not_be_deleted() -> None:
    bridge = a_bridge(schedules={"set": {"task": "report", "every": 60}})
    bridge.task(name="report", schedules=[Every(60, name="coded")])(report)

    for name in ("coded", "set"):
        with pytest.raises(DeclarationError, match="remove it there, or pause it"):
            bridge.schedules.delete(name)
    with pytest.raises(UnknownSchedule):
        bridge.schedules.pause("neither")


def test_without_a_store_there_are_none() -> None:
    bridge = Bridge("celery+amqp://127.0.0.1:1//")
    task = bridge.task(name="report")(report)

    with pytest.raises(UnsupportedError, match="TASKBRIDGE_STORE"):
        bridge.schedules.put("s", task.call(), every=5)
    with pytest.raises(UnsupportedError, match="TASKBRIDGE_STORE"):
        bridge.schedules.delete("s")


def test_the_code_wins_over_a_schedule_of_the_same_name_that_was_put_before() -> None:
    bridge = a_bridge()
    seen: list[str] = []
    task = bridge.task(name="note")(seen.append)
    bridge.schedules.put("s", task.call("put"), every=60)
    bridge.periodic(task.call("code"), every=60, name="s")
    bridge.run_schedules(150)

    assert set(seen) == {"code"}
    assert [entry.source for entry in bridge.schedules.list()] == ["code"]


def test_schedules_of_tasks_that_are_not_known_here_are_shown_and_left_to_others() -> None:
    bridge = a_bridge()
    task = bridge.task(name="report")(report)
    bridge.schedules.put("s", task.call(), cron="*/5 * * * *")
    del bridge._tasks["report"]

    assert bridge.run_schedules(900) == 0
    [entry] = bridge.schedules.list()
    assert (entry.task, entry.timing) == ("report", Cron("*/5 * * * *", name="s"))


GOOD = {"task": "report", "every": 5, "using": "{}", "encoded": ["[]", "{}", 1], "revision": 1, "begins_at": 1}


@pytest.mark.parametrize(
    "odd",
    [
        *("", "5", "[]", "null", "{}", "1\n", "1\n5", "1\n[1]", '1\n{"s": 5}', '1\n{"s": {}}', "1\n" + "[" * 100_000),
        *(
            "1\n" + json.dumps({"s": {**GOOD, **odd}})
            for odd in (
                {"task": 5},
                {"every": -5},
                {"every": "5"},
                {"using": "[]"},
                {"using": '{"quue": "x"}'},
                {"encoded": [5, "{}", 1]},
                {"encoded": ["[", "{}", 1]},
                {"encoded": ["[]", "{}", 99]},
                {"revision": 0},
                {"revision": inf},
                {"begins_at": None},
                {"begins_at": nan},
            )
        ),
    ],
)
def test_what_can_not_be_read_holds_up_no_other_schedule(odd: str, caplog: pytest.LogCaptureFixture) -> None:
    bridge = a_bridge()
    task = bridge.task(name="report")(report)
    bridge.schedules.put("good", task.call(), every=60)
    store: Any = bridge.store
    for part in range(32):
        if store.backend.get([f"planned:{part}"], timeout_s=1) == [None]:
            store.backend.put(f"planned:{part}", odd, kept_s=60, timeout_s=1)
    store.backend.put("planned", "[" + ",".join(["7"] * 32) + "]", kept_s=60, timeout_s=1)

    assert bridge.run_schedules(150) >= 2
    assert [entry.name for entry in bridge.schedules.list()] == ["good"]


@pytest.mark.parametrize(
    "odd", [5, {}, {**GOOD, "revision": None}, {**GOOD, "revision": "7"}, {**GOOD, "begins_at": "1"}]
)
def test_a_name_whose_definition_can_not_be_read_is_usable(odd: Any) -> None:
    bridge = a_bridge()
    task = bridge.task(name="report")(report)
    store: Any = bridge.store
    part = f"planned:{crc32(b's') % 32}"

    def spoil() -> None:
        store.backend.put(part, "1\n" + json.dumps({"s": odd, "other": 5}), kept_s=60, timeout_s=1)

    spoil()
    bridge.schedules.put("s", task.call(), every=60)
    assert [entry.name for entry in bridge.schedules.list()] == ["s"]
    spoil()
    assert bridge.schedules.delete("s")
    assert not bridge.schedules.delete("s")
    [text] = store.backend.get([part], timeout_s=1)
    assert json.loads(text.partition("\n")[2]) == {"other": 5}, "what is another's stays"


@pytest.mark.parametrize("odd", ["", "1\n", "1\n5", "1\n[1]", "1\n" + "[" * 100_000])
def test_what_can_not_be_read_at_all_is_not_replaced(odd: str) -> None:
    bridge = a_bridge()
    task = bridge.task(name="report")(report)
    store: Any = bridge.store
    part = f"planned:{crc32(b's') % 32}"
    store.backend.put(part, odd, kept_s=60, timeout_s=1)

    with pytest.raises(StoreUnavailable, match=part):
        bridge.schedules.put("s", task.call(), every=60)
    with pytest.raises(StoreUnavailable, match=part):
        bridge.schedules.delete("s")
    assert store.backend.get([part], timeout_s=1) == [odd]


def test_a_put_that_comes_to_nothing_leaves_nothing() -> None:
    """Not a pause for ever, nor a definition that nobody is told of; to do it again is enough."""
    bridge = a_bridge()
    task = bridge.task(name="report")(report)
    store: Any = bridge.store
    commit, put = store.backend.commit, bridge.schedules.put

    def refuse(*args: Any, **given: Any) -> Any:
        raise StoreUnavailable("away")

    store.backend.commit = refuse
    with pytest.raises(StoreUnavailable):
        put("s", task.call(), every=60, enabled=False)
    assert store.ticks.states(["s"], timeout_s=1) == {}

    def answer_nothing(*args: Any, **given: Any) -> Any:
        commit(*args, **given)
        raise StoreUnavailable("no answer", maybe_taken=True)

    store.backend.commit = answer_nothing
    other = StoredSchedules()
    with pytest.raises(StoreUnavailable):
        put("s", task.call(), every=60)
    other.follow(store, at_once=True, timeout_s=1)
    assert set(other.known) == {"s"}
    put("s", task.call(), every=60)
    assert bridge.run_schedules(150) >= 2


def test_whoever_could_not_read_reads_again_at_once() -> None:
    bridge = a_bridge()
    task = bridge.task(name="report")(report)
    bridge.schedules.put("s", task.call(), every=60)
    store: Any = bridge.store
    get, follower = store.backend.get, StoredSchedules()

    def refuse(*args: Any, **given: Any) -> Any:
        raise StoreUnavailable("away")

    store.backend.get = refuse
    with pytest.raises(StoreUnavailable):
        follower.follow(store, at_once=False, timeout_s=1)
    store.backend.get = get
    follower.follow(store, at_once=False, timeout_s=1)
    assert set(follower.known) == {"s"}


def test_a_change_is_followed_though_what_tells_of_changes_was_lost_before() -> None:
    bridge = a_bridge()
    task = bridge.task(name="report")(report)
    bridge.schedules.put("s", task.call(), every=60)
    store: Any = bridge.store
    follower = StoredSchedules()
    follower.follow(store, at_once=True, timeout_s=1)
    store.backend.remove(["planned"], timeout_s=1)
    bridge.schedules.put("s", task.call(), every=70)
    follower.follow(store, at_once=True, timeout_s=1)

    assert follower.known["s"].timing == Every(70, name="s")


def test_what_was_put_is_deleted_though_the_code_has_one_of_its_name_now() -> None:
    bridge = a_bridge()
    task = bridge.task(name="report")(report)
    bridge.schedules.put("s", task.call(), every=60, enabled=False)
    bridge.periodic(task.call(), every=60, name="s")

    assert bridge.schedules.delete("s")
    with pytest.raises(DeclarationError, match="is in the code: remove it there"):
        bridge.schedules.delete("s")
    [entry] = bridge.schedules.list()
    assert (entry.source, entry.paused) == ("code", True)


def test_a_bridge_with_other_settings_knows_nothing_of_the_store_before() -> None:
    bridge = a_bridge()
    task = bridge.task(name="report")(report)
    bridge.schedules.put("s", task.call(), every=60)
    assert bridge.run_schedules(90) >= 1

    with inline(bridge):
        assert bridge.run_schedules(90) == 0
        assert bridge.schedules.list() == []


@pytest.mark.parametrize("odd", ["", "x", "5", "{}", '["x"]', "[1e999]", "[" * 100_000])
def test_versions_that_can_not_be_read_are_written_anew(odd: str) -> None:
    bridge = a_bridge()
    task = bridge.task(name="report")(report)
    bridge.schedules.put("one", task.call(), every=60)
    store: Any = bridge.store
    store.backend.put("planned", odd, kept_s=60, timeout_s=1)
    bridge.schedules.put("two", task.call(), every=60)

    other = StoredSchedules()
    other.follow(store, at_once=True, timeout_s=1)
    assert "two" in other.known
    assert {entry.name for entry in bridge.schedules.list()} == {"one", "two"}
