"""X: expiry."""

from __future__ import annotations

from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.program import RETURN, Plan, ask
from taskbridge.contract.registry import ALONE, ORDINARY, scenario


@scenario("X1", on=(ALONE,))
def what_waited_too_long_is_discarded(h: Harness) -> None:
    """What waited too long for a worker is discarded, not run."""
    sent = [
        h.send(Plan(steps=(RETURN,), expires_s=0.5)),
        h.send_to(h.tasks.expiring, Plan(steps=(RETURN,))),
    ]
    fresh = h.send(Plan(steps=(RETURN,), expires_s=600))
    kept = h.own(h.tasks.expiring.using(expires=600).send([RETURN.plain()]))
    h.pause(0.7)
    h.start_worker()
    h.finished(*(item.id for item in [*sent, fresh, kept]))
    _expired(h, sent)
    h.equal("the starts of what has not expired", [len(h.starts(item.id)) for item in (fresh, kept)], [1, 1])


@scenario("X1", on=(ORDINARY,))
def what_is_due_too_late_is_discarded(h: Harness) -> None:
    """What would start after it has expired is discarded, first attempt or later."""
    h.run([Plan(steps=(RETURN,), delay_s=1, expires_s=0.3), Plan(steps=(ask(16), RETURN), expires_s=15)])


def _expired(h: Harness, sent: list[Sent]) -> None:
    for item in sent:
        h.equal("the runs of what has expired", h.starts(item.id), [])
        h.equal("its before_run hooks", h.records(item.id, "before_run"), [])
        final = h.final(item.id)[0]
        h.equal("how it ended", (final.kind, final.data["reason"]), ("discarded", "expired"))
        h.equal("its dead letters", h.letters(item.id), [])
