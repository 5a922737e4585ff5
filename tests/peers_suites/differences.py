"""Where taskbridge's classes are meant to differ from those that a suite was written for; each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from tests.peers_suites.running import Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A difference that is intended.

    Attributes:
        suites: A glob of names of suites.
        tests: Globs of tests, by class and name.
        reason: Why, for the page.
    """

    suites: str
    tests: Sequence[str]
    reason: str

    def covers(self, suite: str, test: str) -> bool:
        """Return whether it is about this test of this suite."""
        return fnmatchcase(suite, self.suites) and any(fnmatchcase(test, f"*{each}") for each in self.tests)


DIFFERENCES: Final[Sequence[Difference]] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A suite's two runs beside one another.

    Attributes:
        stock: How the tests ended as they are.
        ours: How they ended on taskbridge's classes.
    """

    suite: str
    stock: Mapping[str, Outcome]
    ours: Mapping[str, Outcome]

    def worse(self) -> list[str]:
        """Return the tests that pass as they are, and not on taskbridge's classes."""
        passed = [name for name, outcome in self.stock.items() if outcome.ending == "passed"]
        return [name for name in passed if name not in self.ours or self.ours[name].ending != "passed"]

    def better(self) -> list[str]:
        """Return the tests that fail as they are, and pass on taskbridge's classes."""
        failed = [name for name, outcome in self.stock.items() if outcome.ending == "failed"]
        return [name for name in failed if name in self.ours and self.ours[name].ending == "passed"]

    def unexplained(self) -> list[str]:
        """Return what is worse, and is no difference that is intended."""
        return [name for name in self.worse() if reason_of(self.suite, name) is None]


def reason_of(suite: str, test: str) -> Difference | None:
    """Return the difference that is about a test; None if none is."""
    return next((each for each in DIFFERENCES if each.covers(suite, test)), None)
