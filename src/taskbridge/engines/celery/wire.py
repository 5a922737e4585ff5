"""Celery's own words: the bytes that a Celery client would write (protocol 2), made without Celery.

A Celery message has a place for the id, the task's name and the arguments. All else travels in the header `taskbridge`,
as text. A message without that header comes from a plain Celery client: its arguments are plain values.

The headers `argsrepr` and `kwargsrepr`, which Flower shows, hold the beginning of the arguments, no more of it than
Celery's own do; neither taskbridge nor Celery writes them to a log unless it is told to.
"""

from __future__ import annotations

import heapq
import itertools
import os
import secrets
import socket
from binascii import b2a_base64
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from json.encoder import encode_basestring_ascii as _quoted  # a fifth of the time that an encoder takes for text
from random import getrandbits
from typing import Any, Final, NamedTuple, cast

from taskbridge import codec, locks
from taskbridge.brokers.base import Publication, RedisCommand, Wire
from taskbridge.exceptions import DecodeError
from taskbridge.message import PRIORITIES, Message, Priority
from taskbridge.settings import Settings

ENGINE: Final = "celery"

META: Final = "taskbridge"
"""The header that holds what Celery's own message has no place for."""

CANVAS: Final = "celery-canvas"
"""The header of a message in which what a plain client has linked to its task (callbacks, a chain) outlives a retry."""

REDIS_STEPS: Final[Mapping[Priority, int]] = {"critical": 0, "high": 3, "normal": 6, "low": 9}
"""kombu's own steps: 0 is fetched first, and what a plain client's message without a priority has."""

RANKS: Final[Mapping[Priority, int]] = {priority: rank for rank, priority in enumerate(PRIORITIES)}
"""RabbitMQ's priorities, and memory's; a message without one counts as 0 on RabbitMQ."""

MAX_PRIORITY: Final = len(PRIORITIES) - 1
"""RabbitMQ's `x-max-priority`."""

_STEP_MARK: Final = "\x06\x16"
"""What stands between a queue's name and the step in the key of a list (kombu/transport/redis.py, Channel.sep)."""

_SHOWN: Final = 1024
"""How much of the arguments the headers show, as in celery/app/amqp.py (argsrepr_maxsize)."""

_MOST_TEMPLATES: Final = 10_000


def native_queue(namespace: str, queue: str) -> str:
    """Return Celery's name of a queue; no other engine uses it (rule Q5)."""
    return f"{namespace}.{ENGINE}.{queue}"


def own_queue(namespace: str, native: str) -> str | None:
    """Return taskbridge's name of a queue of Celery's; None if it is not one of ours."""
    prefix = f"{namespace}.{ENGINE}."
    return native[len(prefix) :] if native.startswith(prefix) else None


def step_key(native: str, step: int) -> str:
    """Return the key of the Redis list of a queue and a step."""
    return f"{native}{_STEP_MARK}{step}" if step else native


def queue_arguments() -> dict[str, Any]:
    """Return what a queue is declared with on RabbitMQ: its type too, for a virtual host may have another default."""
    return {"x-queue-type": "classic", "x-max-priority": MAX_PRIORITY}


_EMBEDDED: Final = ("callbacks", "errbacks", "chain", "chord")
CANVAS_HEADERS: Final = ("group", "group_index", "root_id", "parent_id")
"""The headers that belong to a canvas."""

NO_CANVAS: Final = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'

_host: Final = socket.gethostname()
_host_json: Final = codec.to_json(_host)[1:-1]


class _Sender:
    """This process, as Celery's messages name their senders."""

    def __init__(self) -> None:
        self.forked()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forked)

    def forked(self) -> None:
        """Note the number of this process; to ask for it with each message would be a system call each."""
        self.origin_json = f'"gen{os.getpid()}@{_host_json}"'


_sender: Final = _Sender()


def _origin() -> str:
    return f"gen{os.getpid()}@{_host}"  # celery/utils/nodenames.py, anon_nodename


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _body(message: Message, canvas: str) -> str:
    return f"[{message.args_json}, {message.kwargs_json}, {canvas}]"


class _Canvas:
    """What a plain client linked to its task, as Celery's message holds it."""

    def __init__(self, text: str) -> None:
        try:
            parts = codec.loads_object(text)
        except DecodeError:  # an application may send a header of this name, too
            parts = {}
        embed = parts.get("embed")
        links = cast("dict[str, Any]", embed) if isinstance(embed, dict) else {}
        self.embed: dict[str, Any] = {name: links.get(name) for name in _EMBEDDED}
        self.headers: dict[str, Any] = {name: parts[name] for name in CANVAS_HEADERS if name in parts}


def _headers(message: Message, canvas: _Canvas | None) -> dict[str, Any]:
    """Return the headers of a message, in Celery's order (celery/app/amqp.py, as_task_v2)."""
    headers: dict[str, Any] = {
        "lang": "py",
        "task": message.task,
        "id": message.id,
        "shadow": None,
        "eta": None,
        "expires": None,  # nor the engine's own expiry: on RabbitMQ such a message vanishes without a trace (rule X1)
        "group": None,
        "group_index": None,
        "retries": message.attempt - 1,
        "timelimit": [None, None],
        "root_id": message.id,
        "parent_id": None,
        "argsrepr": _shown(f"({message.args_json[1:-1]})"),
        "kwargsrepr": _shown(message.kwargs_json),
        "origin": _origin(),
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        META: message.dumps_meta(),
    }
    if canvas is not None:
        headers |= canvas.headers
    return headers


def _canvas_of(message: Message) -> _Canvas | None:
    text = message.headers.get(CANVAS) if message.headers else None
    return None if text is None else _Canvas(text)


class _Envelope:
    """The JSON in which kombu's virtual transports put a message, prepared for a task, a queue and a priority."""

    __slots__ = ("_end", "_queue", "_task")

    def __init__(self, task: str, native: str, priority: int) -> None:
        self._task = (
            '", "content-encoding": "utf-8", "content-type": "application/json", '
            f'"headers": {{"lang": "py", "task": {codec.to_json(task)}, "id": '
        )
        self._queue = (
            ', "reply_to": "", "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": '
            f'{codec.to_json(native)}}}, "priority": {priority}, "body_encoding": "base64", "delivery_tag": "'
        )

    def fill(self, message: Message) -> str:
        """Return the text of a message."""
        if message.headers and CANVAS in message.headers:
            return self._filled(message, _Canvas(message.headers[CANVAS]))
        id_json = _quoted(message.id)
        return (
            f'{{"body": "{_base64(_body(message, NO_CANVAS))}{self._task}{id_json}, "shadow": null, "eta": null, '
            f'"expires": null, "group": null, "group_index": null, "retries": {message.attempt - 1}, '
            f'"timelimit": [null, null], "root_id": {id_json}, "parent_id": null, '
            f'"argsrepr": {_quoted(_shown(f"({message.args_json[1:-1]})"))}, '
            f'"kwargsrepr": {_quoted(_shown(message.kwargs_json))}, "origin": {_sender.origin_json}, '
            f'"ignore_result": true, "replaced_task_nesting": 0, "stamped_headers": null, "stamps": {{}}, '
            f'"{META}": {_quoted(message.dumps_meta())}}}, '
            f'"properties": {{"correlation_id": {id_json}{self._queue}{getrandbits(128):032x}"}}}}'
        )

    def _filled(self, message: Message, canvas: _Canvas) -> str:
        body = _base64(_body(message, codec.to_json(canvas.embed)))
        id_json = _quoted(message.id)
        return (
            f'{{"body": "{body}", "content-encoding": "utf-8", "content-type": "application/json", '
            f'"headers": {codec.to_json(_headers(message, canvas))}, '
            f'"properties": {{"correlation_id": {id_json}{self._queue}{getrandbits(128):032x}"}}}}'
        )


def _base64(text: str) -> str:
    return b2a_base64(text.encode("ascii"), newline=False).decode("ascii")


class Envelopes:
    """The prepared envelopes of all tasks, queues and priorities.

    Args:
        namespace: The bridge's.
        numbers: Celery's number of each priority, on the kind of broker they are for.
    """

    def __init__(self, namespace: str, numbers: Mapping[Priority, int]) -> None:
        self._namespace = namespace
        self._numbers = numbers
        self._prepared: dict[tuple[str, str, Priority], tuple[str, _Envelope]] = {}

    def fill(self, message: Message) -> tuple[str, str]:
        """Return the native queue of a message, and its text."""
        prepared = self._prepared.get((message.task, message.queue, message.priority))
        if prepared is None:
            prepared = self._prepare(message)
        native, envelope = prepared
        return native, envelope.fill(message)

    def _prepare(self, message: Message) -> tuple[str, _Envelope]:
        if len(self._prepared) >= _MOST_TEMPLATES:  # a sender that makes up task names
            self._prepared.clear()
        native = native_queue(self._namespace, message.queue)
        prepared = native, _Envelope(message.task, native, self._numbers[message.priority])
        self._prepared[message.task, message.queue, message.priority] = prepared
        return prepared


class RedisWire:
    """Writes what kombu's Redis transport writes; each priority has a list of its own."""

    engine = ENGINE

    def __init__(self, settings: Settings) -> None:
        self._namespace = settings.namespace
        self._envelopes = Envelopes(settings.namespace, REDIS_STEPS)

    def encode(self, message: Message) -> Sequence[RedisCommand]:
        """Return the command that puts a message in its queue."""
        native, text = self._envelopes.fill(message)
        return (("LPUSH", step_key(native, REDIS_STEPS[message.priority]), text),)

    def places(self, queue: str) -> Sequence[str]:
        """Return the keys of a queue's lists, in the order in which they are fetched."""
        native = native_queue(self._namespace, queue)
        return tuple(step_key(native, step) for step in REDIS_STEPS.values())


_UNSAID: Final[Mapping[str, Any]] = {
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "parent_id": None,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}
"""Headers that Celery does without (celery/worker/request.py, celery/app/task.py: Context), and what it takes a missing
one for. RabbitMQ decodes each, copies it from process to process, and keeps it as long as the message is in memory:
with these eleven, a message costs it a quarter more."""

_OWN: Final = ("id", "retries", "root_id", "argsrepr", "kwargsrepr", META)
"""Headers that each message has for itself."""


class AmqpWire:
    """Writes what Celery publishes to the default exchange, but for headers that say nothing."""

    engine = ENGINE

    def __init__(self, settings: Settings) -> None:
        self._namespace = settings.namespace
        self._arguments = queue_arguments()
        self._common: dict[tuple[str, Priority, str], Mapping[str, Any]] = {}
        self._natives: dict[str, str] = {}

    def encode(self, message: Message) -> Publication:
        """Return what is published for a message."""
        canvas = _canvas_of(message)
        if canvas is not None:
            return self._with_canvas(message, canvas)
        headers: dict[str, Any] = {
            "id": message.id,
            "root_id": message.id,
            "argsrepr": _shown(f"({message.args_json[1:-1]})"),
            "kwargsrepr": _shown(message.kwargs_json),
            META: message.dumps_meta(),
        }
        if message.attempt > 1:
            headers["retries"] = message.attempt - 1
        return Publication(
            queue=self._native(message.queue),
            arguments=self._arguments,
            body=_body(message, NO_CANVAS).encode("ascii"),
            properties={"headers": headers, "correlation_id": message.id},
            common=self._common_of(message),
        )

    def _native(self, queue: str) -> str:
        native = self._natives.get(queue)
        if native is None:
            native = self._natives[queue] = native_queue(self._namespace, queue)
        return native

    def _common_of(self, message: Message) -> Mapping[str, Any]:
        """Return what all messages of a task and a priority have, from this process."""
        key = message.task, message.priority, _sender.origin_json
        common = self._common.get(key)
        if common is None:
            if len(self._common) >= _MOST_TEMPLATES:  # a sender that makes up task names
                self._common.clear()
            headers = {name: value for name, value in _said(message, None).items() if name not in _OWN}
            common = self._common[key] = {**_properties(message), "headers": headers}
        return common

    def _with_canvas(self, message: Message, canvas: _Canvas) -> Publication:
        return Publication(
            queue=self._native(message.queue),
            arguments=self._arguments,
            body=_body(message, codec.to_json(canvas.embed)).encode("ascii"),
            properties={
                **_properties(message),
                "headers": _said(message, canvas),
                "correlation_id": message.id,
            },
        )

    def places(self, queue: str) -> Sequence[str]:
        """Return the name of a queue."""
        return (native_queue(self._namespace, queue),)


def _properties(message: Message) -> dict[str, Any]:
    """Return the properties that all messages of a priority have."""
    return {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_mode": 2,
        "priority": RANKS[message.priority],
        "reply_to": "",
    }


def _said(message: Message, canvas: _Canvas | None) -> dict[str, Any]:
    """Return the headers, but for those that say nothing."""
    headers = _headers(message, canvas)
    return {name: value for name, value in headers.items() if name not in _UNSAID or value != _UNSAID[name]}


class Taken(NamedTuple):
    """A message that was taken from a queue.

    Attributes:
        tag: Means this delivery.
        queue: Its native queue.
        item: Its bytes.
        suspect: Whether it may have been started before.
    """

    tag: str
    queue: str
    item: bytes
    suspect: bool


MemoryMessage = tuple[str, int, bytes]
"""A message on its way: native queue, rank, bytes."""


class MemoryQueues:
    """The queues of one bridge: what waits is bytes, the highest rank first and then in the order of arrival."""

    engine = ENGINE

    def __init__(self, settings: Settings) -> None:
        self._namespace = settings.namespace
        self._envelopes = Envelopes(settings.namespace, RANKS)
        self._changed = locks.Condition()
        self._waiting: dict[str, list[tuple[int, int, bytes, bool]]] = {}
        self._arrivals = itertools.count()
        self._returns = itertools.count(-1, -1)
        self._taken: dict[str, tuple[str, int, bytes]] = {}
        self.changes: int = 0

    # For senders

    def encode(self, message: Message) -> MemoryMessage:
        """Return a message's place and bytes."""
        native, text = self._envelopes.fill(message)
        return native, RANKS[message.priority], text.encode("ascii")

    def places(self, queue: str) -> Sequence[str]:
        """Return the native name of a queue."""
        return (native_queue(self._namespace, queue),)

    def deliver(self, native: MemoryMessage) -> None:
        """Put a message in its queue."""
        self.put(*native)

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        return self.size(native_queue(self._namespace, queue))

    # For channels: as `RedisQueues`, and names of queues are native

    def put(self, queue: str, priority: object, item: bytes, *, suspect: bool = False) -> None:
        """Put a message in a queue, as the last of its priority; one that may have been started, as the first."""
        rank = max(0, min(MAX_PRIORITY, priority)) if isinstance(priority, int) else RANKS["normal"]
        with self._changed:
            number = next(self._returns if suspect else self._arrivals)
            heapq.heappush(self._waiting.setdefault(queue, []), (-rank, number, item, suspect))
        self.wake()

    def take(self, queues: Sequence[str], most: int) -> list[Taken]:
        """Take at most so many messages, of the queues in turn."""
        taken: list[Taken] = []
        left = deque(queues)
        with self._changed:
            while left and len(taken) < most:
                queue = left.popleft()
                if self._waiting.get(queue):
                    rank, _, item, suspect = heapq.heappop(self._waiting[queue])
                    taken.append(Taken(secrets.token_hex(8), queue, item, suspect))
                    self._taken[taken[-1].tag] = queue, -rank, item
                    left.append(queue)
        return taken

    def is_quiet(self, queues: Sequence[str], *, in_vain: bool) -> bool:
        """Return whether these are empty, as `take` has just seen; from then on, `changes` tells."""
        return True

    def end(self, tag: str) -> None:
        """Acknowledge a message; the slot that gets free lets the next one be taken at once."""
        self._taken.pop(tag, None)
        self.wake()

    def give_back(self, tag: str) -> None:
        """Return a message to its queue, as the first of its priority."""
        with suppress(KeyError):
            self.put(*self._taken.pop(tag), suspect=True)

    def size(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        with self._changed:
            return len(self._waiting.get(queue, ()))

    def purge(self, queue: str) -> int:
        """Drop what waits in a queue, and return how much it was."""
        with self._changed:
            return len(self._waiting.pop(queue, ()))

    def wake(self) -> None:
        """Have whoever waits for a change look again."""
        with self._changed:
            self.changes += 1
            self._changed.notify_all()

    def wait(self, changes: int, timeout_s: float) -> None:
        """Wait until `changes` is another number."""
        with self._changed:
            self._changed.wait_for(lambda: self.changes != changes, timeout_s)

    def make_watch(self, wake: object) -> MemoryQueues:
        """Return what tells a connection of changes."""
        return self

    def check(self) -> None:
        """Do nothing: memory is always there."""

    def close(self) -> None:
        """Do nothing: other connections go on."""


def make_wire(kind: str, settings: Settings) -> Wire[Any]:
    """Return the wire for a kind of broker: `redis`, `amqp` or `memory`."""
    if kind == "redis":
        return RedisWire(settings)
    if kind == "amqp":
        return AmqpWire(settings)
    return MemoryQueues(settings)
