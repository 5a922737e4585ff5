"""The bytes of Celery's protocol, against what Celery and kombu themselves make of the same call."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from celery import Celery
from celery.app.task import Context
from celery.worker.request import Request
from kombu.transport import pyamqp
from kombu.transport.redis import Channel

from taskbridge import codec
from taskbridge.brokers.base import Publication
from taskbridge.engines.celery import reading, wire
from taskbridge.engines.celery.redis_queues import step_of
from taskbridge.engines.celery.stock import Exchange, KombuConnection, Queue, VirtualChannel, VirtualTransport
from taskbridge.exceptions import DecodeError, NewerFormError
from taskbridge.message import PRIORITIES, Message, Priority
from taskbridge.settings import load

ID = "5f8a1c52-9d1e-4a55-8f0e-8b0c7f1f2a3b"
_SETTINGS, _ = load({"url": "celery+redis://localhost/0"}, environ={})
UNSAID = (
    *("shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "parent_id"),
    *("replaced_task_nesting", "stamped_headers", "stamps"),
)
"""Headers that are left out where they say nothing."""


def message(**changes: Any) -> Message:
    fields: dict[str, Any] = {
        "id": ID,
        "task": "shop.tasks.add",
        "queue": "email",
        "args_json": "[1]",
        "kwargs_json": "{}",
        "enqueued_at": 1700000000.125,
    }
    return Message(**{**fields, **changes})


class _Channel(VirtualChannel):
    put: ClassVar[list[dict[str, Any]]] = []

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self.put.append(message)


class _Transport(VirtualTransport):
    Channel = _Channel


def stock(sent: Message, priority: int) -> dict[str, Any]:
    """Return what Celery gives kombu's virtual transport to keep, for the same call."""
    app = Celery(set_as_current=False, broker="redis://localhost/0")
    native = f"taskbridge.celery.{sent.queue}"
    made = app.amqp.as_task_v2(
        sent.id,
        sent.task,
        json.loads(sent.args_json),
        json.loads(sent.kwargs_json),
        retries=sent.attempt - 1,
        ignore_result=True,
        argsrepr=f"({sent.args_json[1:-1]})",
        kwargsrepr=sent.kwargs_json,
    )
    _Channel.put.clear()
    connect: Any = KombuConnection
    with connect("memory://localhost/", transport=_Transport) as connection:
        app.amqp.send_task_message(
            app.amqp.Producer(connection, auto_declare=False),
            sent.task,
            made,
            queue=Queue(native, Exchange(""), native),
            declare=[],
            priority=priority,
            headers={wire.META: sent.dumps_meta()},
        )
    [put] = _Channel.put
    return put


def encoded(sent: Message) -> tuple[str, str]:
    [(command, key, item)] = wire.RedisWire(_SETTINGS).encode(sent)
    assert command == "LPUSH"
    return str(key), str(item)


@pytest.mark.parametrize("priority", PRIORITIES)
def test_an_item_on_redis_is_kombus_to_the_byte_but_for_headers_that_say_nothing(priority: Priority) -> None:
    sent = message(priority=priority, attempt=3)
    expected = stock(sent, wire.REDIS_STEPS[priority])
    key, item = encoded(sent)
    expected["properties"]["delivery_tag"] = json.loads(item)["properties"]["delivery_tag"]
    expected["headers"] = on_redis(expected["headers"])
    assert item == json.dumps(expected)
    channel: Any = Channel.__new__(Channel)
    assert key == channel._q_for_pri("taskbridge.celery.email", wire.REDIS_STEPS[priority])


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ([], {}),
        ([1, 2.5, None, True, 'é\U0001f600"\\\n'], {"queue": "x", "n": {"a": [1]}}),
        ([[1, [2, [3]]]], {"clé": "ü"}),
    ],
)
def test_any_plain_arguments_read_as_celerys_do(args: list[Any], kwargs: dict[str, Any]) -> None:
    sent = message(args_json=codec.dumps(args, "args"), kwargs_json=codec.dumps_object(kwargs, "kwargs"))
    ours, theirs = json.loads(encoded(sent)[1]), stock(sent, 6)
    body, expected = (json.loads(base64.b64decode(one.pop("body"))) for one in (ours, theirs))
    assert body == expected == [args, kwargs, dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))]
    theirs["properties"]["delivery_tag"] = ours["properties"]["delivery_tag"]
    theirs["headers"] = on_redis(theirs["headers"])
    assert json.dumps(ours) == json.dumps(theirs)


def test_a_publication_for_rabbitmq_has_celerys_properties() -> None:
    sent = message(priority="high")
    put = stock(sent, 2)
    channel: Any = pyamqp.Channel.__new__(pyamqp.Channel)
    properties = {key: put["properties"][key] for key in ("correlation_id", "reply_to", "delivery_mode")}
    expected = channel.prepare_message(
        base64.b64decode(put["body"]),
        priority=2,
        content_type=put["content-type"],
        content_encoding=put["content-encoding"],
        headers=put["headers"],
        properties=properties,
    )
    ours = wire.AmqpWire(_SETTINGS).encode(sent)
    assert isinstance(ours, Publication)
    assert ours.queue == "taskbridge.celery.email"
    assert ours.arguments == {"x-queue-type": "classic", "x-max-priority": 3}
    assert ours.body == expected.body
    said = {**expected.properties, "application_headers": without_what_says_nothing(put["headers"])}
    assert renamed(ours) == said


def on_redis(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers that a message has on Redis, in their order: there, all say how often it was retried."""
    return {**without_what_says_nothing({**headers, "retries": 0}), "retries": headers["retries"]}


def without_what_says_nothing(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers without those that a worker takes to be the same when they are missing."""

    def read(headers: dict[str, Any]) -> list[Any]:
        delivery = SimpleNamespace(headers=headers, body=b"", delivery_info={}, properties={}, delivery_tag="1")
        delivery.content_type, delivery.content_encoding = "application/json", "utf-8"
        task, app = SimpleNamespace(typing=False), Celery(set_as_current=False)
        request: Any = Request(delivery, app=app, task=task, body=([], {}, {}), headers=headers, decoded=True)
        context: Any = Context(request.request_dict)
        return [
            *(getattr(request, name) for name in ("name", "eta", "expires", "group", "group_index", "parent_id")),
            list(request.time_limits),
            *(getattr(request, name) for name in ("replaced_task_nesting", "stamped_headers", "stamps")),
            *(getattr(context, name) for name in ("shadow", "eta", "expires", "group", "group_index", "parent_id")),
            *(getattr(context, name) for name in ("retries", "replaced_task_nesting")),
            context.timelimit or [None, None],  # as it is read everywhere
            context.stamped_headers or [],
            context.stamps or {},
        ]

    needed = {name: value for name, value in headers.items() if name not in UNSAID}
    assert read(needed) == read(headers)
    return needed


def renamed(publication: Publication) -> dict[str, Any]:
    """Return all properties of a publication, as py-amqp names them."""
    properties = dict(publication.properties)
    headers = properties.pop("headers")
    return {**properties, "application_headers": headers}


def test_a_publication_names_its_task_its_priority_and_the_attempts_before() -> None:
    first, again = (wire.AmqpWire(_SETTINGS).encode(message(attempt=attempt)) for attempt in (1, 2))
    other = wire.AmqpWire(_SETTINGS).encode(message(task="shop.tasks.other", priority="high"))

    assert "retries" not in renamed(first)["application_headers"]
    assert renamed(again)["application_headers"]["retries"] == 1
    assert renamed(other)["application_headers"]["task"] == "shop.tasks.other"
    assert renamed(other)["priority"] == 2


def test_what_a_plain_client_linked_to_its_task_is_in_a_publication_too() -> None:
    canvas = {"embed": {"callbacks": [{"task": "next"}]}, "group": "g1", "group_index": 2}
    sent = message(headers={wire.CANVAS: codec.to_json(canvas)})

    publication = wire.AmqpWire(_SETTINGS).encode(sent)

    headers = renamed(publication)["application_headers"]
    assert (headers["group"], headers["group_index"], headers["task"]) == ("g1", 2, sent.task)
    assert json.loads(publication.body)[2]["callbacks"] == [{"task": "next"}]


def test_each_item_has_a_tag_of_its_own() -> None:
    tags = {json.loads(encoded(message())[1])["properties"]["delivery_tag"] for _ in range(100)}
    assert len(tags) == 100


def test_a_queue_has_a_list_for_each_priority_the_highest_first() -> None:
    places = wire.RedisWire(_SETTINGS).places("email")
    assert list(places) == [encoded(message(priority=priority))[0] for priority in reversed(PRIORITIES)]


def test_headers_show_no_more_of_the_arguments_than_celerys() -> None:
    long = codec.dumps(["x" * 5000], "args")
    headers = json.loads(encoded(message(args_json=long))[1])["headers"]
    assert len(headers["argsrepr"]) == 1024
    assert headers["argsrepr"].endswith("...")


def test_a_wire_imports_neither_celery_nor_a_client() -> None:
    code = (
        "import sys; from taskbridge.engines.celery.wire import make_wire; from taskbridge.settings import load;"
        "s, _ = load({'url': 'celery+redis://localhost/0'}, environ={}); make_wire('redis', s); make_wire('amqp', s);"
        "print({'celery', 'kombu', 'redis', 'pika', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "set()"


def parts(headers: dict[str, Any], *args: Any, **kwargs: Any) -> reading.Parts:
    return reading.Parts({"id": ID, "task": "shop.tasks.add", **headers}, args, kwargs, {})


def test_what_is_linked_by_names_that_are_not_known_is_left_out() -> None:
    """A newer client may write some; those of the request itself would stand in its place."""
    found = reading.parts_of({"id": ID, "task": "t"}, [], {}, {"chain": [{}], "is_eager": True, "delivery_info": {}})
    assert found.embed == {"callbacks": None, "errbacks": None, "chain": [{}], "chord": None}


@pytest.mark.parametrize("chain", ["x", [1], {"$": "set", "v": [[1]]}])
def test_what_comes_next_is_a_list_of_tasks(chain: object) -> None:
    """Celery finds it out only after the run, which it would take for a failed one."""
    with pytest.raises(DecodeError, match="its chain is no list of tasks"):
        reading.parts_of({"id": ID, "task": "t"}, [], {}, {"chain": chain})


def read(found: reading.Parts) -> Message:
    host: Any = SimpleNamespace(settings=_SETTINGS, queue_of=lambda _: "email", now=lambda: 1700000001.0)
    return reading.read(found, None, host)


def test_what_was_written_is_read() -> None:
    sent = message(
        args_json=codec.dumps([(1, 2), b"x"], "args"), priority="low", attempt=4, headers={"a": "b"}, expires_at=1.5
    )
    item = json.loads(encoded(sent)[1])
    args, kwargs, _ = json.loads(base64.b64decode(item["body"]))
    assert read(parts(item["headers"], *args, **kwargs)) == sent


def test_a_plain_clients_message_has_default_options() -> None:
    got = read(parts({}, 1, "$", {"$": "tuple", "v": []}, x=2))
    assert codec.loads_array(got.args_json) == [1, "$", {"$": "tuple", "v": []}]
    assert codec.loads_object(got.kwargs_json) == {"x": 2}
    assert (got.queue, got.priority, got.attempt, got.enqueued_at) == ("email", "normal", 1, 1700000001.0)


def test_what_a_plain_client_linked_outlives_a_retry() -> None:
    link = {"task": "shop.tasks.mul", "args": [3]}
    sent = parts({}, 1)._replace(embed={"callbacks": [link]})
    again = read(sent).next_attempt(ValueError("x"))
    body = json.loads(base64.b64decode(json.loads(encoded(again)[1])["body"]))
    assert body[2] == {"callbacks": [link], "errbacks": None, "chain": None, "chord": None}


@pytest.mark.parametrize("text", ["2023-11-14T22:13:20+00:00", "2023-11-14T22:13:20Z", "2023-11-14T22:13:20"])
def test_celerys_times_are_utc_unless_they_say_otherwise(text: str) -> None:
    assert reading.instant(text) == 1700000000.0


@pytest.mark.parametrize("meta", [5, "{}", "no json", '{"form":1}'])
def test_meta_that_is_none_is_refused(meta: object) -> None:
    with pytest.raises(DecodeError):
        read(parts({wire.META: meta}))


def test_a_newer_form_is_told_from_an_unreadable_one() -> None:
    meta = message().dumps_meta().replace('"form":1', '"form":99')
    with pytest.raises(NewerFormError):
        read(parts({wire.META: meta}))


@pytest.mark.parametrize("meta", [None, message().dumps_meta()])
@pytest.mark.parametrize(
    "headers",
    [
        *({"id": text} for text in ("a\0b", "", 5, "a" * 256, "\ud800", "a\x1b[2J", "a\u202eb")),
        *({"task": text} for text in ("a\0b", "\ud800", "a\nb")),
    ],
)
def test_what_not_every_store_can_hold_is_refused(headers: dict[str, Any], meta: str | None) -> None:
    with pytest.raises(DecodeError):
        read(parts({**headers, wire.META: meta}))


@pytest.mark.parametrize(
    ("priority", "step"), [(0, 0), (2, 0), (3, 3), (5, 3), (6, 6), (9, 9), (99, 9), (-1, 0), (None, 0)]
)
def test_steps_are_kombus(priority: int | None, step: int) -> None:
    assert step_of(priority) == step
