"""The product with its rules broken, one after another: what the scenarios must find out.

The environment variable `TASKBRIDGE_CONTRACT_MUTANT` names the mutant that a process and its workers are to be.
"""

from taskbridge.contract.mutants import (
    crashes,
    dead_letters,
    outages,
    periodic,
    results,
    retries,
    routing,
    running,
    sending,
    waiting,
)
from taskbridge.contract.mutants.table import MUTANTS, Mutant

__all__ = [
    "MUTANTS",
    "Mutant",
    "apply",
    "crashes",
    "dead_letters",
    "outages",
    "periodic",
    "results",
    "retries",
    "routing",
    "running",
    "sending",
    "waiting",
]


def apply(name: str) -> None:
    """Make this process a mutant.

    Raises:
        LookupError: There is no mutant of this name.
    """
    if name not in MUTANTS:
        raise LookupError(f"there is no mutant {name!r}")
    MUTANTS[name].apply()
