"""`python -m tests.run_scenarios URL [SCENARIO...]` runs scenarios on a target; each result is a JSON line."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from taskbridge.contract import scenarios
from taskbridge.contract.pace import Pace
from taskbridge.contract.registry import SCENARIOS
from taskbridge.contract.suite import PARALLEL, PATIENCE_S, Result, run_suite
from taskbridge.contract.target import Target
from tests import scenarios as more

__all__ = ["more"]


def main() -> int:
    """Run what the arguments say, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.run_scenarios", description=scenarios.__doc__)
    parser.add_argument("url")
    parser.add_argument("scenario", nargs="*", help="all if none is given")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, metavar="SECONDS")
    parser.add_argument("--parallel", type=int, default=PARALLEL, metavar="N")
    arguments = parser.parse_args()
    chosen = [SCENARIOS[name] for name in arguments.scenario or SCENARIOS]
    results = run_suite(
        Target.of(arguments.url),
        chosen,
        done=_show,
        patience_s=arguments.patience,
        parallel=arguments.parallel,
        pace=Pace.of_this_run(),
    )
    return int(any(result.outcome in ("failed", "crashed") for result in results))


def _show(result: Result) -> None:
    sys.stdout.write(json.dumps(asdict(result)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
