"""What type checkers accept and what they reject; checked by mypy and pyright, never run.

Each bad call carries the ignores of both checkers, which complain (`warn_unused_ignores`,
`reportUnnecessaryTypeIgnoreComment`) as soon as it is accepted.
"""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnusedFunction=false

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from typing_extensions import assert_type

from taskbridge import (
    Bridge,
    Call,
    Context,
    Cron,
    Event,
    Every,
    Flow,
    FlowEnd,
    FlowHandle,
    FlowStatus,
    Handle,
    Outcome,
    Priority,
    Progress,
    Results,
    Retry,
    RetryPolicy,
    ScheduleEntry,
    State,
    Status,
    Unique,
    around,
    become,
    current,
    group,
    on,
    task,
)
from taskbridge.tasks import AsyncTask, Task
from taskbridge.testing import SentMessage, capture_sent, fake_run, inline

bridge = Bridge("inline://")


@task
def add(left: int, right: int = 0, *, queue: str = "") -> float:
    return left + right


@task(queue="email", retry=RetryPolicy(max_attempts=5, min_delay=timedelta(seconds=30), give_up_on=(ValueError,)))
def welcome(user_id: int) -> str:
    return str(user_id)


@dataclass
class Order:
    id: int


@bridge.task
def pack(order: Order) -> list[Order]:
    return [order]


@bridge.task(priority="high", time_limit=5)
async def fetch(url: str) -> bytes:
    return url.encode()


@bridge.task
async def ping() -> None: ...


async def good() -> None:
    assert_type(add(1, 2), float)
    assert_type(add.send(1, right=2, queue="x"), Handle[float])
    assert_type(add.schedule(timedelta(minutes=5), 1), Handle[float])
    assert_type(add.schedule(5, 1), Handle[float])
    assert_type(add.schedule(datetime.now(timezone.utc), 1), Handle[float])
    assert_type(add.using(queue="vip", priority="high", expires=timedelta(hours=1)).send(1), Handle[float])
    assert_type(add.call(1), Call[float])
    assert_type(add.send_many([add.call(1), add.call(2)]), list[Handle[float]])
    assert_type(await add.asend(1), Handle[float])
    assert_type(await add.aschedule(1.5, 1), Handle[float])
    assert_type(await add.asend_many([add.call(1)]), list[Handle[float]])
    assert_type(welcome.send(42), Handle[str])
    assert_type(welcome(42), str)
    coroutine: Coroutine[Any, Any, bytes] = fetch("u")
    assert_type(await coroutine, bytes)
    assert_type(await fetch("u"), bytes)
    assert_type(fetch.send("u"), Handle[bytes])
    assert_type(await fetch.using(priority="low").asend("u"), Handle[bytes])
    assert_type(ping.send(), Handle[None])
    assert_type(current(), Context)
    assert_type(current().attempt, int)
    assert_type(current().priority, Priority)
    assert_type(add.send(1).id, str)
    assert_type(add.send(1).is_new, bool)
    assert_type(add.using(id="invoice-42").send(1), Handle[float])
    assert_type(add.send(1).result(timeout=timedelta(seconds=5)), float)
    assert_type(await add.send(1).aresult(5), float)
    assert_type(fetch.send("u").result(), bytes)
    assert_type(pack.send(Order(1)).result(), list[Order])
    assert_type(add.send(1).status(), Status)
    assert_type(add.send(1).status().state, State)
    assert_type(await add.send(1).acancel(), Status)
    assert_type(bridge.handle("some-id").result(), Any)
    assert_type(current().cancelled, bool)
    assert_type(current().stopping, bool)
    assert_type(current().progress(done=1, total=2.5, note="half"), None)
    assert_type(add.send(1).cancel(interrupt=True), Status)
    assert_type(add.send(1).status().progress, Progress | None)
    assert_type(add.using(headers={"a": "1", "b": 2, "c": True, "d": None}).send(1), Handle[float])
    assert_type(bridge.send("shop.report", 1, region="eu"), Handle[Any])
    assert_type(await bridge.asend("shop.report"), Handle[Any])
    assert_type(bridge.named("shop.report").using(queue="slow").schedule(5, "eu"), Handle[Any])
    assert_type(bridge.named("shop.report").call("eu"), Call[Any])
    wide: Handle[object] = add.send(1)
    assert_type(wide.queue, str)


def bad() -> None:
    add.send("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.send()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.send(1, colour=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.schedule(timedelta(1))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.schedule("soon", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.call(1, 2, 3)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    add.using(queue=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.using(priority="urgent")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.using(id=42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.using(retries=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.using(queue="vip").send("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fetch.send(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wrong: Handle[str] = add.send(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    add.delay(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    pack.send({"id": 1})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.send_many([welcome.call(1)])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    RetryPolicy(5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    RetryPolicy(max_attempts="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Retry(5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    word: str = add.send(1).result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    add.send(1).result("soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.using(headers={"a": 1.5})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    add.send(1).cancel(True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    current().progress(1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    bridge.send(add, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bridge.handle(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Bridge(nmespace="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    print(wrong, word)


@task(quue="email")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue, reportUntypedFunctionDecorator]
def mistyped_option() -> None: ...


@task(results=False)
def unrecorded() -> object: ...


@task(results="no")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def wrong_option() -> None: ...


@task(unique="table")
def one_name(table: int, full: bool = False) -> None: ...


@task(unique=Unique(("table",), until="start", on_conflict="replace"))
async def several_names(table: int) -> None: ...


def key_of(table: int, full: bool = False) -> object:
    return {"table": table}


@task(unique=Unique(key_of, debounce=timedelta(seconds=30), at_most=300))
def one_function(table: int, full: bool = False) -> int:
    return table


@task(unique=7)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def wrong_unique() -> None: ...


def uniqueness() -> None:
    assert_type(one_function.send(1, full=True), Handle[int])
    Unique(until="never")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Unique(on_conflict="drop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Unique(debounce="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@task(cron="0 8 * * mon-fri", timezone="Europe/Rome", catch_up="all", overlap="skip")
def morning() -> int:
    return 8


@task(every=timedelta(minutes=5), schedules=[Cron("0 3 * * *", timezone="UTC", name="nightly"), Every(60)])
async def often() -> None: ...


@task(cron=5)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def wrong_cron() -> None: ...


@task(every=5, catch_up="some")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def wrong_catch_up() -> None: ...


def schedules() -> None:
    assert_type(morning, Task[[], int])
    assert_type(often, AsyncTask[[], None])
    bridge.periodic(add.using(queue="slow").call(1, right=2), cron="* * * * *", name="adding")
    assert_type(bridge.schedules.list(runs=2), list[ScheduleEntry])
    bridge.periodic(add.call("1"), every=60)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bridge.periodic(add, every=60)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bridge.periodic(add.call(1), every="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bridge.schedules.put("eu", fetch.using(queue="slow").call("x"), cron="0 8 * * *", expires=60, enabled=False)
    assert_type(bridge.schedules.delete("eu"), bool)
    bridge.schedules.put("eu", add.call("1"), every=60)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bridge.schedules.put("eu", add, every=60)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def tests() -> None:
    with inline(at_send="raise") as inlined, capture_sent(bridge) as sent, fake_run(add, attempt=2) as run:
        assert_type(inlined, Bridge)
        assert_type(run, Context)
        assert_type(sent.of(welcome), list[SentMessage])
        assert_type(sent.assert_sent(add, 1, right=2), SentMessage)
        sent.assert_sent(fetch, "x")
        sent.assert_sent(fetch, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        sent.assert_sent(welcome)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    inline(at_send="maybe")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@on("dead")
def good_hook(event: Event) -> None:
    assert_type(event.reason, str)
    assert_type(event.arguments, Mapping[str, Any] | None)


@on("dead", task="shop.*")
def good_hook_of_some(event: Event) -> None: ...


@around
def tenant(run: Context) -> Iterator[None]:
    assert_type(run.arguments, Mapping[str, Any])
    yield


@bridge.around(task="shop.*")
async def session(run: Context) -> AsyncIterator[None]:
    yield


@contextmanager
def scope(run: Context) -> Generator[None]:
    yield


@bridge.task(around=[tenant, session, scope], time_limit=5, hard_time_limit=timedelta(seconds=8))
def surrounded(count: int) -> str:
    return str(count)


@around  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportUntypedFunctionDecorator]
def not_around(run: Context) -> int:
    return 1


@on("died")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def bad_hook(event: Event) -> None: ...


def kinds() -> None:
    a_task: Task[[int], str] = surrounded
    a_task = welcome
    an_async_task: AsyncTask[[str], bytes] = fetch
    print(a_task, an_async_task)


@task
def extract(day: str) -> int:
    return len(day)


@task
def double(count: int) -> int:
    return 2 * count


@task
def halve(count: float) -> float:
    return count / 2


@task
async def publish(count: int, *, channel: str = "") -> str:
    return f"{channel}{count}"


@task
def total(counts: Results[int]) -> int:
    return sum(counts)


@task
async def survey(outcomes: Results[Outcome[int]], limit: int) -> bool:
    return len([each for each in outcomes if each.is_done]) < limit


@task
def alarm(end: FlowEnd, room: str) -> None: ...


@task
async def farewell(end: FlowEnd) -> None: ...


@task
def fan_out(days: list[str]) -> int:
    return become(group(extract.call(day) for day in days).then(total))


@task
async def fan_out_later(days: list[str]) -> str:
    return become(extract.call(days[0]).then(publish))


@task
def wrong_fan_out(days: list[str]) -> int:
    flow = group(extract.call(day) for day in days).then(total).then(halve)
    return become(flow)  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


async def flows() -> None:
    one = extract.call("2026-11-28")
    assert_type(one.then(double), Flow[int])
    assert_type(one.then(publish), Flow[str])
    assert_type(one.then(publish, channel="ops"), Flow[str])
    assert_type(one.then(halve), Flow[float])
    assert_type(one.then(double).then(publish).then_call(welcome.call(1)), Flow[str])
    assert_type(one.then_call(group([extract.call("x")])), Flow[Results[int]])
    assert_type(group(extract.call(day) for day in ["a"]), Flow[Results[int]])
    assert_type(group([extract.call("a")], at_once=5, on_error="wait").then(total).then(double), Flow[int])
    assert_type(group([extract.call("a")], on_error="collect"), Flow[Results[Outcome[int]]])
    assert_type(group([extract.call("a")], on_error="collect").then(survey, 5), Flow[bool])
    assert_type(one.on_failure(alarm, room="ops").on_end(farewell), Flow[int])
    assert_type(one.on_end(farewell).then(double).using(id="x").on_failure(alarm, "ops"), Flow[int])
    assert_type(one.then(double).send(), FlowHandle[int])
    assert_type(one.then(publish).send().result(timeout=5), str)
    assert_type(await group([one]).schedule(5).aresult(), Results[int])
    assert_type(await one.then(halve).asend(), FlowHandle[float])
    assert_type(await one.then(halve).aschedule(timedelta(1)), FlowHandle[float])
    assert_type(one.send(), Handle[int])
    assert_type(one.schedule(5).result(), int)
    assert_type(await one.asend(), Handle[int])
    assert_type(bridge.flow("x"), FlowHandle[Any])
    assert_type(one.then(double).send().status(), FlowStatus)
    assert_type(await one.then(double).send().acancel(), FlowStatus)
    assert_type(one.then(double).send().retry().is_final, bool)
    assert_type(one.then(bridge.named("shop.report"), channel="ops"), Flow[Any])
    assert_type(become(one), int)
    assert_type(fan_out.send(["a"]), Handle[int])
    assert_type(fan_out.call(["a"]).then(double), Flow[int])
    assert_type(group([one]).send().result()[0], int)
    assert_type(group([one]).send().result()[1:], list[int])
    wide: Flow[object] = one.then(double)
    print(wide)


def wrong_flows() -> None:
    one = extract.call("2026-11-28")
    one.then(welcome).then(double)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    one.then(double, 2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    one.then(surrounded, colour=2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    one.then(publish, channel=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    one.on_failure(alarm)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    one.on_failure(double)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    one.on_end(alarm, room=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    group([one]).then(survey, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    group([one], on_error="collect").then(total)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    group([one], on_error="collect").then(survey)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    group([one], on_error="ignore")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    group([one], at_once="5")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    group([extract])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    group(["a"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    one.then(double).using()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    one.send().then(double)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    one.then(double).send().then(double)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
