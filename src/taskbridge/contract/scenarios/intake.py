"""I: what arrives on a queue, whoever wrote it."""

from __future__ import annotations

from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.odd import ODD, changing
from taskbridge.contract.program import RETURN, Plan
from taskbridge.contract.registry import ALONE, scenario
from taskbridge.contract.target import Target


def _with_odd_ones(target: Target) -> str:
    return "" if target.address.engine in ODD else "its messages have no form that another sender could write"


@scenario("I1", on=(ALONE,), where=_with_odd_ones)
def odd_messages_are_buried(h: Harness) -> None:
    """An odd message is dead, and the message behind it runs at once, in a process and in threads."""
    odd = ODD[h.target.address.engine]
    behind: list[Sent] = []
    for threads in (1, 2):
        worker = h.start_worker(threads=threads)
        for name, change in odd.items():
            with changing(h.bridge, change):
                h.send(Plan(steps=(RETURN,), policy="once"))
            behind.append(h.send(Plan(steps=(RETURN,))))
            h.final(behind[-1].id)
            buried = len(behind)
            h.until(lambda: len(h.environment.letters()) >= buried, f"a dead letter of the message with {name}")  # noqa: B023
        h.stop(worker)
    letters = h.environment.letters()
    h.equal("the number of dead letters", len(letters), len(behind))
    h.equal("their reasons", {letter.reason for letter in letters} - {"undecodable", "internal_error"}, set[str]())
    h.equal("what waits", {queue: count for queue, count in h.bridge.counts().waiting.items() if count}, {})
    h.equal("the healthy ones' attempts", {start.attempt for item in behind for start in h.starts(item.id)}, {1})
