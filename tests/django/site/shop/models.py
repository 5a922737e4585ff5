"""What the shop keeps."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """An order."""

    number: models.IntegerField[int, int] = models.IntegerField(unique=True)
    is_paid: models.BooleanField[bool, bool] = models.BooleanField(default=False)
