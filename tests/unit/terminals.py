"""Runs programs on terminals: one whose output is read whole, and one of 80 columns whose screen is read."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from taskbridge.contract import leftovers
from tests.programs import Origin

_PATIENCE_S: Final = 120.0
_SETTINGS: Final = (
    "set -g status off\nset -g default-shell /bin/sh\nset -g default-terminal screen\nset -s exit-empty off\n"
)


def on_a_terminal(command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None) -> str:
    """Run a command whose output goes to a terminal, and return what is written there."""
    parent, child = pty.openpty()
    try:
        with subprocess.Popen(command, cwd=cwd, stdout=child, stderr=child, env={**env, "TERM": "xterm"}):
            os.close(child)
            written = b""
            while part := _read(parent):
                written += part
    finally:
        os.close(parent)
    return written.decode()


def _read(place: int) -> bytes:
    try:
        return os.read(place, 4096)
    except OSError:  # Linux says so at the end
        return b""


class Terminal:
    """A shell in tmux, on a terminal of 80 columns and 24 lines, whose screen can be read.

    Args:
        env: The shell's environment.
        cwd: Its current folder.

    Raises:
        ServerNotInstalled: tmux is not there.
    """

    def __init__(self, *, env: Mapping[str, str], cwd: Path) -> None:
        program = Origin(name="tmux").find("tmux", package="tmux")
        self._ending = ExitStack()
        folder = Path(self._ending.enter_context(tempfile.TemporaryDirectory(prefix="taskbridge-")))
        (folder / "settings").write_text(_SETTINGS)
        self._tmux = [program, "-u", "-S", str(folder / "socket"), "-f", str(folder / "settings")]
        self._env = {**env, "LC_ALL": "C.UTF-8"}
        self._server = subprocess.Popen(  # not as a daemon, which nobody would end
            [*self._tmux, "-D"], env=self._env, cwd=cwd, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self._ending.callback(self._server.wait)
        self._ending.callback(self._server.kill)
        leftovers.end_group(self._server.pid)
        self.until((folder / "socket").exists)
        self._tell("new-session", "-d", "-x", "80", "-y", "24", "-c", str(cwd), "PS1='$ ' exec sh")
        self.until(self.has_prompt)

    def close(self) -> None:
        """End the shell and what it runs."""
        self._ending.close()

    def _tell(self, *words: str) -> str:
        told = subprocess.run(
            [*self._tmux, *words], env=self._env, check=True, capture_output=True, text=True, timeout=_PATIENCE_S
        )
        return told.stdout

    def enter(self, line: str) -> None:
        """Type a line, and end it."""
        self._tell("send-keys", "-l", line)
        self.press("Enter")

    def press(self, key: str) -> None:
        """Press a key: a character, or `Enter`, `C-c` and the like."""
        self._tell("send-keys", key)

    def lines(self) -> list[str]:
        """Return what the screen shows between two redraws; a line that is wrapped is one of more than 80 columns."""
        shown, more = "", self._capture()
        while shown != more:
            shown, more = more, self._capture()
        return [line.rstrip() for line in shown.rstrip().split("\n")]

    def _capture(self) -> str:
        return self._tell("capture-pane", "-p", "-J")

    def wait_for(self, pattern: str) -> None:
        """Wait until the beginning of a line matches a regular expression."""
        self.until(lambda: any(re.match(pattern, line) for line in self.lines()))

    def has_prompt(self) -> bool:
        """Return whether the shell waits for a line."""
        return self.lines()[-1] == "$"

    def modes(self) -> tuple[str, str]:
        """Return whether there is a screen of a program's own, a cursor and wrapping, and what `stty` says."""
        flags, place = self._tell(
            "display-message", "-p", "#{alternate_on}#{cursor_flag}#{wrap_flag} #{pane_tty}"
        ).split()
        with open(place) as terminal:
            keyboard = subprocess.run(
                ["stty", "-a"], stdin=terminal, check=True, capture_output=True, text=True, timeout=_PATIENCE_S
            )
        return flags, keyboard.stdout

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            assert self._server.poll() is None, "tmux has ended"
            assert time.monotonic() < deadline, "\n".join(self.lines())
            time.sleep(0.05)
