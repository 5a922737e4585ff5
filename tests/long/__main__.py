"""`python -m tests.long`: the promises that take minutes to be seen, by hand."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from taskbridge.contract import cleaning
from taskbridge.contract.environment import Environment
from taskbridge.contract.failure import ContractFailure
from taskbridge.contract.harness import Harness
from taskbridge.contract.pace import Pace
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.contract.target import Target
from tests.long.checks import CHECKS, Check
from tests.servers import PrivateRabbitMQ, PrivateRedis

TARGETS: Final = ("celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp")
PATIENCE_S: Final = 60.0

_DESCRIPTION: Final = """\
Try promises in a size that is too long for continuous integration, on private servers; a line a check and target.

  python -m tests.long
  python -m tests.long --target celery+redis --target celery+amqp sigterms ticks
"""


def main() -> int:
    """Run the chosen checks on the chosen targets, and return 1 if one fails."""
    checks = "\n".join(f"  {name:<18}{check.title}" for name, check in CHECKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.long",
        description=_DESCRIPTION,
        epilog=f"checks:\n{checks}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all, one after the other")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a check; default: all")
    arguments = parser.parse_args()
    names: list[str] = arguments.names or list(CHECKS)
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        parser.error(f"there is no check {unknown[0]!r} among {', '.join(CHECKS)}")
    logging.getLogger("taskbridge").addHandler(logging.NullHandler())  # else what a bridge logs goes to standard error
    good = [_run_all(target, names) for target in arguments.target or TARGETS]
    return 0 if all(good) else 1


def _run_all(name: str, names: list[str]) -> bool:
    """Run checks on a target, and return whether all passed."""
    with _served(name) as target:
        passed = [_run(target, check, CHECKS[check]) for check in names]
    return all(passed)


@contextmanager
def _served(name: str) -> Generator[Target]:
    """Start a target's servers; the store of a target on RabbitMQ is a Redis."""
    engine, _, broker = name.partition("+")
    with PrivateRedis() as redis:
        if broker == "redis":
            yield Target.of(f"{engine}+{redis.url}")
            return
        with PrivateRabbitMQ() as rabbitmq:
            yield Target.of(f"{engine}+{rabbitmq.url}", store=redis.url)


def _run(target: Target, name: str, check: Check) -> bool:
    """Run a check, print what came of it, and return whether it passed."""
    begun = time.monotonic()
    with Stopwatch() as watch:
        figures, problem = _tried(target, check)
    took_s = time.monotonic() - begun
    verdict = "ok  " if problem is None else "FAIL"
    print(f"{verdict} {target.name:<14} {name:<16} {took_s:4.0f} s  {figures}", flush=True)
    if problem is not None:
        print(f"     {check.title}\n{problem}", flush=True)
        print(f"     the machine stood still for {watch.stalled_s():.1f} s meanwhile", flush=True)
    return problem is None


def _tried(target: Target, check: Check) -> tuple[str, str | None]:
    """Return the figures of a check that passed, or why it failed."""
    environment = Environment(target, check.environment, patience_s=PATIENCE_S, pace=Pace.of_this_run())
    try:
        with environment:
            return check.run(Harness(environment)), None
    except ContractFailure as exc:
        return "", str(exc)
    except Exception:
        return "", traceback.format_exc()
    finally:
        cleaning.remove(target, [environment.namespace])


if __name__ == "__main__":
    sys.exit(main())
