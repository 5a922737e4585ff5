"""The shop's tests: no server, no worker, no waiting. `python manage.py test` and pytest run them."""

from datetime import timedelta
from unittest.mock import patch
from urllib.parse import urlencode

from django.contrib.auth.models import Permission, User
from django.core import mail
from django.test import TestCase
from django.utils import timezone

from shop.bank import RefundRefused
from shop.models import DailyReport, Order, Product
from shop.tasks import nightly_report, refund, send_receipt
from taskbridge import default_bridge
from taskbridge.django.testing import TasksMixin


class OrderTests(TasksMixin, TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.book = Product.objects.create(name="Book", price_cents=1999, stock=5)

    def place_order(self, quantity=1):
        with self.captureOnCommitCallbacks(execute=True):
            data = {"product": self.book.pk, "quantity": quantity, "email": "ann@example.org"}
            return self.client.post("/orders/", data)

    def test_a_receipt_is_sent_for_an_order(self):
        response = self.place_order(quantity=2)
        order = Order.objects.get()
        self.assertRedirects(response, f"/orders/{order.pk}/")
        self.assertSent(send_receipt, order.pk)
        self.assertContains(self.client.get(f"/orders/{order.pk}/"), "on its way")

        self.run_tasks()

        self.assertContains(self.client.get(f"/orders/{order.pk}/"), "sent")
        self.assertEqual([message.subject for message in mail.outbox], [f"Your order {order.pk}"])

    def test_nothing_is_sent_for_an_order_of_too_many(self):
        response = self.place_order(quantity=6)

        self.assertContains(response, "There are not so many left.", status_code=400)
        self.assertEqual(self.sent, [])

    def test_a_mail_server_that_is_away_is_asked_again(self):
        self.place_order()

        with patch(
            "shop.tasks.send_mail", side_effect=[ConnectionRefusedError, ConnectionRefusedError, 1]
        ) as send_mail:
            self.run_tasks()  # the clock jumps over the delays

        self.assertEqual(send_mail.call_count, 3)
        self.assertIsNotNone(Order.objects.get().receipt_sent_at)

    def test_a_receipt_is_sent_once_even_if_the_task_runs_twice(self):
        self.place_order()
        self.run_tasks()

        send_receipt(Order.objects.get().pk)  # a task is a function, too

        self.assertEqual(len(mail.outbox), 1)

    def test_the_owner_is_told_of_a_product_that_runs_out(self):
        self.place_order(quantity=3)

        self.run_tasks()

        self.assertIn("2 left of Book", [message.body for message in mail.outbox])


class RefundTests(TasksMixin, TestCase):
    def order(self, cents):
        product = Product.objects.create(name="Bookcase", price_cents=cents, stock=1)
        return Order.objects.create(product=product, quantity=1, email="ann@example.org", total_cents=cents)

    def test_a_busy_bank_is_asked_again(self):
        order = self.order(cents=1999)
        refund.send(order.pk)

        self.assertEqual(self.run_tasks(), 2)

        order.refresh_from_db()
        self.assertIsNotNone(order.refunded_at)

    def test_a_refused_refund_is_not_tried_again(self):
        refund.send(self.order(cents=64900).pk)

        with self.assertRaises(RefundRefused):
            self.run_tasks()

        [letter] = default_bridge().dead_letters()
        self.assertEqual(letter.reason, "gave_up")


class ReportTests(TasksMixin, TestCase):
    def test_a_report_says_what_was_sold_the_day_before(self):
        product = Product.objects.create(name="Book", price_cents=1999, stock=5)
        for _ in range(2):
            Order.objects.create(product=product, quantity=1, email="ann@example.org", total_cents=1999)
        Order.objects.update(ordered_at=timezone.localtime().replace(hour=12) - timedelta(days=1))

        nightly_report()

        report = DailyReport.objects.get()
        self.assertEqual((report.orders, report.total_cents), (2, 3998))

    def test_there_is_a_report_each_night(self):
        runs = default_bridge().run_schedules(timedelta(days=7))
        self.assertAlmostEqual(runs, 7, delta=1)  # a week may have an hour more, or less


class PageTests(TasksMixin, TestCase):
    def setUp(self):
        self.user = User.objects.create_user("ann", is_staff=True)

    def test_it_asks_for_a_login(self):
        self.assertRedirects(
            self.client.get("/admin/tasks/"), "/admin/login/?next=/admin/tasks/", fetch_redirect_response=False
        )

    def test_it_shows_what_the_permissions_allow(self):
        self.user.user_permissions.add(Permission.objects.get(codename="view_deadletter"))
        self.client.force_login(self.user)

        self.assertContains(self.client.get("/admin/tasks/dead"), "No dead letters")
        self.assertEqual(self.client.get("/admin/tasks/").status_code, 403)
        self.assertEqual(self.client.get("/admin/tasks/flows").status_code, 403)
        self.user.user_permissions.add(Permission.objects.get(codename="view_flow"))
        self.assertContains(self.client.get("/admin/tasks/flows"), "No flows")

    def test_whoever_may_pauses_a_queue(self):
        may = Permission.objects.filter(codename__in=("view_queue", "pause_queue"))
        self.user.user_permissions.set(may)
        self.client.force_login(self.user)
        token = self.client.get("/admin/tasks/").text.partition('name="token" value="')[2].partition('"')[0]

        form = urlencode({"token": token, "target": "default"})
        response = self.client.post("/admin/tasks/act/pause", form, content_type="application/x-www-form-urlencoded")

        self.assertEqual((response.status_code, response["Location"]), (303, "/admin/tasks/"))
        self.assertEqual([pause.queue for pause in default_bridge().paused()], ["default"])
        default_bridge().resume("default")
