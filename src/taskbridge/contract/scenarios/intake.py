"""I: what arrives on a queue, whoever wrote it."""

from __future__ import annotations

from typing import Final

from taskbridge.contract.deaths import UNEXPECTED
from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.odd import ODD, changing
from taskbridge.contract.program import RETURN, Plan
from taskbridge.contract.registry import ALONE, scenario, with_processes
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import Variant

_PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""How long a message waits after each unexpected error but the last."""


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


@scenario("I2", on=(ALONE,), where=with_processes)
def an_unexpected_error_requeues(h: Harness) -> None:
    """A message that meets an unexpected error each time waits longer each time, and is dead the sixth time."""
    h.start_worker(threads=2, variant=Variant(dies=UNEXPECTED), answers=False)
    sent = h.send(Plan(steps=(RETURN,), headers={UNEXPECTED: "always"}))
    healthy = h.send(Plan(steps=(RETURN,)))
    h.equal("what became of the message behind it", h.final(healthy.id)[0].kind, "succeeded")
    before = h.started(sent.id)
    for number, pause_s in enumerate(_PAUSES_S, start=2):
        again = h.started(sent.id, times=number, within_s=pause_s + h.patience_s)
        waited_s = again.at - before.at
        h.check(
            waited_s >= pause_s, f"start {number} should come {pause_s:g} s after the one before, not {waited_s:.2f} s"
        )
        before = again
    final = h.final(sent.id)[0]
    h.equal("how it ended", (final.kind, final.data["reason"]), ("dead", "internal_error"))
    h.idle()
    h.equal(
        "the attempts that were started", [start.attempt for start in h.starts(sent.id)], [1] * (len(_PAUSES_S) + 1)
    )
    h.equal("its dead letters", [letter.reason for letter in h.letters(sent.id)], ["internal_error"])
    h.check("nobody expected" in h.letters(sent.id)[0].traceback, "its dead letter should have the error's traceback")
