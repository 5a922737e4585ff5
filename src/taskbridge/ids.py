"""Which ids messages may have: others' clients choose theirs, and every broker and store has to hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeGuard

from taskbridge.exceptions import DecodeError

if TYPE_CHECKING:
    from taskbridge.message import Message

LONGEST: Final = 255
"""How many bytes an id has at most, in UTF-8: AMQP's short strings take no more, nor an index of a database much."""


def is_id(id: object) -> TypeGuard[str]:
    """Return whether this can be a message's id: text of 1 to 255 bytes in UTF-8, without the character NUL."""
    return isinstance(id, str) and 0 < _size(id) <= LONGEST


def can_be_kept(name: str) -> bool:
    """Return whether every broker and store can hold this as a name: PostgreSQL, say, takes no NUL."""
    return _size(name) >= 0


def checked(message: Message) -> Message:
    """Return a message that was read, if its id and names can be kept.

    Raises:
        DecodeError: PostgreSQL, say, takes no NUL, and UTF-8 has no half of a surrogate pair.
    """
    names = f"{message.id}{message.task}{message.queue}"
    if 0 < len(message.id) <= LONGEST and names.isascii() and "\0" not in names:  # as nearly always
        return message
    if not is_id(message.id):
        raise DecodeError(f"not a message: its id is {ascii(message.id)[:_SHOWN]}")
    for kind, name in (("task", message.task), ("queue", message.queue)):
        if not can_be_kept(name):
            raise DecodeError(f"not a message: its {kind} is {ascii(name)[:_SHOWN]}")
    return message


_SHOWN: Final = 300


def _size(text: str) -> int:
    """Return the bytes of a text in UTF-8; -1 if it can't be written everywhere."""
    if "\0" in text:
        return -1
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return -1
