"""Carries a message out: runs it, settles it, and then tells Celery what to show.

Celery acknowledges a message after its task has returned, retried or failed, and puts one back whose task raised
`Reject(requeue=True)`. What a verdict needs is in the broker before that (rules A1 and R5).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, Final, cast

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import CeleryError, Ignore, Reject, Retry

from taskbridge.engines.base import Host
from taskbridge.engines.celery import reading, wire
from taskbridge.engines.celery.runs import ChildRuns
from taskbridge.engines.celery.stock import CeleryIgnore
from taskbridge.engines.settle import NotSettledError, bury, run_and_settle
from taskbridge.exceptions import CodecError, TaskBridgeError
from taskbridge.message import DeadLetter, Message
from taskbridge.retry import Dead, Discarded, Done, ErrorInfo, GivenBack, RunAgain, Verdict

_log = logging.getLogger("taskbridge.celery")

_PAUSE_S: Final = 1.0
"""How long a slot rests before a message goes back that could not be settled for a reason nobody thought of."""


_MEANINGFUL: Final = (CeleryError, MemoryError, Terminated, TimeLimitExceeded, WorkerLostError)
"""Errors from which Celery draws conclusions (celery/worker/request.py, on_failure)."""


class TaskFailed(TaskBridgeError):
    """Shows an error in Celery that can't be raised there itself: a `SystemExit`, or one that means something to it."""


class PutOff(CeleryIgnore):
    """Shows a message that was not run now: it waits, for its attempt may have been started before."""


class _InterruptibleHost:
    """The bridge, but what it runs can be interrupted; `ran` says whether it was asked to run anything."""

    def __init__(self, host: Host, runs: ChildRuns, limit_s: float | None) -> None:
        self._host = host
        self._runs = runs
        self._limit_s = limit_s
        self.ran = False

    def run(self, message: Message) -> Verdict:
        """Run a message in this thread."""
        self.ran = True
        return self._runs.run(message, limit_s=self._limit_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)


class Carrier:
    """Carries messages out for one bridge, where Celery's pool runs tasks."""

    def __init__(self, host: Host, runs: ChildRuns) -> None:
        self._host = host
        self._runs = runs
        self._worker_pid = 0

    def opens(self, worker_pid: int) -> None:
        """Note which process the worker is; tasks may run in children of it."""
        self._worker_pid = worker_pid

    def carry(self, request: Mapping[str, Any], *, limit_s: float | None) -> Any:
        """Run the task of a request and settle it.

        Args:
            request: All that Celery knows of it.
            limit_s: The task's time limit; None is for ever.

        Returns:
            What the task returned, if a plain client has linked anything to it.

        Raises:
            Retry, Ignore, Reject: It did not end well, and Celery is to show it and to do the like.
            Exception: The error of which it is dead.
        """
        if os.getpid() != self._worker_pid and self._worker_pid:
            self._runs.heed_signals()
        host = _InterruptibleHost(self._host, self._runs, limit_s)
        self._runs.begin()
        try:
            message = self._read(request)
            redelivered = bool((request.get("delivery_info") or {}).get("redelivered"))
            verdict = run_and_settle(cast("Host", host), message, redelivered=redelivered)
        except NotSettledError as exc:
            raise Reject(f"the worker stops: {exc}", requeue=True) from None
        except (Reject, CodecError):
            raise
        except Exception:
            _log.exception("task %s id %s could not be settled, goes back", request.get("task"), request.get("id"))
            self._host.stopping.wait(_PAUSE_S)
            raise Reject("it could not be settled", requeue=True) from None
        finally:
            self._runs.end()
        if isinstance(verdict, Discarded) and not host.ran:
            raise PutOff(verdict.reason)
        return self._show(verdict, request)

    def _read(self, request: Mapping[str, Any]) -> Message:
        try:
            return reading.read(
                native_of(request, self._host.settings.namespace),
                default_queue=self._host.queue_of(request["task"]),
                now=self._host.now(),
            )
        except CodecError as exc:  # the worker's main process has read it before; only odd plain values come to this
            raw = repr((request.get("args"), request.get("kwargs"))).encode()
            bury(self._host, letter_of_bytes(raw, "undecodable", exc, now=self._host.now()))
            raise

    def _show(self, verdict: Verdict, request: Mapping[str, Any]) -> Any:
        """Make Celery, Flower and the like see a verdict that was carried out."""
        match verdict:
            case Done(value):
                linked = any(request.get(name) for name in ("callbacks", "chain", "chord", "group"))
                return value if linked else None  # Celery logs what is returned
            case RunAgain(after_s, error):
                raise Retry(exc=shown(error), when=round(after_s, 3))
            case Dead(reason, error):
                raise TaskFailed(f"the message is dead: {reason}") if error is None else shown(error)
            case Discarded(reason):
                raise Ignore(reason)
            case GivenBack():
                raise Reject("the worker stops", requeue=True)


def native_of(request: Mapping[str, Any], namespace: str) -> reading.Native:
    """Return the parts of a message as Celery hands it to a task."""
    delivery = request.get("delivery_info") or {}
    routing_key = delivery.get("routing_key")
    return reading.Native(
        headers=request,
        args=request.get("args") or (),
        kwargs=request.get("kwargs") or {},
        embed={name: request.get(name) for name in ("callbacks", "errbacks", "chain", "chord")},
        queue=wire.own_queue(namespace, routing_key) if isinstance(routing_key, str) else None,
    )


def letter_of_bytes(raw: bytes, reason: str, error: Exception, *, now: float) -> DeadLetter:
    """Return the dead letter of bytes that can't be read (rule Q7)."""
    return DeadLetter(message=None, reason=reason, error=ErrorInfo.of(error), died_at=now, raw=raw)


def shown(error: BaseException) -> Exception:
    """Return an error that Celery may see raised: this one, unless that would end the worker or mean something else.

    `SystemExit` ends a child, `MemoryError` the whole worker, and errors of Celery's own would change what becomes of a
    message that is settled.
    """
    if isinstance(error, Exception) and not isinstance(error, _MEANINGFUL):
        return error
    return TaskFailed(f"{type(error).__name__}: {error}")
