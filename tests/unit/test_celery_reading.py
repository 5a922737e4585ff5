"""Bodies of Celery's messages: decompressed up to a limit, and decoded as nothing but UTF-8."""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import zlib
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("celery")

from taskbridge import Bridge
from taskbridge.engines.celery.reading import decompressed, parts_of
from taskbridge.exceptions import DecodeError

MOST = 1000
COMPRESS: dict[str, Any] = {
    "gzip": zlib.compress,
    "application/x-gzip": zlib.compress,
    "bzip2": bz2.compress,
    "application/x-bz2": bz2.compress,
    "lzma": lzma.compress,
    "application/x-lzma": lzma.compress,
}


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_body_may_have_as_much_as_a_message_and_no_more(kind: str) -> None:
    compress = COMPRESS[kind]

    assert decompressed(compress(b"x" * MOST), kind, MOST) == b"x" * MOST
    with pytest.raises(DecodeError, match="max_message_bytes = 1000"):
        decompressed(compress(b"x" * (MOST + 1)), kind, MOST)
    with pytest.raises(DecodeError, match="max_message_bytes"):
        decompressed(compress(bytes(50_000_000)), kind, MOST)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("gzip", b"not compressed"),
        ("gzip", zlib.compress(b"x" * 100)[:-5]),
        ("no such thing", b""),
        (["gzip"], b""),
        (5, b""),
        ("x" * 100_000, b""),
        ("gzip", 5),
    ],
    ids=["no gzip", "cut off", "unknown", "list", "number", "long", "no bytes"],
)
def test_what_can_not_be_decompressed_is_refused_in_few_words(kind: Any, body: Any) -> None:
    with pytest.raises(DecodeError) as caught:
        decompressed(body, kind, MOST)

    assert len(str(caught.value)) <= 500


def test_a_name_to_be_shown_is_cut_for_it_is_logged_with_each_message() -> None:
    headers: dict[str, Any] = {"task": "t", "id": "1", "shadow": "x" * 100_000, "taskbridge": "{}"}

    shown = parts_of(headers, [], {}, {}).headers
    assert shown == {**headers, "shadow": "x" * 255}
    assert parts_of(shown, [], {}, {}).headers is shown
    with pytest.raises(DecodeError, match="no text"):
        parts_of({**headers, "shadow": ["x"]}, [], {}, {})


def made(broker: str, body: bytes, headers: dict[str, Any], encoding: str = "utf-8") -> Any:
    """Return a message as a worker's channel makes it of what came."""
    bridge = Bridge(f"celery+{broker}://{'' if broker == 'memory' else 'localhost'}", max_message_bytes=MOST)
    transport: Any = bridge.native.engine.transport
    connection = SimpleNamespace(client=SimpleNamespace(transport=transport))
    channel = SimpleNamespace(connection=connection, decode_body=lambda text, _: base64.b64decode(text))
    if broker == "amqp":
        properties = {"content_type": "application/json", "content_encoding": encoding, "application_headers": headers}
        message = SimpleNamespace(body=body, properties=properties, delivery_tag=1, delivery_info={})
        made: Any = transport.Connection.Channel.Message(message, channel=channel)
    else:
        payload = {
            "body": base64.b64encode(body).decode(),
            "content-type": "application/json",
            "content-encoding": encoding,
            "headers": headers,
            "properties": {"delivery_tag": "1", "body_encoding": "base64"},
        }
        made = transport.Channel.Message(payload, channel=channel)
    bridge.close()
    return made


@pytest.mark.parametrize("broker", ["redis", "amqp", "memory"])
def test_a_message_is_decompressed_as_it_comes_in(broker: str) -> None:
    text = json.dumps([["a"], {}, {}]).encode()

    good = made(broker, zlib.compress(text), {"compression": "gzip", "task": "t"})
    bomb = made(broker, bz2.compress(bytes(50_000_000)), {"compression": "bzip2", "task": "t"})

    assert good.payload == [["a"], {}, {}]
    assert not good.errors
    assert isinstance(bomb.errors[0][1], DecodeError)
    assert len(bomb.body) < MOST
    assert bomb.headers["task"] == "t"


@pytest.mark.parametrize("broker", ["redis", "amqp"])
def test_an_encoding_that_takes_long_is_not_used(broker: str) -> None:
    message = made(broker, b"[[], {}, {}]", {}, encoding="punycode")

    assert message.content_encoding == "utf-8"
    assert message.payload == [[], {}, {}]


def test_channels_of_rabbitmq_leave_bodies_as_bytes() -> None:
    bridge = Bridge("celery+amqp://localhost")
    connection = SimpleNamespace(confirm_publish=False, channels={}, _get_free_channel_id=lambda: 1)

    channel = bridge.native.engine.transport.Connection.Channel(connection)

    assert not channel.auto_decode
    bridge.close()
