"""Carries a verdict out, the same on every engine: park the next attempt, or bury, call the hooks, and record it.

An engine acknowledges its message only after `finish` returns (rules A1, R5 and RS2). What waits for the broker or the
store raises `NotSettledError` if they were away until the worker stopped: `begin`, `finish`, `settle`, `later`, `bury`,
`put_off_unknown`, `put_off_paused` and `bury_unreadable`.

What is done comes in an order in which a worker may be killed anywhere. That an attempt failed is recorded before the
next one is parked, so that the record of that one comes later. What is final is recorded last, when dead letter and
hooks are done, so that a message which comes back before is still to be decided; and the mark that it has ended comes
after that. So one that comes back unmarked, but with a final record, needs nothing but to be let go.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from taskbridge import codec, failures
from taskbridge.brokers.base import Broker, SignBroker, hand_over
from taskbridge.engines.base import Host
from taskbridge.engines.cancellations import Cancellations
from taskbridge.exceptions import BrokerUnavailable, DecodeError, NoSuchRecord, WorkerLost, nearest
from taskbridge.hooks import Event, HookName
from taskbridge.logs import OncePerMinute, logger, say
from taskbridge.message import DeadLetter, Message, flags_of, is_id
from taskbridge.observing import tell
from taskbridge.pauses import Pauses
from taskbridge.probe import ANSWER_LIFE_S, PROBE, answer_sign
from taskbridge.retry import (
    Become,
    CancelledVerdict,
    Dead,
    Discarded,
    Done,
    ErrorInfo,
    GivenBack,
    Interrupted,
    RunAgain,
    Verdict,
    judge,
)
from taskbridge.runner import Runner, longest_s
from taskbridge.settings import Settings
from taskbridge.stores.base import Claim, Marks
from taskbridge.stores.records import FINAL, Ending, Records, State, Status
from taskbridge.stores.states import Row
from taskbridge.stores.transitions import latest, wait_s
from taskbridge.vitals import Ended

if TYPE_CHECKING:
    from taskbridge.dead import DeadLetters
    from taskbridge.flows.running import Flows

T = TypeVar("T")

_log = logger("taskbridge.worker")
_unknown: Final = OncePerMinute()  # which unknown tasks were logged

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0

_ANSWER_S = 2.0  # how long an answer to a probe may take
_TELL_S = 1.0  # how long it may take to record that a message is given back
LOOK_AGAIN_S: Final = 2.0
"""How long a message waits whose attempt another worker seems to run, or this one runs."""

_FIRST_COMES_FIRST_S = 0.1
"""How long a second message of an attempt waits before the mark is read.

It is behind the first one in their queue, but two slots may take both at the same moment, and the first one's mark is
written without waiting.
"""

MOST_REDELIVERIES = 10
"""How often an attempt may come back where no store tells whether it was started."""

MOST_REQUEUES: Final = 5
"""How often a message is requeued that could not be settled (rule I2)."""


RUNNING: Final = "running"
ENDED: Final = "ended"

_MOST_REMEMBERED: Final = 10_000  # how many attempts are remembered as ended


class Attempts:
    """What a process knows of its own attempts, by their keys; without a store, nothing else tells (rule A7).

    RabbitMQ delivers what was held on a lost connection again, though its task goes on here, or its verdict waits until
    RabbitMQ takes what it needs, or it has ended since. Threads share it.

    Attributes:
        here: What has each attempt in hand that runs or is settled here.
    """

    def __init__(self) -> None:
        self.here: dict[str, Any] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()

    def ends(self, key: str, *, has_ended: bool) -> None:
        """Note that an attempt is in hand no more; if its verdict was not carried out, it has not happened."""
        if has_ended:
            self._ended[key] = None
            if len(self._ended) > _MOST_REMEMBERED:
                with suppress(KeyError):  # another thread has dropped it
                    self._ended.popitem(last=False)
        self.here.pop(key, None)  # last, so that it is known all the time

    def state_of(self, key: str) -> str | None:
        """Return what is known of an attempt: `running`, `ended`, or None for nothing."""
        return RUNNING if key in self.here else ENDED if key in self._ended else None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BoundTask(Runner):
    """All that a run of a task needs, and all that settling it needs; made once a task, by `Bridge.bound`.

    Attributes:
        settings: The checked settings.
        broker: The connection to the broker.
        marks: The attempt marks; None without a store.
        records: Where its messages are recorded; None without a store, and with `results=False`.
        cancellations: What is known of cancelled messages.
        pauses: What is known to be paused; None without a store.
        stopping: Set once this process's worker stops.
        dead: The dead letters, which say what may be shown of an error.
        flows: Returns what goes on with flows; few processes need it.
        ended: Where verdicts are noted that were carried out.
    """

    settings: Settings
    broker: Broker
    marks: Marks | None
    records: Records | None
    cancellations: Cancellations
    pauses: Pauses | None
    stopping: threading.Event
    dead: DeadLetters
    flows: Callable[[], Flows]
    ended: Sequence[deque[Ended]] = ()


def bind(host: Host, task: str) -> BoundTask:
    """Return a task, which may not be declared, as workers run it; see `Bridge.bound`."""
    settings, broker, records, cancellations = host.settings, host.broker, host.records_of(task), host.cancellations
    declaration = host.declaration_of(task)

    def report(*told: Any) -> None:
        host.recording(task, "PG").report(*told)

    def members(flow: str, stage: int, first: int, count: int) -> Sequence[Any]:
        return host.flows.members(flow, stage, first, count)  # which few processes import

    return BoundTask(
        declaration=declaration,
        policy=settings.retry if declaration is None or declaration.retry is None else declaration.retry,
        hooks=host.hooks,
        now=host.clock,
        most_bytes=None if records is None else settings.max_message_bytes,
        is_cancelled=(lambda _: False) if records is None else cancellations.knows,
        is_stopping=host.is_stopping,
        report=report,
        around=host.around_of(task),
        longest_s=longest_s(declaration, settings.grace_s),
        observers=host.observers,
        ended=host.ended,
        settings=settings,
        broker=broker,
        marks=host.marks,
        records=records,
        cancellations=cancellations,
        pauses=host.pauses,
        stopping=host.stopping,
        dead=host.dead,
        flows=lambda: host.flows,
        members=members,
    )


class NotSettledError(Exception):
    """The worker stops before the broker took what a verdict needs: leave the message unacknowledged."""


@dataclass(frozen=True, slots=True)
class NotRun(Discarded):
    """A delivery is not run and its message has not ended by that: it waits, or another delivery of it is run."""


def run_and_settle(host: Host, message: Message, *, redelivered: bool = False) -> Verdict:
    """Run a message and return its verdict, carried out; for `GivenBack` the engine returns the message to its queue.

    See `begin` and `finish`, which are its parts.
    """
    task, runs = host.bound(message.task), host.cancellations.runs
    found = begin(task, message, redelivered=redelivered)
    if isinstance(found, Message):
        found = finish(task, found, task.run(found) if runs is None else runs.run(task, found))
    return found


def begin(task: BoundTask, message: Message, *, redelivered: bool) -> Verdict | Message:
    """Mark a message's attempt as started, unless it was started before, or cancelled.

    `redelivered` is whether this attempt may have been started before: the broker says so, or the message is older than
    the lease. Only then is its mark read.

    Returns:
        The message that is to be run now: this one, or the same with newer arguments; else a verdict that is carried
        out already.
    """
    if message.task == PROBE:
        _answer(task, message)
        return Done(None)
    pauses = task.pauses
    if (
        pauses is not None
        and (pauses.active or monotonic() >= pauses.old_at)
        and _persist(task, pauses.covers, message)
    ):
        put_off_paused(task, message, redelivered=redelivered)
        return NotRun("paused")
    marks, records = task.marks, task.records
    verdict = _decided_before(task, message, redelivered=redelivered)
    if verdict is not None:
        return verdict
    if marks is not None:
        marks.started(message)  # first of all: another delivery of this attempt may be at the same point
    if records is None:
        return message
    try:
        if _persist(task, task.cancellations.has, message):
            return _ended(task, message, CancelledVerdict())
    except NotSettledError:
        _unmark(task, message)
        raise
    if not _has_expired(task, message):
        if message.unique:
            return _begin_in_order(task, records, message)
        records.started(message, worker=this_process(), at=task.now())
        if message.flow and "g" in flags_of(message.flow):
            try:  # to put its first argument in, which was too large to travel with it
                return _persist(task, task.flows().filled, message)
            except NoSuchRecord as exc:
                return _ended(task, message, Dead("undecodable", exc))
    return message


def _begin_in_order(task: BoundTask, records: Records, message: Message) -> Verdict | Message:
    """Record a start before it happens: it has an order then with who cancels, replaces or moves the message (U)."""
    now = task.now()

    def begin(*, timeout_s: float) -> tuple[Row | None, bool]:
        return records.begin(message, worker=this_process(), at=now, timeout_s=timeout_s)

    try:
        row, may_start = _persist(task, begin)
        if may_start:
            return _if_readable(latest(row, message), message)
        if row is None or row["state"] == "cancelled":
            return message if row is None else _ended(task, message, CancelledVerdict())
        left_s = wait_s(row, message, now)
        if row["state"] not in FINAL and left_s <= 0:
            return message  # its record is of a later attempt: as for others, its end tells
        if task.marks is not None:
            _persist(task, task.marks.given_back, message)
        if left_s > 0:
            later(task, message, left_s)
        return NotRun("its start was moved" if left_s > 0 else "ended before")
    except NotSettledError:
        _unmark(task, message)
        raise


def _if_readable(newest: Message, message: Message) -> Message:
    """Return a message with the arguments that its record has; with its own if those can't be read."""
    if newest is not message:
        try:
            codec.loads_array(newest.args_json)
            codec.loads_object(newest.kwargs_json)
        except DecodeError as exc:
            text = "has a record whose arguments can't be read, so its own count: %s"
            say(_log, logging.ERROR, message, text, exc)
            return message
    return newest


def finish(task: BoundTask, message: Message, verdict: Verdict) -> Verdict:
    """Carry a verdict out and mark the attempt as ended, or as not started.

    Returns the verdict that was carried out: another one if there was to be a next attempt, and the message is
    cancelled.
    """
    marks = task.marks
    if marks is not None:
        if not _persist(task, marks.still_ours, message):
            say(_log, logging.WARNING, message, "ended, but was taken for lost meanwhile: ignored")
            return verdict
        if isinstance(verdict, GivenBack):
            _persist(task, marks.given_back, message)
    return _ended(task, message, verdict)


# Before a run


def _answer(task: BoundTask, probe: Message) -> None:
    """Tell whoever asks that this queue is consumed; perhaps nobody waits for it any longer, which no clock tells."""
    broker = task.broker
    if not isinstance(broker, SignBroker):
        return
    try:
        broker.leave_signs([answer_sign(probe)], life_s=ANSWER_LIFE_S, timeout_s=_ANSWER_S)
    except BrokerUnavailable as exc:
        _log.warning("a probe of queue %s is not answered: %s", probe.queue, exc.problem)


def _decided_before(task: BoundTask, message: Message, *, redelivered: bool) -> Verdict | None:
    """Return what became of a message that may have been started before, carried out; None if it is to be run."""
    marks = task.marks
    if marks is None:
        return _counted(task, message) if redelivered else None
    if redelivered or message.redelivered or message.relayed:
        if message.redelivered:
            task.stopping.wait(_FIRST_COMES_FIRST_S)
        claim = _persist(task, marks.claim, message)
    elif marks.stood_still():  # so what it had taken may have been given to another meanwhile
        try:
            claim = marks.claim(message, timeout_s=_TELL_S)
        except BrokerUnavailable:  # as far as is known, it came once
            return None
    else:
        return None
    if claim in (Claim.RUN, Claim.LOST) and _is_recorded(task, message):
        marks.ended(message)
        claim = Claim.ENDED
    if claim is Claim.RUN:
        return None
    say(_log, logging.WARNING, message, "was delivered again: %s", claim.value)
    if claim is Claim.ENDED:
        return NotRun("ended before")
    if claim is Claim.RUNNING:
        later(task, replace(message, redelivered=message.redelivered + 1), LOOK_AGAIN_S)
        return NotRun("running elsewhere")
    return _ended(task, message, task.judge_lost(message))


def _is_recorded(task: BoundTask, message: Message) -> bool:
    """Return whether a message's end is recorded, and so carried out; its mark may be older, or gone."""
    records = task.records
    if records is None:
        return False
    record = _persist(task, records.get, message.id)
    is_over = record is not None and (record.state in ("done", "dead", "discarded") or record.became != "")
    return record is not None and is_over and record.replays == message.replays


def _counted(task: BoundTask, message: Message) -> Verdict:
    """Count in the message itself how often it came back; without a store no more is known (SPEC, attempt marks)."""
    if message.redelivered < MOST_REDELIVERIES:
        later(task, replace(message, redelivered=message.redelivered + 1), 0)
        return NotRun("counted")
    return _came_too_often(task, message)


def _came_too_often(task: BoundTask, message: Message) -> Verdict:
    error = WorkerLost(f"it came back {message.redelivered} times without an outcome")
    return _ended(task, message, Dead("exhausted", error))


def _has_expired(task: BoundTask, message: Message) -> bool:
    return message.expires_at is not None and task.now() > message.expires_at


# After a run


def _ended(task: BoundTask, message: Message, verdict: Verdict) -> Verdict:
    marks = task.marks
    if isinstance(verdict, Dead) and message.unique and task.records is not None:
        message = _if_readable(_persist(task, task.records.latest, message), message)  # it may never have started
    if isinstance(verdict, RunAgain) and task.records is not None and _persist(task, task.cancellations.has, message):
        verdict = CancelledVerdict(error=verdict.error)
    if isinstance(verdict, (RunAgain, GivenBack)):
        state = _record(task, message, verdict)
        if state == "cancelled":  # so lately that it was not known yet
            verdict = CancelledVerdict(error=verdict.error if isinstance(verdict, RunAgain) else None)
        settle(task, message, verdict)
    elif isinstance(verdict, Done) and type(verdict.value) is Become:
        if (failure := _became(task, message, verdict.value)) is not None:
            return _ended(task, message, failure)
    elif isinstance(verdict, Dead) and verdict.error is not None:
        with failures.printed_once(verdict.error):
            settle(task, message, verdict)
            _record(task, message, verdict)
    else:
        settle(task, message, verdict)
        _record(task, message, verdict)
    if marks is not None and not isinstance(verdict, GivenBack):
        marks.ended(message, is_recorded=task.records is not None)
    _go_on_with_flows(task)
    if task.observers:
        tell(task.observers, "settled", message, verdict)
    if task.ended:
        failed = verdict if isinstance(verdict, RunAgain | Dead) else None
        error = None if failed is None or failed.error is None else ErrorInfo.of(failed.error)
        for noted in task.ended:
            noted.append((message.task, message.id, verdict.__class__, error))
    return verdict


def _go_on_with_flows(task: BoundTask) -> None:
    """Do what is due in flows whose steps this process has counted."""
    if task.records is not None and task.records.flows_due:
        task.flows().advance_due()


def _became(task: BoundTask, message: Message, become: Become) -> Verdict | None:
    """Begin the flow with which a message ends; return what becomes of it if the flow can't be sent."""
    try:
        _persist(task, task.flows().become, message, become.flow)
    except NotSettledError:
        raise
    except Exception as exc:
        return judge(task.policy, attempt=message.attempt, message_id=message.id, error=exc)
    return None


def settle(task: BoundTask, message: Message, verdict: Verdict) -> None:
    """Carry a verdict out; returns when the broker has taken what has to be kept."""
    hooks = task.hooks
    match verdict:
        case Done(value, _, problem):
            if problem:
                say(_log, logging.WARNING, message, "has a result that can't be kept: %s", problem)
            if hooks.of["succeeded"]:
                hooks.call(_event(task, "succeeded", message, result=value))
        case RunAgain(after_s, error):
            _say_failed(task, message, error, after_s=after_s)
            following = replace(message.next_attempt(error), due_at=task.now() + after_s)
            # A worker may have died just after it had parked the next attempt. So what is parked in its place tells
            # whoever takes it to look at the marks, and of the two, one runs (rule A7).
            later(task, suspect(following) if isinstance(error, WorkerLost) else following, after_s)
            hooks.call(_event(task, "retrying", message, error=error, delay_s=after_s))
        case Dead(reason, error):
            if error is None:
                say(_log, logging.ERROR, message, "is dead: %s", reason)
            else:
                _say_failed(task, message, error, reason=reason)
            bury(task, letter_of(message, reason=reason, error=error, now=task.now()))
            hooks.call(_event(task, "dead", message, error=error, reason=reason))
        case Discarded(reason):
            say(_log, logging.INFO, message, "discarded: %s", reason)
            hooks.call(_event(task, "discarded", message, reason=reason))
        case GivenBack():
            say(_log, logging.INFO, message, "was interrupted and is requeued")


def _say_failed(
    task: BoundTask, message: Message, error: BaseException, *, reason: str = "", after_s: float | None = None
) -> None:
    """Log what was raised and where; when it runs again, or that the message is dead, with the traceback (rule LG2)."""
    info, traceback, hides = ErrorInfo.of(error), None, task.dead.redacts
    if hides:
        shown = task.dead.shown(letter_of(message, reason=reason, error=error, now=task.now()))
        info, traceback = shown.error or ErrorInfo(type="an error", message="hidden"), shown.traceback
    words = info.type, f": {info.message}" if info.message else "", failures.place_of(error)
    if after_s is None:
        text = "is dead: %s: %s%s%s"
        whole = None if hides else error
        say(_log, logging.ERROR, message, text, reason, *words, error=whole, traceback=traceback)
    else:
        say(_log, logging.WARNING, message, "failed: %s%s%s, runs again in %.3f s", *words, after_s)


def _event(task: BoundTask, name: HookName, message: Message, **facts: Any) -> Event:
    declaration = task.declaration
    arguments_of = None if declaration is None else partial(declaration.arguments_of, message)
    return Event(name=name, message=message, arguments_of=arguments_of, **facts)


def _record(task: BoundTask, message: Message, verdict: Verdict) -> State | None:
    """Record what became of a message, and return what the record says then, if that is known.

    Keeps trying while the worker runs, unless the message is given back. An error that nobody foresaw is logged: the
    verdict holds all the same, or a function that returned would be run again (rule RS3), or a message die twice.
    """
    records = task.records
    if records is None:
        return None
    if message.flow:
        task.flows()  # which goes on with the flow in the act that records the end
    try:
        ending = _ending_of(message, verdict, task.now())
        if not isinstance(verdict, GivenBack):
            return _persist(task, records.ended, message, ending)
        return records.ended(message, ending, timeout_s=_TELL_S)
    except NotSettledError:
        raise
    except BrokerUnavailable as exc:  # its next start will tell
        say(_log, logging.WARNING, message, "is given back unrecorded: %s", exc.problem)
    except Exception as exc:
        say(_log, logging.ERROR, message, "ended, but what became of it is not recorded", error=exc)
    return None


def _ending_of(message: Message, verdict: Verdict, now: float) -> Ending:
    match verdict:
        case Done(_, result_json, problem):
            return Ending(state="done", at=now, result_json=result_json, reason=problem)
        case RunAgain(after_s, error):
            return Ending(state="retrying", at=now, due_at=now + after_s, error=ErrorInfo.of(error))
        case Dead(reason, error):
            info, text = None if error is None else ErrorInfo.of(error), failures.traceback_of(error)
            return Ending(state="dead", at=now, reason=reason, error=info, traceback=text)
        case CancelledVerdict(_, error):
            info, text = None if error is None else ErrorInfo.of(error), failures.traceback_of(error)
            return Ending(state="cancelled", at=now, error=info, traceback=text)
        case Discarded(reason):
            return Ending(state="discarded", at=now, reason=reason)
        case GivenBack():
            return Ending(state="queued", at=now)


def letter_of(message: Message, *, reason: str, error: BaseException | None, now: float) -> DeadLetter:
    """Return the dead letter of a message."""
    return DeadLetter(
        message=message,
        reason=reason,
        error=None if error is None else ErrorInfo.of(error),
        traceback=failures.traceback_of(error),
        died_at=now,
        worker=this_process(),
    )


# Messages that are not run


def prepare_marks(host: Host) -> None:
    """Get ready to mark attempts, and learn the store's time, before the first message is taken."""
    if (marks := host.marks) is not None:
        marks.prepare()
    if (store := host.store) is not None and store.clock is not None:
        with suppress(BrokerUnavailable):  # what needs the store waits for it
            store.clock.ensure(timeout_s=host.settings.send_timeout_s)


def unmark(host: Host, messages: Iterable[Message]) -> None:
    """Remove the marks of runs that are given back, so that they are no attempts (rule R8)."""
    for message in messages:
        if not _unmark(host.bound(message.task), message):
            return


def _unmark(task: BoundTask, message: Message) -> bool:
    """Remove the mark of a run, if there are marks; return whether the store let that be done."""
    if task.marks is None:
        return True
    try:
        task.marks.given_back(message, timeout_s=_TELL_S)
    except BrokerUnavailable as exc:
        _log.warning("the store does not answer, interrupted runs will count as lost: %s", exc.problem)
        return False
    _record(task, message, GivenBack())
    return True


def put_off_unknown(host: Host, message: Message, *, redelivered: bool = False) -> None:
    """Make a message wait whose task this worker does not know, or bury it after `unknown_task_grace` (rule Q6).

    The waits grow from 1 s to 30 s and use up no attempt. A message that was delivered before may have been put off
    then, too.
    """
    now = host.now()
    since = now if message.waits_since is None else message.waits_since
    left_s = host.settings.unknown_task_grace_s - (now - since)
    if left_s <= 0:
        _ended(host.bound(message.task), message, Dead("unknown_task"))
        return
    wait_s = min(left_s, 30.0, 2.0 ** min(message.waits, 5))
    since_then = _unknown.due(message.task, is_new=not message.waits)
    if since_then is not None:
        known = [each.name for each in host.declarations()]
        text = "is not known here%s: this worker knows %d tasks; it waits for one that does, up to %.0f s%s"
        more = f" ... and {since_then} more since" if since_then else ""
        say(_log, logging.WARNING, message, text, nearest(message.task, known), len(known), left_s, more)
    waiting = _copy(message, redelivered=redelivered)
    later(host, replace(waiting, waits=message.waits + 1, waits_since=since), wait_s)


def put_off_paused(host: Host | BoundTask, message: Message, *, redelivered: bool = False) -> None:
    """Make a message wait that is paused; it uses up no attempt, and has no mark (rule Z5)."""
    if host.pauses is not None:
        later(host, _copy(message, redelivered=redelivered), host.pauses.wait_s())


def _copy(message: Message, *, redelivered: bool) -> Message:
    """Return what is parked in a message's place: a worker may die before it has acknowledged, and leave both.

    The message comes back as redelivered, and is perhaps run before its copy, so whoever takes that looks at the marks,
    too (rule A7).
    """
    return suspect(message) if redelivered else replace(message, relayed=True)


def not_settled(
    host: Host, message: Message, error: BaseException, *, wait: Callable[[float], object] | None = None
) -> Verdict:
    """Deal with a message that could not be settled because of an error that nobody foresaw (rule I2).

    It is no attempt: its mark is removed. It is parked, for the setting `requeue_pause`, then for twice as long, and so
    on; the sixth time it is dead with reason `internal_error`. One that can't even be parked is buried as text.

    `wait` is called with the pause, in seconds, before a message is given back because the broker or the store was
    away; by default it is made in this thread, unless the worker stops.

    Returns:
        `NotRun` or `Dead`, carried out; or `GivenBack`: the engine requeues the message, for the broker or the store
        was away, which is not counted, or the worker stops.
    """
    say(_log, logging.ERROR, message, "could not be settled", error=error)
    dead = Dead("internal_error", error)
    try:
        unmark(host, [message])
        if isinstance(error, (BrokerUnavailable, Interrupted)):
            (wait or host.stopping.wait)(host.settings.requeue_pause_s)
            return GivenBack()
        task = host.bound(message.task)
        pause_s = _requeue_pause_s(host, message.requeues)
        if pause_s is None:
            return _ended(task, message, dead)
        later(task, replace(message, requeues=message.requeues + 1), pause_s)
        return NotRun("it could not be settled")
    except NotSettledError:
        return GivenBack()
    except Exception as exc:
        say(_log, logging.ERROR, message, "can't be kept", error=exc)
    try:
        raw = failures.clipped(repr(message), host.settings.max_message_bytes).encode()
        bury_unreadable(host, raw, reason=dead.reason, error=error, message_id=message.id)
        return dead
    except NotSettledError:
        return GivenBack()
    except Exception as exc:
        say(_log, logging.ERROR, message, "can't even be buried, and is requeued", error=exc)
        (wait or host.stopping.wait)(host.settings.requeue_pause_s)
        return GivenBack()


def _requeue_pause_s(host: Host, requeues: int) -> float | None:
    """Return how long a message waits that was requeued so often before; None if it is dead instead."""
    return host.settings.requeue_pause_s * 2.0**requeues if requeues < MOST_REQUEUES else None


def taken_again(host: Host, message: Message, *, is_counted: bool = False) -> Callable[[], object] | None:
    """Count that a message was taken that had come back: its worker may have crashed with it before the start.

    `is_counted` is whether the broker has counted how often it came back, and the message says so. Returns what is to
    be done with it, perhaps waiting for the broker; None if it is to be run.
    """
    task = host.bound(message.task)
    if task.marks is None:
        if is_counted and message.redelivered <= MOST_REDELIVERIES:
            return None
        return partial(_came_too_often if is_counted else _counted, task, message)
    count = task.marks.taken(message)
    if count == 0 or message.requeues + count <= MOST_REQUEUES:
        return None
    error = WorkerLost(f"its worker was gone {count} times before the attempt was started")
    return partial(_ended, task, message, Dead("internal_error", error))


def bury_unreadable(
    host: Host, raw: bytes, *, error: BaseException, reason: str = "undecodable", message_id: object = None
) -> None:
    """Bury a message that can't be read, as it came (rule Q7), and record its end if its id could be read.

    `error` is what reading it raised; its traceback is kept for the reason `internal_error`. `message_id` is what it
    calls itself; anything, for it was found on the wire.
    """
    text = ""
    if reason == "internal_error":
        text = failures.traceback_of(error)
        _log.error("a message of %d bytes is dead: %s", len(raw), reason, exc_info=failures.exc_info(error))
    else:
        _log.error("a message of %d bytes is dead: %s: %s", len(raw), reason, error)
    info, now, worker = ErrorInfo.of(error), host.now(), this_process()
    letter = DeadLetter(message=None, reason=reason, error=info, traceback=text, died_at=now, raw=raw, worker=worker)
    bury(host, letter)
    try:
        _record_death(host, letter, message_id, partial(_persist, host))
    except NotSettledError:
        raise
    except Exception:  # it is dead all the same, or it would be buried again and again (rule I2)
        _log.exception("dead letter %s: the message's record is left as it is", letter.id)


def record_buried(host: Host, letter: DeadLetter) -> None:
    """Record the end of a message that a pump buries; while the store is away, its record stays as it is."""

    def ask(act: Callable[..., T], *given: object) -> T:
        return act(*given, timeout_s=_TELL_S)

    try:
        _record_death(host, letter, _id_in(letter.raw), ask)
    except Exception as exc:  # it must not keep the pump from other messages
        _log.warning("dead letter %s: the message's record is left as it is: %s", letter.id, failures.text_of(exc))


def _record_death(host: Host, letter: DeadLetter, message_id: object, ask: Callable[..., Any]) -> None:
    """Record the end of a message that was not run; one that can't be read by its id, if it has a record that is open.

    `message_id` is what it calls itself, if it can't be read; `ask` calls what asks the store, with the arguments.
    """
    records, message = host.records, letter.message
    if records is None or (message is not None and host.bound(message.task).records is None):
        return
    if message is None:
        record = ask(records.get, message_id) if is_id(message_id) else None
        message = None if record is None or record.state in FINAL else _recorded(record)
    if message is not None:
        reason, info, text = letter.reason, letter.error, letter.traceback
        ask(records.ended, message, Ending(state="dead", at=host.now(), reason=reason, error=info, traceback=text))
        _go_on_with_flows(host.bound(message.task))


def _id_in(parked: bytes | None) -> object:
    """Return the id that a parked message names, which can't be read otherwise."""
    with suppress(Exception):
        return json.loads(parked or b"")["id"]
    return None


def _recorded(record: Status) -> Message:
    return Message(
        id=record.id,
        task=record.task,
        queue=record.queue,
        args_json="[]",
        kwargs_json="{}",
        enqueued_at=record.enqueued_at.timestamp(),
        attempt=max((each.number for each in record.attempts), default=0) + 1,
        replays=record.replays,
    )


# What the broker has to take


def later(host: Host | BoundTask, message: Message, delay_s: float) -> None:
    """Park a message, or publish it if there is no delay; keeps trying while the worker runs (rule R5).

    If the broker may have taken it without saying so, the next try tells whoever takes it to look at the marks, and of
    the two, one runs (rule A7).
    """
    sent = message

    def act(*, timeout_s: float) -> None:
        nonlocal sent
        try:
            hand_over(host.broker, [sent], [delay_s], timeout_s=timeout_s)
        except BrokerUnavailable as exc:
            if exc.maybe_taken:
                sent = suspect(message)
            raise

    _persist(host, act)


def counted(host: Host, message: Message, times: Callable[[], object] | None) -> Message | None:
    """Return a message that says how often RabbitMQ delivered it before; None where RabbitMQ doesn't count that.

    Quorum queues do, and `times` returns it; of a classic one, it is as old as the message's stay elsewhere.
    """
    count = times() if times is not None and host.settings.type_of(message.queue) == "quorum" else None
    return replace(message, redelivered=message.redelivered + count) if isinstance(count, int) and count > 0 else None


def suspect(message: Message) -> Message:
    """Return a message that says of its attempt that it may have been started, from another delivery."""
    return replace(message, redelivered=max(1, message.redelivered))


def bury(host: Host | BoundTask, letter: DeadLetter) -> None:
    """Bury a dead letter; keeps trying while the worker runs."""
    _persist(host, host.broker.bury, letter)


def _persist(host: Host | BoundTask, act: Callable[..., T], *given: object) -> T:
    """Return what an act on the broker or the store returns, which takes `timeout_s`, the seconds that it may take.

    Keeps trying while the worker runs; raises `NotSettledError` if they were away until it stopped.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return act(*given, timeout_s=host.settings.send_timeout_s)
        except BrokerUnavailable as exc:
            _log.warning("the broker or the store does not answer, trying again in %.1f s: %s", pause_s, exc)
            if host.stopping.wait(pause_s):
                raise NotSettledError(str(exc)) from exc
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)


def this_process() -> str:
    """Return what this worker process is called in records and dead letters: `host:process id`."""
    return f"{_host_name()}:{os.getpid()}"


_host_name: Final = cache(socket.gethostname)
