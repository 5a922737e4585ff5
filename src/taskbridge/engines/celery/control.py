"""Celery's remote control: whoever may write to the broker can send it, so only what reads is obeyed (rule I5)."""

from __future__ import annotations

from secrets import token_hex
from typing import Any, Final

from taskbridge.engines.celery.stock import CeleryControl, ControlMailbox, ControlNode, ControlPanel, stock
from taskbridge.logs import logger

_log = logger("taskbridge.celery")

_HARMFUL: Final = ("hello", "memdump", "memsample", "objgraph")
"""Commands that Celery counts among those that read: they revoke, write a file, or take the main loop's time."""


_LATEST: Final = 2**53
"""The latest logical clock that counts; an answer says a later one, and RabbitMQ's headers hold 64 bits."""


class Node(ControlNode):
    """Where a worker receives remote control."""

    def handle_message(self, body: Any, message: Any = None) -> Any:
        """Carry out what came; the sender's clock sets the worker's, unless it is no such thing (rule I1).

        Nothing odd is raised: Celery would close the channel for it, and lose the commands behind it.
        """
        clock = None if message is None else message.headers.get("clock")
        is_clock = isinstance(clock, int) and 0 <= clock <= _LATEST
        engine = self.state.app.engine
        try:
            if body.get("matcher") == "pcre" and not engine.settings.remote_control:
                _log.warning("remote control: a regular expression, which may take for ever, is refused")
                return None
            return stock(super()).handle_message(body, message if is_clock else None)
        except (*engine.transport.connection_errors, *engine.transport.channel_errors):
            raise
        except Exception as exc:
            kind = type(exc).__name__
            _log.error("a message on a control channel can't be carried out, ignored: %s: %s", kind, exc)

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
    """Where remote control is sent to, and answered; all names begin with the namespace, so that permissions can."""

    node_cls = Node
    reply_exchange_fmt = "%s.reply.pidbox"

    def get_queue(self, hostname: str) -> Any:
        """Return the queue of a worker, of a name that a lost connection, which the server still has, doesn't hold."""
        queue = stock(super()).get_queue(hostname)
        token = "" if queue.durable else f".{token_hex(4)}"
        return self._own(queue, f"{self.namespace}.pidbox.{hostname}{token}")

    def get_reply_queue(self) -> Any:
        queue = stock(super()).get_reply_queue()
        return self._own(queue, f"{queue.exchange.name}.{self.oid}")

    def _own(self, queue: Any, name: str) -> Any:
        queue.name = name
        queue.exclusive = not queue.durable  # as in kombu from 5.7; RabbitMQ 4.3 refuses others that don't last
        return queue


class Control(CeleryControl):
    """Sends remote control, and makes the place where a worker receives it."""

    Mailbox = _Mailbox
