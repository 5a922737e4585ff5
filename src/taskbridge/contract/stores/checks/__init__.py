"""The checks, by subject."""

from taskbridge.contract.stores.checks import cancelling, commits, listing, marks, outages, records, ticks, waiting

__all__ = ["cancelling", "commits", "listing", "marks", "outages", "records", "ticks", "waiting"]
