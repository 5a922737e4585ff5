"""The same in pytest's style, with the fixtures of pytest-django and of taskbridge; for pytest only."""

from django.core import mail

from shop.models import Order, Product
from shop.tasks import send_receipt
from taskbridge.django.testing import run_tasks


def order(client):
    book = Product.objects.create(name="Book", price_cents=1999, stock=5)
    client.post("/orders/", {"product": book.pk, "quantity": 1, "email": "ann@example.org"})
    return Order.objects.get()


def test_a_receipt_is_sent(db, client, django_capture_on_commit_callbacks, taskbridge_inline):
    with django_capture_on_commit_callbacks(execute=True):
        placed = order(client)

    run_tasks()

    placed.refresh_from_db()
    assert placed.receipt_sent_at is not None
    assert len(mail.outbox) == 1


def test_what_was_sent_is_looked_at(db, client, django_capture_on_commit_callbacks, taskbridge_sent):
    with django_capture_on_commit_callbacks(execute=True):
        placed = order(client)

    taskbridge_sent.assert_sent(send_receipt, placed.pk)


def test_nothing_is_sent_before_the_commit(db, client, taskbridge_sent):
    order(client)

    assert taskbridge_sent == []
