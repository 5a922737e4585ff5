"""OB1 and W2, broken: flows in an application's outbox."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

from taskbridge import codec
from taskbridge.message import new_id
from taskbridge.stores.entries import KEPT, KEPT_END
from tests.mutants.table import mutant, put

_COMMITTED = "a_flow_in_an_outbox_begins_once_when_it_is_committed"
_KILLED = "a_flow_in_an_outbox_begins_once_whoever_is_killed"
_OUTBOX = "taskbridge.outbox"
_RUNNING = "taskbridge.flows.running"


@mutant("OB1", _COMMITTED)
def a_flow_in_the_outbox_is_forgotten() -> None:
    """Who relays removes a flow's entry, and does not begin the flow."""
    put(_RUNNING, "Flows.begin_kept", lambda _: lambda self, text: True)


@mutant("OB1", _COMMITTED, "celery+memory")
def each_copy_of_an_entry_begins_a_flow() -> None:
    """Who relays a flow that has begun begins it once more, under another id."""

    def make(begin: Any) -> Any:
        def begin_again(self: Any, text: str) -> Any:
            flow_id, *rest = codec.from_json(text.removeprefix(KEPT).removesuffix(KEPT_END))
            if self._row(flow_id) is not None:
                text = KEPT + codec.to_json([new_id(), *rest]) + KEPT_END
            return begin(self, text)

        return begin_again

    put(_RUNNING, "Flows.begin_kept", make)


@mutant("OB1", _COMMITTED, "dramatiq+memory")
def what_was_begun_stays_in_the_outbox() -> None:
    """Who begins a flow leaves its entry to others."""

    def make(begin: Any) -> Any:
        def begin_and_leave(self: Any, text: str) -> bool:
            begin(self, text)
            return False

        return begin_and_leave

    put(_RUNNING, "Flows.begin_kept", make)


@mutant("W2", _COMMITTED)
def a_flow_waits_for_no_commit() -> None:
    """A flow is sent at once, whatever transaction it is to be a part of."""
    put("taskbridge.sending", "Sending.holds", lambda _: lambda *_: False)


@mutant("OB1", _KILLED, "dramatiq+redis")
def an_entry_is_removed_before_its_flow_begins() -> None:
    """A worker that is killed as it begins a flow has removed the flow's entry."""

    def make(is_begun: Any) -> Any:
        def removed_first(self: Any, application: Any, key: str, text: str) -> Any:
            self._remove(application, [key])
            return is_begun(self, application, key, text)

        return removed_first

    put(_OUTBOX, "Relay._is_begun", make)


@mutant("OB1", _KILLED, "celery+amqp")
def only_a_living_sender_begins_its_flow() -> None:
    """A flow begins in its sender's process alone, after the commit."""

    def make(holds: Any) -> Any:
        def held(self: Any, act: Any, kept: Any) -> Any:
            self.bridge.transactions.hold("", [act], lambda acts: [each() for each in acts])
            return True

        return held

    put("taskbridge.sending", "Sending.holds", make)
