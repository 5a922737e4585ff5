"""Clerks: processes that send, so that what hangs can be ended, and connections are those of one long-lived process."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from taskbridge.contract.failure import ContractFailure

_MODULE: Final = "benchmarks.guarantees.applications.clerk"
_START_S: Final = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came of a call.

    Attributes:
        value: What it returned.
        error: What it raised, in a line; empty if nothing.
        seconds: How long it took; how long it was waited for if it hangs.
        hangs: Whether there was no answer in time; the clerk is of no use then.
    """

    value: Any = None
    error: str = ""
    seconds: float = 0.0
    hangs: bool = False

    @property
    def ok(self) -> bool:
        """Whether it returned."""
        return not self.error and not self.hangs


class Clerk:
    """A process of an application that does what it is told.

    Args:
        env: Its environment.
        log: Where its errors go.
    """

    def __init__(self, env: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, name="guarantees-clerk", daemon=True).start()
        if self._answer(_START_S) is None:
            self.close()
            raise ContractFailure(f"a clerk did not start\n{log.read_text(errors='replace')}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _answer(self, within_s: float) -> dict[str, Any] | None:
        try:
            line = self._answers.get(timeout=within_s)
        except queue.Empty:
            return None
        if not line:
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def call(self, name: str, *, within_s: float = 30.0, **arguments: Any) -> Answer:
        """Call a function of the application, and wait so long for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._answer(within_s)
        if answer is None:
            return Answer(seconds=within_s, hangs=True)
        return Answer(**answer)

    def close(self) -> None:
        """End the process."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
