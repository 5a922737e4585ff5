"""The bodies of kombu's messages, as they come in; what can't be read of one stops nothing else (rule I3)."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Final

from taskbridge.engines.celery.stock import KombuMessage, get_decoder
from taskbridge.exceptions import DecodeError

_DECOMPRESSORS: Final = {
    "zlib": "decompressobj",
    "bz2": "BZ2Decompressor",
    "lzma": "LZMADecompressor",
    "zstd": "ZstdDecompressor",
}
"""By module, what decompresses with a limit; brotli's has none."""


def decompressed(body: str | bytes, kind: object, most_bytes: int) -> bytes:
    """Return a body that a plain client has compressed, which may have so many bytes then (rule I3).

    Raises:
        DecodeError: It has more, or can't be decompressed.
    """
    try:
        module = import_module(get_decoder(kind).__module__)
        decompressor = getattr(module, _DECOMPRESSORS[module.__name__.rpartition(".")[2]])()
        found: bytes = decompressor.decompress(body.encode() if isinstance(body, str) else body, most_bytes + 1)
    except Exception as exc:  # what it raises depends on what somebody has written there
        raise DecodeError(f"it can't be decompressed, with a limit, as {kind!r}: {exc!r}") from exc
    if len(found) > most_bytes or not decompressor.eof:
        raise DecodeError(f"decompressed, it has more bytes than max_message_bytes = {most_bytes}, or is cut off")
    return found


class BoundedMessage(KombuMessage):
    """A message whose body is decompressed up to a limit, and decoded as UTF-8 if at all; kombu has no limit (rule I3).

    Some encodings, such as punycode, take a time that grows with the square of the size.
    """

    def __init__(
        self, body: Any = None, channel: Any = None, headers: Any = None, content_encoding: Any = None, **options: Any
    ) -> None:
        encoding = "binary" if content_encoding == "binary" else "utf-8"
        kind = headers.get("compression") if isinstance(headers, dict) else None
        if kind:
            headers = {**headers, "compression": None}
            try:
                settings = channel.connection.client.transport.engine.settings
                body = decompressed(body, kind, settings.max_message_bytes)
            except DecodeError:
                self.errors: list[Any] = [sys.exc_info()]  # of which kombu tells the consumer
        super().__init__(body=body, channel=channel, headers=headers, content_encoding=encoding, **options)
