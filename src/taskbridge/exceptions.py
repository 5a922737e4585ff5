"""Every error that taskbridge raises."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

from taskbridge.failures import Portable, clipped
from taskbridge.logs import escaped


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the choice nearest to a mistyped word, or an empty string."""
    from difflib import get_close_matches  # here, for only errors need it

    found = get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


class TaskBridgeError(Portable):
    """The base of every error that taskbridge raises."""


class SettingsError(TaskBridgeError, ValueError):
    """A setting has a wrong name, type or value; `key` is its name."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"setting {key!r}: {problem}")
        self.key = key
        self.problem = problem


class DeclarationError(TaskBridgeError, TypeError):
    """A task is declared in a way that can't work: an unknown option, a second task of the same name."""


class UnsupportedError(TaskBridgeError):
    """A target can't do what was asked of it, a rule or a method; raised before anything is sent."""

    def __init__(self, rule: str, target: str, remedy: str) -> None:
        super().__init__(f"not possible on {target}: {remedy} ({'rule ' if rule.isupper() else ''}{rule})")
        self.rule = rule
        self.target = target
        self.remedy = remedy


class NotInstalledError(TaskBridgeError, ImportError):
    """An engine's or a broker's client library is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed: pip install 'taskbridge-queue[{extra}]'")
        self.what = what
        self.extra = extra


@contextmanager
def needs(what: str, extra: str, *, fails_by: type[ImportError] = ModuleNotFoundError) -> Generator[None]:
    """Import a library in the block; raise `NotInstalledError` from an exception of the type `fails_by`."""
    try:
        yield
    except fails_by as exc:
        raise NotInstalledError(what, extra) from exc


class NoCurrentTaskError(TaskBridgeError, LookupError):
    """`current()` or `become()` was called outside a task."""


class CodecError(TaskBridgeError, ValueError):
    """The base of what the codec refuses."""


class EncodeError(CodecError, TypeError):
    """A value can't be put in a message; `path` says where it stands, such as `args[0]["when"]`."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class DecodeError(CodecError):
    """Bytes or data found on the wire are not a message of a form this release reads; of the text, 500 letters stay."""

    def __init__(self, problem: str) -> None:
        super().__init__(clipped(escaped(problem), 500))


class NewerFormError(DecodeError):
    """A message has a newer form than this release reads (rule S8)."""


class UnknownQueue(TaskBridgeError, LookupError):
    """A message was addressed to a queue that is not known (rule Q2)."""

    def __init__(self, queue: str, known: Sequence[str]) -> None:
        super().__init__(
            f"queue {queue!r} is not known{nearest(queue, known)} (known: {', '.join(known)}; "
            "declare it in the setting 'queues', in a route or on a task)"
        )
        self.queue = queue
        self.known: tuple[str, ...] = tuple(known)


class UnknownSchedule(TaskBridgeError, LookupError):
    """There is no schedule of this `name`."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no schedule {name!r}{nearest(name, known)} (known: {', '.join(known) or 'none'})")
        self.name = name
        self.known: tuple[str, ...] = tuple(known)


class MessageTooLarge(TaskBridgeError, ValueError):
    """A message's encoded arguments and headers are larger than the setting `max_message_bytes` (rule S6).

    Its headers alone may take no more room than any broker's form of it has for them, whatever that setting is.
    """

    def __init__(self, task: str, size: int, limit: int, *, headers: bool = False) -> None:
        much = f"the message's headers take {size} bytes, more than {limit}"
        if not headers:
            much = f"the message has {size} bytes, more than max_message_bytes = {limit}"
        super().__init__(f"task {task!r}: {much}; send a reference to the data instead")
        self.task = task
        self.size = size
        self.limit = limit


class BrokerUnavailable(TaskBridgeError, ConnectionError):
    """The broker did not take a message in time (rule S2).

    `maybe_taken` is True when the message was handed over but no answer came, so that the broker may have it.
    """

    def __init__(self, problem: str, *, maybe_taken: bool = False) -> None:
        ending = "the message may have been taken" if maybe_taken else "the message was not taken"
        super().__init__(f"{problem} ({ending})")
        self.problem = problem
        self.maybe_taken = maybe_taken


class StoreNotReady(BrokerUnavailable):
    """The store answers, but it has not been made ready for this release."""

    def __init__(self, problem: str, *, url: str) -> None:
        super().__init__(f"{problem}: run `taskbridge store init`, with TASKBRIDGE_STORE or --url set to {url}")
        self.url = url


class PartlyPublished(BrokerUnavailable):
    """Some of a batch was not published.

    `accepted` holds the indexes of those that were, `unsure` of those that the broker may have taken.
    """

    def __init__(self, cause: BrokerUnavailable, *, accepted: frozenset[int], unsure: frozenset[int]) -> None:
        super().__init__(cause.problem, maybe_taken=cause.maybe_taken)
        self.accepted = accepted
        self.unsure = unsure


class SendError(TaskBridgeError):
    """`send_many` could not send everything (rule S5); `sent` and `unsent` are message ids, in order.

    A message counts as unsent when the broker's answer is missing: it may have been taken (`maybe_taken`).
    """

    def __init__(self, problem: str, *, sent: Sequence[str], unsent: Sequence[str], maybe_taken: bool) -> None:
        super().__init__(f"{problem} ({len(sent)} sent, {len(unsent)} unsent)")
        self.sent: tuple[str, ...] = tuple(sent)
        self.unsent: tuple[str, ...] = tuple(unsent)
        self.maybe_taken = maybe_taken


class UniqueConflict(TaskBridgeError):
    """Another message, of this `id`, holds the unique key of what was to be sent (rule U4)."""

    def __init__(self, *, id: str, task: str, state: str) -> None:
        remedy = "on_conflict='skip' returns its handle instead"
        super().__init__(f"task {task!r} is unique, and message {id}, which is {state}, has the same key: {remedy}")
        self.id = id
        self.task = task
        self.state = state


class IdempotencyConflict(TaskBridgeError):
    """There is a message of this `id` already, of another task or with other arguments (rule U6); or a flow (W2)."""

    def __init__(self, *, id: str, task: str, kind: str = "message") -> None:
        other = "of another call" if kind == "message" else "of other calls"
        problem = f"there is a {kind} {id!r} already, {other} than this one of task {task!r}"
        super().__init__(f"{problem}: an id is for one call, so make it of all that tells calls apart")
        self.id = id
        self.task = task


class NoSuchDeadLetter(TaskBridgeError, LookupError):
    """There is no dead letter of this `id`: it never was, its time is over, or it was replayed or purged."""

    def __init__(self, id: str) -> None:
        super().__init__(f"there is no dead letter {id!r}")
        self.id = id


class StoreUnavailable(BrokerUnavailable):
    """The store does not answer, so that nothing can be said of a message, or done about it, and none can be sent."""

    def __init__(self, problem: str, *, maybe_taken: bool = False) -> None:
        TaskBridgeError.__init__(self, f"the store does not answer: {problem}")
        self.problem = problem
        self.maybe_taken = maybe_taken


class NoSuchRecord(TaskBridgeError, LookupError):
    """Nothing is known of a message or flow of this `id`: it was never sent, or ended longer than `result_ttl` ago."""

    def __init__(self, id: str, *, kind: str = "message") -> None:
        super().__init__(
            f"nothing is known of a {kind} {id!r}: no such {kind} was sent while a store was set, "
            "or its record is older than result_ttl"
        )
        self.id = id


class ResultTimeout(TaskBridgeError, TimeoutError):
    """A message, or a flow, had no result in time; `state` is what it was doing then."""

    def __init__(self, id: str, state: str, problem: str, *, kind: str = "message") -> None:
        super().__init__(f"{kind} {id} has no result {problem}: it is {state}")
        self.id = id
        self.state = state


class TaskFailed(TaskBridgeError):
    """The message is dead, so that there is no result.

    Attributes:
        id: The message's id.
        task: The task's name.
        reason: Why it is dead, such as `exhausted`.
        type: The qualified name of the last error's class; empty if none was raised. It is text: no exception is made
            of what is found in a store.
        message: The last error's text.
        traceback: The last error's traceback, as text.
    """

    def __init__(self, *, id: str, task: str, reason: str, type: str, message: str, traceback: str) -> None:
        error = escaped(f"{type}: {message}", keep="\n\t") if type else "no error was raised"
        super().__init__(f"task {task!r} (message {id}) is dead ({reason}): {error}")
        self.id = id
        self.task = task
        self.reason = reason
        self.type = type
        self.message = message
        self.traceback = traceback


class TaskCancelled(TaskBridgeError):
    """The message was cancelled before it ended, so that there is no result."""

    def __init__(self, *, id: str, task: str) -> None:
        super().__init__(f"task {task!r} (message {id}) was cancelled")
        self.id = id
        self.task = task


class TaskDiscarded(TaskBridgeError):
    """The message expired or was dropped by `Discard`, so that there is no result; `reason` says why."""

    def __init__(self, *, id: str, task: str, reason: str) -> None:
        super().__init__(f"task {task!r} (message {id}) was discarded: {escaped(reason) or 'no reason given'}")
        self.id = id
        self.task = task
        self.reason = reason


class ResultNotEncodable(TaskBridgeError):
    """The message is done, but what the task returned is too large, or can't be encoded (rule RS3): see `problem`."""

    def __init__(self, *, id: str, task: str, problem: str) -> None:
        remedy = "return something smaller or of another type, or declare the task with results=False"
        told = f"its result is not recorded: {escaped(problem)}; {remedy}"
        super().__init__(f"task {task!r} (message {id}) is done, but {told}")
        self.id = id
        self.task = task
        self.problem = problem


class ResultInTask(TaskBridgeError, RuntimeError):
    """A task waited for a result (rule RS5): workers whose slots all wait for one another would wait for ever."""

    def __init__(self, task: str) -> None:
        remedy = "let the other task send what follows, or ask by status() or result(timeout=0)"
        super().__init__(f"task {task!r} would wait for a result, and hold its slot meanwhile: {remedy}")
        self.task = task


class TimeLimitExceeded(TaskBridgeError):
    """Raised inside a task that runs longer than its `time_limit` (rule T1)."""


class Cancelled(BaseException):
    """Raised inside a task whose message is cancelled by `cancel(interrupt=True)` while it runs (rule CA3).

    It is no `Exception`, so that a task that goes on after any error does not go on after this one.
    """

    def __init__(self, text: str = "it was cancelled while it ran") -> None:
        super().__init__(text)


class WorkerLost(TaskBridgeError):
    """The error of an attempt that died with its worker (rule A5)."""
