"""What `taskbridge worker` names to Dramatiq's command line: the broker of the application in `TASKBRIDGE_APP`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

from dramatiq.cli import HANDLED_SIGNALS

from taskbridge.loading import worker_bridge

_LOOK_S: Final = 0.2


class _Told(BaseException):
    """This process was told to stop; an application that exits as it is loaded is another matter."""


@contextmanager
def _ending_at_signals() -> Generator[None]:
    """End this process if it, or Dramatiq's main process, is told to stop in this block.

    Dramatiq would go on loading, and its main process blocks signals until this one has booted, for 30 s at most
    (dramatiq/cli.py, main and worker_process); as this one ends, it goes on.
    """
    main, loaded = multiprocessing.parent_process(), threading.Event()
    if main is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _tell)
    looking = threading.Thread(target=_look, args=(main.pid, loaded), name="taskbridge-loading", daemon=True)
    try:
        looking.start()
        try:
            yield
        finally:
            loaded.set()
            looking.join()
            signal.signal(signal.SIGTERM, before)
    except _Told:
        sys.exit(0)


def _look(main: int, loaded: threading.Event) -> None:
    """Tell this process once a signal to stop waits for the main one; where there is no /proc, nobody can know."""
    wanted = sum(1 << (number - 1) for number in HANDLED_SIGNALS)
    while not loaded.wait(_LOOK_S):
        try:
            lines = Path(f"/proc/{main}/status").read_text().splitlines()
        except OSError:
            return
        pending = next((int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd:")), 0)
        if pending & wanted:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _tell(number: int, frame: FrameType | None) -> None:
    raise _Told


with _ending_at_signals():
    broker: Any = worker_bridge("dramatiq").native
