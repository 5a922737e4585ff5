"""Sends after commit: what is published when, in transactions, savepoints and several databases."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core import mail
from django.core.management import call_command
from django.db import DatabaseError, connections, transaction
from django.db.transaction import TransactionManagementError, atomic
from django.test import TestCase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskbridge import (
    Bridge,
    BrokerUnavailable,
    EncodeError,
    MessageTooLarge,
    SendError,
    SettingsError,
    Unique,
    UnknownQueue,
    UnsupportedError,
    default_bridge,
)
from taskbridge.message import Message
from taskbridge.testing import capture_sent
from tests.django.site.shop.models import Order
from tests.django.site.shop.tasks import add

BOTH = ("default", "archive")


class Undo(Exception):
    """Rolls a block back."""


class Noted:
    """Takes messages in the place of a broker, and notes them as they come, and in which batches."""

    def __init__(self) -> None:
        self.log: list[int] = []
        self.batches: list[list[int]] = []
        self.delays: dict[int, float] = {}

    def publish(self, messages: Sequence[Message], *, timeout_s: float) -> None:
        self.park([(message, 0.0) for message in messages], timeout_s=timeout_s)

    def park(self, messages: Sequence[tuple[Message, float]], *, timeout_s: float) -> None:
        self.batches.append([message.arguments()[0][0] for message, _ in messages])
        self.log += self.batches[-1]
        self.delays |= {message.arguments()[0][0]: delay_s for message, delay_s in messages}


@contextmanager
def noting() -> Generator[Noted]:
    noted: Any = Noted()
    with default_bridge().divert(noted):
        yield noted


@pytest.fixture
def noted() -> Iterator[Noted]:
    with noting() as noted:
        yield noted


@pytest.fixture(scope="module", autouse=True)
def tables() -> None:
    for database in BOTH:
        call_command("migrate", database=database, run_syncdb=True, verbosity=0)


def send(number: int) -> str:
    return add.on_commit.send(number, 0).id


def test_a_send_is_published_as_the_transaction_is_committed(noted: Noted) -> None:
    with atomic():
        assert send(1)
        assert noted.log == []
    assert noted.log == [1]

    send(2)
    assert noted.log == [1, 2]


def test_nothing_is_published_that_is_rolled_back(noted: Noted) -> None:
    with suppress(Undo), atomic():
        send(1)
        raise Undo
    with atomic():
        send(2)
        with suppress(Undo), atomic():
            send(3)
            raise Undo
        transaction.set_rollback(True)
    assert noted.log == []


def test_many_sends_in_a_transaction_are_published_together(noted: Noted) -> None:
    with atomic():
        for number in range(5):
            send(number)
        add.on_commit.send_many(add.call(number, 0) for number in range(5, 10))
    assert noted.batches == [[*range(10)]]


def test_what_is_captured_in_a_transaction_is_parted_from_what_is_not(noted: Noted) -> None:
    with atomic():
        send(1)
        with capture_sent() as sent:
            send(2)
        send(3)
    assert noted.log == [1, 3]
    assert [message.args for message in sent] == [(2, 0)]


def test_savepoints_that_are_released_do_not_part_what_is_published_together(noted: Noted) -> None:
    with atomic():
        for number in range(20):
            with atomic():
                send(number)
        assert len(transaction.get_connection().run_on_commit) == 2
    assert noted.log == [*range(20)]
    assert len(noted.batches) == 2


def test_a_savepoint_that_is_open_still_takes_what_was_sent_in_it_along(noted: Noted) -> None:
    with atomic():
        send(1)
        with suppress(Undo), atomic():
            send(2)
            with atomic():
                send(3)
            send(4)
            raise Undo
        send(5)
    assert noted.log == [1, 5]
    assert len(noted.batches) == 1


def test_callbacks_and_sends_come_as_written(noted: Noted) -> None:
    with atomic():
        send(1)
        transaction.on_commit(lambda: noted.log.append(2))
        send(3)
        with atomic():
            send(4)
        transaction.on_commit(lambda: noted.log.append(5))
    assert noted.log == [1, 2, 3, 4, 5]


def test_what_a_callback_sends_is_published_at_once(noted: Noted) -> None:
    with atomic():
        transaction.on_commit(lambda: send(1))
        transaction.on_commit(lambda: noted.log.append(2))
        send(3)
    assert noted.log == [1, 2, 3]


# Random programs against a model


@dataclass(frozen=True)
class Block:
    """A block of `atomic` on a database, and whether it is rolled back at its end."""

    body: list[Any]  # numbers to send, callbacks as negative numbers, and blocks
    savepoint: bool
    is_undone: bool
    database: str = "default"


def programs(databases: Sequence[str], savepoints: Sequence[bool]) -> st.SearchStrategy[list[Any]]:
    """Return programs: their words are blocks that begin, None where one ends, and sends and callbacks."""
    begin = st.builds(Block, st.builds(list), st.sampled_from(savepoints), st.booleans(), st.sampled_from(databases))
    words = st.lists(begin | st.sampled_from([1, 1, 1, -1, None, None]), max_size=25)
    return words.map(lambda words: number(nested(iter(words)), iter(range(1, 10_000))))


def nested(words: Iterator[Any]) -> list[Any]:
    """Return the steps up to the end of a block."""
    steps: list[Any] = []
    for word in words:
        if word is None:
            break
        is_block = isinstance(word, Block)
        steps.append(Block(nested(words), word.savepoint, word.is_undone, word.database) if is_block else word)
    return steps


def number(steps: list[Any], numbers: Iterator[int]) -> list[Any]:
    """Return a program whose sends and callbacks are numbered in order."""
    return [
        Block(number(step.body, numbers), step.savepoint, step.is_undone, step.database)
        if isinstance(step, Block)
        else step * next(numbers)
        for step in steps
    ]


def run(steps: list[Any], send: Callable[[int], object], log: list[int]) -> None:
    for step in steps:
        if isinstance(step, Block):
            with suppress(Undo), atomic(using=step.database, savepoint=step.savepoint):
                run(step.body, send, log)
                if step.is_undone:
                    raise Undo
        elif step > 0:
            send(step)
        else:
            transaction.on_commit(lambda step=step: log.append(step))  # type: ignore[misc]


def expected(steps: list[Any], *, is_outermost: bool = True) -> tuple[list[int], bool]:
    """Return what is to be published, in order, and whether the block around is doomed to be rolled back."""
    found: list[int] = []
    is_doomed = False
    for step in steps:
        if isinstance(step, Block):
            inner, is_undone = expected(step.body, is_outermost=False)
            if not (is_undone or step.is_undone):
                found += inner
            elif not step.savepoint and not is_outermost:
                is_doomed = True
        else:
            found.append(step)
    return found, is_doomed


PATIENT = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@PATIENT
@given(programs(["default"], [True, True, False]))
def test_any_program_publishes_what_is_committed_in_the_order_of_its_sends(program: list[Any]) -> None:
    with noting() as noted:
        run(program, send, noted.log)
        assert noted.log == expected(program)[0]
        assert transaction.get_connection().run_on_commit == []


@PATIENT
@given(programs(BOTH, [True]))
def test_any_program_on_two_databases_publishes_what_is_committed_on_both(program: list[Any]) -> None:
    task = add.using(commit=BOTH)
    with noting() as noted:
        run([*_without_callbacks(program)], lambda number: task.send(number, 0), noted.log)
        assert sorted(noted.log) == [each for each in expected(program)[0] if each > 0]


def _without_callbacks(steps: list[Any]) -> Iterator[Any]:
    for step in steps:
        if isinstance(step, Block):
            yield Block([*_without_callbacks(step.body)], step.savepoint, step.is_undone, step.database)
        elif step > 0:
            yield step


# What is said when


def test_what_can_be_checked_is_refused_in_the_transaction(noted: Noted) -> None:
    bridge = default_bridge()
    with atomic():
        for refused, error in (
            (lambda: add.on_commit.send(1), TypeError),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
            (lambda: add.on_commit.send(object(), 1), EncodeError),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            (lambda: add.on_commit.using(queue="nowhere").send(1, 1), UnknownQueue),
            (lambda: bridge.named("far").on_commit.send("x" * 2_000_000), MessageTooLarge),
            (lambda: add.using(commit="nowhere").send(1, 1), SettingsError),
        ):
            with pytest.raises(error):
                refused()
        assert transaction.get_connection().run_on_commit == []
    assert noted.log == []


def test_hooks_before_a_send_are_called_in_the_transaction_and_those_after_it_on_commit(noted: Noted) -> None:
    bridge, told = default_bridge(), list[str]()
    bridge.hooks.named("before_send").append(lambda event: told.append(event.name))
    bridge.hooks.named("after_send").append(lambda event: told.append(event.name))
    try:
        with atomic():
            send(1)
            assert told == ["before_send"]
    finally:
        bridge.hooks.named("before_send").clear()
        bridge.hooks.named("after_send").clear()
    assert told == ["before_send", "after_send"]


def test_a_delay_counts_from_the_call(noted: Noted, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    with atomic():
        add.on_commit.schedule(10, 1, 0)
        add.on_commit.schedule(3, 2, 0)
        add.on_commit.send(3, 0)
        now[0] += 4
    assert noted.batches == [[2, 3], [1]]
    assert noted.delays == {1: pytest.approx(6), 2: 0, 3: 0}


def test_the_setting_is_the_default_and_an_option_goes_before_it(noted: Noted) -> None:
    with default_bridge().temporarily(url="inline://?threads=0", commit="default"), noting() as noted:
        with suppress(Undo), atomic():
            add.send(1, 0)
            add.using(commit=None).send(2, 0)
            default_bridge().send_many([add.call(3, 0), add.using(commit=None).call(4, 0)])
            raise Undo
        assert noted.log == [2, 4]


def test_options_are_checked() -> None:
    assert add.on_commit.using(queue="default").declaration is add.declaration
    for wrong in ("", (), ("default", "outbox"), (1,)):
        with pytest.raises(ValueError, match="commit"):
            add.using(commit=wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(SettingsError, match="commit"):
        Bridge("inline://", commit=("default", "outbox"))
    assert Bridge("inline://", commit="default, archive").settings.commit == BOTH


def test_a_bridge_without_transactions_says_what_to_do() -> None:
    bridge = Bridge("inline://?threads=0")
    task = bridge.task(name="task")(lambda: None)
    with pytest.raises(UnsupportedError, match=r"taskbridge\.django"):
        task.on_commit.send()
    bridge.close()


def test_errors_of_the_broker_go_to_who_commits(noted: Noted, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, timeout_s: float) -> None:
        raise BrokerUnavailable("nobody listens")

    monkeypatch.setattr(noted, "publish", refuse)
    sent: list[str] = []

    def work() -> None:
        Order.objects.create(number=1)
        sent.extend(map(send, (1, 2)))

    with pytest.raises(SendError, match="nobody listens") as caught:
        atomic(work)()
    assert caught.value.unsent == tuple(sent)
    assert Order.objects.filter(number=1).delete()[0] == 1  # it is committed


def test_without_autocommit_a_send_is_refused_as_callbacks_are(noted: Noted) -> None:
    transaction.set_autocommit(False)
    try:
        with pytest.raises(TransactionManagementError):
            send(1)
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert noted.log == []


def test_a_send_outside_of_a_transaction_asks_no_database(noted: Noted) -> None:
    connection: Any = connections["archive"]
    with connection.execute_wrapper(_refuse):
        add.using(commit=BOTH).send(1, 0)
    assert noted.log == [1]


def _refuse(*_: object) -> Any:
    raise DatabaseError("no query")


# Keys are claimed on commit


@pytest.fixture
def inline() -> Iterator[Bridge]:
    with default_bridge().temporarily(url="inline://?threads=0", namespace="commit"):
        yield default_bridge()


def test_keys_and_ids_are_claimed_on_commit_and_conflicts_are_logged(
    inline: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []
    caplog.set_level(logging.WARNING, "taskbridge")

    @inline.task(name=f"single-{uuid4().hex}", unique=Unique("number", on_conflict="raise"))
    def task(number: int) -> None:
        ran.append(number)

    with atomic():
        first, second = (task.on_commit.send(1) for _ in range(2))
        other = add.using(id="chosen", commit="default").send(1, 2)
        again = add.using(id="chosen", commit="default").send(1, 3)
    assert first.id != second.id
    assert (other.id, again.id) == ("chosen", "chosen")
    assert inline.run_until_idle() == 2
    assert ran == [1]
    assert f"id {second.id} attempt 1 was left out" in caplog.text
    assert "id chosen attempt 1 was left out" in caplog.text


def test_what_is_delayed_in_a_transaction_is_recorded_as_scheduled(inline: Bridge) -> None:
    with atomic():
        handles = [add.on_commit.schedule(60 + number, number, 0) for number in range(3)]
        handles.append(add.on_commit.send(3, 0))
    assert [handle.status().state for handle in handles] == ["scheduled"] * 3 + ["queued"]
    assert inline.run_until_idle() == 4
    assert [handle.result() for handle in handles] == [0, 1, 2, 3]


# Tests of applications


def test_callbacks_are_captured_one_for_each_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "outbox", [], raising=False)  # as Django's and pytest-django's test environments do
    with capture_sent() as sent, atomic():
        add.on_commit.send(1, 1)
        with TestCase.captureOnCommitCallbacks(execute=True) as callbacks:
            add.on_commit.send(2, 2)
            with atomic():
                add.on_commit.send(3, 3)
        assert len(callbacks) == 2
        assert [message.args for message in sent] == [(2, 2), (3, 3)]
        transaction.set_rollback(True)
    assert len(sent) == 2


# Coroutines: `asend` looks where the caller's ORM calls run


@pytest.mark.parametrize("is_undone", [False, True])
def test_asend_below_async_to_sync_waits_for_the_transaction_around(noted: Noted, is_undone: bool) -> None:
    async def work() -> None:
        await add.on_commit.asend(1, 0)
        await add.on_commit.aschedule(60, 2, 0)
        await add.on_commit.asend_many([add.call(3, 0)])
        await default_bridge().asend_many([add.on_commit.call(4, 0)])

    with suppress(Undo), atomic():
        async_to_sync(work)()
        assert noted.log == []
        if is_undone:
            raise Undo
    assert sorted(noted.log) == ([] if is_undone else [1, 2, 3, 4])


def test_asend_waits_for_a_transaction_of_the_coroutine_itself(noted: Noted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # as in a notebook; elsewhere Django refuses it

    async def work() -> None:
        with suppress(Undo), atomic():
            await add.on_commit.asend(1, 0)
            raise Undo
        with atomic():
            await add.on_commit.asend(2, 0)
            assert noted.log == []
        connections["default"].connection.close()  # for Django's own does nothing about one in memory

    asyncio.run(work())
    assert noted.log == [2]


def test_asend_outside_of_transactions_sends_at_once(noted: Noted) -> None:
    async def work() -> None:
        await add.on_commit.asend(1, 0)
        await sync_to_async(in_transaction)()

    def in_transaction() -> None:
        with atomic():
            send(2)
            assert noted.log == [1]

    asyncio.run(work())
    assert noted.log == [1, 2]
