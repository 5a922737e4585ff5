"""A screen of its own in the terminal, which is drawn again and again."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any, Final

_BEGIN: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # without a cursor; a line that is too long is cut, not wrapped
_END: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_QUIT: Final = b"qQ"


def draw(lines: Sequence[str]) -> None:
    """Show lines in the place of those that were shown; what is too many is left out."""
    shown = lines[: shutil.get_terminal_size().lines - 1]
    # A line is cleared before it is written: if it is as wide as the screen, the cursor stays on its last character.
    print("\x1b[H" + "".join(f"\x1b[K{line}\n" for line in shown) + "\x1b[J", end="", flush=True)


def _keyboard() -> int | None:
    found: Any = sys.stdin  # None if the process was started without one
    return found.fileno() if found is not None and found.isatty() else None


def wait(seconds: float) -> bool:
    """Wait; return False as soon as `q` is pressed."""
    if (keyboard := _keyboard()) is None:
        sleep(seconds)
        return True
    until = monotonic() + seconds
    while select.select((keyboard,), (), (), max(0.0, until - monotonic()))[0]:
        keys = os.read(keyboard, 1024)
        if not keys or any(key in _QUIT for key in keys):  # none: the terminal is gone
            return False
    return True


@contextmanager
def opened() -> Generator[None]:
    """Have the screen while the block runs, and leave the terminal as it was; Ctrl-C and SIGTERM end the block.

    Keys are not shown. Ctrl-Z gives the terminal back until the process goes on.
    """
    keyboard = _keyboard()
    modes: list[Any] = [] if keyboard is None else termios.tcgetattr(keyboard)

    def begin() -> None:
        if keyboard is not None:
            tty.setcbreak(keyboard, termios.TCSADRAIN)
        print(_BEGIN, end="", flush=True)

    def end() -> None:
        print(_END, end="", flush=True)
        if keyboard is not None:
            termios.tcsetattr(keyboard, termios.TCSAFLUSH, modes)  # keys that are not read yet are not for the shell

    def pause(*_: object) -> None:
        end()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # and here it goes on
        signal.signal(signal.SIGTSTP, pause)
        begin()

    former = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.default_int_handler),
        signal.SIGTSTP: signal.signal(signal.SIGTSTP, pause),
    }
    try:
        begin()
        with suppress(KeyboardInterrupt):
            yield
    finally:
        end()
        for number, handler in former.items():
            signal.signal(number, handler)
