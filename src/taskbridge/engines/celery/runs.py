"""Runs that a worker's end can interrupt, in threads and in the child processes of Celery's prefork pool (rule R8).

In a child, SIGTERM raises `Interrupted` in the task that runs. Celery's own handler raises `SystemExit` there, which
nobody can tell from a task's own.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from taskbridge.engines.base import Host
from taskbridge.engines.runs import Runs
from taskbridge.retry import Interrupted

_Handler = Callable[[int, FrameType | None], Any]

_EXIT_AFTER_S: Final = 0.2
"""How long after its task's end a child goes on to exit that was told to: Celery sends the task's outcome meanwhile."""


class ChildRuns(Runs):
    """What runs in a worker, or in a child of it."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._told_to_exit = False
        self._stock_handler: _Handler | None = None
        self._handler_pid = 0

    def heed_signals(self) -> None:
        """Have SIGTERM interrupt a task, in this process's main thread.

        Called as a task starts: Celery's pool sets its own handler after everything that could be called earlier.
        """
        if self._handler_pid == os.getpid():
            return
        self._handler_pid = os.getpid()
        self._running.clear()  # the parent's
        stock = signal.getsignal(signal.SIGTERM)
        self._stock_handler = stock if callable(stock) else None
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        thread = threading.main_thread().ident
        if thread not in self._running:  # between tasks, or while a verdict is carried out
            if self._busy:
                self._exit_after()
            elif self._stock_handler is not None:
                self._stock_handler(number, frame)
            return
        self._exit_after()
        if not self._is_over:  # no lock: the handler runs in the thread that may hold it
            self._is_over = True
            raise Interrupted

    _busy = False

    def _exit_after(self) -> None:
        self._host.stopping.set()
        self._told_to_exit = True

    def begin(self) -> None:
        """Note that a message is being handled, from here until `end`."""
        self._busy = True

    def end(self) -> None:
        """Note that a message has been handled; then exit, if this child was told to."""
        self._busy = False
        if self._told_to_exit:
            timer = threading.Timer(_EXIT_AFTER_S, os.kill, (os.getpid(), signal.SIGTERM))
            timer.daemon = True
            timer.start()
