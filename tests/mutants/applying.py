"""Makes a process of the contract, and its workers, a mutant.

The contract's processes import the module that `TASKBRIDGE_CONTRACT_PRELOAD` names before they import what it breaks,
and hand all variables that begin with `TASKBRIDGE_CONTRACT_` on to the processes they start. `environment` returns what
must be set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
RULE: Final = "TASKBRIDGE_CONTRACT_MUTANT"
STORE: Final = "TASKBRIDGE_CONTRACT_STORE_MUTANT"


def environment(variable: str, name: str) -> Mapping[str, str]:
    """Return the variables that make a process a mutant.

    Args:
        variable: `RULE` for a mutant of the contract, `STORE` for one of the stores' checks.
        name: The mutant's; empty for the unbroken product.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {variable: name, "TASKBRIDGE_CONTRACT_PRELOAD": __name__, "PYTHONPATH": path}


def apply() -> None:
    """Make this process the mutant that its environment names."""
    if name := os.environ.get(RULE):
        from tests.mutants.catalogue import MUTANTS

        MUTANTS[name].apply()
    if name := os.environ.get(STORE):
        from tests.mutants import of_stores

        of_stores.MUTANTS[name].apply()
    if "tests.run_scenarios" in sys.orig_argv:  # else this is one of its workers
        from tests import forking

        forking.install()


apply()
