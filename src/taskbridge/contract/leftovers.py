"""What this process must not leave behind, however it ends: process groups that it started, and folders.

A small process waits until this one is gone, which a SIGKILL doesn't hide from it, and then ends and removes them.
"""

from __future__ import annotations

import atexit
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final

# A group is known by when its first process was started, so that a number which the system has given to another process
# meanwhile is left alone.
_WATCH: Final = """
started() {
    set -- ${1##*) }
    echo "${20}"
}
groups=
while read -r what name; do
    if [ "$what" = folder ]; then set -- "$@" "$name"; else groups="$groups $name"; fi
done
for group in $groups; do
    stat=$(cat "/proc/${group%:*}/stat" 2> /dev/null) || continue
    if [ "$(started "$stat")" = "${group#*:}" ]; then kill -s KILL -- "-${group%:*}"; fi
done
rm -rf -- "$@"
"""
_STARTED: Final = 19
"""Where, behind its name, a process's line in /proc says when it was started."""

_EXIT_S: Final = 20.0


class _Watch:
    """The process that waits."""

    def __init__(self) -> None:
        self.owner: int = os.getpid()
        self._process = subprocess.Popen(  # in a session of its own, else Ctrl-C in a terminal ends it first
            ["/bin/sh", "-c", _WATCH, "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            bufsize=0,
        )
        atexit.register(self._close)

    def write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    def _close(self) -> None:
        if os.getpid() == self.owner:  # not in a forked child
            self._process.communicate(timeout=_EXIT_S)


_lock: Final = Lock()
_watches: Final[list[_Watch]] = []


def end_group(pid: int) -> None:
    """Have a process that was started in a group of its own ended with its group; does nothing without /proc."""
    with suppress(OSError):
        words: Sequence[str] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        _note(f"group {pid}:{words[_STARTED]}")


def remove_folder(folder: Path) -> None:
    """Have a folder removed."""
    _note(f"folder {folder}")


def _note(line: str) -> None:
    with _lock:
        if not _watches or _watches[-1].owner != os.getpid():
            _watches.append(_Watch())
        _watches[-1].write(line)
