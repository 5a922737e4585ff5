from functools import partial

from django.db import transaction
from django.db.models import F
from django.forms import ModelForm
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from shop.models import Order, Product
from shop.tasks import check_stock, send_receipt


class OrderForm(ModelForm):
    class Meta:
        model = Order
        fields = ["product", "quantity", "email"]


def index(request):
    return render(request, "shop/index.html", {"form": OrderForm(), "products": Product.objects.order_by("name")})


@require_POST
def place_order(request):
    form = OrderForm(request.POST)
    if not form.is_valid() or not (order := _placed(form)):
        context = {"form": form, "products": Product.objects.order_by("name")}
        return render(request, "shop/index.html", context, status=400)
    return redirect(order)


@transaction.atomic
def _placed(form):
    """Save an order, and send its tasks when the transaction is committed; None if there are not so many left."""
    order = form.save(commit=False)
    product = Product.objects.filter(pk=order.product_id, stock__gte=order.quantity)
    if not product.update(stock=F("stock") - order.quantity):
        form.add_error("quantity", "There are not so many left.")
        return None
    order.total_cents = order.quantity * order.product.price_cents
    order.save()
    send_receipt.on_commit.send(order.pk)  # before the commit, a worker would not find the order
    transaction.on_commit(partial(check_stock.enqueue, order.product_id))
    return order


def order(request, pk):
    return render(request, "shop/order.html", {"order": get_object_or_404(Order, pk=pk)})
