"""Errors that ordinary code raises and that can't be formatted, or fill a log: the contract's tasks raise them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

_MUCH: Final = 3_000_000
_MANY: Final = 20_000


class TextExits(Exception):
    """Its text can't be had: asking for it ends the process."""

    def __str__(self) -> str:
        """Raise `SystemExit`."""
        raise SystemExit(3)


class TextRaises(Exception):
    """Neither its text nor its representation can be had."""

    def __str__(self) -> str:
        """Raise an error."""
        raise RuntimeError("no text")

    __repr__ = __str__


class NotesRaise(Exception):
    """Its notes can't be had; `traceback` asks for them."""

    @property
    def __notes__(self) -> list[str]:
        """Raise an error."""
        raise RuntimeError("no notes")


class AttributesRaise(Exception):
    """It wraps a response, so to speak, and looks up in it what it has not itself."""

    def __getattr__(self, name: str) -> Any:
        """Raise the error of a dict."""
        raise KeyError(name)


class TruthRaises(Exception):
    """It is neither true nor false, like an array; `logging` asks."""

    def __bool__(self) -> bool:
        """Raise an error."""
        raise ValueError("its truth value is ambiguous")


class CauseRaises(Exception):
    """What led to it can't be had."""

    @property
    def __cause__(self) -> BaseException | None:  # type: ignore[override]
        """Raise an error."""
        raise RuntimeError("no cause")


FORGED: Final = "2026-01-01 00:00:00 ERROR forged"
"""What looks like a line of a log."""

COMMANDS: Final = f"\x1b]0;owned\x07\x9b31m\u202e\r\n{FORGED}\u2028{FORGED}"
"""What sets a terminal's title, its colour and its direction, and goes on with a line of its own."""


class Commands(Exception):
    """Its text, which a sender may have chosen, is for a terminal to obey."""

    def __str__(self) -> str:
        """Return the commands."""
        return COMMANDS


class OddPlace(SyntaxError):
    """A syntax error whose line is no text; `traceback` takes for granted that it is."""

    def __init__(self) -> None:
        place: Any = ("f", 1, 1, b"text", 1, 2)
        super().__init__("m", place)


def _with_causes() -> Exception:
    error = ValueError("the first of many")
    for number in range(_MANY):
        following = ValueError(number)
        following.__cause__ = error
        error = following
    return error


ODD_ERRORS: Final[Mapping[str, Callable[[], Exception]]] = {
    "TextExits": TextExits,
    "TextRaises": TextRaises,
    "NotesRaise": NotesRaise,
    "AttributesRaise": AttributesRaise,
    "TruthRaises": TruthRaises,
    "CauseRaises": CauseRaises,
    "OddPlace": OddPlace,
    "Commands": Commands,
    "huge": lambda: ValueError("x" * _MUCH),
    "with_huge_bytes": lambda: UnicodeDecodeError("utf-8", b"\xff" * _MUCH, 0, 1, "its text is short"),
    "with_causes": _with_causes,
}
"""What makes each of them, by name."""
