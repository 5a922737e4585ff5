"""`python -m taskbridge.contract.stores URL...` runs every check on stores; the tables of SQL stores are made."""

from __future__ import annotations

import argparse
import sys

from taskbridge.contract.stores import __doc__ as description
from taskbridge.contract.stores.place import TIMEOUT_S, Place
from taskbridge.contract.stores.suite import run_all
from taskbridge.stores.backend import BackendWithTables


def main() -> int:
    """Run what the arguments say, and return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m taskbridge.contract.stores", description=description)
    parser.add_argument("url", nargs="+")
    code = 0
    for number, url in enumerate(parser.parse_args().url, 1):
        with Place(url) as place:
            store = place.store()
            if isinstance(store.backend, BackendWithTables):
                store.backend.init(timeout_s=TIMEOUT_S)
        for result in run_all(url):
            code |= int(result.outcome in ("failed", "crashed"))
            sys.stdout.write(f"{number} {result.outcome:<14} {result.scenario} {result.seconds:.1f} s {result.why}\n")
            sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
