"""The checks, by subject."""

from taskbridge.contract.stores.checks import cancelling, commits, marks, outages, records, ticks, waiting

__all__ = ["cancelling", "commits", "marks", "outages", "records", "ticks", "waiting"]
