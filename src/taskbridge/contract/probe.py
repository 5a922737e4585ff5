"""What scenarios observe: starts, ends and hooks, each one JSON line in a file that all processes append to."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

START: Final = "start"
END: Final = "end"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One thing that happened.

    Attributes:
        kind: `start`, `end`, or the name of a hook.
        at: When, in seconds since the epoch, by the clock of the bridge that it happened on.
        pid: The process.
        thread: The thread's number in it.
        main_thread: Whether that is its main thread.
        id: The message's; empty for hooks of a worker.
        attempt: The message's; 0 for hooks of a worker.
        data: What else is known, by name.
    """

    kind: str
    at: float
    pid: int
    thread: int
    main_thread: bool
    id: str
    attempt: int
    data: Mapping[str, Any]


class Probe:
    """Appends records to a file; threads and processes may share the file.

    Args:
        path: The file; it is made if it is not there.
        now: Returns the time, in seconds since the epoch.
    """

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self.path = path
        self._now = now

    def write(self, kind: str, *, id: str = "", attempt: int = 0, **data: Any) -> None:
        """Append a record, in one write, so that lines of several processes never mix."""
        line = json.dumps(
            {
                "kind": kind,
                "at": self._now(),
                "pid": os.getpid(),
                "thread": threading.get_ident(),
                "main_thread": threading.current_thread() is threading.main_thread(),
                "id": id,
                "attempt": attempt,
                "data": data,
            }
        )
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode() + b"\n")
        finally:
            os.close(file)


class Records:
    """Reads what was appended to a probe's file. Threads share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._read = 0
        self._all: list[Record] = []
        self._by_id: dict[str, list[Record]] = {}

    def refresh(self) -> None:
        """Read what is new; half a line is left for later."""
        with self._lock:
            for line in self._new_lines():
                record = Record(**json.loads(line))
                self._all.append(record)
                self._by_id.setdefault(record.id, []).append(record)

    def _new_lines(self) -> Iterator[bytes]:
        if not self._path.exists() or self._path.stat().st_size == self._read:
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                yield line

    def all(self) -> list[Record]:
        """Return everything that happened so far, in the order in which it was written."""
        self.refresh()
        with self._lock:
            return list(self._all)

    def of(self, id: str) -> list[Record]:
        """Return what happened to one message so far, in the order in which it was written."""
        self.refresh()
        with self._lock:
            return list(self._by_id.get(id, ()))

    @property
    def size(self) -> int:
        """How much was read so far, in bytes: it grows with everything that happens."""
        self.refresh()
        with self._lock:
            return self._read
