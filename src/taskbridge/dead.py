"""Dead letters, for whoever looks after an application: list, get, replay and purge (rules L1 to L3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from fnmatch import fnmatchcase
from functools import partial
from itertools import count, islice
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Final, TypeVar

from taskbridge import codec, failures
from taskbridge.brokers.base import Decide, PagingBroker, Place, Taken, once, place_of
from taskbridge.durations import LONGEST_DELAY_S, moment
from taskbridge.exceptions import BrokerUnavailable, DecodeError, NoSuchDeadLetter
from taskbridge.logs import logger
from taskbridge.message import DeadLetter, Message, Priority
from taskbridge.retry import ErrorInfo
from taskbridge.stores.entries import held

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge
    from taskbridge.flows.states import FlowStatus
    from taskbridge.stores.states import Status

DEFAULT_LIMIT: Final = 100  # how many dead letters `DeadLetters.list` returns unless it is told otherwise
_CLAIMED_TOGETHER: Final = 100  # how many unique messages are replayed at a time

_log = logger("taskbridge.dead")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadEntry:
    """A dead letter as it is shown; where its message could not be read, all that comes from it is None or empty.

    Attributes:
        id: The message's id, or one made of the bytes that could not be read.
        reason: `exhausted`, `gave_up`, `bad_arguments`, `unknown_task`, `too_large`, `undecodable` or `internal_error`;
            empty where a `redact` function is asked about a message that is not dead.
        task: The task's name.
        queue: Where the message came from, and where a replay goes.
        priority: Its priority.
        attempts: How many runs were started since it was sent, or replayed.
        replays: How often it was replayed before.
        args: The positional arguments.
        kwargs: The keyword arguments.
        unreadable_arguments: What is shown in their stead if they can't be decoded.
        headers: What the application sent along.
        error: The last error's type and message; None if no run raised one.
        traceback: The last error's traceback, as text.
        enqueued_at: When it was first sent, in UTC.
        expires_at: When it expires, in UTC; None is never.
        died_at: In UTC; None if that is not known.
        worker: Which process buried it, as `host:process id`; None if that is not known.
        raw: The bytes as they came, if they could not be read.
    """

    id: str
    reason: str
    task: str | None = None
    queue: str | None = None
    priority: Priority | None = None
    attempts: int | None = None
    replays: int = 0
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    unreadable_arguments: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    error: ErrorInfo | None = None
    traceback: str = ""
    enqueued_at: datetime | None = None
    expires_at: datetime | None = None
    died_at: datetime | None = None
    worker: str | None = None
    raw: bytes | None = None

    @property
    def arguments(self) -> str:
        """The arguments as they would stand in a call, such as `42, name='x'`; empty if there are none."""
        if self.unreadable_arguments is not None:
            return self.unreadable_arguments
        return ", ".join([*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())])


Redact = Callable[[DeadEntry], DeadEntry]
"""Returns what may be shown of a dead letter."""

Progress = Callable[[int], object]
"""Is told how much is done by now."""

RedactT = TypeVar("RedactT", bound=Redact)

_Delayed = tuple[Message, float]  # and its delay since it was sent, where that of a record begins


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadPage:
    """Some dead letters, the oldest first.

    Attributes:
        entries: The letters.
        next: What `after` is to be for the next page; None if this is the last one.
    """

    entries: tuple[DeadEntry, ...]
    next: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """What became of dead letters that were to be replayed.

    Attributes:
        ids: Those that wait for a worker now, the oldest first.
        missing: Those that were asked for and are not there: never were, expired, or somebody else took them.
        unreadable: Those that stay, because what they hold can't be read as a message.
        held: Those that stay, because another message holds their unique key (rule U3).
    """

    ids: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    held: tuple[str, ...] = ()


class DeadLetters:
    """The dead letters of a bridge's namespace, whichever engine they come from; `Bridge.dead` is one.

    Its methods raise `BrokerUnavailable` if the broker doesn't answer within `send_timeout`. What replays or forgets
    letters may have done a part by then; to do it again is safe.

    Attributes:
        redacts: Whether there is a `redact` function.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._redact: Redact | None = None
        self.redacts: bool = False

    # Looking

    def list(
        self,
        *,
        task: str | None = None,
        reason: str | None = None,
        queue: str | None = None,
        limit: int | None = DEFAULT_LIMIT,
        after: str | None = None,
    ) -> DeadPage:
        """Return dead letters, the oldest first, and leave them where they are.

        Only those of tasks whose names match a glob, such as `shop.email.*`, with this reason and from this queue; at
        most `limit`, None for all; and behind the page whose `next` is `after`. A limit under 1, or an `after` that
        comes from no page, raises `ValueError`. RabbitMQ is read from its first letter to the end of the page, or
        wholly, and has them in the order in which they were buried.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        start = None if after is None else _place_of(after)
        broker, matches = self._bridge.broker, _filter(task, reason, queue)
        with closing(
            broker.dead_letters_from(start, most=None if limit is None else limit + 1)
            if isinstance(broker, PagingBroker)
            else (each for each in sorted(broker.dead_letters(), key=place_of) if not start or place_of(each) >= start)
        ) as letters:
            left = filter(matches, once(letters))
            page = list(islice(left, limit))
            following = next(left, None)
        return DeadPage(
            entries=tuple(map(self.shown, page)),
            next=None if following is None else f"{following.died_at!r}:{following.id}",
        )

    def get(self, id: str) -> DeadEntry:
        """Return one dead letter; raise `NoSuchDeadLetter` if there is none of this id."""
        found = self._bridge.broker.dead_letters([id])
        if not found:
            raise NoSuchDeadLetter(id)
        return self.shown(found[-1])

    def redact(self, function: RedactT) -> RedactT:
        """Have a function decide what is shown, as a decorator: it gets a `DeadEntry` and returns one without secrets.

        It counts for `list`, `get` and the command line (if that knows the application), for what workers log of
        errors, and for the arguments that an engine shows of messages on their way. What is stored stays whole, for a
        replay needs the real arguments; so do `Bridge.dead_letters` and the hook `dead`, which show nobody anything.
        If the function fails, arguments, headers, error and traceback are hidden.
        """
        self._redact, self.redacts = function, True
        return function

    def shown_arguments(self, message: Message) -> tuple[str, str]:
        """Return a message's arguments, positional and keyword, as texts that an engine's own tools may show."""
        entry = self.shown(DeadLetter(message=message, reason="", died_at=0.0))
        return failures.clipped(entry.args), failures.clipped(entry.kwargs)  # what the function put in may be odd

    # Taking out

    def replay(
        self, ids: str | Iterable[str], *, per_second: float | None = None, progress: Progress | None = None
    ) -> Replayed:
        """Send dead letters again: each starts at attempt 1, on whichever engine is configured now.

        Id, arguments, headers, queue, priority and the time of sending stay. An expiry that has passed no longer
        counts. Each letter moves in one step: whoever is killed meanwhile, it is dead or waits, never both and never
        neither. On RabbitMQ nobody else can read the dead letters meanwhile. With `per_second`, above 0, at most so
        many start in a second; the others are delayed until then, for 8 years at most. `progress` is called again and
        again with how many letters were looked at by now.
        """
        return self._replay(_filter(None, None, None), _ids(ids), per_second, progress)

    def replay_all(
        self,
        *,
        task: str | None = None,
        reason: str | None = None,
        queue: str | None = None,
        per_second: float | None = None,
        progress: Progress | None = None,
    ) -> Replayed:
        """Send all dead letters again, or those that `list` finds by these filters; see `replay`."""
        return self._replay(_filter(task, reason, queue), None, per_second, progress)

    def purge(self, ids: str | Iterable[str], *, progress: Progress | None = None) -> tuple[str, ...]:
        """Forget dead letters for good, and return the ids of those that were there; `progress` as for `replay`."""
        return self._take(lambda _: Taken(), _ids(ids), progress)

    def purge_all(
        self, *, task: str | None = None, reason: str | None = None, queue: str | None = None
    ) -> tuple[str, ...]:
        """Forget all dead letters for good, or those that `list` finds by these filters, and return their ids."""
        matches = _filter(task, reason, queue)
        return self._take(lambda letter: Taken() if matches(letter) else None, None)

    def _take(self, decide: Decide, ids: dict[str, None] | None, progress: Progress | None = None) -> tuple[str, ...]:
        timeout_s, seen = self._bridge.settings.send_timeout_s, count(1)

        def told(letter: DeadLetter) -> Taken | None:
            if progress is not None:
                progress(next(seen))
            return decide(letter)

        return tuple(self._bridge.broker.take_dead(told, ids=ids, timeout_s=timeout_s))

    def _replay(
        self,
        matches: Callable[[DeadLetter], bool],
        wanted: dict[str, None] | None,
        per_second: float | None,
        progress: Progress | None,
    ) -> Replayed:
        if per_second is not None and not 0 < per_second < inf:
            raise ValueError(f"per_second must be above 0, not {per_second}")
        has_store, delays = self._bridge.store is not None, dict[str, float]()  # from now on
        again, unique, steps = dict[str, _Delayed](), dict[str, _Delayed](), dict[str, _Delayed]()
        unreadable: dict[str, None] = {}

        def decide(letter: DeadLetter) -> Taken | None:
            if not matches(letter):
                return None
            if letter.message is None:
                unreadable[letter.id] = None
                return None
            now = self._bridge.now()
            wanted_s = 0.0 if per_second is None else len(delays) / per_second
            delay_s = delays.setdefault(letter.id, min(wanted_s, LONGEST_DELAY_S))
            # The stagger is no wait for a worker.
            message = replace(letter.message.replayed(now), due_at=now + delay_s)
            kept = steps if has_store and message.flow else unique if has_store and message.unique else again
            kept[letter.id] = message, max(0.0, now + delay_s - message.enqueued_at) if delay_s else 0.0
            return Taken(message=message, delay_s=delay_s) if kept is again else None

        ids = self._take(decide, wanted, progress)
        self._record([again[each] for each in ids])
        ids += (released := self._replay_unique([*unique.values()]))
        if steps:
            ids += self._bridge.flows.replay([*steps.values()])
        if ids:
            _log.info("replayed %d dead letters", len(ids))
            self._bridge.work_is_there()
        found = {*ids, *unreadable, *unique}
        missing = tuple(each for each in wanted or () if each not in found)
        held = tuple(each for each in unique if each not in released)
        return Replayed(ids=ids, missing=missing, unreadable=tuple(unreadable), held=held)

    def _replay_unique(self, messages: Sequence[_Delayed]) -> tuple[str, ...]:
        """Replay messages whose keys are free, and return their ids: each is in the outbox before its letter goes."""
        store, timeout_s = self._bridge.store, self._bridge.settings.send_timeout_s
        if store is None or not messages:
            return ()
        free: list[Message] = []
        for start in range(0, len(messages), _CLAIMED_TOGETHER):
            some = messages[start : start + _CLAIMED_TOGETHER]
            new = [each for each in some if store.claims.replay(*each, timeout_s=timeout_s)]
            self._bridge.relay.publish([held(*each, "replayed") for each in new], timeout_s=timeout_s)
            free += [message for message, _ in new]
        return tuple(message.id for message in free)

    def _record(self, messages: Sequence[_Delayed]) -> None:
        """Record that messages wait again, each with its delay since it was sent.

        Of tasks that are not declared here it isn't known whether they are recorded; those messages are that were so
        before.
        """
        records, timeout_s = self._bridge.records, self._bridge.settings.send_timeout_s
        if records is None or not messages:
            return

        def is_recorded(message: Message) -> bool:
            declared = self._bridge.declaration_of(message.task)
            return records.get(message.id, timeout_s=timeout_s) is not None if declared is None else declared.results

        try:
            records.create([each for each in messages if is_recorded(each[0])], timeout_s=timeout_s)
        except BrokerUnavailable as exc:  # their starts will tell
            _log.warning("%d messages are replayed, but some are recorded as dead: %s", len(messages), exc.problem)

    # Showing

    def shown(self, letter: DeadLetter) -> DeadEntry:
        """Return what may be shown of a dead letter: what the `redact` function leaves."""
        entry = entry_of(letter)
        if self._redact is None:
            return entry
        if entry.unreadable_arguments is not None:  # the function could not find the secrets in there
            entry = replace(entry, unreadable_arguments="(hidden: they can't be decoded)")
        try:
            redacted = self._redact(entry)
            if not isinstance(redacted, DeadEntry):
                raise TypeError(f"it must return a DeadEntry, not {type(redacted).__name__}")
            return redacted
        except (Exception, SystemExit) as exc:  # else a worker that shows arguments would end, or bury the message
            _log.exception("the redact function failed for task %s id %s", entry.task, entry.id)
            return _hidden(entry, type(exc).__name__)

    def shown_error(self, task: str, id: str, error: ErrorInfo | None) -> ErrorInfo | None:
        """Return what may be shown of an error of a message that may not be dead: its text may hold arguments."""
        return self._shown_failure(task, id, error)[0]

    def shown_status(self, status: Status) -> Status:
        """Return a status with the errors and the traceback that may be shown."""
        if not self.redacts:
            return status
        shown = partial(self._shown_failure, status.task, status.id)
        error, traceback = shown(status.error, status.traceback)
        attempts = tuple(replace(each, error=shown(each.error)[0]) for each in status.attempts)
        return replace(status, error=error, traceback=traceback, attempts=attempts)

    def shown_flow(self, flow: FlowStatus) -> FlowStatus:
        """Return a flow's status with the error that may be shown."""
        if (end := flow.end) is None or not end.error_type:
            return flow
        error = self.shown_error(end.task, end.step, ErrorInfo(type=end.error_type, message=end.error))
        shown = ("", "") if error is None else (error.type, error.message)
        return replace(flow, end=replace(end, error_type=shown[0], error=shown[1]))

    def _shown_failure(
        self, task: str, id: str, error: ErrorInfo | None, traceback: str = ""
    ) -> tuple[ErrorInfo | None, str]:
        if not self.redacts or (error is None and not traceback):
            return error, traceback
        message = Message(id=id, task=task, queue="", args_json="[]", kwargs_json="{}", enqueued_at=0.0)
        entry = self.shown(DeadLetter(message=message, reason="", died_at=0.0, error=error, traceback=traceback))
        return entry.error, entry.traceback


def entry_of(letter: DeadLetter) -> DeadEntry:
    """Return all that is known of a dead letter."""
    about: dict[str, Any] = {}
    if (message := letter.message) is not None:
        try:
            about["args"] = tuple(codec.loads_array(message.args_json))
            about["kwargs"] = codec.loads_object(message.kwargs_json)
        except DecodeError:
            about = {"unreadable_arguments": f"{message.args_json} {message.kwargs_json}"}
        about |= {name: getattr(message, name) for name in ("task", "queue", "priority", "replays")}
        about |= {"attempts": message.attempt, "headers": dict(message.headers)}
        about |= {"enqueued_at": moment(message.enqueued_at), "expires_at": moment(message.expires_at)}
    return DeadEntry(
        id=letter.id,
        reason=letter.reason,
        error=letter.error,
        traceback=letter.traceback,
        died_at=moment(letter.died_at or None),
        worker=letter.worker or None,
        raw=letter.raw,
        **about,
    )


def _hidden(entry: DeadEntry, why: str) -> DeadEntry:
    hidden = f"(hidden: the redact function failed: {why})"
    error = None if entry.error is None else ErrorInfo(type=entry.error.type, message=hidden)
    return replace(
        entry, args=(), kwargs={}, unreadable_arguments=hidden, headers={}, error=error, traceback="", raw=None
    )


def _ids(ids: str | Iterable[str]) -> dict[str, None]:
    return dict.fromkeys([ids] if isinstance(ids, str) else ids)


def _filter(task: str | None, reason: str | None, queue: str | None) -> Callable[[DeadLetter], bool]:
    def matches(letter: DeadLetter) -> bool:
        message = letter.message
        return (
            (reason is None or letter.reason == reason)
            and (task is None or (message is not None and fnmatchcase(message.task, task)))
            and (queue is None or (message is not None and message.queue == queue))
        )

    return matches


def filters_text(**filters: str | None) -> str:
    """Return filters of dead letters as one text, such as `task=shop.* reason=exhausted`; `all` if there are none."""
    return " ".join(f"{name}={value}" for name, value in filters.items() if value) or "all"


def _place_of(after: str) -> Place:
    died_at, _, letter_id = after.partition(":")
    with suppress(ValueError):
        if isfinite(place := float(died_at)):
            return place, letter_id
    raise ValueError(f"after must be the next of a page, not {after!r}")
