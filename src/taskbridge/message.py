"""The message: what an application sends, in a form that belongs to no engine and has a version (rule S8)."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from types import NoneType
from typing import Any, Final, Literal, TypeGuard, cast

from taskbridge import codec, failures
from taskbridge.exceptions import DecodeError, EncodeError, NewerFormError, nearest
from taskbridge.logs import escaped
from taskbridge.retry import ErrorInfo

FORM: Final = 3
"""The latest version of the form, which this release reads, as all before it; each message says which it has.

2: some of the arguments are `codec.Typed`, or a header is no text. 3: it is a step of a flow. All others are written in
form 1.
"""

TYPED_FORM: Final = 2
FLOW_FORM: Final = 3
LONGEST_ID: Final = 255  # bytes, in UTF-8: AMQP's short strings take no more, nor an index of a database much
MOST_HEADER_BYTES: Final = 65_536  # on RabbitMQ, they and what an engine adds must fit into one frame
END_OF_TIME: Final = 2.5e11  # the last second that a message may name, in the year 9892: `datetime` holds little more

Priority = Literal["low", "normal", "high", "critical"]
PRIORITIES: Final[tuple[Priority, ...]] = ("low", "normal", "high", "critical")  # every priority, the lowest first


def checked_priority(priority: Any) -> Priority:
    """Return a priority if it is one; else raise `ValueError`."""
    if priority not in PRIORITIES:
        hint = nearest(priority, PRIORITIES) if isinstance(priority, str) else ""
        raise ValueError(f"priority {priority!r} is not one of {', '.join(PRIORITIES)}{hint}")
    checked: Priority = priority
    return checked


def can_be_kept(name: str) -> bool:
    """Return whether every broker, store and log can hold this as a name: text that no terminal obeys."""
    return escaped(name) == name


def is_id(id: object) -> TypeGuard[str]:
    """Return whether this can be a message's id: text of 1 to 255 bytes in UTF-8, without control characters."""
    return isinstance(id, str) and can_be_kept(id) and 0 < len(id.encode()) <= LONGEST_ID


_TOGETHER: Final = 64
_VARIANTS: Final = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))  # of the id's layout; two bits are free


class _Drawn(deque[str]):
    """Random digits for ids to come, and the process that has drawn them."""

    pid: int = 0


_drawn: Final = _Drawn()


def new_id() -> str:
    """Return a fresh message id, a random UUID (RFC 9562, version 4), as both engines use.

    Made by hand, for that takes a third of `uuid4`'s time and spares its import; and of random bytes that are drawn for
    many at a time, for a system call takes longer than all the rest.
    """
    if _drawn.pid != os.getpid():  # forked, perhaps by C code that calls no hook: else both would give the same ids
        _drawn.clear()
        _drawn.pid = os.getpid()
    try:
        digits = _drawn.pop()
    except IndexError:
        drawn = os.urandom(16 * _TOGETHER).hex()
        _drawn.extend(drawn[start : start + 32] for start in range(32, len(drawn), 32))
        digits = drawn[:32]
    variant = _VARIANTS[digits[16]]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


_FRESH: Final[Mapping[str, Any]] = {
    "waits": 0,
    "waits_since": None,
    "redelivered": 0,
    "requeues": 0,
    "relayed": False,
    "due_at": None,
}
"""What was counted of an attempt, as it is for the next one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One call of a task, on its way.

    Attributes:
        id: The same for all attempts.
        task: The task's name.
        queue: Where it waits for a worker, on every attempt (rule Q4).
        args_json: The positional arguments, a JSON array in the codec's form.
        kwargs_json: The keyword arguments, a JSON object whose values are in the codec's form.
        attempt: The number of the run that this message is for; 1 is the first.
        enqueued_at: When it was first sent, in seconds since the epoch.
        form: The version of the form that its arguments need.
        expires_at: It does not start after this, in seconds since the epoch; None is never.
        headers: What the application sends along: text, whole numbers, booleans and None by name.
        error: Why the attempt before this one failed.
        waits: How often it was put off because no worker knew its task (rule Q6).
        waits_since: When it was first put off, in seconds since the epoch.
        redelivered: How often this attempt was put off because it may have been started before (rules A5 and A7).
        requeues: How often this attempt was requeued because of an error that nobody foresaw (rule I2).
        replays: How often it was replayed from the dead letters (rule L2).
        unique: How it holds a unique key, and the key's hash (`Unique.held_by`); empty if its task is not unique.
        digest: A hash of the arguments, if the sender has chosen the id (rule U6).
        relayed: Whether an outbox has it, or had it, or it was put off: it may be published twice, so its mark is
            claimed (rules OB1 and A7).
        keeps_call: Whether its record tells its arguments and headers, as that of a group's member does.
        flow: Its place in a flow (`stores.steps.Place`); empty if it is in none.
        due_at: From when on the attempt was to run, in seconds since the epoch; None for one that was sent without a
            delay, or by an earlier release.
        plain: The positional and keyword arguments, decoded from JSON but still in the codec's form, if whoever read
            the message had decoded them; nobody changes them.
    """

    id: str
    task: str
    queue: str
    args_json: str
    kwargs_json: str
    enqueued_at: float
    form: int = 1
    priority: Priority = "normal"
    attempt: int = 1
    expires_at: float | None = None
    headers: dict[str, Any] = field(default_factory=dict[str, Any])
    error: ErrorInfo | None = None
    waits: int = 0
    waits_since: float | None = None
    redelivered: int = 0
    requeues: int = 0
    replays: int = 0
    unique: str = ""
    digest: str = ""
    relayed: bool = False
    keeps_call: bool = False
    flow: str = ""
    due_at: float | None = None
    plain: tuple[Sequence[Any], Mapping[str, Any]] | None = field(default=None, repr=False, compare=False)

    @property
    def life(self) -> str:
        """What tells its attempts from those before a replay, which have the same numbers: the id, and which replay."""
        return f"{self.id}.{self.replays}" if self.replays else self.id

    @property
    def attempt_key(self) -> str:
        """What tells this attempt from all others, of this message and of others; stores and brokers keep it."""
        return f"{self.life}:{self.attempt}"

    @property
    def is_claimed(self) -> bool:
        """Whether it has a unique key or a chosen id, which is claimed in the store before it is published."""
        return bool(self.unique or self.digest)

    @property
    def size(self) -> int:
        """The bytes that the application decides about: arguments and headers, encoded (rule S6)."""
        size = len(self.args_json) + len(self.kwargs_json)
        if self.headers:
            size += sum(len(key.encode()) + len(str(value).encode()) for key, value in self.headers.items())
        return size

    @property
    def headers_size(self) -> int:
        """The bytes that the headers take in a message's form."""
        return len(json.dumps(dict(self.headers)))

    def check_rare(self) -> None:
        """Raise `EncodeError` if a worker would refuse the expiry or a header; it can read all else as it is made."""
        if self.expires_at is not None and not 0 <= self.expires_at <= END_OF_TIME:
            raise EncodeError("expires", "it is too far away; leave it out for a message that never expires")
        for name, value in self.headers.items():
            if not (_is_text(name) and _is_header(value)):
                raise EncodeError(f"headers[{name!r}]", HEADERS_ARE)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and the keyword arguments, for `Declaration.fitted`: new objects each time.

        Raises `DecodeError` if they are not in the codec's form.
        """
        if self.plain is not None:
            args, kwargs = self.plain
            return codec.items_of(args), codec.values_of(kwargs)
        return codec.loads_array(self.args_json), codec.loads_object(self.kwargs_json)

    def next_attempt(self, error: BaseException) -> Message:
        """Return the message of the next attempt (rule R4): all the same, but for the attempt and the last error."""
        return replace(self, attempt=self.attempt + 1, error=ErrorInfo.of(error), **_FRESH)

    def replayed(self, now: float) -> Message:
        """Return the message as it starts again at attempt 1 (rule L2), less an expiry before `now` (epoch seconds)."""
        expired = self.expires_at is not None and self.expires_at <= now
        expires_at = None if expired else self.expires_at
        fresh = {**_FRESH, "due_at": now}
        return replace(self, attempt=1, error=None, expires_at=expires_at, replays=self.replays + 1, **fresh)

    def dumps(self) -> str:
        """Return the whole message as JSON, in ASCII: the form in which it is parked or buried."""
        return (
            f'{{"id":{codec.to_json(self.id)},"task":{codec.to_json(self.task)},{self.dumps_meta()[1:-1]},'
            f'"args":{self.args_json},"kwargs":{self.kwargs_json}}}'
        )

    def dumps_meta(self) -> str:
        """Return what an engine's own message has no place for, as JSON, in ASCII: all but id, task and arguments."""
        has_texts = not self.headers or all(isinstance(each, str) for each in self.headers.values())
        form = self.form if has_texts else max(2, self.form)  # the first form has no place for other headers
        text = (  # by hand, for what each message has: a fifth of the time that a dict takes
            f'{{"form":{form},"queue":{codec.to_json(self.queue)},"priority":"{self.priority}",'
            f'"attempt":{self.attempt},"enqueued_at":{self.enqueued_at!r}'
        )
        if self.unique:
            text += f',"unique":"{self.unique}"'
        if self.flow:
            text += f',"flow":{codec.to_json(self.flow)}'
        values = _rare_values(self)
        if values == _USUAL:
            return f"{text}}}"
        named = zip(_BY_DICT, values, _USUAL, strict=True)
        rare = {name: value for name, value, usual in named if value != usual}
        if self.error is not None:
            rare["error"] = [self.error.type, self.error.message]
        return f"{text},{codec.to_json(rare)[1:]}"


def loads(text: str | bytes) -> Message:
    """Return the message that `Message.dumps` wrote; else raise `DecodeError`, or `NewerFormError` for a newer form."""
    return checked(_message(_object(text)))


def _message(data: Mapping[str, Any]) -> Message:
    try:
        arguments: dict[str, Any] = {
            "args_json": codec.rewritten(data["args"]),
            "kwargs_json": codec.rewritten(data["kwargs"]),
        }
        return Message(id=_text(data["id"], "id"), task=_text(data["task"], "task"), **arguments, **_fields(data))
    except KeyError as exc:
        raise DecodeError(f"not a message: {exc} is missing") from exc


def loads_meta(
    text: str | bytes,
    *,
    id: str,
    task: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    texts: tuple[str, str] | None = None,
) -> Message:
    """Return the message whose other half `Message.dumps_meta` wrote; raises as `loads`.

    `args` and `kwargs` are decoded from JSON; `texts` are both as JSON, in ASCII, if whoever read them still has it.
    """
    try:
        fields = _fields(_object(text))
    except KeyError as exc:
        raise DecodeError(f"not a message: {exc} is missing") from exc
    if texts is None:
        args_json, kwargs_json = codec.rewritten(args), codec.rewritten(kwargs) if kwargs else "{}"
    else:
        args_json, kwargs_json = texts
        codec.refuse_depth(args_json, args)
        codec.refuse_depth(kwargs_json, kwargs)
    return Message(id=id, task=task, args_json=args_json, kwargs_json=kwargs_json, plain=(args, kwargs), **fields)


def checked(message: Message) -> Message:
    """Return a message that was read, or raise `DecodeError` if others chose an id or a name that can't be kept.

    PostgreSQL, say, takes no NUL, UTF-8 has no half of a surrogate pair, and terminals obey others.
    """
    names = f"{message.id}{message.task}{message.queue}"
    if 0 < len(message.id) <= LONGEST_ID and names.isascii() and names.isprintable():  # as nearly always
        return message
    if not is_id(message.id):
        raise DecodeError(f"not a message: its id is {ascii(message.id)[:300]}")
    for kind, name in (("task", message.task), ("queue", message.queue)):
        if not can_be_kept(name):
            raise DecodeError(f"not a message: its {kind} is {ascii(name)[:300]}")
    return message


def _object(text: str | bytes) -> Mapping[str, Any]:
    data = codec.parsed(text)
    if not isinstance(data, dict):
        raise DecodeError(f"not a message: a JSON {type(data).__name__}")
    return cast("dict[str, Any]", data)


def _fields(data: Mapping[str, Any]) -> dict[str, Any]:
    form = data["form"]
    if not isinstance(form, int) or form < 1:
        raise DecodeError(f"not a message: its form is {form!r}")
    if form > FORM:
        raise NewerFormError(f"the message has form {form}; this release reads up to {FORM}")
    if data["priority"] not in PRIORITIES:
        raise DecodeError(f"not a message: its priority is {data['priority']!r}")
    queue, attempt, enqueued_at = data["queue"], data["attempt"], data["enqueued_at"]
    is_usual = type(queue) is str and type(attempt) is int and type(enqueued_at) is float
    if not (  # a third of the calls' time
        is_usual and queue.isascii() and 0 <= attempt <= END_OF_TIME and 0 <= enqueued_at <= END_OF_TIME
    ):
        _text(queue, "queue")
        _count(attempt, "attempt")
        _time(enqueued_at, "enqueued_at")
    fields = {
        "form": form,
        "queue": queue,
        "priority": data["priority"],
        "attempt": attempt,
        "enqueued_at": enqueued_at,
    }
    if len(data) > _ALWAYS:
        fields |= {name: read(data[name], name) for name, read in _RARE.items() if name in data}
    return fields


_ALWAYS: Final = 5  # how many fields each message has beside id, task and arguments: the form, and the four above


def is_of(*kinds: type, most: float = END_OF_TIME) -> Callable[[Any], bool]:
    """Return what tells whether a value has one of these types itself; a number must also be from 0 to `most`."""

    def is_sound(value: Any) -> bool:
        if type(value) not in kinds:  # a `bool` is no `int` here
            return False
        return not isinstance(value, (int, float)) or 0 <= value <= most

    return is_sound


def _reading(is_sound: Callable[[Any], bool]) -> Callable[[Any, str], Any]:
    def read(value: Any, name: str) -> Any:
        if not is_sound(value):
            raise DecodeError(f"not a message: its {name} is {value!r}")
        return value

    return read


_HALF: Final = re.compile("[\ud800-\udfff]")  # of a surrogate pair, for which UTF-8 has no bytes
_HASH: Final = re.compile("([a-z]:)?[0-9a-f]{32}")


def _is_text(value: object) -> TypeGuard[str]:
    """Return whether a value is text that every broker and store can keep."""
    return isinstance(value, str) and (value.isascii() or _HALF.search(value) is None)


_PLACE: Final = re.compile(  # see `stores.steps.Place`
    r"(?:[0-9]{1,7}(?:/([0-9]{1,7}))?|failure|end) [0-9]{1,9} ([0-9]{1,7}) [a-z]{0,5} ([^\t]{1,255})"
    r"(?:\t[^\t]{1,255}\t[0-9]{1,9}){0,10}"
)


def is_place(value: object) -> TypeGuard[str]:
    """Return whether this can be a step's place in a flow, and of a group that has such a member."""
    found = _PLACE.fullmatch(value) if _is_text(value) else None
    return found is not None and is_id(found[3]) and (found[1] is None or int(found[1]) < int(found[2]))


def flags_of(place: str) -> str:
    """Return the flags of a step's place in a flow; see `stores.steps.Place`."""
    return place.split(" ", 4)[3]


def flow_of(place: str) -> str:
    """Return the id of the flow in which a step has this place."""
    return place.split(" ", 4)[-1].partition("\t")[0]


def is_member(place: str) -> bool:
    """Return whether a step's place in a flow is that of a group's member."""
    return "/" in place.partition(" ")[0]


_text, _count, _flag = _reading(_is_text), _reading(is_of(int)), _reading(is_of(bool))
_time, _time_or_none = _reading(is_of(int, float)), _reading(is_of(int, float, NoneType))
_hash: Final = _reading(lambda value: isinstance(value, str) and _HASH.fullmatch(value) is not None)

HEADERS_ARE: Final = "a header is text (with no half of a surrogate pair), a whole number of 64 bits, a bool or None"


def _headers(headers: Any, _: str) -> dict[str, Any]:
    if codec.is_dict(headers) and all(_is_text(name) and _is_header(value) for name, value in headers.items()):
        return headers
    raise DecodeError(f"not a message: {HEADERS_ARE}")


def _is_header(value: object) -> bool:
    return _is_text(value) or value is None or (isinstance(value, int) and -(1 << 63) <= value < 1 << 63)


def _error(pair: Any, _: str) -> ErrorInfo | None:
    match pair:
        case None:
            return None
        case [str(kind), str(text)]:
            return ErrorInfo(type=failures.clipped(kind), message=failures.clipped(text))
        case _:
            raise DecodeError(f"not a message: its error is {pair!r}")


_RARE: Final[Mapping[str, Callable[[Any, str], Any]]] = {
    "expires_at": _time_or_none,
    "headers": _headers,
    "error": _error,
    "waits": _count,
    "waits_since": _time_or_none,
    "redelivered": _count,
    "requeues": _count,
    "replays": _count,
    "unique": _hash,
    "digest": _hash,
    "relayed": _flag,
    "keeps_call": _flag,
    "flow": _reading(is_place),
    "due_at": _time_or_none,
}
"""The fields that few messages have, in the order in which they are written, and what reads each."""

_BY_DICT: Final = tuple(name for name in _RARE if name not in ("unique", "flow"))  # which are written by hand
_rare_values: Final = attrgetter(*_BY_DICT)
_USUAL: Final[tuple[Any, ...]] = _rare_values(
    Message(id="", task="", queue="", args_json="[]", kwargs_json="{}", enqueued_at=0.0)
)


RAW: Final = "raw-"  # what the ids of dead letters begin with that could not be read


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A message that failed for good, with all that is known of it.

    Attributes:
        message: As it was for its last attempt; None if its bytes could not be read.
        reason: Why it is dead, such as `exhausted`.
        error: What the last attempt raised.
        traceback: The last attempt's traceback, as text.
        died_at: In seconds since the epoch.
        raw: The bytes as they came, if they could not be read.
        worker: Who buried it, as `host:process id`; empty if that is not known.
    """

    message: Message | None
    reason: str
    error: ErrorInfo | None = None
    traceback: str = ""
    died_at: float
    raw: bytes | None = None
    worker: str = ""

    @property
    def id(self) -> str:
        """The message's id, or for bytes that could not be read one that is made from them."""
        if self.message is not None:
            return self.message.id
        from hashlib import sha256  # here, for it loads OpenSSL

        return RAW + sha256(f"{self.died_at}:{self.raw!r}".encode()).hexdigest()[:32]

    def dumps(self) -> str:
        """Return the letter as JSON, in ASCII."""
        head = codec.to_json(
            {
                "id": self.id,
                "reason": self.reason,
                "error": None if self.error is None else [self.error.type, self.error.message],
                "traceback": self.traceback,
                "died_at": self.died_at,
                "raw": None if self.raw is None else self.raw.decode("latin-1"),
                **({"worker": self.worker} if self.worker else {}),
            }
        )
        return f'{head[:-1]},"message":{"null" if self.message is None else self.message.dumps()}}}'


def loads_letter(text: str | bytes) -> DeadLetter:
    """Return the dead letter that `DeadLetter.dumps` wrote; raise `DecodeError` if it is none."""
    data = _object(text)
    try:
        error, raw, message = data["error"], data["raw"], data["message"]
        return DeadLetter(
            message=None if message is None else checked(_message(message)),
            reason=_text(data["reason"], "reason"),
            error=_error(error, "error"),
            traceback=_text(data["traceback"], "traceback"),
            died_at=_time(data["died_at"], "died_at"),
            raw=None if raw is None else raw.encode("latin-1"),
            worker=_text(data.get("worker", ""), "worker"),
        )
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeError) as exc:
        raise DecodeError(f"not a dead letter: {exc!r}") from exc
