"""Celery's own words: the bytes that a Celery client would write (protocol 2), made without Celery; queues in memory.

A Celery message has a place for the id, the task's name and the arguments. All else travels in the header `taskbridge`,
as text. A message without that header comes from a plain Celery client: its arguments are plain values.

The headers `argsrepr` and `kwargsrepr`, which Flower shows, hold the beginning of the arguments, no more of it than
Celery's own do; neither taskbridge nor Celery writes them to a log unless it is told to.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import secrets
import socket
from binascii import b2a_base64
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from json.encoder import encode_basestring_ascii as _quoted  # a fifth of the time that an encoder takes for text
from random import getrandbits
from typing import Any, Final, NamedTuple, cast

from taskbridge import codec, locks
from taskbridge.brokers.base import Held, Publication, RedisCommand, Wire, typed
from taskbridge.exceptions import DecodeError
from taskbridge.message import PRIORITIES, Message, Priority
from taskbridge.routing import QueueType
from taskbridge.settings import Settings

ENGINE: Final = "celery"

META: Final = "taskbridge"  # the header that holds what Celery's own message has no place for

CANVAS: Final = "celery-canvas"
"""The header of a message in which what a plain client has linked to its task (callbacks, a chain) outlives a retry."""

REDIS_STEPS: Final[Mapping[Priority, int]] = {"critical": 0, "high": 3, "normal": 6, "low": 9}
"""kombu's own steps: 0 is fetched first, and what a plain client's message without a priority has."""

RANKS: Final[Mapping[Priority, int]] = {priority: rank for rank, priority in enumerate(PRIORITIES)}
"""RabbitMQ's priorities, and memory's; a message without one counts as 0 on RabbitMQ."""

MAX_PRIORITY: Final = len(PRIORITIES) - 1  # RabbitMQ's `x-max-priority`

_STEP_MARK: Final = "\x06\x16"
"""What stands between a queue's name and the step in the key of a list (kombu/transport/redis.py, Channel.sep)."""

_HOLE: Final = "\0" + secrets.token_hex(16)
"""What stands in a template for what each message has of its own; nobody else can write it."""

_SHOWN: Final = 1024  # how much of the arguments the headers show, as in celery/app/amqp.py (argsrepr_maxsize)
_MOST_TEMPLATES: Final = 10_000


def native_queue(namespace: str, queue: str) -> str:
    """Return Celery's name of a queue; no other engine uses it (rule Q5)."""
    return f"{namespace}.{ENGINE}.{queue}"


def own_queue(namespace: str, native: object) -> str | None:
    """Return taskbridge's name of a queue of Celery's; None if it is not one of ours."""
    prefix = f"{namespace}.{ENGINE}."
    return native[len(prefix) :] if isinstance(native, str) and native.startswith(prefix) else None


def step_key(native: str, step: int) -> str:
    """Return the key of the Redis list of a queue and a step."""
    return f"{native}{_STEP_MARK}{step}" if step else native


def lists_of(native: str) -> tuple[str, ...]:
    """Return the keys of the Redis lists of a queue, in the order in which they are taken from."""
    return tuple([step_key(native, step) for step in REDIS_STEPS.values()])


def queue_arguments(kind: QueueType) -> dict[str, Any]:
    """Return what a queue is declared with on RabbitMQ: its type too, for a virtual host may have another default."""
    return typed(kind, priorities=MAX_PRIORITY)


@cache
def _origin() -> str:
    """Return the name of this process among senders (celery/utils/nodenames.py, anon_nodename)."""
    return f"gen{os.getpid()}@{socket.gethostname()}"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_origin.cache_clear)


EMBEDDED: Final = ("callbacks", "errbacks", "chain", "chord")
NOTHING_EMBEDDED: Final = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'

CANVAS_HEADERS: Final = ("group", "group_index", "root_id", "parent_id")


class _Canvas(NamedTuple):
    """What a plain client linked to its task, as Celery's message holds it: in its body, and in its headers."""

    links_json: str
    headers: Mapping[str, Any]


def _canvas_of(message: Message) -> _Canvas | None:
    text = message.headers.get(CANVAS) if message.headers else None
    if not isinstance(text, str):
        return None
    try:
        parts = codec.loads_object(text)
    except DecodeError:  # an application may send a header of this name, too
        parts = {}
    embed = parts.get("embed")
    links = cast("dict[str, Any]", embed) if isinstance(embed, dict) else {}
    return _Canvas(
        json.dumps({name: links.get(name) for name in EMBEDDED}),
        {name: parts[name] for name in CANVAS_HEADERS if name in parts},
    )


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _body(message: Message, canvas: _Canvas | None) -> bytes:
    links = NOTHING_EMBEDDED if canvas is None else canvas.links_json
    return f"[{message.args_json}, {message.kwargs_json}, {links}]".encode("ascii")


def _template(task: str, native: str, priority: int, canvas: Mapping[str, Any]) -> list[str]:
    """Return the JSON in which kombu's virtual transports put a message; each second part is its own, empty here."""
    headers = {
        "lang": "py",
        "task": task,
        "id": _HOLE,
        "root_id": None,
        "argsrepr": _HOLE,
        "kwargsrepr": _HOLE,
        "origin": _origin(),
        "ignore_result": True,
        META: _HOLE,
        "retries": _HOLE,
    }
    payload = {
        "body": _HOLE,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {**headers, **canvas, "root_id": _HOLE},
        "properties": {
            "correlation_id": _HOLE,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": native},
            "priority": priority,
            "body_encoding": "base64",
            "delivery_tag": _HOLE,
        },
    }
    first, *others = json.dumps(payload).split(json.dumps(_HOLE))
    return [first, *[part for other in others for part in ("", other)]]


class Envelopes:
    """Writes messages as kombu's virtual transports put them, by templates for each task, queue and priority.

    Headers that say nothing are left out, as in `AmqpWire`: with them, a message is a quarter longer. `numbers` are
    Celery's number of each priority, on the kind of broker they are for.
    """

    def __init__(self, namespace: str, numbers: Mapping[Priority, int]) -> None:
        self._namespace = namespace
        self._numbers = numbers
        self._templates: dict[tuple[str, str, Priority, str], tuple[str, list[str]]] = {}

    def fill(self, message: Message) -> tuple[str, str]:
        """Return the native queue of a message, and its text."""
        key = message.task, message.queue, message.priority, _origin()
        native, template = self._templates.get(key) or self._prepare(key)
        id_json = root_json = _quoted(message.id)
        canvas = _canvas_of(message)
        if canvas is not None:
            template = _template(message.task, native, self._numbers[message.priority], canvas.headers)
            if "root_id" in canvas.headers:
                root_json = json.dumps(canvas.headers["root_id"])
        text = template.copy()
        text[1::2] = (
            f'"{b2a_base64(_body(message, canvas), newline=False).decode("ascii")}"',
            id_json,
            root_json,
            _quoted(_shown(f"({message.args_json[1:-1]})")),
            _quoted(_shown(message.kwargs_json)),
            _quoted(message.dumps_meta()),
            str(message.attempt - 1),
            id_json,
            f'"{getrandbits(128):032x}"',
        )
        return native, "".join(text)

    def _prepare(self, key: tuple[str, str, Priority, str]) -> tuple[str, list[str]]:
        if len(self._templates) >= _MOST_TEMPLATES:  # a sender that makes up task names
            self._templates.clear()
        task, queue, priority, _ = key
        native = native_queue(self._namespace, queue)
        self._templates[key] = prepared = native, _template(task, native, self._numbers[priority], {})
        return prepared


class RedisWire:
    """Writes what kombu's Redis transport writes; each priority has a list of its own."""

    engine = ENGINE

    def __init__(self, settings: Settings) -> None:
        self._namespace = settings.namespace
        self._envelopes = Envelopes(settings.namespace, REDIS_STEPS)

    def encode(self, message: Message) -> Sequence[RedisCommand]:
        native, text = self._envelopes.fill(message)
        return (("LPUSH", step_key(native, REDIS_STEPS[message.priority]), text),)

    def places(self, queue: str) -> Sequence[str]:
        return lists_of(native_queue(self._namespace, queue))


class AmqpWire:
    """Writes what Celery publishes to the default exchange, but for headers that say nothing.

    Celery does without them (celery/worker/request.py, celery/app/task.py: Context). RabbitMQ decodes each, copies it
    from process to process, and keeps it as long as the message is in memory: with those eleven, a message costs it a
    quarter more.
    """

    engine = ENGINE

    def __init__(self, settings: Settings) -> None:
        @cache
        def place(queue: str) -> tuple[str, Mapping[str, Any]]:
            return native_queue(settings.namespace, queue), queue_arguments(settings.type_of(queue))

        self._place = place  # a queue's native name, and what it is declared with

    def encode(self, message: Message) -> Publication:
        native, arguments = self._place(message.queue)
        canvas = _canvas_of(message)
        headers: dict[str, Any] = {
            "lang": "py",
            "task": message.task,
            "id": message.id,
            "root_id": message.id,
            "argsrepr": _shown(f"({message.args_json[1:-1]})"),
            "kwargsrepr": _shown(message.kwargs_json),
            "origin": _origin(),
            "ignore_result": True,
            META: message.dumps_meta(),
        }
        if message.attempt > 1:
            headers["retries"] = message.attempt - 1
        if canvas is not None:
            headers.update(canvas.headers)
        return Publication(
            queue=native,
            arguments=arguments,
            body=_body(message, canvas),
            properties={
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "headers": headers,
                "delivery_mode": 2,
                "priority": RANKS[message.priority],
                "correlation_id": message.id,
                "reply_to": "",
            },
        )

    def places(self, queue: str) -> Sequence[str]:
        return (self._place(queue)[0],)


MemoryMessage = tuple[str, int, bytes]  # a message on its way: native queue, rank, bytes


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
        self._turns = itertools.count()
        self._taken: dict[str, tuple[str, int, bytes]] = {}
        self.changes: int = 0
        self.is_served: Final = False

    # For senders

    def encode(self, message: Message) -> MemoryMessage:
        native, text = self._envelopes.fill(message)
        return native, RANKS[message.priority], text.encode("ascii")

    def places(self, queue: str) -> Sequence[str]:
        return (native_queue(self._namespace, queue),)

    def deliver(self, native: MemoryMessage) -> None:
        self.put(*native)

    def waiting(self, queue: str) -> int:
        return self.size(native_queue(self._namespace, queue))

    # For channels: as `RedisQueues`, and names of queues are native

    def put(self, queue: str, priority: object, item: bytes, *, suspect: bool = False) -> None:
        """Put a message in a queue, as the last of its priority; one that may have been started, as the first."""
        rank = max(0, min(MAX_PRIORITY, priority)) if isinstance(priority, int) else RANKS["normal"]
        with self._changed:
            number = next(self._returns if suspect else self._arrivals)
            heapq.heappush(self._waiting.setdefault(queue, []), (-rank, number, item, suspect))
        self.wake()

    def lists_of(self, queues: Sequence[str]) -> Sequence[str]:
        """Return what `take` is given for these queues."""
        return queues

    def take(self, queues: Sequence[str], most: int, *, timeout_s: float) -> list[Held]:
        """Take at most so many messages, of the queues in turn."""
        taken: list[Held] = []
        left = deque(enumerate(queues))
        left.rotate(-next(self._turns))
        with self._changed:
            while left and len(taken) < most:
                number, queue = left.popleft()
                if self._waiting.get(queue):
                    rank, _, item, suspect = heapq.heappop(self._waiting[queue])
                    taken.append(Held(secrets.token_hex(8), number, item, suspect))
                    self._taken[taken[-1].tag] = queue, -rank, item
                    left.append((number, queue))
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
