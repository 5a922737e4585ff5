"""`python -m tests.hostile`: odd messages by hand, all that the table has, or random ones."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from functools import partial
from typing import Final

from taskbridge import Bridge
from taskbridge.contract.pace import Pace
from tests.hostile.forms import cases_of
from tests.hostile.inputs import try_random
from tests.hostile.names import new_seed
from tests.hostile.stage import Stage, chunked, run
from tests.servers import PrivateRabbitMQ, PrivateRedis

TARGETS: Final = ("celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp")

_DESCRIPTION: Final = """\
Put odd messages before real workers on private servers, and see whether healthy ones behind them run.

  python -m tests.hostile                                       20,000 random inputs on each pair
  python -m tests.hostile --table                               every field of every form with every odd value
  python -m tests.hostile --table --target celery+redis --only 'control channel'
"""


def main() -> int:
    """Run, print what is wrong, and return 0 if something was tried and nothing is."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.hostile", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all, one after the other")
    parser.add_argument("--inputs", type=int, default=20_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--table", action="store_true", help="the table instead of random inputs")
    parser.add_argument("--only", default="", metavar="TEXT", help="of the table, what has this in its name")
    parser.add_argument("--each", type=int, metavar="N", help="of the table, N values for each field; default: all")
    parser.add_argument("--seed", type=int, help="default: a new one")
    arguments = parser.parse_args()
    seed = new_seed() if arguments.seed is None else arguments.seed
    good, tried = True, 0
    for target in arguments.target or TARGETS:
        begun = time.monotonic()
        with _served(target) as (url, store):
            make = partial(Stage, url, store=store, pace=Pace.of_this_run())
            if arguments.table:
                with closing(Bridge(url)) as bridge:
                    cases = cases_of(bridge, seed=seed, each=arguments.each, only=arguments.only)
                count, faults = len(cases), run(make, chunked(cases))
            else:
                count, faults = try_random(make, arguments.inputs, seed)
        tried += count
        print(f"{target} --seed {seed}: {count} inputs, {len(faults)} stops, {time.monotonic() - begun:.0f} s")
        print("".join(f"  {fault}\n" for fault in faults), end="", flush=True)
        good = good and not faults
    if not tried:
        print(f"no case has {arguments.only!r} in its name")
    return 0 if good and tried else 1


@contextmanager
def _served(target: str) -> Generator[tuple[str, str | None]]:
    """Start a target's servers; Celery on RabbitMQ has a store, and Dramatiq has none."""
    engine, _, broker = target.partition("+")
    with PrivateRedis() as redis:
        if broker == "redis":
            yield f"{engine}+{redis.url}", None
            return
        with PrivateRabbitMQ() as rabbitmq:
            yield f"{engine}+{rabbitmq.url}", redis.url if engine == "celery" else None


if __name__ == "__main__":
    sys.exit(main())
