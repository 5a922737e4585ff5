"""Celery's remote control: whoever may write to the broker can send it, so only what reads is obeyed (rule I5)."""

from __future__ import annotations

from typing import Any, Final

from taskbridge.engines.celery.stock import CeleryControl, ControlMailbox, ControlNode, ControlPanel, stock
from taskbridge.logs import logger

_log = logger("taskbridge.celery")

_HARMFUL: Final = ("hello", "memdump", "memsample", "objgraph")
"""Commands that Celery counts among those that read: they revoke, write a file, or take the main loop's time."""


class Node(ControlNode):
    """Where a worker receives remote control."""

    def handle(self, method: Any, arguments: Any = None) -> Any:
        """Carry a command out and return the answer; for one that is refused, that says so."""
        if self.state.app.engine.settings.remote_control or _only_reads(method):
            return stock(super()).handle(method, arguments)
        why = f"remote control: {str(method)[:50]!r} is refused, for the setting remote_control is off"
        _log.warning("%s", why)
        return {"error": why}


def _only_reads(method: object) -> bool:
    """Return whether a command, perhaps by its older name, changes nothing; Flower sends `enable_events`."""
    inspecting = {name: about.alias for name, about in ControlPanel.meta.items() if about.type == "inspect"}
    return method == "enable_events" or (method not in _HARMFUL and method in {*inspecting, *inspecting.values()})


class _Mailbox(ControlMailbox):
    node_cls = Node


class Control(CeleryControl):
    """Sends remote control, and makes the place where a worker receives it."""

    Mailbox = _Mailbox
