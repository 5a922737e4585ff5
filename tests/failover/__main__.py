"""`python -m tests.failover`: servers that stand in for one another are killed under load, by hand."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from tests.failover.run import run
from tests.failover.scenes import SCENES

_DESCRIPTION: Final = """\
Kill the server on which all depends, again and again, while messages are sent, delayed and run, and account for each
message. Prints what each kill did, and exits with 1 if an accepted message was lost, one started too early, or sends
were not accepted again in time.

  python -m tests.failover sentinel --engine celery
  python -m tests.failover sentinel --setting wait_replicas=0          # what is lost without waiting for a replica
  python -m tests.failover rabbitmq-cluster --setting queue_type=classic --kills 3
  TASKBRIDGE_TEST_SERVERS=trixie python -m tests.failover              # on newer servers
"""


def main() -> int:
    """Run what is asked for, and return 1 if something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.failover", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help=f"{', '.join(SCENES)}; default: all")
    parser.add_argument("--engine", choices=("celery", "dramatiq"), action="append", help="default: both")
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=20, metavar="N", help="messages a second; default: %(default)s")
    parser.add_argument(
        "--settle", type=float, default=120, metavar="S", help="until all is at rest; default: %(default)s"
    )
    parser.add_argument(
        "--setting", action="append", default=[], metavar="KEY=VALUE", help="of all bridges and workers"
    )
    parser.add_argument("--keep", action="store_true", help="keep logs and records even if nothing is wrong")
    options = parser.parse_args()
    names: list[str] = options.scenes or list(SCENES)
    unknown = [name for name in names if name not in SCENES]
    if unknown:
        parser.error(f"there is no scene {unknown[0]!r} among {', '.join(SCENES)}")
    settings = {key: value for key, _, value in (each.partition("=") for each in options.setting)}
    good = True
    for name in names:
        for engine in options.engine or ("celery", "dramatiq"):
            print(f"{name}, {engine}", flush=True)
            result = run(
                SCENES[name](settings),
                engine,
                kills=options.kills,
                rate=options.rate,
                settle_s=options.settle,
                keep=options.keep,
                say=lambda text: print(f"  {text}", flush=True),
            )
            print("\n".join(f"  {line}" for line in result.lines()), flush=True)
            good = good and not result.problems
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
