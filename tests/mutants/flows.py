"""W, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from typing import Any

from taskbridge.flows.plan import step_id
from taskbridge.message import new_id
from taskbridge.stores.base import Store
from taskbridge.stores.memory import MemoryBackend
from taskbridge.stores.records import Ending
from tests.mutants.table import mutant, put

_BUILDING = "taskbridge.flows.building"
_PLAN = "taskbridge.flows.plan"
_PUBLISHING = "taskbridge.flows.publishing"
_READING = "taskbridge.flows.reading"
_REOPENING = "taskbridge.flows.reopening"
_RUNNING = "taskbridge.flows.running"
_STEPS = "taskbridge.stores.steps"


def _stage(**changes: Any) -> None:
    """Have groups planned otherwise than they were asked for, where they were asked for that."""

    def make(planned: Any) -> Any:
        def group(self: Any, id: Any, pages: Any, number: Any, stage: Any, look: Any, *, wants: Any) -> Any:
            return planned(self, id, pages, number, replace(stage, **changes), look, wants=wants)

        return group

    put(_PUBLISHING, "Publishing._group", make)


@mutant("W1", "a_flow_is_checked_as_it_is_built")
def what_follows_is_not_checked() -> None:
    """The arguments of what follows are taken as they are."""

    def make(_: Any) -> Any:
        def call_after(sender: Any, word: Any, task: Any, args: Any, kwargs: Any, given: Any) -> Any:
            return replace(task.call(None, {}), args=args, kwargs=kwargs)

        return call_after

    put(_BUILDING, "_call_after", make)


@mutant("W1", "a_flow_is_checked_as_it_is_built")
def later_steps_are_checked_as_they_are_published() -> None:
    """Queues are looked at when a step's turn comes."""
    put(_PUBLISHING, "check_known", lambda _: lambda *_: None)


@mutant("W2", "the_same_id_is_one_flow")
def a_flow_is_sent_whatever_its_id() -> None:
    """Each send makes a flow, though another one has the id."""

    def make(begin: Any) -> Any:
        return lambda self, flow, _, delay_s: begin(self, replace(flow, id=None), new_id(), delay_s)

    put(_RUNNING, "Flows._begin", make)


@mutant("W2", "the_same_id_is_one_flow")
def any_flow_of_an_id_is_the_same() -> None:
    """Other calls with the id of a flow count as that flow."""
    put(_RUNNING, "Flows._is_same", lambda _: lambda *_: False)


@mutant("W2", "a_killed_sender_leaves_a_flow_or_none", "celery+amqp")
def a_step_is_published_before_its_flow_is_stored() -> None:
    """The broker has a flow's first step before the store knows of either."""

    def make(give: Any) -> Any:
        def first(self: Any, messages: Any, delay_s: float, *given: Any) -> Any:
            self._bridge.broker.publish(messages, timeout_s=5.0)
            return give(self, messages, delay_s, *given)

        return first

    put(_PUBLISHING, "Publishing._give", make)


@mutant("W2", "a_killed_sender_leaves_a_flow_or_none", "dramatiq+redis")
def nobody_goes_on_sending_a_group() -> None:
    """Of a group whose sender has died, what was not sent stays so."""
    put(_RUNNING, "SENDING_S", lambda _: 1000.0)
    put(_PUBLISHING, "SENDING_S", lambda _: 1000.0)


@mutant("W3", "a_step_is_an_ordinary_message")
def steps_have_random_ids() -> None:
    """Each time that a step is published it is another message."""
    put(_PLAN, "step_id", lambda _: lambda *_: new_id())


@mutant("W3", "a_step_is_an_ordinary_message")
def steps_are_as_their_tasks_are_declared() -> None:
    """What a call says of its queue, its priority and its headers is forgotten."""

    def make(message: Any) -> Any:
        def plain(self: Any, spec: Any, *given: Any) -> Any:
            kept = ("task", "args", "kwargs", "home", "takes")
            return message(self, {name: spec[name] for name in kept if name in spec}, *given)

        return plain

    put(_PUBLISHING, "Publishing._message", make)


@mutant("W4", "each_step_counts_once_however_it_ends")
def only_what_is_done_counts() -> None:
    """A member that ends badly is recorded, and not counted."""

    def make(count: Any) -> Any:
        def count_done(backend: Any, write: Any, row: Any, due: Any, *, timeout_s: float) -> Any:
            if row["state"] == "done":
                return count(backend, write, row, due, timeout_s=timeout_s)
            return backend.write([write], timeout_s=timeout_s)[0]

        return count_done

    put(_STEPS, "count", make)


@mutant("W4", "each_step_counts_once_however_it_ends")
def what_is_cancelled_is_not_counted() -> None:
    """A member that is cancelled by itself is waited for."""

    def make(count: Any) -> Any:
        def count_runs(backend: Any, write: Any, row: Any, due: Any, *, timeout_s: float) -> Any:
            if row["state"] != "cancelled":
                return count(backend, write, row, due, timeout_s=timeout_s)
            return backend.write([write], timeout_s=timeout_s)[0]

        return count_runs

    put(_STEPS, "count", make)


@mutant("W5", "what_follows_starts_in_time")
def what_follows_is_left_to_others() -> None:
    """Whoever has counted the last step leaves what follows to whoever looks next."""
    put(_RUNNING, "Flows.advance_due", lambda _: lambda self: self._records.flows_due.clear())
    put(_STEPS, "LOOKED_AFTER_S", lambda _: 5.0)


@mutant("W5", "a_chain_goes_on_in_the_act_that_ends_a_step", "dramatiq+redis")
def a_step_of_a_chain_is_counted_alone() -> None:
    """What follows a step of a chain is published in another act than the one that records its end."""
    put(_RUNNING, "Flows._ended_with_what_follows", lambda _: lambda *_: False)


@mutant("W5", "a_kill_beside_the_count_holds_up_no_flow", "dramatiq+redis")
def nobody_looks_after_a_counted_step() -> None:
    """What a worker would have done that was killed after it has counted a step, is done by nobody."""
    put(_STEPS, "LOOKED_AFTER_S", lambda _: 1000.0)


@mutant("W6", "flows_go_as_their_policies_say")
def what_ends_badly_stops_nothing() -> None:
    """A group of which a member ends badly goes on, and what follows starts."""
    _stage(on_error="collect")


@mutant("W6", "flows_go_as_their_policies_say")
def a_group_waits_for_all_its_members() -> None:
    """A group whose first member has ended badly has the others run all the same."""
    _stage(on_error="wait")


@mutant("W6", "flows_go_as_their_policies_say")
def nobody_is_called_back() -> None:
    """A flow that has failed calls only what is called at any end."""

    def make(called_back: Any) -> Any:
        def end_only(self: Any, id: Any, row: Any, new: Any, plan: Any, key: str, look: Any, *also: Any) -> Any:
            end = "end" if plan["end"] else ""
            return called_back(self, id, row, new, plan, end if key == "failure" else key, look, *also)

        return end_only

    put(_RUNNING, "Flows._called_back", make)


@mutant("W7", "what_is_passed_is_as_large_as_it_is")
def large_values_are_not_read() -> None:
    """A step starts without the value that was too large to travel with it."""
    put(_RUNNING, "Flows.filled", lambda _: lambda self, message, *, timeout_s: message)


@mutant("W7", "what_is_passed_is_as_large_as_it_is")
def results_are_plain() -> None:
    """The results of members are read as JSON has them."""

    def make(value: Any) -> Any:
        return lambda self, *step: value(self, *step) if step[-1] is None else json.loads(step[-1])

    put(_READING, "Reading._value", make)


@mutant("W8", "a_cancelled_flow_starts_nothing_more", "dramatiq+redis")
def workers_are_not_told_of_a_cancelled_flow() -> None:
    """A flow is cancelled, and what was published of it starts."""
    put(_REOPENING, "Reopening._write", lambda write: lambda self, *given, **_: write(self, *given))


@mutant("W8", "a_cancelled_flow_starts_nothing_more")
def steps_are_cancelled_one_by_one() -> None:
    """A flow is cancelled by cancelling each of its steps, which takes the longer the wider it is."""

    def make(cancel: Any) -> Any:
        def each(self: Any, id: str) -> Any:
            status, row = cancel(self, id), self._known(id)
            for index in range(row["totals"][row["stage"]]):
                self._records.cancel(step_id(id, f"{row['stage']}/{index}"), at=self._bridge.now(), timeout_s=5.0)
            return status

        return each

    put(_RUNNING, "Flows.cancel", make)


@mutant("W8", "a_cancelled_flow_starts_nothing_more")
def what_steps_became_goes_on() -> None:
    """A flow that a step of a cancelled one became is not stopped."""
    put(_STEPS, "step_lives", lambda lives: lambda flow: lives(flow)[:1])


@mutant("W9", "a_status_is_exact_and_costs_the_same")
def a_status_looks_at_each_member() -> None:
    """Who asks for a status reads the records of all members."""

    def make(status: Any) -> Any:
        def each(self: Any, id: str) -> Any:
            row = self._known(id)
            for index in range(row["totals"][row["stage"]]):
                self._records.get(step_id(id, f"{row['stage']}/{index}"), timeout_s=5.0)
            return status(self, id)

        return each

    put(_READING, "Reading.status", make)


@mutant("W9", "a_status_is_exact_and_costs_the_same")
def what_waits_for_its_turn_counts_as_running() -> None:
    """A status does not tell members that are with the broker from those that are to be sent."""

    def make(status: Any) -> Any:
        def moved(self: Any, *given: Any) -> Any:
            found = status(self, *given)
            return replace(found, running=found.running + found.waiting, waiting=0)

        return moved

    put(_READING, "Reading._status", make)


@mutant("W10", "a_replay_reopens_its_flow")
def a_replay_leaves_the_flow_as_it_is() -> None:
    """A step that is replayed is a message like any other, and its flow stays at its end."""

    def make(replayed: Any) -> Any:
        return lambda self, message, delay_s: replayed(self, replace(message, flow=_forgotten(message.flow)), delay_s)

    def _forgotten(flow: str) -> str:
        return " ".join([*flow.split(" ")[:4], "no flow"])

    put(_REOPENING, "Reopening._replayed", make)


@mutant("W10", "a_replay_reopens_its_flow")
def what_was_given_up_stays_so() -> None:
    """A flow that is reopened waits for what is replayed, and for nothing else."""
    put(_REOPENING, "Reopening._give_again", lambda _: lambda *_: None)


@mutant("W10", "a_replay_reopens_its_flow")
def what_is_replayed_stays_counted() -> None:
    """A member that is replayed has ended once and for all."""

    def make(commit: Any) -> Any:
        def counted(self: Any, commits: Any, *, timeout_s: float) -> Any:
            return commit(self, [replace(each, uncounts=()) for each in commits], timeout_s=timeout_s)

        return counted

    put("taskbridge.stores.memory", "MemoryBackend.commit", make)


@mutant("W10", "a_step_that_runs_as_its_flow_goes_on_is_tried_again", "dramatiq+redis")
def what_fails_after_its_flow_was_reopened_ends_it() -> None:
    """A step that ran as its flow was reopened, and failed then, has ended badly in the flow that goes on."""
    put(_REOPENING, "Reopening._give_late", lambda _: lambda *_: False)


@mutant("W11", "nothing_of_a_flow_expires_before_its_end")
def steps_are_forgotten_like_messages() -> None:
    """The record of a step is kept for so long after its own end, and a flow from when it was stored."""
    put(_RUNNING, "Write", _short_lived)
    put(_REOPENING, "Write", _short_lived)


def _short_lived(write: Any) -> Any:
    return lambda key, seen, text, kept_s=None, *given, **named: write(key, seen, text, kept_s or 1.0, *given, **named)


@mutant("W11", "a_flow_that_is_stalled_is_put_right")
def nobody_looks_for_lost_steps() -> None:
    """A flow waits for a message that is nowhere."""
    put(_READING, "Reading._is_stalled", lambda _: lambda *_, **named: False)


@mutant("W11", "a_flow_that_is_stalled_is_put_right")
def nobody_looks_for_lost_callbacks() -> None:
    """A flow at its end counts as over, whether its callbacks have run or not."""
    put(_READING, "_is_called_back", lambda _: lambda _: False)


@mutant("W12", "a_flow_goes_on_with_another_engine", "celery+redis")
def a_flow_belongs_to_the_engine_that_began_it() -> None:
    """Workers leave alone what another engine has begun."""

    def plan(planned: Any) -> Any:
        def named(self: Any, *given: Any) -> Any:
            text, row = planned(self, *given)
            return text, {**row, "name": f"{self._bridge.settings.url.engine} {row['name']}"}

        return named

    def go_on(after_step: Any) -> Any:
        def own(self: Any, id: str, row: Any, *given: Any) -> Any:
            is_own = row["name"].startswith(self._bridge.settings.url.engine)
            return after_step(self, id, row, *given) if is_own else False

        return own

    put(_PUBLISHING, "Publishing._planned", plan)
    put(_RUNNING, "Flows.step_ended", lambda _: lambda *_: None)
    put(_RUNNING, "Flows._after_step", go_on)


@mutant("W13", "a_group_of_any_width_is_sent_in_batches")
def a_group_is_read_at_once() -> None:
    """All calls of a generator are in memory before the first is stored."""
    put(_PUBLISHING, "_pages", lambda pages: lambda calls: pages(deque(calls)))


@mutant("W13", "a_group_of_any_width_is_sent_in_batches")
def at_once_is_not_heeded() -> None:
    """All members of a group are published, whatever at_once says."""
    _stage(at_once=None)


@mutant("W13", "a_group_of_any_width_is_sent_in_batches")
def every_page_of_results_is_the_first() -> None:
    """The results of members beyond the first page are those of the first."""

    def make(members: Any) -> Any:
        return lambda self, flow_id, stage, _, count: members(self, flow_id, stage, 0, count)

    put(_READING, "Reading.members", make)


@mutant("W14", "flows_go_as_their_policies_say")
def a_step_ends_before_the_flow_that_it_became() -> None:
    """A run that returns a flow sends it, and its message is done."""

    def make(_: Any) -> Any:
        def send(self: Any, message: Any, flow: Any, *, timeout_s: float) -> Any:
            self.send(flow)
            ending = Ending(state="done", at=self._bridge.now(), result_json='"became"')
            self._records.ended(message, ending, timeout_s=timeout_s)

        return send

    put(_RUNNING, "Flows.become", make)


@mutant("W14", "a_kill_beside_the_count_holds_up_no_flow", "dramatiq+redis")
def each_run_adds_a_flow() -> None:
    """A run that is repeated sends the flow that it returns once more, for nothing says that it was sent."""

    def make(become: Any) -> Any:
        def twice(self: Any, message: Any, flow: Any, *, timeout_s: float) -> Any:
            self.send(flow)
            become(self, message, flow, timeout_s=timeout_s)

        return twice

    put(_RUNNING, "Flows.become", make)


@mutant("W15", "flows_need_a_store", "dramatiq+amqp")
def without_a_store_flows_are_kept_here() -> None:
    """Without a store, a flow is kept in the process that sends it."""

    def make(store: Any) -> Any:
        def kept(self: Any) -> Any:
            if self._bridge.store is not None:
                return store.fget(self)
            return vars(self).setdefault("kept", Store(self._bridge.settings, MemoryBackend(self._bridge.clock)))

        return property(kept)

    put(_READING, "Reading._store", make)
