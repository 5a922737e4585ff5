from django.db import models
from django.urls import reverse


class Product(models.Model):
    name = models.CharField(max_length=100)
    price_cents = models.PositiveIntegerField()
    stock = models.PositiveIntegerField()

    def __str__(self):
        return self.name


class Order(models.Model):
    """An order. The times say what was done for it, so that a task that runs twice does it once."""

    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    quantity = models.PositiveIntegerField()
    email = models.EmailField()
    total_cents = models.PositiveIntegerField()
    ordered_at = models.DateTimeField(auto_now_add=True)
    receipt_sent_at = models.DateTimeField(null=True, blank=True)
    refunded_at = models.DateTimeField(null=True, blank=True)

    def __str__(self):
        return f"order {self.pk}"

    def get_absolute_url(self):
        return reverse("order", args=[self.pk])


class DailyReport(models.Model):
    day = models.DateField(unique=True)
    orders = models.PositiveIntegerField()
    total_cents = models.PositiveIntegerField()

    def __str__(self):
        return f"{self.day}: {self.orders} orders"
