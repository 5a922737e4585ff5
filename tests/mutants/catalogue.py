"""The product with its rules broken, one after another: what the scenarios must find out."""

from tests import scenarios
from tests.mutants import (
    around,
    crashes,
    dead_letters,
    environment,
    flows,
    hints,
    intake,
    outages,
    pauses,
    periodic,
    queue_types,
    results,
    retries,
    routing,
    running,
    sending,
    unique,
    waiting,
)
from tests.mutants.table import MUTANTS, Mutant, mutants_of

__all__ = [
    "MUTANTS",
    "Mutant",
    "around",
    "crashes",
    "dead_letters",
    "environment",
    "flows",
    "hints",
    "intake",
    "mutants_of",
    "outages",
    "pauses",
    "periodic",
    "queue_types",
    "results",
    "retries",
    "routing",
    "running",
    "scenarios",
    "sending",
    "unique",
    "waiting",
]
