"""Runs a program on a terminal of its own."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


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
