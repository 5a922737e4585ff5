"""Runs checks on a store."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator

from taskbridge import BrokerUnavailable
from taskbridge.contract import cleaning
from taskbridge.contract.failure import ContractFailure
from taskbridge.contract.stores import checks
from taskbridge.contract.stores.place import Place, Server
from taskbridge.contract.stores.table import CHECKS, Check
from taskbridge.contract.suite import Outcome, Result

__all__ = ["checks", "run_all", "run_check"]


def run_check(check: Check, url: str, *, server: Server | None = None) -> Result:
    """Run a check in a namespace of its own.

    Args:
        check: One of `CHECKS`.
        url: The store's. Its tables, if it needs any, are there.
        server: What is behind it, if the check may take it away.
    """
    started, kind = time.monotonic(), url.partition(":")[0]
    with Place(url, server=server) as place:
        if why := check.refusal(place):
            return Result(scenario=check.name, target=kind, outcome="not applicable", why=why)
        outcome: Outcome = "passed"
        try:
            check.run(place)
        except ContractFailure as exc:
            outcome, why = "failed", str(exc)
        except BrokerUnavailable as exc:  # which those that take the store away expect themselves
            outcome, why = "failed", f"the store is there, and says: {exc}"
        except Exception:
            outcome, why = "crashed", traceback.format_exc()
    try:
        cleaning.remove_stored(url, [place.namespace])
    except BrokerUnavailable as exc:
        outcome, why = "failed", f"{why}\nafterwards: {exc}".strip()
    return Result(scenario=check.name, target=kind, outcome=outcome, seconds=time.monotonic() - started, why=why)


def run_all(url: str, chosen: Iterable[Check] | None = None, *, server: Server | None = None) -> Iterator[Result]:
    """Run checks, all if none are chosen, one after the other."""
    for check in CHECKS.values() if chosen is None else chosen:
        yield run_check(check, url, server=server)
