"""The shop's tasks. taskbridge finds this module in each app; nothing here names an engine or a broker.

A task may run twice, after a worker was killed in the middle of it, so each looks first at what was done.
"""

from datetime import timedelta

from django.conf import settings
from django.core.mail import send_mail
from django.db.models import Count, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone

try:
    from django.tasks import task as django_task
except ImportError:  # before Django 6
    from django_tasks import task as django_task

from shop import bank
from shop.models import DailyReport, Order, Product
from taskbridge import RetryPolicy, task


@task(queue="email", retry=RetryPolicy(max_attempts=8, min_delay=timedelta(seconds=10), retry_on=OSError))
def send_receipt(order_id: int) -> None:
    """Mail a receipt. A mail server that is away is an OSError, and is tried for about twenty minutes."""
    order = Order.objects.select_related("product").get(pk=order_id)
    if order.receipt_sent_at is not None:
        return
    text = f"{order.quantity} x {order.product}: {order.total_cents / 100:.2f} euros"
    send_mail(f"Your order {order.pk}", text, None, [order.email])
    Order.objects.filter(pk=order_id).update(receipt_sent_at=timezone.now())


@task(
    queue="payments",
    time_limit=timedelta(seconds=30),
    retry=RetryPolicy(max_attempts=5, min_delay=timedelta(seconds=1), give_up_on=bank.RefundRefused),
)
def refund(order_id: int) -> None:
    """Pay an order back. A busy bank is asked again; what it refuses is a dead letter, for people to look at."""
    order = Order.objects.get(pk=order_id)
    if order.refunded_at is not None:
        return
    bank.pay_back(order.total_cents, reference=str(order))
    Order.objects.filter(pk=order_id).update(refunded_at=timezone.now())


@task(cron="0 3 * * *", timezone="Europe/Rome")
def nightly_report() -> None:
    """Write down what was sold yesterday. The workers send this by themselves, each night once."""
    day = timezone.localdate() - timedelta(days=1)
    sold = Order.objects.filter(ordered_at__date=day).aggregate(
        orders=Count("pk"), total_cents=Coalesce(Sum("total_cents"), 0)
    )
    DailyReport.objects.update_or_create(day=day, defaults=sold)


@django_task
def check_stock(product_id: int) -> None:
    """Tell the owner what runs out; a task of Django's own, which runs in the same workers."""
    product = Product.objects.get(pk=product_id)
    if product.stock < 3:
        send_mail("Order more", f"{product.stock} left of {product}", None, [settings.SHOP_OWNER])
