"""What can be done on the page. Each act is a command of the command line, too (rule V4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from taskbridge.bridge import Bridge
from taskbridge.dead import Replayed, filters_text
from taskbridge.message import is_id
from taskbridge.routing import check_known

Form = Mapping[str, str]
"""The fields of a form that are not empty."""


def _filters(form: Form) -> dict[str, str | None]:
    return {name: form.get(name) for name in ("task", "reason", "queue")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """Something that can be done.

    Attributes:
        call: Does it to a target, and returns what is put in the text for `{done}`; False if there was nothing to do.
        said: The text.
        why_not: The text if there was nothing to do.
        of: What the target is: a name, an id, or filters of dead letters.
        page: Where to go then, if the form came from no page.
    """

    call: Callable[[Bridge, str, Form], object]
    said: str = "{done}"
    why_not: str = ""
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
        done = self.call(bridge, target, form)
        if done is False:
            raise ValueError(self.why_not.format(target=target))
        return self.said.format(target=target, done=done)


def _replay_all(bridge: Bridge, _: str, form: Form) -> str:
    try:
        per_second = float(form["per_second"]) if "per_second" in form else None
    except ValueError:
        raise ValueError("how many start in a second must be a number above 0") from None
    task, reason, queue = _filters(form).values()
    return _replayed(bridge.dead.replay_all(task=task, reason=reason, queue=queue, per_second=per_second))


def _replayed(replayed: Replayed) -> str:
    parts = [
        (replayed.ids, "replayed"),
        (replayed.missing, "not there any more"),
        (replayed.unreadable, "can't be read, and stay"),
        (replayed.held, "stay, for other messages hold their unique keys"),
    ]
    text = "; ".join(f"{len(ids)} {what}" for ids, what in parts if ids)
    if not replayed.ids:
        raise ValueError(text or "there is nothing to replay")
    return text


def _cancel(bridge: Bridge, id: str, form: Form) -> str:
    status = bridge.handle(id).cancel(interrupt="interrupt" in form)
    if status.state == "cancelled":
        return f"Message {status.id} is cancelled: it starts no more"
    if status.is_final:
        raise ValueError(f"too late, message {status.id} is {status.state}")
    return f"Message {status.id} runs, and was told to stop; there is no further attempt"


def _pause(bridge: Bridge, queue: str, _: Form) -> None:
    check_known(queue, bridge.queues())
    bridge.pause(queue)


def _cancel_flow(bridge: Bridge, id: str, _: Form) -> str:
    flow = bridge.flows.cancel(id)
    if flow.state != "cancelled":
        raise ValueError(f"it is {flow.state}")
    return f"Flow {flow.id} is cancelled: it starts no step"


def _retry_flow(bridge: Bridge, id: str, _: Form) -> object:
    flow = bridge.flows.status(id)
    return (flow.state != "done" or flow.is_stalled) and bridge.flows.retry(id)


_PURGED: Final[dict[str, Any]] = {
    "said": "{done} purged",
    "why_not": "there is nothing to purge any more",
    "page": "dead",
}

ACTS: Final[Mapping[str, Act]] = {
    "replay": Act(call=lambda bridge, dead, _: _replayed(bridge.dead.replay(dead)), of="id", page="dead"),
    "replay_all": Act(call=_replay_all, of="filters", page="dead"),
    "purge": Act(call=lambda bridge, dead, _: len(bridge.dead.purge(dead)) or False, of="id", **_PURGED),
    "purge_all": Act(
        call=lambda bridge, _, form: len(bridge.dead.purge_all(**_filters(form))) or False, of="filters", **_PURGED
    ),
    "cancel": Act(call=_cancel, of="id", page="running"),
    "pause": Act(call=_pause, said="Queue {target} is paused: nothing new starts"),
    "resume": Act(
        call=lambda bridge, queue, _: bridge.resume(queue),
        said="Queue {target} goes on",
        why_not="queue {target} was not paused",
    ),
    "pause_task": Act(
        call=lambda bridge, task, _: bridge.pause(task=task), said="Tasks {target} are paused: nothing new starts"
    ),
    "resume_task": Act(
        call=lambda bridge, task, _: bridge.resume(task=task),
        said="Tasks {target} go on",
        why_not="tasks {target} were not paused",
    ),
    "pause_schedule": Act(
        call=lambda bridge, name, _: bridge.schedules.pause(name), said="The schedule is paused", page="schedules"
    ),
    "resume_schedule": Act(
        call=lambda bridge, name, _: bridge.schedules.resume(name), said="The schedule goes on", page="schedules"
    ),
    "run_schedule": Act(
        call=lambda bridge, name, _: bridge.schedules.run(name), said="Sent as message {done}", page="schedules"
    ),
    "cancel_flow": Act(call=_cancel_flow, of="id", page="flows"),
    "retry_flow": Act(
        call=_retry_flow,
        said="Flow {target} goes on",
        why_not="there is nothing to retry: it is done",
        of="id",
        page="flows",
    ),
}
"""The acts, by the names that `allow` and the hook `operated` are given."""
