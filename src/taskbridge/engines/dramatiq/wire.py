"""Dramatiq's own words: the bytes that a Dramatiq client would write, made without Dramatiq.

A Dramatiq message is compact JSON (dramatiq/encoder.py) with a place for the id, the task's name and the arguments. All
else travels in `options["taskbridge"]`, as text. A message without that option comes from a plain Dramatiq client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, cast

from taskbridge import codec, locks
from taskbridge.brokers.base import Publication, RedisCommand, Wire, typed
from taskbridge.engines.dramatiq.memory_queue import LeveledQueue
from taskbridge.exceptions import DecodeError
from taskbridge.message import PRIORITIES, Message, Priority, checked, loads_meta, new_id
from taskbridge.routing import QueueType
from taskbridge.settings import Settings

ENGINE: Final = "dramatiq"

OPTION: Final = "taskbridge"  # the option that holds what Dramatiq's own message has no place for

MAX_PRIORITY: Final = len(PRIORITIES) - 1
"""RabbitMQ's `x-max-priority`; a message without a priority counts as 0, which is `low`."""

LEVELS: Final[tuple[Priority, ...]] = ("critical", "high", "normal", "low")
"""The lists of a queue on Redis, in the order in which they are fetched."""

FOREIGN_HEADER: Final = "dramatiq-options"
"""The header in which a plain client's options (a pipeline's next step, callbacks) outlive a retry."""

OWN_OPTIONS: Final = frozenset({OPTION, "redis_message_id", "broker_priority", "retries"})
"""What is written here: of these, Dramatiq's own middleware makes nothing of a task's message."""

_READ_OPTIONS: Final = OWN_OPTIONS | {"eta", "max_age", "traceback", "requeue_timestamp"}
"""What is read here or belongs to one delivery; other options of a plain client are carried along."""


def native_queue(namespace: str, queue: str) -> str:
    """Return Dramatiq's name of a queue; no other engine uses it (rule Q5)."""
    return f"{namespace}.{ENGINE}.{queue}"


@lru_cache(maxsize=1_000)  # asked about the queue of each message
def own_queue(namespace: str, native: str) -> str | None:
    """Return taskbridge's name of a queue of Dramatiq's; None if it is not one of ours."""
    prefix = f"{namespace}.{ENGINE}."
    return native[len(prefix) :] if native.startswith(prefix) else None


def level_list(key: str, level: Priority) -> str:
    """Return the Redis list of a queue and priority; a plain client writes to the one for `normal`."""
    return key if level == "normal" else f"{key}:{level}"  # a queue's name has no colon


def queue_arguments(native: str, kind: QueueType) -> dict[str, Any]:
    """Return what `RabbitmqBroker(max_priority=3)` declares a queue with (dramatiq/brokers/rabbitmq.py), and its type.

    RabbitMQ takes a declaration without a type for the same, unless the virtual host's default type is another: there a
    queue with priorities can't be declared without naming its type.
    """
    canonical = native.removesuffix(".DQ")
    return {
        **typed(kind, priorities=MAX_PRIORITY),
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": f"{canonical}.XQ",
    }


def parse(body: bytes) -> dict[str, Any]:
    """Return a Dramatiq message's parts by the names that Dramatiq gives them; raises `DecodeError` if it has others.

    Each is of its type. Dramatiq itself checks no types, and a wrong one ends the thread that meets it.
    """
    try:
        data = codec.from_json(body)
    except (ValueError, RecursionError) as exc:
        raise DecodeError(f"not JSON: {exc}") from exc
    if not isinstance(data, dict) or (parts := cast("dict[str, Any]", data)).keys() != _PARTS.keys():
        raise DecodeError("not a Dramatiq message")
    for part, kinds in _PARTS.items():
        if type(parts[part]) not in kinds:
            raise DecodeError(f"not a Dramatiq message: its {part} is a {type(parts[part]).__name__}")
    if not 0 <= parts["message_timestamp"] < _END_OF_TIME_MS:
        raise DecodeError("not a Dramatiq message: its message_timestamp is no time")
    return parts


_PARTS: Final[Mapping[str, tuple[type, ...]]] = {
    "queue_name": (str,),
    "actor_name": (str,),
    "args": (list,),
    "kwargs": (dict,),
    "options": (dict,),
    "message_id": (str,),
    "message_timestamp": (int, float),
}

_END_OF_TIME_MS: Final = 2.5e14  # the last millisecond that `datetime` holds, roughly


def milliseconds(options: Mapping[str, Any], name: str) -> float | None:
    """Return an option that holds milliseconds; None if it is missing or no number.

    Dramatiq, too, takes a message whose `eta` is of another type for one that is due (dramatiq/worker.py,
    handle_message). Raises `DecodeError` if the number is NaN, infinite or out of range.
    """
    value = options.get(name)
    if not isinstance(value, (int, float)):
        return None
    if not -_END_OF_TIME_MS < value < _END_OF_TIME_MS:
        raise DecodeError(f"not a Dramatiq message: its option {name!r} is out of range")
    return float(value)


def read(parts: Mapping[str, Any], *, queue: str) -> Message:
    """Return what a Dramatiq message says, from what `parse` returns; `queue` is its queue by taskbridge's name.

    Raises `NewerFormError` if a newer release wrote it, and `DecodeError` if it can't be read.
    """
    meta = parts["options"].get(OPTION)
    try:
        if meta is None:
            return checked(_read_plain(parts, queue))
        if not isinstance(meta, str):
            raise DecodeError(f"not a message: its option {OPTION!r} is a {type(meta).__name__}")
        task, args, kwargs = parts["actor_name"], parts["args"], parts["kwargs"]
        return checked(loads_meta(meta, id=parts["message_id"], task=task, args=args, kwargs=kwargs))
    except DecodeError:
        raise
    except (ValueError, RecursionError) as exc:
        # A plain client's value that none of ours can be; NaN, which Python reads in JSON.
        raise DecodeError(f"not a message: {exc}") from exc


def _read_plain(parts: Mapping[str, Any], queue: str) -> Message:
    """Return the message of a plain client: its arguments are plain values, which are not tagged."""
    options, sent_at = parts["options"], parts["message_timestamp"] / 1000
    max_age_ms, rank = milliseconds(options, "max_age"), options.get("broker_priority")
    foreign = {key: value for key, value in options.items() if key not in _READ_OPTIONS}
    return Message(
        id=parts["message_id"],
        task=parts["actor_name"],
        queue=queue,
        args_json=codec.dumps_array(parts["args"], "args"),
        kwargs_json=codec.dumps_object(parts["kwargs"], "kwargs"),
        enqueued_at=sent_at,
        priority=PRIORITIES[rank] if isinstance(rank, int) and 0 <= rank <= MAX_PRIORITY else "normal",
        expires_at=sent_at + max_age_ms / 1000 if max_age_ms else None,  # to Dramatiq, 0 is no limit
        headers={FOREIGN_HEADER: codec.dumps_object(foreign, "options")} if foreign else {},
    )


class _Wire:
    """Writes the bytes that a Dramatiq client would write."""

    engine = ENGINE

    def __init__(self, settings: Settings) -> None:
        self._namespace = settings.namespace
        self._heads: dict[tuple[str, str], tuple[str, str]] = {}

    def body(self, message: Message, head: str, own_options: str) -> bytes:
        """Return the bytes of a message.

        `head` is how it begins (see `head`), `own_options` what the kind of broker needs, as JSON members.
        """
        options = f'"{OPTION}":{codec.to_json(message.dumps_meta())},{own_options}'
        if message.attempt > 1:
            options = f'"retries":{message.attempt - 1},{options}'  # what dashboards show
        if message.headers and FOREIGN_HEADER in message.headers:
            options = _foreign_members(message.headers[FOREIGN_HEADER]) + options
        return (
            f'{head}"args":{message.args_json},"kwargs":{message.kwargs_json},"options":{{{options}}},'
            f'"message_id":{codec.to_json(message.id)},"message_timestamp":{int(message.enqueued_at * 1000)}}}'
        ).encode("ascii")

    def head(self, message: Message) -> tuple[str, str]:
        """Return Dramatiq's name of a message's queue, and how all of its task's messages in that begin."""
        key = message.queue, message.task
        found = self._heads.get(key)
        if found is None:
            native = native_queue(self._namespace, message.queue)
            names = f'{{"queue_name":{codec.to_json(native)},"actor_name":{codec.to_json(message.task)},'
            found = self._heads[key] = native, names
        return found

    def places(self, queue: str) -> Sequence[str]:
        return (native_queue(self._namespace, queue),)


def _foreign_members(text: Any) -> str:
    """Return a plain client's options as JSON members with a comma at the end; nothing if they can't be read."""
    try:
        foreign = codec.loads_object(text if isinstance(text, str) else "")
    except DecodeError:  # an application may send a header of this name, too
        return ""
    kept = {key: value for key, value in foreign.items() if key not in _READ_OPTIONS}
    try:
        return f"{codec.to_json(kept)[1:-1]}," if kept else ""
    except (TypeError, ValueError):  # a value that is not plain JSON
        return ""


class RedisWire(_Wire):
    """Writes what `RedisBroker.enqueue` writes; each priority has a list of its own."""

    def encode(self, message: Message) -> Sequence[RedisCommand]:
        """Return the commands that put a message in its queue.

        The id under which Redis holds it is new each time, for a retry may meet the attempt before; it begins with the
        priority, unless that is `normal`, so that whoever returns it to its queue knows the list.
        """
        native, head = self.head(message)
        key, level = f"{self._namespace}:{native}", message.priority
        redis_id = new_id() if level == "normal" else f"{level}:{new_id()}"
        body = self.body(message, head, f'"redis_message_id":"{redis_id}"')
        return ("HSET", f"{key}.msgs", redis_id, body), ("RPUSH", level_list(key, level), redis_id)

    def places(self, queue: str) -> Sequence[str]:
        key = f"{self._namespace}:{native_queue(self._namespace, queue)}"
        return tuple(level_list(key, level) for level in LEVELS)


class AmqpWire(_Wire):
    """Writes what `RabbitmqBroker(max_priority=3).enqueue` publishes."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._type_of = settings.type_of
        self._arguments: dict[str, Mapping[str, Any]] = {}

    def encode(self, message: Message) -> Publication:
        native, head = self.head(message)
        arguments = self._arguments.get(native)
        if arguments is None:
            arguments = self._arguments[native] = queue_arguments(native, self._type_of(message.queue))
        rank = PRIORITIES.index(message.priority)
        body = self.body(message, head, f'"broker_priority":{rank}')
        return Publication(queue=native, arguments=arguments, body=body, properties={"priority": rank})


class MemoryWire(_Wire):
    """The queues of a bridge; it has them before there is a broker, for sending needs no worker."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._queues: dict[str, LeveledQueue] = {}
        self._lock = locks.Lock()

    def encode(self, message: Message) -> tuple[str, int, bytes]:
        native, head = self.head(message)
        rank = PRIORITIES.index(message.priority)
        return native, rank, self.body(message, head, f'"broker_priority":{rank}')

    def deliver(self, native: tuple[str, int, bytes]) -> None:
        name, rank, body = native
        self.queue(name).add(rank, body)

    def queue(self, native: str) -> LeveledQueue:
        """Return a queue by Dramatiq's name."""
        with self._lock:
            return self._queues.setdefault(native, LeveledQueue())

    def waiting(self, queue: str) -> int:
        return self.queue(native_queue(self._namespace, queue)).qsize()


_WIRES: Final[Mapping[str, type[RedisWire | AmqpWire | MemoryWire]]] = {
    "redis": RedisWire,
    "amqp": AmqpWire,
    "memory": MemoryWire,
}


def make_wire(kind: str, settings: Settings) -> Wire[Any]:
    """Return the wire for a kind of broker: `redis`, `amqp` or `memory`."""
    return _WIRES[kind](settings)
