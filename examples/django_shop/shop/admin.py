from django.contrib import admin

from shop.models import DailyReport, Order, Product
from shop.tasks import refund
from taskbridge import default_bridge


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    list_display = ["name", "price_cents", "stock"]


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ["__str__", "product", "quantity", "email", "ordered_at", "receipt_sent_at", "refunded_at"]
    actions = ["refund"]

    @admin.action(description="Refund selected orders", permissions=["change"])
    def refund(self, request, queryset):
        handles = default_bridge().send_many(refund.call(pk) for pk in queryset.values_list("pk", flat=True))
        self.message_user(request, f"{len(handles)} refunds are on their way.")


@admin.register(DailyReport)
class DailyReportAdmin(admin.ModelAdmin):
    list_display = ["day", "orders", "total_cents"]
