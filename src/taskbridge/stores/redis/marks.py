"""Attempt marks in Redis.

A mark is a key for a message's attempt; it holds the name of the worker that started it, or `ended`. A worker is
alive as long as its own key is there, which a thread of it refreshes.

Marks are written so that nobody waits for them: see `taskbridge.stores.redis.silent`.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from math import inf
from time import monotonic
from typing import Any, Final

from taskbridge.brokers.redis.client import Client
from taskbridge.brokers.redis.connecting import Word, pack
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import Message
from taskbridge.settings import Settings
from taskbridge.stores.base import Claim
from taskbridge.stores.redis.silent import Silent

_log = logging.getLogger("taskbridge.store")

_ENDED: Final = "ended"
_STARTED_TTL_S: Final = 7 * 86400
"""A mark of a run that never ended is kept for this long; its message comes back much sooner."""
_AFTER_END_S: Final = 60
"""How long past the lease an ended attempt is remembered: for a delivery that was on its way."""
_LONGEST_LIFE_S: Final = 8.0
"""A worker on RabbitMQ counts as dead after this: rule A2 asks for 10 s there, whatever the lease."""

_HEAD: Final = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n%b"
"""A command that sets a key: the length of the key, the key, and the three words after it, packed."""


def _tail(value: str, ttl_s: int) -> bytes:
    """Return the words of a command that sets a key to a value for so many seconds, from the value on, packed."""
    return pack([(value, "EX", ttl_s)]).partition(b"\r\n")[2]


_CLAIM: Final = """
local mark = redis.call('GET', KEYS[1])
if mark == 'ended' then return 'ended' end
local owner, lost = mark, false
if mark and string.sub(mark, -5) == '|lost' then owner, lost = string.sub(mark, 1, -6), true end
if owner and owner ~= ARGV[1] and redis.call('EXISTS', ARGV[2] .. owner) == 1 then return 'running' end
if owner == ARGV[1] and ARGV[4] == '1' then return 'running' end
if owner == ARGV[1] then return lost and 'lost' or 'run' end
redis.call('SET', KEYS[1], owner and ARGV[1] .. '|lost' or ARGV[1], 'EX', ARGV[3])
return owner and 'lost' or 'run'
"""
"""A mark of this process's that it knows nothing of is of a claim whose answer never came: it gets the same again."""

_LOST: Final = "|lost"
"""What ends the mark of a process that has found the attempt lost, and is to decide about it."""


class RedisMarks:
    """Keeps marks in a Redis database."""

    def __init__(self, settings: Settings, url: str, silent: Silent | None = None) -> None:
        self._settings = settings
        self._client = Client(url)
        self._silent = Silent(settings, url) if silent is None else silent
        self._lock = threading.Lock()
        self._mine: _Process | None = None

    def started(self, message: Message) -> None:
        """Mark an attempt as started by this process; waits for nothing."""
        process = self._process()
        process.running[message.life, message.attempt] = monotonic()
        self._write(message, process.started_tail)

    def ended(self, message: Message) -> None:
        """Mark an attempt as ended; waits for nothing."""
        process, key = self._process(), (message.life, message.attempt)
        process.running.pop(key, None)
        process.deciding.discard(key)
        self._write(message, process.ended_tail)

    def given_back(self, message: Message, *, timeout_s: float) -> None:
        """Take the mark of an interrupted run away; waits until it is gone."""
        process = self._process()
        self._ask(timeout_s, "DEL", self._key(message))
        process.running.pop((message.life, message.attempt), None)

    def all_given_back(self, *, timeout_s: float) -> None:
        """Take the marks of all runs in this process away."""
        process = self._process()
        keys = [f"{self._settings.namespace}:mark:{life}:{attempt}" for life, attempt in tuple(process.running)]
        if keys:
            self._ask(timeout_s, "DEL", *keys)
        process.running.clear()

    def claim(self, message: Message, *, timeout_s: float) -> Claim:
        """Ask Redis, in one step, what may be done with a message, and mark it as this process's."""
        process, key = self._process(), (message.life, message.attempt)
        if not process.decides(key):
            return Claim.RUNNING  # another thread has the same attempt from a second delivery
        mine = "1" if key in process.running else "0"
        words = (process.name, process.alive_prefix, _STARTED_TTL_S, mine)
        try:
            claim = Claim(self._ask(timeout_s, "EVAL", _CLAIM, 1, self._key(message), *words).decode())
        except BaseException:
            process.deciding.discard(key)
            raise
        if claim is Claim.RUN:
            process.running[key] = monotonic()
        if claim is not Claim.LOST:
            process.deciding.discard(key)
        return claim

    def still_ours(self, message: Message, *, timeout_s: float) -> bool:
        """Return whether an attempt's mark is this process's; Redis is asked if this process may have looked dead."""
        process = self._process()
        started_at = process.running.get((message.life, message.attempt))
        if started_at is None or process.lived_since(started_at):
            return True
        owner: bytes | None = self._ask(timeout_s, "GET", self._key(message))
        if owner is None or owner.decode().removesuffix(_LOST) == process.name:
            return True
        process.running.pop((message.life, message.attempt), None)
        return False

    def prepare(self) -> None:
        """Connect and say that this process is alive."""
        self._process()

    def stood_still(self) -> bool:
        """Return whether the store may have missed a sign of life of this process in the last lease's time."""
        mine = self._mine
        if mine is None or mine.pid != os.getpid():
            return False
        return not mine.lived_since(monotonic() - self._settings.lease_s)

    def close(self) -> None:
        """Close the connections and stop saying that this process is alive."""
        with self._lock:
            mine, self._mine = self._mine, None
        if mine is not None and mine.pid == os.getpid():
            self._silent.close()
            mine.close()
            self._client.close()

    def _ask(self, timeout_s: float, *command: Word) -> Any:
        """Send a command and return the answer."""
        try:
            return self._client.execute([command], timeout_s=timeout_s)
        except BrokerUnavailable as exc:
            raise BrokerUnavailable(f"the store does not answer: {exc.problem}") from exc

    def _write(self, message: Message, tail: bytes) -> None:
        """Set a message's mark and don't wait; the words after the key are packed already."""
        key = self._key(message).encode()
        self._silent.send(_HEAD % (len(key), key, tail))

    def _key(self, message: Message) -> str:
        return f"{self._settings.namespace}:mark:{message.life}:{message.attempt}"

    def _process(self) -> _Process:
        mine = self._mine
        if mine is not None and mine.pid == os.getpid():
            return mine
        with self._lock:
            if self._mine is None or self._mine.pid != os.getpid():
                self._mine = _Process(self._settings, self._client)
            return self._mine


class _Process:
    """This process, as the store knows it: its name, its connections, the thread that says it is alive."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self.pid = os.getpid()
        self.name = f"{socket.gethostname()}:{self.pid}:{secrets.token_hex(4)}"
        self.alive_prefix = f"{settings.namespace}:alive:"
        self.started_tail = _tail(self.name, _STARTED_TTL_S)
        self.ended_tail = _tail(_ENDED, int(settings.lease_s) + _AFTER_END_S)
        self.running: dict[tuple[str, int], float] = {}
        self.deciding: set[tuple[str, int]] = set()
        self._seen_at = monotonic()
        self._lapsed_at = -inf
        on_rabbitmq = settings.url.broker == "amqp"
        self._life_s = min(settings.lease_s, _LONGEST_LIFE_S) if on_rabbitmq else settings.lease_s
        self._client = client
        self._timeout_s = settings.send_timeout_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._say_alive()
        threading.Thread(target=self._stay_alive, name="taskbridge-marks", daemon=True).start()

    def decides(self, key: tuple[str, int]) -> bool:
        """Return whether the caller is to decide about an attempt: no other thread does.

        Who finds it lost decides until the attempt's end is marked.
        """
        with self._lock:
            if key in self.deciding:
                return False
            self.deciding.add(key)
            return True

    def lived_since(self, moment: float) -> bool:
        """Return whether the store has known this process for alive all the time since then."""
        return monotonic() - self._seen_at < self._life_s and self._lapsed_at < moment

    def _say_alive(self) -> bool:
        said_at = monotonic()
        try:
            self._tell("SET", self.alive_prefix + self.name, "1", "PX", int(self._life_s * 1000))
        except BrokerUnavailable:
            return False
        if monotonic() - self._seen_at >= self._life_s:
            self._lapsed_at = said_at
        self._seen_at = said_at
        return True

    def _stay_alive(self) -> None:
        while not self._stop.wait(self._life_s / 4):
            if not self._say_alive():
                _log.warning("the store does not answer; this worker may be taken for dead")

    def close(self) -> None:
        self._stop.set()
        try:
            self._tell("DEL", self.alive_prefix + self.name)
        except BrokerUnavailable:
            _log.info("the store was away as this worker ended")

    def _tell(self, *command: Word) -> None:
        self._client.execute([command], timeout_s=self._timeout_s)
