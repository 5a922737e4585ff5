"""The lease of a worker on Redis: kept while the process lives, and taken from those that died (rules A2 and A3)."""

from __future__ import annotations

import logging
import threading
from time import monotonic
from typing import Final, Protocol

from taskbridge import locks
from taskbridge.exceptions import BrokerUnavailable

_log = logging.getLogger("taskbridge.dramatiq")

_LONGEST_BEAT_S: Final = 10.0
"""A worker renews its lease at least so often: a plain Dramatiq client of this namespace gives it 60 s."""

_STRANGERS_S: Final = 60.0
"""How often workers are looked at that are not ours, such as plain clients."""

_JOIN_S: Final = 2.0


class Lessee(Protocol):
    """A worker's broker, as the keeper sees it."""

    @property
    def lease_s(self) -> float:
        """Seconds after which a worker that gave no sign of life is dead."""
        ...

    def renew(self) -> None:
        """Give a sign of life."""
        ...

    def recover(self, *, strangers: bool) -> int:
        """Return the messages of dead workers to their queues, and return how many those were."""
        ...

    def leave(self) -> None:
        """Give the lease up, if nothing is held under it."""
        ...


class LeaseKeeper:
    """A thread that renews this worker's lease, whatever its tasks do, and looks for workers that died.

    Dramatiq renews a lease with each command of a consumer, and so with none while all threads are busy.
    """

    def __init__(self, lessee: Lessee) -> None:
        self._lessee = lessee
        self._beat_s = min(lessee.lease_s / 4, _LONGEST_BEAT_S)
        self._stop = locks.Event()
        self._thread = threading.Thread(target=self._run, name="taskbridge-lease", daemon=True)
        self._is_cut_off = False
        self._renewed_at: float | None = None
        self._judges_from = 0.0
        self._strangers_at = 0.0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and give the lease up."""
        self._stop.set()
        self._thread.join(_JOIN_S)
        try:
            self._lessee.leave()
        except BrokerUnavailable as exc:
            _log.info("the lease is not given up but will be over by itself: %s", exc)

    def _run(self) -> None:
        while True:
            try:
                self._beat()
            except BrokerUnavailable as exc:
                if not self._is_cut_off:
                    _log.warning("the lease can't be renewed, trying on: %s", exc)
                self._is_cut_off = True
            except Exception:
                _log.exception("the lease keeper failed, going on")
            if self._stop.wait(self._beat_s):
                return

    def _beat(self) -> None:
        self._lessee.renew()
        now = monotonic()
        stood_still = self._renewed_at is not None and now - self._renewed_at > self._lessee.lease_s / 2
        self._renewed_at = now
        if self._is_cut_off or stood_still:
            # Others were cut off or stood still too, and have yet to renew theirs: who looks dead now may be alive.
            self._judges_from = now + self._lessee.lease_s
        if self._is_cut_off:
            self._is_cut_off = False
            _log.info("the lease is renewed again")
        if now < self._judges_from:
            return
        strangers = now >= self._strangers_at
        if strangers:
            self._strangers_at = now + _STRANGERS_S
        returned = self._lessee.recover(strangers=strangers)
        if returned:
            _log.warning("%d messages of workers that died are back in their queues", returned)
