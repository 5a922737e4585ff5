"""The wire writes the bytes that a Dramatiq client would write, and reads what any client wrote."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from subprocess import run
from typing import Any
from uuid import UUID

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from hypothesis import HealthCheck, given
from hypothesis import settings as ways
from hypothesis import strategies as st

from taskbridge import codec
from taskbridge.brokers.base import Publication
from taskbridge.engines.dramatiq import wire
from taskbridge.exceptions import DecodeError, NewerFormError
from taskbridge.message import PRIORITIES, Message, Priority
from taskbridge.retry import ErrorInfo
from taskbridge.settings import Settings, load

UNHURRIED = ways(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""What is proven is what comes back, however long a machine takes for an example."""

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def settings(**given: Any) -> Settings:
    return load({"url": "dramatiq+redis://localhost", **given}, environ={})[0]


def message(**given: Any) -> Message:
    fields: dict[str, Any] = {
        "id": "0b54f5ee-6a9f-4b5c-8f0c-2f3f2b8cf7a4",
        "task": "shop.add",
        "queue": "email",
        "args_json": '[1,"a"]',
        "kwargs_json": '{"when":{"$":"date","v":"2026-01-02"}}',
        "enqueued_at": 1763000000.123,
        **given,
    }
    return Message(**fields)


def stock_bytes(sent: Message, own: Mapping[str, Any]) -> bytes:
    """Return what Dramatiq's own message encodes to, for the same call with the same options."""
    retries = {"retries": sent.attempt - 1} if sent.attempt > 1 else {}
    stock: dramatiq.Message[Any] = dramatiq.Message(
        queue_name=f"taskbridge.dramatiq.{sent.queue}",
        actor_name=sent.task,
        args=tuple(json.loads(sent.args_json)),
        kwargs=json.loads(sent.kwargs_json),
        options={**retries, "taskbridge": sent.dumps_meta(), **own},
        message_id=sent.id,
        message_timestamp=int(sent.enqueued_at * 1000),
    )
    return stock.encode()


MESSAGES = [
    message(),
    message(task="shop.größe", queue="vip.email", id='odd "id"'),
    message(attempt=3, error=ErrorInfo(type="ValueError", message='no "way" ü'), headers={"a": "ü\n"}, expires_at=2e9),
    message(waits=2, waits_since=1763000001.5, priority="low", args_json="[]", kwargs_json="{}"),
]


@pytest.mark.parametrize("sent", MESSAGES)
def test_redis_gets_what_dramatiq_itself_would_put_there(sent: Message) -> None:
    (hset, bodies, redis_id, body), (rpush, key, pushed_id) = wire.RedisWire(settings()).encode(sent)

    assert (hset, rpush) == ("HSET", "RPUSH")
    assert bodies == f"taskbridge:taskbridge.dramatiq.{sent.queue}.msgs"
    suffix = "" if sent.priority == "normal" else f":{sent.priority}"
    assert key == f"taskbridge:taskbridge.dramatiq.{sent.queue}{suffix}"
    assert pushed_id == redis_id
    assert body == stock_bytes(sent, {"redis_message_id": redis_id})


@pytest.mark.parametrize("sent", MESSAGES)
def test_rabbitmq_gets_what_dramatiq_itself_would_publish(sent: Message) -> None:
    publication = wire.AmqpWire(settings()).encode(sent)

    rank = PRIORITIES.index(sent.priority)
    assert publication.body == stock_bytes(sent, {"broker_priority": rank})
    assert publication.queue == f"taskbridge.dramatiq.{sent.queue}"
    assert publication.properties == {"priority": rank}


@UNHURRIED
@given(args=st.lists(PLAIN, max_size=3), kwargs=st.dictionaries(st.text(), PLAIN, max_size=3))
def test_any_arguments_have_the_bytes_that_dramatiq_writes(args: list[Any], kwargs: dict[str, Any]) -> None:
    sent = message(args_json=codec.dumps(args, "args"), kwargs_json=codec.dumps_object(kwargs, "kwargs"))

    publication = wire.AmqpWire(settings()).encode(sent)

    assert publication.body == stock_bytes(sent, {"broker_priority": 1})


def test_a_queue_is_declared_as_dramatiq_declares_it_and_with_its_type() -> None:
    stock: Any = RabbitmqBroker(max_priority=3, middleware=[])
    named = {"x-queue-type": "classic"}

    publication = wire.AmqpWire(settings()).encode(message())

    assert publication.arguments == named | stock._build_queue_arguments("taskbridge.dramatiq.email")
    assert wire.queue_arguments("a.DQ", "classic") == named | stock._build_queue_arguments("a.DQ")


def test_each_delivery_has_an_id_of_its_own_that_tells_the_priority() -> None:
    redis_wire = wire.RedisWire(settings())

    ids = [str(redis_wire.encode(message(priority=priority))[0][2]) for priority in (*PRIORITIES, "normal")]

    levels = [redis_id.rpartition(":")[0] for redis_id in ids]
    assert levels == ["low", "", "high", "critical", ""]
    assert len({UUID(redis_id.rpartition(":")[2]) for redis_id in ids}) == 5


def test_the_places_of_a_queue_are_its_lists_in_the_order_of_fetching() -> None:
    key = "app:app.dramatiq.email"

    assert wire.RedisWire(settings(namespace="app")).places("email") == (
        f"{key}:critical",
        f"{key}:high",
        key,
        f"{key}:low",
    )
    assert wire.AmqpWire(settings(namespace="app")).places("email") == ("app.dramatiq.email",)


@pytest.mark.parametrize("kind", ["redis", "amqp"])
@pytest.mark.parametrize("sent", MESSAGES)
def test_what_was_written_reads_back_equal(kind: str, sent: Message) -> None:
    encoded = wire.make_wire(kind, settings()).encode(sent)
    body = encoded.body if isinstance(encoded, Publication) else encoded[0][3]

    assert wire.read(wire.parse(body), queue="another") == sent


class TestPlainClients:
    def read(self, args: list[Any], kwargs: dict[str, Any], **options: Any) -> Message:
        stock: dramatiq.Message[Any] = dramatiq.Message(
            queue_name="taskbridge.dramatiq.email",
            actor_name="shop.add",
            args=tuple(args),
            kwargs=kwargs,
            options=options,
            message_id="7",
            message_timestamp=1763000000123,
        )
        return wire.read(wire.parse(stock.encode()), queue="email")

    def test_it_is_a_first_attempt_of_normal_priority(self) -> None:
        read = self.read([1, 2], {"b": None}, redis_message_id="x")

        assert read == message(id="7", args_json="[1,2]", kwargs_json='{"b":null}')

    def test_its_arguments_are_plain_even_if_they_look_like_tags(self) -> None:
        odd = {"$": "date", "v": "2026-01-02"}

        read = self.read([odd], {"x": odd})

        assert codec.loads_array(read.args_json) == [odd]
        assert codec.loads_object(read.kwargs_json) == {"x": odd}

    @pytest.mark.parametrize(("rank", "priority"), [(0, "low"), (3, "critical"), (7, "normal"), ("x", "normal")])
    def test_its_priority_counts(self, rank: object, priority: Priority) -> None:
        assert self.read([], {}, broker_priority=rank).priority == priority

    def test_its_age_limit_counts(self) -> None:
        assert self.read([], {}, max_age=2000).expires_at == 1763000002.123

    @pytest.mark.parametrize("kind", ["redis", "amqp"])
    def test_its_further_options_outlive_a_retry(self, kind: str) -> None:
        target = {"queue_name": "q", "actor_name": "next", "args": [], "kwargs": {}, "options": {"n": 1.5}}
        read = self.read([], {}, pipe_target=target, on_failure="oops", redis_message_id="x", retries=1, eta=5)

        encoded = wire.make_wire(kind, settings()).encode(read.next_attempt(ValueError("no")))

        body = encoded.body if isinstance(encoded, Publication) else encoded[0][3]
        options = json.loads(body)["options"]
        carried = {name: options.get(name) for name in ("pipe_target", "on_failure", "retries", "eta")}
        assert carried == {"pipe_target": target, "on_failure": "oops", "retries": 1, "eta": None}

    @pytest.mark.parametrize(
        "text", ["{", "[]", '{"taskbridge": "x"}', '{"a": {"$": "tuple", "v": [{"$": "set", "v": []}]}}']
    )
    def test_a_header_of_that_name_does_no_harm(self, text: str) -> None:
        sent = message(headers={wire.FOREIGN_HEADER: text})

        body = wire.AmqpWire(settings()).encode(sent).body

        assert wire.read(wire.parse(body), queue="email") == sent


GOOD = {
    "queue_name": "q",
    "actor_name": "a",
    "args": [],
    "kwargs": {},
    "options": {},
    "message_id": "1",
    "message_timestamp": 1,
}


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x04.",
        b"",
        b"7",
        b"[" * 100_000,
        json.dumps({name: value for name, value in GOOD.items() if name != "options"}).encode(),
        json.dumps({**GOOD, "more": 1}).encode(),
        *(json.dumps({**GOOD, name: wrong}).encode() for name in GOOD for wrong in (None, True)),
        *(json.dumps({**GOOD, name: 1.5}).encode() for name in GOOD if name != "message_timestamp"),
        json.dumps({**GOOD, "message_timestamp": 1e300}).encode(),
        json.dumps({**GOOD, "message_timestamp": float("nan")}).encode(),
    ],
)
def test_bytes_that_are_no_dramatiq_message_are_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        wire.parse(body)


@pytest.mark.parametrize("meta", ["", "{", "7", "{}", 7, '{"form":1,"queue":1}'])
def test_an_unreadable_option_is_refused(meta: object) -> None:
    body = json.dumps({**GOOD, "options": {"taskbridge": meta}}).encode()

    with pytest.raises(DecodeError):
        wire.read(wire.parse(body), queue="email")


def test_numbers_that_json_does_not_have_are_refused_in_our_own_messages() -> None:
    body = json.dumps({**GOOD, "args": [float("nan")], "options": {"taskbridge": message().dumps_meta()}}).encode()

    with pytest.raises(DecodeError):
        wire.read(wire.parse(body), queue="email")


def test_a_newer_form_is_told_apart() -> None:
    body = json.dumps({**GOOD, "options": {"taskbridge": '{"form":4}'}}).encode()

    with pytest.raises(NewerFormError):
        wire.read(wire.parse(body), queue="email")


def test_sending_imports_no_engine() -> None:
    program = (
        "import sys, taskbridge.engines.dramatiq.wire as wire\n"
        "from taskbridge.settings import load\n"
        "settings, _ = load({'url': 'dramatiq+redis://h'}, environ={})\n"
        "wire.make_wire('redis', settings), wire.make_wire('amqp', settings)\n"
        "print(sorted({'dramatiq', 'redis', 'pika', 'asyncio'} & set(sys.modules)))"
    )

    done = run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("sender", ["plain", "own"])
@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("message_id", "a\0b"),
        ("message_id", ""),
        ("message_id", "a" * 256),
        ("message_id", "\u00e9" * 128),
        ("message_id", "\ud800"),
        ("message_id", "a\x1b[2J"),
        ("message_id", "a\u202eb"),
        ("actor_name", "a\0b"),
        ("actor_name", "\ud800"),
        ("actor_name", "a\nb"),
    ],
)
def test_what_not_every_store_can_hold_is_refused(sender: str, part: str, value: str) -> None:
    parts = {
        **json.loads(wire.AmqpWire(settings()).encode(message()).body),
        part: value,
    }
    if sender == "plain":
        parts["options"] = {}

    with pytest.raises(DecodeError, match=r"its (id|task) is"):
        wire.read(wire.parse(json.dumps(parts).encode()), queue="email")


def test_the_longest_id_is_read() -> None:
    sent = message(id="a" * 255)
    body = wire.MemoryWire(settings()).encode(sent)[2]

    assert wire.read(wire.parse(body), queue="email") == sent


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 10**400, -(10**400), 1e300])
def test_a_time_out_of_range_is_not_read(number: float) -> None:
    native = wire.parse(stock_bytes(message(), {}))

    with pytest.raises(DecodeError, match="eta"):
        wire.milliseconds({"eta": number}, "eta")
    with pytest.raises(DecodeError, match="max_age"):
        wire.read({**native, "options": {"max_age": number}}, queue="email")


def test_a_time_that_is_no_number_is_none() -> None:
    odd: list[Any] = [None, "soon", [1], {}]
    assert [wire.milliseconds({"eta": value}, "eta") for value in odd] == [None] * 4
    assert wire.milliseconds({}, "eta") is None
    assert wire.milliseconds({"eta": 1500}, "eta") == 1500
