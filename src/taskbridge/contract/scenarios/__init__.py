"""The scenarios, a module for each letter of the rules; importing this package fills the table."""

from taskbridge.contract.scenarios import (
    acknowledging,
    coroutines,
    delays,
    expiry,
    health,
    hooks,
    outages,
    priority,
    retries,
    routing,
    sending,
    time_limit,
)

__all__ = [
    "acknowledging",
    "coroutines",
    "delays",
    "expiry",
    "health",
    "hooks",
    "outages",
    "priority",
    "retries",
    "routing",
    "sending",
    "time_limit",
]
