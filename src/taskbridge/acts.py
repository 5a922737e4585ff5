"""What operators do by hand, and what is said of it: the same on the page, by commands and in Django's admin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge
    from taskbridge.dead import Replayed

_SHOWN_IDS: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of an act.

    Attributes:
        text: What is said of it, without a capital letter and a full stop.
        is_done: Whether anything was done; else the text says why not.
        is_whole: Whether nothing was left out.
        found: The status of the message or flow after it, or the id of what was sent.
    """

    text: str
    is_done: bool = True
    is_whole: bool = True
    found: Any = None


def cancel(bridge: Bridge, id: str, *, interrupt: bool = False) -> Outcome:
    """Cancel a message; raises as `Handle.cancel`."""
    found = bridge.dead.shown_status(bridge.handle(id).cancel(interrupt=interrupt))
    if found.state == "cancelled":
        return Outcome(text=f"message {id} is cancelled: it starts no more", found=found)
    if found.is_final:
        return Outcome(text=f"too late: message {id} is {found.state}", is_done=False, found=found)
    told = "is interrupted" if interrupt else "was told to stop"
    return Outcome(text=f"message {id} runs, and {told}; there is no further attempt", found=found)


def cancel_flow(bridge: Bridge, id: str) -> Outcome:
    """Cancel a flow; raises as `Flows.cancel`."""
    found = bridge.dead.shown_flow(bridge.flows.cancel(id))
    if found.state == "cancelled":
        return Outcome(text=f"flow {id} is cancelled: it starts no step", found=found)
    return Outcome(text=f"too late: flow {id} is {found.state}", is_done=False, found=found)


def retry_flow(bridge: Bridge, id: str) -> Outcome:
    """Go on with a flow that did not end well, or is stalled; raises as `Flows.retry`."""
    found = bridge.dead.shown_flow(bridge.flows.status(id))
    if found.state == "done" and not found.is_stalled:
        return Outcome(text=f"nothing to retry: flow {id} is done", is_done=False, found=found)
    return Outcome(text=f"flow {id} goes on", found=bridge.dead.shown_flow(bridge.flows.retry(id)))


def pause(bridge: Bridge, queue: str | None, task: str | None = None, until: datetime | None = None) -> Outcome:
    """Pause a queue, or the tasks of a glob; raises as `Bridge.pause`."""
    bridge.pause(queue, task=task, until=until)
    return Outcome(text=f"{_which(queue, task)} is paused")


def resume(bridge: Bridge, queue: str | None, task: str | None = None) -> Outcome:
    """Resume a queue, or the tasks of a glob; raises as `Bridge.resume`."""
    was_paused = bridge.resume(queue, task=task)
    return Outcome(text=f"{_which(queue, task)} {'goes on' if was_paused else 'was not paused'}", is_done=was_paused)


def _which(queue: str | None, task: str | None) -> str:
    return f"every task that matches {task}" if queue is None else f"queue {queue}"


def pause_schedule(bridge: Bridge, name: str) -> Outcome:
    """Pause a schedule; raises as `Schedules.pause`."""
    bridge.schedules.pause(name)
    return Outcome(text=f"schedule {name} is paused")


def resume_schedule(bridge: Bridge, name: str) -> Outcome:
    """Resume a schedule; raises as `Schedules.resume`."""
    bridge.schedules.resume(name)
    return Outcome(text=f"schedule {name} is active")


def run_schedule(bridge: Bridge, name: str) -> Outcome:
    """Send a schedule's message now; raises as `Schedules.run`."""
    sent = bridge.schedules.run(name)
    return Outcome(text=f"schedule {name} is sent as message {sent}", found=sent)


def replayed(found: Replayed) -> Outcome:
    """Return what is said of dead letters that were to be replayed."""
    left = (
        (found.missing, "is not there any more", "are not there any more"),
        (found.unreadable, "can't be read and stays", "can't be read and stay"),
        (found.held, "stays, for another message has its unique key", "stay, for others have their unique keys"),
    )
    parts = [f"replayed {letters(found.ids)}"] if found.ids else []
    parts += [f"{letters(ids)} {one if len(ids) == 1 else more}: {some(ids)}" for ids, one, more in left if ids]
    is_whole = not (found.missing or found.unreadable or found.held)
    return Outcome(text="; ".join(parts) or "nothing to replay", is_done=bool(found.ids), is_whole=is_whole)


def purged(ids: Sequence[str]) -> Outcome:
    """Return what is said of dead letters that were purged."""
    return Outcome(text=f"purged {letters(ids)}" if ids else "nothing to purge", is_done=bool(ids))


def letters(ids: Sequence[object]) -> str:
    """Return how many dead letters these are, with the noun."""
    return f"{len(ids)} dead letter{'' if len(ids) == 1 else 's'}"


def some(ids: Sequence[str]) -> str:
    """Return ids as a list for people; of many the first ones, and how many there are more."""
    more = len(ids) - _SHOWN_IDS
    return ", ".join(ids[:_SHOWN_IDS]) + (f" and {more} more" if more > 0 else "")
