"""The producer of a chaos run: sends as planned, in some threads, and writes down what it was told of each message."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from taskbridge import Bridge, BrokerUnavailable, Event, SendError
from taskbridge.contract.stopwatch import Stopwatch
from tests.chaos.happenings import Fate, Send
from tests.chaos.plan import Sending
from tests.chaos.tasks import Tasks

_THREADS: Final = 4
_MOST_TOGETHER: Final = 20
_JOIN_S: Final = 300.0
_NOTED_S: Final = 0.03
"""After which time a stall that is over has been noted: whoever notes it has just been woken, too."""


class Producer:
    """Sends messages at their times; what is late goes in one `send_many`.

    Args:
        bridge: Its own.
        tasks: Declared on it.
        sendings: What to send, in the order of time.
    """

    def __init__(self, bridge: Bridge, tasks: Tasks, sendings: Sequence[Sending]) -> None:
        self._bridge = bridge
        self._tasks = tasks
        self._waiting = deque(sendings)
        self._ids: dict[str, str] = {}
        bridge.on("before_send")(self._note_id)
        self._lock = threading.Lock()
        self._sends: list[Send] = []
        self.faults: list[str] = []
        self.longest_s: float = 0.0
        self._threads: list[threading.Thread] = []
        self._stalls = Stopwatch()

    @property
    def sends(self) -> list[Send]:
        """What was sent so far."""
        with self._lock:
            return list(self._sends)

    def start(self, begin: float) -> None:
        """Begin to send.

        Args:
            begin: The moment that the plan's times count from, by the monotonic clock.
        """
        self._stalls.__enter__()  # ended by `join`
        for number in range(_THREADS):
            thread = threading.Thread(target=self._run, args=(begin, number), name="chaos-producer", daemon=True)
            thread.start()
            self._threads.append(thread)

    def join(self) -> None:
        """Return when everything was sent."""
        until = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                self.faults.append(f"a send hangs (rule S2): {len(self._sends)} sent")
        self._stalls.__exit__()

    def _note_id(self, event: Event) -> None:
        if event.message is not None:
            self._ids[json.loads(event.message.args_json)[0]] = event.message.id

    def _run(self, begin: float, number: int) -> None:
        try:
            while portion := self._next(begin, _MOST_TOGETHER if number == 0 else 1):
                time.sleep(max(0.0, begin + portion[0].at_s - time.monotonic()))
                if number == 0 and portion[0].delay_s == 0:
                    self._send_many(portion)
                else:
                    self._send(portion[0])
        except Exception as exc:
            self.faults.append(f"the producer failed: {exc!r}")

    def _next(self, begin: float, most: int) -> list[Sending]:
        """Return the next message, and with it some more that are due by now and wait for nothing."""
        with self._lock:
            if not self._waiting:
                return []
            portion = [self._waiting.popleft()]
            now_s = time.monotonic() - begin
            while portion[0].delay_s == 0 and len(portion) < most and self._waiting:
                following = self._waiting[0]
                if following.at_s > now_s or following.delay_s > 0:
                    break
                portion.append(self._waiting.popleft())
            return portion

    def _send(self, sending: Sending) -> None:
        at, began = time.time(), time.monotonic()
        task = self._tasks.by_kind[sending.kind].using(queue=sending.queue, priority=sending.priority)
        fate: Fate = "sent"
        try:
            if sending.delay_s > 0:
                task.schedule(sending.delay_s, sending.key, sending.number)
            else:
                task.send(sending.key, sending.number)
        except BrokerUnavailable as exc:
            fate = "unsure" if exc.maybe_taken else "refused"
        self._note([sending], at, [fate], self._took_s(began))

    def _send_many(self, sendings: Sequence[Sending]) -> None:
        at, began = time.time(), time.monotonic()
        calls = [
            self._tasks.by_kind[each.kind].using(queue=each.queue, priority=each.priority).call(each.key, each.number)
            for each in sendings
        ]
        fates: list[Fate] = ["sent"] * len(sendings)
        try:
            self._bridge.send_many(calls)
        except SendError as exc:
            missed: Fate = "unsure" if exc.maybe_taken else "refused"
            sent = set(exc.sent)
            fates = ["sent" if self._ids[each.key] in sent else missed for each in sendings]
        self._note(sendings, at, fates, self._took_s(began))

    def _took_s(self, began: float) -> float:
        """Return how long a send took less what the machine stood still meanwhile."""
        took_s = time.monotonic() - began
        time.sleep(_NOTED_S)
        return took_s - self._stalls.stalled_s(since=began)

    def _note(self, sendings: Sequence[Sending], at: float, fates: Sequence[Fate], took_s: float) -> None:
        sends = [
            Send(key=each.key, kind=each.kind, at=at, due=at + each.delay_s, fate=fate)
            for each, fate in zip(sendings, fates, strict=True)
        ]
        with self._lock:
            self._sends += sends
            self.longest_s = max(self.longest_s, took_s)
