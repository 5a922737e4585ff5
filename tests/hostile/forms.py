"""The forms that a message has on its way, and where each is put; each of their fields is tried with odd values.

A form makes a healthy one, given its token. Queues hold the engines' own messages, taskbridge's and plain clients';
brokers hold parked messages and dead letters; Redis holds records, marks and what dead workers held; and Celery has a
control channel.
"""

from __future__ import annotations

import json
import random
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from pika import data

from taskbridge import Bridge
from taskbridge.message import DeadLetter, Message
from taskbridge.retry import ErrorInfo
from tests.hostile.names import ACCEPT
from tests.hostile.odd import FEW, VALUES, Path, at, changed, fields, objects

Place = Literal["queue", "delayed", "parked", "strangers", "control", "letters", "record", "mark", "held"]
"""Where a form is put: `strangers` is where another engine parks, `delayed` is Dramatiq's queue of delayed messages."""

EXTRA: Final = (
    *("get", "update", "headers", "args", "kwargs", "self", "is_eager", "called_directly", "delivery_info", "hostname"),
    *("compression", "taskbridge-settled", "taskbridge-expires", "eta", "max_age", "pipe_target", "on_success"),
    *("redelivered", "replays", "", "__class__", "__type__", "_protected", "_get_custom_headers", "\ud800"),
)
"""Names that are put into objects which have no field of that name."""

_HOUR_S: Final = 3600.0


class Payload(NamedTuple):
    """What is put on a broker: on Redis its body alone.

    Attributes:
        body: The body.
        properties: On RabbitMQ, text as bytes or what pika encodes.
        table: On RabbitMQ, the entries of the headers as they go over the wire; None for no headers.
    """

    body: bytes
    properties: Mapping[str, Any] = {}
    table: bytes | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A form, as JSON.

    Attributes:
        name: How reports call it.
        place: Where it is put.
        make: Returns a healthy one, given its token and taskbridge's name of a queue.
        is_extended: Whether other names are put into its objects, too.
    """

    name: str
    place: Place
    make: Callable[[str, str], Any]
    is_extended: bool = True

    def paths(self) -> Iterator[tuple[Path, Mapping[str, bytes | None]]]:
        """Yield the way to each field, and the odd values for it."""
        plain = self.make("token", "first")
        yield from ((path, VALUES) for path in fields(plain))
        few = {name: VALUES[name] for name in FEW}
        for path in objects(plain) if self.is_extended else ():
            yield from (((*path, name), few) for name in EXTRA if name not in at(plain, path))

    def render(self, plain: Any, path: Path, odd: bytes | None) -> Payload:
        """Return a message with something odd in it."""
        return Payload(changed(plain, path, odd))

    def healthy(self, token: str, queue: str) -> Payload:
        """Return a healthy message."""
        plain = self.make(token, queue)
        return self.render(plain, (), json.dumps(plain).encode())


_PARTS: Final = ("properties", "headers", "body")

_LISTS: Final = 4000


def _long(value: bytes, kind: bytes = b"S") -> bytes:
    return kind + len(value).to_bytes(4, "big") + value


def _deep() -> bytes:
    value = b"V"
    for _ in range(_LISTS):
        value = _long(value, b"A")
    return value


TABLE: Final[Mapping[str, bytes | None]] = {
    "left out": None,
    "nothing": b"V",
    "true": b"t\x01",
    "0": b"I" + bytes(4),
    "-1": b"l" + b"\xff" * 8,
    "2**63 - 1": b"l\x7f" + b"\xff" * 7,
    "1.5": b"d\x3f\xf8" + bytes(6),
    "a decimal": b"D\xff\x7f\xff\xff\xff",
    "a time": b"T" + bytes(8),
    "a time out of range": b"T\x7f" + b"\xff" * 7,
    "bytes": _long(b"\xff\xfe", b"x"),
    "empty text": _long(b""),
    "text": _long(b"x"),
    "a number as text": _long(b"5"),
    "NUL": _long(b"a\0b"),
    "control characters": _long(b"\x1b]0;x\x07\r\n2026-01-01 ERROR forged"),
    "no UTF-8": _long(b"\xff\xfe\x80"),
    "10 kB": _long(b"x" * 10_000),
    "half a surrogate pair": _long(b"\xed\xa0\x80"),
    "an ISO time": _long(b"9999-12-31T23:59:59Z"),
    "a task of the engine's": _long(b"celery.backend_cleanup"),
    "something to import": _long(b"tests.hostile.canary:sing"),
    "application/x-bz2": _long(b"application/x-bz2"),
    "empty list": _long(b"", b"A"),
    "list": _long(b"V" + _long(b"a"), b"A"),
    "deep list": _deep(),
    "empty table": _long(b"", b"F"),
    "table": _long(b"\x01a" + _long(b"x") + b"\x00" + b"V", b"F"),
}
"""Odd values of a header on RabbitMQ, with the octet of their type."""

SHORT: Final[Mapping[str, bytes | None]] = {
    "left out": None,
    "empty": b"",
    "text": b"x",
    "NUL": b"a\0b",
    "control characters": b"\x1b]0;x\x07\r\nforged",
    "no UTF-8": b"\xff\xfe",
    "255 bytes": b"x" * 255,
    "the type of pickles": b"application/x-python-serialize",
    "a slow encoding": b"punycode",
    "no encoding of text": b"zlib_codec",
    "another encoding": b"utf-16",
}
"""Odd values of a property on RabbitMQ."""

_NO_TEXTS: Final = ("priority", "delivery_mode", "timestamp")

_LONGEST_HEADER: Final = 100_000
"""All headers of a message are in one frame, and RabbitMQ takes none of more than 128 KiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AmqpForm(Form):
    """A form with properties and headers of RabbitMQ's; JSON only stands in its body, and in texts in its headers."""

    def paths(self) -> Iterator[tuple[Path, Mapping[str, bytes | None]]]:
        """Yield the way to each field, and the odd values for it."""
        plain = self.make("token", "first")
        for path, values in Form.paths(self):
            match path:
                case ("properties", str(name)) if name not in _NO_TEXTS and name in plain["properties"]:
                    yield path, SHORT
                case ("headers", str(name)):
                    yield path, TABLE if name in plain["headers"] else {"text": TABLE["text"], "true": TABLE["true"]}
                case ("headers", str(name), _, *_) if isinstance(plain["headers"].get(name), str):
                    short = {odd: value for odd, value in values.items() if len(value or b"") < _LONGEST_HEADER}
                    yield path, short
                case ("body", _, *_):
                    yield path, values
                case _:
                    pass

    def render(self, plain: Any, path: Path, odd: bytes | None) -> Payload:
        """Return a message with something odd in it."""
        part, rest = (path[0], path[1:]) if path else ("", ())
        body = json.loads(changed(plain["body"], rest, odd)) if part == "body" else plain["body"]
        properties = dict(plain["properties"])
        if part == "properties":
            properties |= dict.fromkeys(rest, odd)
        pieces: list[bytes] = []
        odd_header = rest[:1] if part == "headers" else None
        for name, value in plain["headers"].items():
            if odd_header != (name,):
                pieces += _entry(name, value)
            elif len(rest) > 1:
                pieces += _entry(name, json.loads(changed(value, rest[1:], odd)))
        if odd is not None and odd_header == rest:
            pieces += [*map(_short, rest), odd]
        return Payload(body.encode(errors="surrogateescape"), properties, b"".join(pieces))


def _short(name: str) -> bytes:
    text = name.encode(errors="surrogatepass")
    return bytes([len(text)]) + text


def _entry(name: str, value: Any) -> list[bytes]:
    pieces = [_short(name)]
    if isinstance(value, str):
        pieces.append(_long(value.encode(errors="surrogatepass")))
    else:
        data.encode_value(pieces, value)
    return pieces


# What is healthy


def sample(token: str, queue: str) -> Message:
    """Return a message with all fields that keep nobody waiting."""
    now = time.time()
    return Message(
        id=token,
        task=ACCEPT,
        queue=queue,
        args_json=json.dumps([token]),
        kwargs_json='{"named": {"$": "tuple", "v": [1]}}',
        enqueued_at=now,
        expires_at=now + _HOUR_S,
        headers={"h": "v"},
        error=ErrorInfo(type="E", message="x"),
        waits=1,
        waits_since=now,
        requeues=1,
        unique=f"e:{'0' * 32}",
        digest="0" * 32,
        relayed=True,
        keeps_call=True,
    )


def _own(bridge: Bridge) -> Callable[[str, str], Any]:
    """Return what makes messages that taskbridge writes."""
    wire: Any = bridge.wire
    if bridge.settings.url.broker == "redis":
        return lambda token, queue: json.loads(wire.encode(sample(token, queue))[0][-1])

    def make(token: str, queue: str) -> Any:
        native = wire.encode(sample(token, queue))
        properties = dict(native.properties)
        headers = properties.pop("headers", {})
        return {"properties": properties, "headers": headers, "body": native.body.decode()}

    return make


_PROPERTIES: Final = {"content_type": "application/json", "content_encoding": "utf-8", "correlation_id": "c"}


def _enveloped(bridge: Bridge, token: str, headers: Mapping[str, Any], body: Any) -> Any:
    """Return what Celery's client puts on a queue."""
    text = json.dumps(body)
    if bridge.settings.url.broker == "amqp":
        return {"properties": {**_PROPERTIES, "reply_to": "r"}, "headers": dict(headers), "body": text}
    return {
        "body": b64encode(text.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": dict(headers),
        "properties": {
            "correlation_id": token,
            "reply_to": "r",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "x"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": token,
        },
    }


def _celery_client(bridge: Bridge) -> Callable[[str, str], Any]:
    def make(token: str, _: str) -> Any:
        headers: dict[str, Any] = {
            "lang": "py",
            "task": ACCEPT,
            "id": token,
            "shadow": None,
            "eta": None,
            "group": None,
            "retries": 0,
            "expires": "2099-01-01T00:00:00+00:00",
            "group_index": None,
            "timelimit": [None, None],
            "root_id": token,
            "parent_id": None,
            "argsrepr": "('x',)",
            "kwargsrepr": "{}",
            "origin": "gen1@host",
            "ignore_result": True,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        }
        links = dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))
        return _enveloped(bridge, token, headers, [[token], {"named": 1}, links])

    return make


def _celery_client_1(bridge: Bridge) -> Callable[[str, str], Any]:
    """Return what makes messages of Celery's first protocol, which has no headers."""

    def make(token: str, _: str) -> Any:
        body = {
            "task": ACCEPT,
            "id": token,
            "args": [token],
            "kwargs": {"named": 1},
            "retries": 0,
            "eta": None,
            "expires": None,
            "utc": True,
            "callbacks": None,
            "errbacks": None,
            "timelimit": [None, None],
            "taskset": None,
            "chord": None,
            "group": None,
        }
        return _enveloped(bridge, token, {}, body)

    return make


def _control(bridge: Bridge) -> Callable[[str, str], Any]:
    def make(token: str, _: str) -> Any:
        replies = {"exchange": f"{bridge.settings.namespace}.replies", "routing_key": token}
        body = {
            "method": "ping",
            "arguments": {},
            "destination": None,
            "pattern": None,
            "matcher": None,
            "reply_to": replies,
            "ticket": token,
        }
        return _enveloped(bridge, token, {"clock": 1, "expires": None}, body)

    return make


def _dramatiq_client(bridge: Bridge, *, is_delayed: bool) -> Callable[[str, str], Any]:
    def make(token: str, queue: str) -> Any:
        now_ms = int(time.time() * 1000)
        options: dict[str, Any] = {
            "max_age": 3_600_000,
            "retries": 0,
            "max_retries": 3,
            "min_backoff": 1,
            "max_backoff": 2,
            "time_limit": 60_000,
            "on_success": None,
            "on_failure": None,
            "pipe_target": None,
            "traceback": "x",
            "store_results": False,
            "broker_priority": 1,
            "group_completion_uuid": None,
            "requeue_timestamp": 1,
            **({"eta": now_ms} if is_delayed else {}),
        }
        plain = {
            "queue_name": f"{bridge.settings.namespace}.dramatiq.{queue}",
            "actor_name": ACCEPT,
            "args": [token],
            "kwargs": {"named": 1},
            "options": options,
            "message_id": token,
            "message_timestamp": now_ms,
        }
        if bridge.settings.url.broker == "redis":
            return plain
        return {"properties": {}, "headers": {}, "body": json.dumps(plain)}

    return make


def _in_taskbridges_form(bridge: Bridge) -> Callable[[str, str], Any]:
    def make(token: str, queue: str) -> Any:
        canvas, options = '{"embed": {"callbacks": null}, "group": null}', '{"pipe_ignore": true}'
        headers = {"celery-canvas": canvas, "dramatiq-options": options}
        plain = json.loads(replace(sample(token, queue), headers=headers).dumps())
        return plain if bridge.settings.url.broker == "redis" else _in_body(plain)

    return make


def _letter(bridge: Bridge) -> Callable[[str, str], Any]:
    def make(token: str, queue: str) -> Any:
        letter = DeadLetter(message=sample(token, queue), reason="exhausted", died_at=time.time(), worker="host:1")
        plain = json.loads(letter.dumps())
        return plain if bridge.settings.url.broker == "redis" else _in_body(plain)

    return make


def _in_body(plain: Any) -> Any:
    return {"properties": {"content_type": "application/json"}, "headers": {}, "body": json.dumps(plain)}


def _record(token: str, queue: str) -> Any:
    now = time.time()
    return {
        "task": ACCEPT,
        "queue": queue,
        "state": "retrying",
        "enqueued_at": now,
        "due_at": now,
        "over": 0,
        "attempts": [[1, "host:1", now, now, ["E", "x"]]],
        "error": ["E", "x"],
        "attempt": 1,
        "replays": 0,
        "cancel_asked": False,
        "writer": "host:1:x",
        "written_at": now,
        "reason": "",
        "traceback": "",
        "unique": f"e:{'0' * 32}",
        "digest": "0" * 32,
        "call": [json.dumps([token]), "{}"],
    }


def _text(text: str) -> Callable[[str, str], Any]:
    return lambda token, queue: text


def forms_of(bridge: Bridge) -> Sequence[Form]:
    """Return the forms of a pair of engine and broker."""
    engine, broker = bridge.settings.url.engine, bridge.settings.url.broker
    kind = AmqpForm if broker == "amqp" else Form
    forms: list[Form] = [kind(name="taskbridge's message", place="queue", make=_own(bridge))]
    if engine == "celery":
        forms += [
            kind(name="a client's message", place="queue", make=_celery_client(bridge)),
            kind(name="a client's message of protocol 1", place="queue", make=_celery_client_1(bridge)),
            kind(name="a command on the control channel", place="control", make=_control(bridge)),
        ]
    else:
        forms += [
            kind(name="a client's message", place="queue", make=_dramatiq_client(bridge, is_delayed=False)),
            kind(name="a client's delayed message", place="delayed", make=_dramatiq_client(bridge, is_delayed=True)),
        ]
    parked = _in_taskbridges_form(bridge)
    forms += [
        kind(name="a parked message", place="parked", make=parked, is_extended=False),
        kind(name="a message parked by another engine", place="strangers", make=parked, is_extended=False),
        kind(name="a dead letter", place="letters", make=_letter(bridge), is_extended=False),
    ]
    if broker == "redis":
        forms += [
            Form(name="a record", place="record", make=_record, is_extended=False),
            Form(name="a mark", place="mark", make=_text("host:1:x 1700000000.000"), is_extended=False),
            Form(name="what a dead worker held", place="held", make=_text("list\nitem"), is_extended=False),
        ]
    return forms


@dataclass(frozen=True, slots=True)
class Case:
    """A message with something odd in one place."""

    form: Form
    path: Path
    odd: str
    value: bytes | None

    def __str__(self) -> str:
        return f"{self.form.name}: {'.'.join(map(str, self.path)) or 'all of it'} = {self.odd}"

    def payload(self, token: str, queue: str) -> Payload:
        """Return it, with a token of its own."""
        return self.form.render(self.form.make(token, queue), self.path, self.value)


def cases_of(bridge: Bridge, *, seed: int, each: int | None = None, only: str = "") -> list[Case]:
    """Return every field of every form with odd values, in an order that the seed decides.

    Args:
        bridge: Of the pair of engine and broker.
        seed: Also decides which values are taken.
        each: How many values for each field, and more where a form would not see each of its values; None for all.
        only: What a case has to have in its name.
    """
    chosen: list[Case] = []
    for form in forms_of(bridge):
        cases = [Case(form, path, odd, value) for path, values in form.paths() for odd, value in values.items()]
        random.Random(seed).shuffle(cases)
        fields_seen, values_seen = Counter[Path](), set[tuple[str, bytes | None]]()
        for case in cases:
            value = (case.odd, case.value)
            if each is None or fields_seen[case.path] < each or value not in values_seen:
                fields_seen[case.path] += 1
                values_seen.add(value)
                chosen.append(case)
    random.Random(seed).shuffle(chosen)
    return [case for case in chosen if only in str(case)]
