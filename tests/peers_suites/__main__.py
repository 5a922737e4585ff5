"""`python -m tests.peers_suites`: other projects' own tests, on their own classes and on taskbridge's, side by side."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.peers_suites import differences, page, sources
from tests.peers_suites.differences import Comparison
from tests.peers_suites.running import Outcome, outcomes, run, servers
from tests.peers_suites.suites import SUITES, Suite

_DESCRIPTION: Final = """\
Run the tests that Dramatiq, kombu and Celery ship in their source distributions, each as it is and on taskbridge's
classes, against private servers. Exits with 1 if a test passes as it is but not on taskbridge's classes, and
that is not among the differences that are intended. pip fetches the sources, which are thrown away at the end.

  python -m tests.peers_suites
  python -m tests.peers_suites dramatiq-redis kombu-redis
  python -m tests.peers_suites --source dramatiq=/path/to/a/checkout dramatiq-memory
"""


def main() -> int:
    """Run the chosen suites, and return 1 if one shows a difference that is not intended."""
    listed = "\n".join(f"  {name:<20}{suite.title}; {suite.replaces}" for name, suite in SUITES.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.peers_suites",
        description=_DESCRIPTION,
        epilog=f"suites:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="SUITE", help="default: all")
    parser.add_argument(
        "--source", action="append", default=[], metavar="PACKAGE=FOLDER", help="sources that are there"
    )
    parser.add_argument("--only", action="append", default=[], metavar="EXPRESSION", help="pytest's -k")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what pytest prints")
    parser.add_argument(
        "--again", action="store_true", help="run nothing: compare what is kept in the folder of --logs"
    )
    parser.add_argument("--write", action="store_true", help="write the results into docs/peers-suites.md")
    options = parser.parse_args()
    names: list[str] = options.names or list(SUITES)
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        parser.error(f"there is no suite {unknown[0]!r} among {', '.join(SUITES)}")
    given = {name: Path(folder).resolve() for name, _, folder in (each.partition("=") for each in options.source)}
    more = [word for each in options.only for word in ("-k", each)]
    with tempfile.TemporaryDirectory(prefix="taskbridge-suites-") as made:
        folder = Path(made)
        logs = folder if options.logs is None else options.logs.resolve()
        logs.mkdir(parents=True, exist_ok=True)
        compared: list[Comparison] = []
        for name in names:
            try:
                compared.append(_kept(name, logs) if options.again else _compared(name, given, folder, logs, more))
            except sources.NoSources as exc:
                print(f"{name}: left out: {exc}")
    if options.write:
        page.write(compared, {package: sources.version_of(package) for package in ("celery", "kombu", "dramatiq")})
    return 1 if not compared or any(each.unexplained() for each in compared) else 0


def _compared(name: str, given: dict[str, Path], folder: Path, logs: Path, more: list[str]) -> Comparison:
    """Run a suite both ways, print what came of it, and return that."""
    suite = SUITES[name]
    if suite.package not in given:
        given[suite.package] = sources.fetched(suite.package, sources.version_of(suite.package), folder)
    at = given[suite.package]
    missing = [word for word in suite.chosen if not word.startswith("-") and not (at / word).exists()]
    if missing:
        raise sources.NoSources(f"{at.name} has no {missing[0]}; --source {suite.package}=FOLDER names a checkout")
    if suite.package == "dramatiq":
        sources.complete(at / "tests")
    stock, ours = (_ran(name, suite, at, folder, logs, more, on_taskbridge=each) for each in (False, True))
    return _told(Comparison(suite=name, stock=stock, ours=ours))


def _kept(name: str, logs: Path) -> Comparison:
    """Return what came of a suite's last runs."""
    reports = [logs / f"{name}-{which}.xml" for which in ("stock", "ours")]
    if not all(report.exists() for report in reports):
        raise sources.NoSources(f"{logs} has no reports of it")
    stock, ours = map(outcomes, reports)
    return _told(Comparison(suite=name, stock=stock, ours=ours))


def _told(comparison: Comparison) -> Comparison:
    """Print a comparison, and return it."""
    name, stock, ours = comparison.suite, comparison.stock, comparison.ours
    for test in comparison.worse():
        found = differences.reason_of(name, test)
        outcome = ours.get(test, Outcome(ending="failed", why="not run"))
        print(f"  {'intended' if found else 'WORSE   '} {test}: {outcome.why}")
    print(f"{name}: {page.counts(stock)} as it is, {page.counts(ours)} on taskbridge (passed, failed, skipped)")
    return comparison


def _ran(
    name: str, suite: Suite, at: Path, folder: Path, logs: Path, more: list[str], *, on_taskbridge: bool
) -> dict[str, Outcome]:
    """Run a suite once, on servers of its own."""
    log = logs / f"{name}-{'ours' if on_taskbridge else 'stock'}.log"
    with servers(folder, with_rabbitmq=name.endswith("rabbitmq")) as variables:
        return run(suite, at, sources.python(), on_taskbridge=on_taskbridge, variables=variables, log=log, more=more)


if __name__ == "__main__":
    sys.exit(main())
