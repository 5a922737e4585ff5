"""The checks, by subject."""

from taskbridge.contract.stores.checks import (
    cancelling,
    commits,
    groups,
    listing,
    marks,
    outages,
    records,
    ticks,
    waiting,
)

__all__ = ["cancelling", "commits", "groups", "listing", "marks", "outages", "records", "ticks", "waiting"]
