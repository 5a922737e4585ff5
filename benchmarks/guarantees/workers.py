"""Workers that are started again when they end, as a service manager does."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from taskbridge.contract.workers import ProcessWorker
from taskbridge.engines.base import Command

_LOOK_S: Final = 0.1
_PAUSE_S: Final = 1.0


class KeptWorker:
    """A worker, from its own command line; another is started a second after it ended, until it is told to stop.

    Args:
        commands: Its command lines.
        env: The environment.
        log: Where its output goes.
    """

    def __init__(self, commands: Sequence[Command], env: Mapping[str, str], log: Path) -> None:
        self._commands = commands
        self._env = env
        self._log = log
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._process = ProcessWorker(commands, env, log)
        self.ends: int = 0
        self._keeper = threading.Thread(target=self._keep, name="guarantees-keeper", daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        while not self._stopped.wait(_LOOK_S):
            if self._process.wait(0) is None:
                continue
            self.ends += 1
            if self._stopped.wait(_PAUSE_S):
                return
            with self._lock:
                if not self._stopped.is_set():
                    self._process.kill()  # what is left of its group
                    self._process = ProcessWorker(self._commands, self._env, self._log)

    def owns(self, pid: int) -> bool:
        """Return whether a process is one of its own and is there."""
        return self._process.owns(pid)

    def kill(self) -> None:
        """End all its processes with SIGKILL, for good."""
        with self._lock:
            self._stopped.set()
            self._process.kill()

    def crash(self) -> None:
        """End all its processes with SIGKILL; another is started, as if it had ended by itself."""
        with self._lock:
            self._process.kill()

    def terminate(self) -> None:
        """Send SIGTERM; what ends is not started again."""
        with self._lock:
            self._stopped.set()
            self._process.terminate()

    def wait(self, timeout_s: float) -> int | None:
        """Wait until it has ended, and return its exit code; None if it is still there."""
        return self._process.wait(timeout_s)

    def log(self) -> str:
        """Return the last lines that it wrote."""
        return self._process.log()
