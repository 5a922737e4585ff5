"""`python -m tests.chaos`: a chaos run by hand."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tests.chaos.evidence import Evidence
from tests.chaos.plan import Options
from tests.chaos.run import run

TARGETS = ("celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp")

_DESCRIPTION = """\
Send messages to three workers while everything around them breaks, and account for every one.

  python -m tests.chaos --target celery+redis
  python -m tests.chaos --target dramatiq+amqp --store --messages 2000 --seconds 120 --seed 7
  TASKBRIDGE_TEST_SERVERS=trixie python -m tests.chaos --target celery+amqp --setting queue_type=quorum --no-priorities
"""


def main() -> int:
    """Run, print the account, and return 0 if it is good."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all, one after the other")
    parser.add_argument("--messages", type=int, default=10_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=420, metavar="S", help="over how long; default: %(default)s")
    parser.add_argument("--lease", type=float, default=5, metavar="S", help="default: %(default)s")
    parser.add_argument(
        "--settle", type=float, default=240, metavar="S", help="until all is at rest; default: %(default)s"
    )
    parser.add_argument("--store", action="store_true", help="keep attempt marks in a Redis apart")
    parser.add_argument("--setting", action="append", default=[], metavar="KEY=VALUE", help="of bridges and workers")
    parser.add_argument("--no-priorities", action="store_true", help="send all with the priority normal")
    parser.add_argument("--short", action="store_true", help="each disorder once, as in continuous integration")
    parser.add_argument("--keep", action="store_true", help="keep logs and records even if all is good")
    parser.add_argument("--seed", type=int, help="default: a new one")
    parser.add_argument("--again", type=Path, metavar="FOLDER", help="only account once more for a run that was kept")
    arguments = parser.parse_args()
    if arguments.again is not None:
        account = Evidence.load(arguments.again).account(arguments.again)
        print("\n".join(account.lines()))
        return 0 if account.is_good else 1
    seed = random.SystemRandom().randrange(1_000_000) if arguments.seed is None else arguments.seed
    options = Options(
        messages=arguments.messages,
        seconds=arguments.seconds,
        lease_s=arguments.lease,
        seed=seed,
        short=arguments.short,
        priorities=not arguments.no_priorities,
    )
    settings = {key: value for key, _, value in (each.partition("=") for each in arguments.setting)}
    good = True
    for target in arguments.target or TARGETS:
        print(f"{target}{' with a store apart' if arguments.store else ''}, --seed {seed}: {options}", flush=True)
        result = run(
            target,
            options,
            store=arguments.store,
            settings=settings,
            settle_s=arguments.settle,
            say=lambda text: print(text, flush=True),
            keep=arguments.keep,
        )
        print("\n".join(result.lines()))
        if result.folder is not None:
            print(f"logs and records: {result.folder}")
        print("good" if result.is_good else "NOT GOOD", flush=True)
        good = good and result.is_good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
