"""The scenarios, a module for each letter of the rules; importing this package fills the table."""

from taskbridge.contract.scenarios import (
    acknowledging,
    coroutines,
    crashes,
    dead_letters,
    delays,
    expiry,
    health,
    hooks,
    outages,
    periodic,
    priority,
    retries,
    routing,
    sending,
    shutdown,
    time_limit,
)

__all__ = [
    "acknowledging",
    "coroutines",
    "crashes",
    "dead_letters",
    "delays",
    "expiry",
    "health",
    "hooks",
    "outages",
    "periodic",
    "priority",
    "retries",
    "routing",
    "sending",
    "shutdown",
    "time_limit",
]
