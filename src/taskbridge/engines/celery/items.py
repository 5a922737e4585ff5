"""Messages as kombu's virtual transports keep them: JSON, which may turn out to be none, or somebody else's."""

from __future__ import annotations

import json
from typing import Any, Final

from taskbridge.engines.celery.stock import kombu_json
from taskbridge.exceptions import DecodeError

_MARK: Final = b"__type__"
"""What kombu's JSON says of a value that JSON has not (kombu/utils/json.py, object_hook)."""


class Payload(dict[str, Any]):
    """A message's JSON; `raw` is the bytes as they came."""

    raw: bytes = b""


def loads(text: bytes) -> Any:
    """Return what kombu reads in JSON, without a look into each object where none is marked: half of its time."""
    return kombu_json.loads(text.decode()) if _MARK in text else json.loads(text)


def parse(item: bytes, *, tag: str, queue: str) -> Payload:
    """Return a message's JSON, addressed to where it came from.

    Args:
        item: The bytes.
        tag: Of this delivery; the sender's own may be in use, for what is sent twice has it twice.
        queue: The native queue from which it was taken.

    Raises:
        DecodeError: It is no Celery message.
    """
    try:
        payload = Payload(loads(item))
        properties = payload["properties"]
        properties["delivery_tag"] = tag
        properties["delivery_info"] |= {"exchange": "", "routing_key": queue}
    except Exception as exc:  # what it raises depends on what somebody has written there
        raise DecodeError(f"not a Celery message: {exc!r}") from exc
    payload.raw = item
    return payload


def dumps(payload: Any) -> bytes:
    """Return a message's bytes."""
    text: str = kombu_json.dumps(payload)
    return text.encode()


def redelivered(payload: Any) -> bytes:
    """Return the bytes with which a message goes back to its queue, marked as kombu does.

    Raises:
        DecodeError: It is no Celery message.
    """
    try:
        payload["headers"]["redelivered"] = True
        payload["properties"]["delivery_info"]["redelivered"] = True
    except Exception as exc:
        raise DecodeError(f"not a Celery message: {exc!r}") from exc
    return dumps(payload)
