"""`python -m tests.brokers`: the contract on every broker, deployment and release of an engine, by hand."""

from __future__ import annotations

import argparse
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from tests.brokers import page
from tests.brokers.runs import ENGINES, ROOT, RUNS, default_pythons, in_turn
from tests.programs import versions

_DESCRIPTION: Final = """\
Run the contract on RabbitMQ, Redis and Valkey of several releases, on clusters, over TLS, with the newest engines and
the oldest that are supported. Prints a line for each, and exits with 1 if a scenario fails. All of it takes hours.

  python -m tests.brokers                              everything
  python -m tests.brokers 'rabbitmq*' --engine celery  some
  python -m tests.brokers --write redis valkey-sid     puts the results into docs/brokers.md, beside those of the others
"""


def main() -> int:
    """Run what is asked for, and return 1 if a scenario fails."""
    names = "\n".join(f"  {name:<18}{_shown(name)}" for name in RUNS)
    parser = argparse.ArgumentParser(
        prog="python -m tests.brokers",
        description=_DESCRIPTION,
        epilog=f"runs:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="RUN", help="by name or glob; default: all")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="default: both")
    parser.add_argument(
        "--python",
        type=Path,
        action="append",
        metavar="PATH",
        help="an interpreter; default: those of .venv and .venv-older",
    )
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what pytest prints")
    parser.add_argument("--write", action="store_true", help="write the results into docs/brokers.md")
    parser.add_argument("--pytest", action="append", default=[], metavar="WORD", help="a further option for pytest")
    options = parser.parse_args()
    if options.write and options.pytest:
        parser.error("--write with --pytest: the page shows whole runs, so take one of the two")
    globs: list[str] = options.names or ["*"]
    wrong = [glob for glob in globs if not any(fnmatchcase(name, glob) for name in RUNS)]
    if wrong:
        parser.error(f"there is no run {wrong[0]!r} among {', '.join(RUNS)}")
    chosen = [name for name in RUNS if any(fnmatchcase(name, glob) for glob in globs)]
    releases = sorted({release for name in chosen for release in RUNS[name].releases})
    if releases:
        subprocess.run([str(ROOT / "scripts/servers"), *releases], check=True)
    known, rows, good = versions(), page.kept(), True
    engines, pythons = options.engine or ENGINES, options.python or default_pythons()
    for run, outcome in in_turn(chosen, engines, pythons, options.pytest, options.logs):
        good = good and outcome.is_good
        print(
            f"{run.title(known)}, {outcome.engine}: {outcome.passed} passed, {len(outcome.failed)} failed", flush=True
        )
        for test, why in outcome.failed.items():
            print(f"  {test}: {why}", flush=True)
        page.enter(rows, run, outcome, known)
        if options.write:
            page.write(rows)
    return 0 if good else 1


def _shown(name: str) -> str:
    run = RUNS[name]
    return ", ".join(filter(None, (run.broker, run.servers, run.what)))


if __name__ == "__main__":
    sys.exit(main())
