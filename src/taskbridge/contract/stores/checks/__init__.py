"""The checks, by subject."""

from taskbridge.contract.stores.checks import cancelling, marks, outages, records, ticks, waiting

__all__ = ["cancelling", "marks", "outages", "records", "ticks", "waiting"]
