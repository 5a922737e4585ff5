"""Stands for the bank's interface, which is sometimes busy."""

from django.conf import settings

from taskbridge import current


class BankBusy(Exception):
    """The bank did not answer; later it may."""


class RefundRefused(Exception):
    """The bank will never do this."""


def pay_back(cents, *, reference):
    """Pay money back; of payments with one reference, the bank makes only the first."""
    if cents > settings.SHOP_REFUND_LIMIT_CENTS:
        raise RefundRefused(f"{cents} cents are more than the bank allows ({reference})")
    if current().attempt == 1:
        raise BankBusy(reference)
