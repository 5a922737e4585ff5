"""`taskbridge.django.testing`: tasks in Django's tests, in the transaction and the thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest
from asgiref.sync import sync_to_async
from django.core import mail
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase
from django.test.utils import setup_databases, teardown_databases

from taskbridge import RetryPolicy, current, default_bridge, task
from taskbridge.django.testing import TasksMixin, run_tasks
from taskbridge.testing import inline, watch_sent
from tests.django.site.shop.models import Order

ran_in: list[int] = []


class Refused(Exception):
    """It is of no use to try again."""


@task(retry=RetryPolicy(max_attempts=3, give_up_on=Refused))
def pay(number: int) -> None:
    ran_in.append(threading.get_ident())
    if number < 0:
        raise Refused(f"order {number}")
    if current().attempt < 3:
        raise TimeoutError("the bank did not answer")
    Order.objects.filter(number=number).update(is_paid=True)


@task
async def apay(number: int) -> None:
    order = await Order.objects.aget(number=number)
    order.is_paid = True
    await order.asave()


@task
def order(number: int) -> None:
    with transaction.atomic():
        Order.objects.create(number=number)
        transaction.on_commit(partial(pay.send, number))


@task
def order_one(rejected: int, accepted: int) -> None:
    for number in (rejected, accepted):
        with suppress(Refused), transaction.atomic():
            transaction.on_commit(partial(pay.send, number))
            if number == rejected:
                raise Refused


@task
def register() -> None:
    """Have a callback on one database register one on the other, and so on."""
    steps = ["default", "archive", "default", "archive"]

    def step() -> None:
        if steps:
            transaction.on_commit(step, using=steps.pop())
        else:
            pay.send(1)

    step()


@pytest.fixture(scope="module", autouse=True)
def database() -> Iterator[None]:
    made = setup_databases(verbosity=0, interactive=False)
    yield
    teardown_databases(made, verbosity=0)
    del mail.outbox  # which Django's test cases leave, and which tells that a test runs


class InATestsTransaction(TasksMixin, TestCase):
    databases = "__all__"

    @classmethod
    def setUpTestData(cls) -> None:
        Order.objects.create(number=1)
        pay.send(1)

    def setUp(self) -> None:
        super().setUp()
        ran_in.clear()

    def is_paid(self, number: int = 1) -> bool:
        return Order.objects.get(number=number).is_paid

    def test_what_was_sent_runs_in_the_tests_thread_and_transaction(self) -> None:
        pay.send(1)
        assert not self.is_paid()

        assert self.run_tasks() == 3  # the clock jumps over the retries

        assert self.is_paid()
        assert set(ran_in) == {threading.get_ident()}
        assert connection.in_atomic_block

    def test_the_test_before_has_left_nothing(self) -> None:
        assert not self.is_paid()
        assert self.sent == []
        assert self.run_tasks() == 0

    test_the_test_before_has_left_nothing_either = test_the_test_before_has_left_nothing

    def test_a_coroutine_uses_the_tests_connection(self) -> None:
        apay.send(1)

        self.run_tasks()

        assert self.is_paid()

    async def test_a_coroutine_uses_it_in_an_asynchronous_test_too(self) -> None:
        await apay.asend(1)

        assert await sync_to_async(self.run_tasks)() == 1

        assert (await Order.objects.aget(number=1)).is_paid

    def test_what_was_sent_is_asserted(self) -> None:
        pay.using(priority="high").send(number=1)

        assert self.assertSent(pay, 1).priority == "high"
        self.assertNotSent(apay)
        with pytest.raises(AssertionError, match=r"pay \(2,\) {} was not sent; sent was:\n.*pay \(\) {'number': 1}"):
            self.assertSent(pay, 2)
        with pytest.raises(AssertionError):
            self.assertNotSent(pay)

    def test_the_error_of_a_dead_letter_is_raised_once_all_has_run(self) -> None:
        pay.send(-1)
        pay.send(1)

        with pytest.raises(Refused, match="order -1"):
            self.run_tasks()

        assert self.is_paid()

    def test_errors_are_left_to_the_dead_letters_if_asked(self) -> None:
        pay.send(-1)

        assert self.run_tasks(raise_errors=False) == 1

        assert [letter.reason for letter in default_bridge().dead_letters()] == ["gave_up"]

    def test_what_a_view_sends_on_commit_is_sent_when_django_captures_it(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            transaction.on_commit(partial(pay.send, 1))
            self.assertNotSent(pay)

        self.assertSent(pay, 1)

    def test_so_is_what_it_sends_by_on_commit(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            with transaction.atomic():
                pay.on_commit.send(1)
                pay.on_commit.send(2)
            self.assertNotSent(pay)

        assert [message.args for message in self.sent] == [(1,), (2,)]

    def test_what_is_sent_through_the_outbox_is_run(self) -> None:
        pay.using(commit="outbox").send(1)

        assert self.run_tasks() == 3

        assert self.is_paid()
        self.assertSent(pay, 1)

    def test_what_a_task_sends_on_commit_is_sent_and_run(self) -> None:
        order.send(2)

        assert self.run_tasks() == 4

        assert self.is_paid(2)

    def test_of_its_savepoints_only_those_that_are_released_send(self) -> None:
        order_one.send(2, 1)

        assert self.run_tasks() == 4

        assert [message.args for message in self.sent.of(pay)] == [(1,)]

    def test_it_is_sent_once_even_if_callbacks_are_captured_around_it(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            order.send(2)
            self.run_tasks()

        assert len(self.sent.of(pay)) == 1

    def test_callbacks_of_one_database_may_register_more_on_another(self) -> None:
        register.send()

        assert self.run_tasks() == 4

        self.assertSent(pay, 1)

    def test_an_error_of_a_robust_callback_is_kept_from_the_test(self) -> None:
        transaction.on_commit(partial(int, "no number"), robust=True)

        assert self.run_tasks() == 0

    def test_what_a_rolled_back_task_sends_on_commit_is_not_sent(self) -> None:
        order.send(1)  # there is one of this number: the savepoint is rolled back

        self.run_tasks(raise_errors=False)

        self.assertNotSent(pay)


class WithoutATestsTransaction(TasksMixin, TransactionTestCase):
    def test_what_a_task_sends_on_commit_is_sent_and_run(self) -> None:
        order.send(1)

        assert self.run_tasks() == 4

        assert Order.objects.get(number=1).is_paid

    def test_a_coroutine_uses_a_connection_too(self) -> None:
        Order.objects.create(number=1)
        apay.send(1)

        self.run_tasks()

        assert Order.objects.get(number=1).is_paid


def test_functions_do_the_same_for_pytest() -> None:
    with transaction.atomic(), inline() as bridge, watch_sent() as sent:  # what the fixtures do
        Order.objects.create(number=7)
        pay.send(7)

        assert run_tasks(bridge) == 3

        assert Order.objects.get(number=7).is_paid
        assert [message.args for message in sent.of(pay)] == [(7,)]
        transaction.set_rollback(True)
