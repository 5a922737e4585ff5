"""What can be done on the page. Each act is a command of the command line, too (rule V4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from taskbridge.bridge import Bridge
from taskbridge.dead import Replayed, filters_text
from taskbridge.message import is_id
from taskbridge.routing import check_known

Form = Mapping[str, str]
"""The fields of a form that are not empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """Something that can be done.

    Attributes:
        do: Does it, and returns what is said of it; `TaskBridgeError` or `ValueError` say why it isn't done.
        page: Where to go then, if the form came from no page.
        target: What it is done to.
    """

    do: Callable[[Bridge, Form], str]
    page: str
    target: Callable[[Form], str] = lambda form: form.get("target", "")


def _filters(form: Form) -> dict[str, str | None]:
    return {name: form.get(name) for name in ("task", "reason", "queue")}


def _id(form: Form) -> str:
    if not is_id(found := form.get("target")):
        raise ValueError("this is no message's or flow's id")
    return found


def _rate(form: Form) -> float | None:
    try:
        return float(form["per_second"]) if "per_second" in form else None
    except ValueError:
        raise ValueError("how many start in a second must be a number above 0") from None


def _replay(bridge: Bridge, form: Form) -> str:
    return _told(bridge.dead.replay(_id(form)))


def _replay_all(bridge: Bridge, form: Form) -> str:
    task, reason, queue = _filters(form).values()
    return _told(bridge.dead.replay_all(task=task, reason=reason, queue=queue, per_second=_rate(form)))


def _told(replayed: Replayed) -> str:
    parts = [
        (replayed.ids, "replayed"),
        (replayed.missing, "not there any more"),
        (replayed.unreadable, "can't be read, and stay"),
        (replayed.held, "stay, for other messages hold their unique keys"),
    ]
    text = "; ".join(f"{len(ids)} {what}" for ids, what in parts if ids)
    return _if_done(replayed.ids, text, text or "there is nothing to replay")


def _if_done(is_done: object, text: str, why_not: str) -> str:
    if not is_done:
        raise ValueError(why_not)
    return text


def _purge(bridge: Bridge, form: Form) -> str:
    return _purged(bridge.dead.purge(_id(form)))


def _purge_all(bridge: Bridge, form: Form) -> str:
    return _purged(bridge.dead.purge_all(**_filters(form)))


def _purged(ids: Sequence[str]) -> str:
    return _if_done(ids, f"{len(ids)} purged", "there is nothing to purge any more")


def _cancel(bridge: Bridge, form: Form) -> str:
    status = bridge.handle(_id(form)).cancel(interrupt="interrupt" in form)
    if status.state == "cancelled":
        return f"Message {status.id} is cancelled: it starts no more"
    if status.is_final:
        raise ValueError(f"too late, message {status.id} is {status.state}")
    return f"Message {status.id} runs, and was told to stop; there is no further attempt"


def _pause(bridge: Bridge, form: Form) -> str:
    queue = form.get("target", "")
    check_known(queue, bridge.queues())
    bridge.pause(queue)
    return f"Queue {queue} is paused: nothing new starts"


def _resume(bridge: Bridge, form: Form) -> str:
    queue = form.get("target", "")
    return _if_done(bridge.resume(queue), f"Queue {queue} goes on", f"queue {queue} was not paused")


def _pause_task(bridge: Bridge, form: Form) -> str:
    task = form.get("target", "")
    bridge.pause(task=task)
    return f"Tasks {task} are paused: nothing new starts"


def _resume_task(bridge: Bridge, form: Form) -> str:
    task = form.get("target", "")
    return _if_done(bridge.resume(task=task), f"Tasks {task} go on", f"tasks {task} were not paused")


def _pause_schedule(bridge: Bridge, form: Form) -> str:
    bridge.schedules.pause(form.get("target", ""))
    return "The schedule is paused"


def _resume_schedule(bridge: Bridge, form: Form) -> str:
    bridge.schedules.resume(form.get("target", ""))
    return "The schedule goes on"


def _run_schedule(bridge: Bridge, form: Form) -> str:
    return f"Sent as message {bridge.schedules.run(form.get('target', ''))}"


def _cancel_flow(bridge: Bridge, form: Form) -> str:
    flow = bridge.flows.cancel(_id(form))
    return _if_done(flow.state == "cancelled", f"Flow {flow.id} is cancelled: it starts no step", f"it is {flow.state}")


def _retry_flow(bridge: Bridge, form: Form) -> str:
    flow = bridge.flows.status(_id(form))
    _if_done(flow.state != "done" or flow.is_stalled, "", "there is nothing to retry: it is done")
    bridge.flows.retry(flow.id)
    return f"Flow {flow.id} goes on"


def _filtered(form: Form) -> str:
    return filters_text(**_filters(form))


ACTS: Final[Mapping[str, Act]] = {
    "replay": Act(do=_replay, page="dead"),
    "replay_all": Act(do=_replay_all, page="dead", target=_filtered),
    "purge": Act(do=_purge, page="dead"),
    "purge_all": Act(do=_purge_all, page="dead", target=_filtered),
    "cancel": Act(do=_cancel, page="running"),
    "pause": Act(do=_pause, page=""),
    "resume": Act(do=_resume, page=""),
    "pause_task": Act(do=_pause_task, page=""),
    "resume_task": Act(do=_resume_task, page=""),
    "pause_schedule": Act(do=_pause_schedule, page="schedules"),
    "resume_schedule": Act(do=_resume_schedule, page="schedules"),
    "run_schedule": Act(do=_run_schedule, page="schedules"),
    "cancel_flow": Act(do=_cancel_flow, page="flows"),
    "retry_flow": Act(do=_retry_flow, page="flows"),
}
"""The acts, by the names that `allow` and the hook `operated` are given."""
