"""What can be done on the page, and what its forms hold. Each act is a command of the command line, too (rule V4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from taskbridge import acts
from taskbridge.bridge import Bridge
from taskbridge.dead import filters_text
from taskbridge.message import is_id

Form = Mapping[str, str]
"""The fields of a form that are not empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """Something that can be done.

    Attributes:
        call: Does it to a target.
        of: What the target is: a name, an id, or filters of dead letters.
        page: Where to go then, if the form came from no page.
    """

    call: Callable[[Bridge, str, Form], acts.Outcome]
    of: Literal["name", "id", "filters"] = "name"
    page: str = ""

    def target(self, form: Form) -> str:
        """Return what the act is done to."""
        return filters_text(**_filters(form)) if self.of == "filters" else form.get("target", "")

    def do(self, bridge: Bridge, form: Form) -> str:
        """Do it, and return what is said of it; `TaskBridgeError` or `ValueError` say why it isn't done."""
        target = self.target(form)
        if self.of == "id" and not is_id(target):
            raise ValueError("this is no message's or flow's id")
        outcome = self.call(bridge, target, form)
        if not outcome.is_done:
            raise ValueError(outcome.text)
        return outcome.text[:1].upper() + outcome.text[1:]


def _filters(form: Form) -> dict[str, Any]:
    return {name: form.get(name) for name in ("task", "reason", "queue")}


def _replay_all(bridge: Bridge, _: str, form: Form) -> acts.Outcome:
    try:
        per_second = float(form["per_second"]) if "per_second" in form else None
    except ValueError:
        raise ValueError("how many start in a second must be a number above 0") from None
    return acts.replayed(bridge.dead.replay_all(**_filters(form), per_second=per_second))


def _purge_all(bridge: Bridge, _: str, form: Form) -> acts.Outcome:
    return acts.purged(bridge.dead.purge_all(**_filters(form)))


ACTS: Final[Mapping[str, Act]] = {
    "replay": Act(call=lambda bridge, dead, _: acts.replayed(bridge.dead.replay(dead)), of="id", page="dead"),
    "replay_all": Act(call=_replay_all, of="filters", page="dead"),
    "purge": Act(call=lambda bridge, dead, _: acts.purged(bridge.dead.purge(dead)), of="id", page="dead"),
    "purge_all": Act(call=_purge_all, of="filters", page="dead"),
    "cancel": Act(
        call=lambda bridge, message, form: acts.cancel(bridge, message, interrupt="interrupt" in form),
        of="id",
        page="running",
    ),
    "pause": Act(call=lambda bridge, queue, _: acts.pause(bridge, queue)),
    "resume": Act(call=lambda bridge, queue, _: acts.resume(bridge, queue)),
    "pause_task": Act(call=lambda bridge, task, _: acts.pause(bridge, None, task)),
    "resume_task": Act(call=lambda bridge, task, _: acts.resume(bridge, None, task)),
    "pause_schedule": Act(call=lambda bridge, name, _: acts.pause_schedule(bridge, name), page="schedules"),
    "resume_schedule": Act(call=lambda bridge, name, _: acts.resume_schedule(bridge, name), page="schedules"),
    "run_schedule": Act(call=lambda bridge, name, _: acts.run_schedule(bridge, name), page="schedules"),
    "cancel_flow": Act(call=lambda bridge, flow, _: acts.cancel_flow(bridge, flow), of="id", page="flows"),
    "retry_flow": Act(call=lambda bridge, flow, _: acts.retry_flow(bridge, flow), of="id", page="flows"),
}
"""The acts, by the names that `allow` and the hook `operated` are given."""
