"""The time by the store's clock, which all processes share: the clocks of their machines may differ."""

from __future__ import annotations

import time
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Final

from taskbridge.exceptions import BrokerUnavailable
from taskbridge.logs import logger
from taskbridge.stores.backend import Backend

_log = logger("taskbridge.store")

SKEW_S: Final = 5.0
"""How far a clock may be off before that is told."""

_SAME_S: Final = 0.5  # how far apart two clocks may be that count as the same

_ASK_S: Final = 30.0  # how often the store is asked
_AGAIN_S: Final = 5.0  # the same if it has not answered
_SHARE: Final = 0.05  # of `send_timeout`, for an answer: rule S2 gives a tenth


class StoreClock:
    """Tells the time by the store's clock, in seconds since the epoch; never early, late by an answer's time at most.

    The store is asked now and then, and when this machine's clock was set or the machine stood still. Until it has
    answered once, this machine's time is told. Threads share it: one asks, and the others go on.
    """

    def __init__(self, backend: Backend, *, send_timeout_s: float) -> None:
        self._backend = backend
        self._timeout_s = send_timeout_s * _SHARE
        self._ask_at = -inf
        self._is_known = False
        # By how much the store's clock is ahead of this machine's, and this one of the monotonic clock; replaced
        # together, so that of two threads that notice at once that a clock was set, none reckons with it twice.
        self._seen = 0.0, time.time() - monotonic()

    def __call__(self) -> float:
        """Return the time, as far as it is known; raises nothing."""
        here, now = time.time(), monotonic()
        if now >= self._ask_at or not -_SAME_S < here - now - self._seen[1] < _SAME_S:
            with suppress(BrokerUnavailable):
                self._ask(self._timeout_s)
            here = time.time()
        return here + self._seen[0]

    def ensure(self, *, timeout_s: float) -> None:
        """Return if the store has answered once, or does now; else raise `BrokerUnavailable`."""
        if not self._is_known:
            self._ask(timeout_s)

    def _ask(self, timeout_s: float) -> None:
        here, began = time.time(), monotonic()
        ahead_s, gap_s = self._seen
        if self._is_known:
            ahead_s -= here - began - gap_s  # as if it had not been set, until the store answers
        self._seen, self._ask_at = (ahead_s, here - began), began + _AGAIN_S
        ahead_s, took_s = self._backend.time(timeout_s=timeout_s) - here, monotonic() - began
        is_same = -_SAME_S <= ahead_s <= took_s + _SAME_S
        self._seen = 0.0 if is_same else ahead_s - took_s, here - began
        if self.skew and not self._is_known:
            _log.warning("%s", self.skew)
        self._is_known, self._ask_at = True, began + _ASK_S

    @property
    def skew(self) -> str:
        """What is to be said of this machine's clock; nothing if it is nearly right."""
        ahead_s, _ = self._seen
        if abs(ahead_s) <= SKEW_S:
            return ""
        off = f"{abs(ahead_s):.0f} s {'behind' if ahead_s > 0 else 'ahead of'} the store's"
        return f"this machine's clock is {off}: expiry and schedules go by the store's; keep clocks in time with NTP"
