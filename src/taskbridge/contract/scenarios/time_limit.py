"""T: time limits."""

from __future__ import annotations

from typing import Any

from taskbridge import Task
from taskbridge.contract.harness import Harness
from taskbridge.contract.program import Plan, Step
from taskbridge.contract.registry import ORDINARY, PROCESSES, scenario

_LIMIT_S = 0.5
_LATE_S = 5.0


@scenario("T1", on=(ORDINARY, PROCESSES))
def a_run_over_its_limit_is_ended(h: Harness) -> None:
    """A run over its limit is ended and counted as failed."""
    coroutine: Any = h.tasks.limited_coroutine
    sent = [
        _send(h, h.tasks.limited, Step(spin_s=30)),
        _send(h, h.tasks.limited, Step(sleep_s=30)),
        _send(h, coroutine, Step(sleep_s=30)),
    ]
    quick = _send(h, h.tasks.limited, Step(sleep_s=0.1))
    h.final(*sent, quick, within_s=h.stage.patience_s + 10)
    h.idle()
    for limited in sent:
        h.equal("its attempts", [start.attempt for start in h.starts(limited)], [1, 2])
        final = h.final(limited)[0]
        told = (final.kind, final.data["reason"], final.data["error"])
        h.equal("how it ended", told, ("dead", "exhausted", "TimeLimitExceeded"))
        h.equal("the error of the retry", h.records(limited, "retrying")[0].data["error"], "TimeLimitExceeded")
        for before, end in zip(h.records(limited, "before_run"), h.ends(limited), strict=True):
            took_s = end.at - before.at
            h.check(took_s >= _LIMIT_S, f"it may run {_LIMIT_S} s, but was ended after {took_s:.3f} s")
            h.check(took_s <= _LIMIT_S + _LATE_S, f"it may run {_LIMIT_S} s, but was ended after {took_s:.3f} s")
    h.equal("how a quick run ended", h.final(quick)[0].kind, "succeeded")


def _send(h: Harness, task: Task[[list[dict[str, Any]]], str], step: Step) -> str:
    return h.send_to(task, Plan(steps=(step,))).id
