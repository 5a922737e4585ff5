"""Outboxes: what is decided, and perhaps not published yet (rule OB1); and the thread that publishes it.

An outbox is where a decision is kept, in the same transaction: that of a store, for what unique keys decide. So a
message is published if, and only if, it was decided to send it, whoever dies meanwhile. It may be published twice. Each
copy says so (`Message.relayed`): whoever takes it claims the mark of its attempt, and of two copies, one is run (rule
A7). The mark, or the record, outlives the entry.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from taskbridge.background import Background
from taskbridge.brokers.base import Buried, Taken, unpublished
from taskbridge.exceptions import BrokerUnavailable, DecodeError, NewerFormError, PartlyPublished
from taskbridge.logs import logger
from taskbridge.message import DeadLetter
from taskbridge.stores.backend import Backend, Commit, Entry
from taskbridge.stores.entries import Held, loads_held

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge

__all__ = ["Held", "Relay"]

_log = logger("taskbridge.outbox")

_LOOK_S: Final = 0.4
"""How often a worker looks: what a killed sender leaves is published within a second (`OWN_S` is the sender's)."""

_SELDOM_S: Final = 5.0
"""How often where nothing needs an outbox: if one does all the same, it was left by another release or with settings of
another process."""

_TOGETHER: Final = 100
_LEASE_S: Final = 6.0  # how long an entry is left to the worker that was told of it, and how soon it is tried again


class Relay(Background):
    """Publishes what is due in an outbox, by its bridge's engine and broker. Any number may do so at once.

    Args:
        host: The bridge.
        buried: Called with each dead letter of what can't be published.
    """

    def __init__(self, host: Bridge, buried: Buried) -> None:
        super().__init__("relay", join_s=0.2)
        self._host = host
        self._buried = buried
        self._left: set[str] = set()
        self._has_found = False

    @property
    def _outbox(self) -> Backend | None:
        store = self._host.store
        return None if store is None else store.backend

    @property
    def _timeout_s(self) -> float:
        return self._host.settings.send_timeout_s

    def run(self, stop: threading.Event) -> None:
        """Publish what is due until `stop` is set; outages are waited out."""
        is_away = False
        while not stop.is_set() and self._outbox is not None:
            has_more = False
            try:
                has_more, is_away = self.step(), False
            except BrokerUnavailable as exc:
                if not is_away:
                    _log.warning("what is in the outbox waits until broker and store are back: %s", exc.problem)
                is_away = True
            except Exception:
                _log.exception("looking into the outbox failed, going on")
            if not has_more:
                stop.wait(_LOOK_S if self._has_found or self._is_needed() else _SELDOM_S)

    def _is_needed(self) -> bool:
        """Return whether tasks are known whose messages may be in the outbox.

        Where a record is in its message's database, that is what follows another message, and what is replayed.
        """
        return not self._host.settings.goes_along or any(each.unique for each in self._host.declarations())

    def step(self) -> bool:
        """Publish what is due, up to 100 entries, and return whether there may be more.

        If broker or store are away, that raises `BrokerUnavailable`, and what is not published is due again soon.
        """
        outbox = self._outbox
        if outbox is None:
            return False
        found = outbox.due_entries(most=_TOGETHER, lease_s=_LEASE_S, timeout_s=self._timeout_s)
        self._has_found = bool(found)
        has_more, read = len(found) == _TOGETHER, {key: self._read(key, text) for key, text in found}
        held = [each for each in read.values() if each is not None and self._is_ready(each)]
        self.publish(held, timeout_s=self._timeout_s)
        if has_more:  # so many, handed on, would keep back what is put there after them
            return True
        left = {key for key, each in read.items() if each is None}
        others = [Entry(key, None) for key in left - self._left]  # once in a while: perhaps nobody knows them
        self._left = left
        if others:
            outbox.commit([Commit((), others)], timeout_s=self._timeout_s)
        return False

    def publish(self, held: Sequence[Held], *, timeout_s: float) -> None:
        """Publish what entries hold, and remove them; `PartlyPublished` if not all: others' entries are still there."""
        lives = {each.message.id: each.message.replays for each in held if each.kind == "replayed"}

        def decide(letter: DeadLetter) -> Taken | None:
            message = letter.message
            return Taken() if message is not None and message.replays < lives[letter.id] else None

        if lives:
            self._host.broker.take_dead(decide, ids=list(lives), timeout_s=timeout_s)
        now, accepted = self._host.now(), set[int]()
        for is_later in (False, True):
            part = [index for index, each in enumerate(held) if (each.starts_at > now) is is_later]
            try:
                self._give([(held[index], max(0.0, held[index].starts_at - now)) for index in part], timeout_s)
            except BrokerUnavailable as exc:
                own = exc.accepted if isinstance(exc, PartlyPublished) else ()
                accepted.update(part[index] for index in own)
                raise PartlyPublished(exc, accepted=frozenset(accepted), unsure=frozenset()) from exc
            accepted.update(part)

    def _give(self, held: Sequence[tuple[Held, float]], timeout_s: float) -> None:
        """Publish messages, or park them; one that can't be is buried, and keeps back no other."""
        broker = self._host.broker
        if not held:
            return
        try:
            if held[0][1] > 0:
                broker.park([(each.message, delay_s) for each, delay_s in held], timeout_s=timeout_s)
            else:
                broker.publish([each.message for each, _ in held], timeout_s=timeout_s)
        except PartlyPublished as exc:
            self._remove([held[index][0].key for index in sorted(exc.accepted)])
            raise
        except BrokerUnavailable:
            raise
        except Exception as exc:
            if len(held) > 1:
                for each in held:
                    self._give([each], timeout_s)
                return
            self._bury(held[0][0].message.dumps(), exc)
        self._remove([each.key for each, _ in held])

    def _remove(self, ids: Sequence[str]) -> None:
        outbox = self._outbox
        try:
            if ids and outbox is not None:
                outbox.remove_entries(ids, timeout_s=self._timeout_s)
        except BrokerUnavailable as exc:
            _log.warning("%d messages stay in the outbox, and are published again: %s", len(ids), exc.problem)

    def _read(self, key: str, text: str) -> Held | None:
        """Return what an entry holds; None if it is left to other workers, or can't be read, and is buried."""
        try:
            held = loads_held(text)
            if held.key != key:
                raise DecodeError(f"entry {key!r} of the outbox holds message {held.message.id!r}")
            return held if self._host.knows(held.message.task) else None
        except NewerFormError as exc:
            _log.info("entry %s of the outbox is left to a newer release: %s", key, exc)
        except Exception as exc:
            self._bury(text.partition("\n")[2], exc)
            self._remove([key])
        return None

    def _is_ready(self, held: Held) -> bool:
        """Return whether what an entry holds is to be published now; if it never is, the entry is removed."""
        if held.kind != "follows" or (store := self._host.store) is None:
            return True
        is_next = store.claims.is_next(held.message, timeout_s=self._timeout_s)
        if is_next is None:
            self._remove([held.key])
        return bool(is_next)

    def _bury(self, text: str, error: Exception) -> None:
        letter = unpublished(text.encode(errors="surrogateescape"), error, None)
        self._host.broker.bury(letter, timeout_s=self._timeout_s)
        self._buried(letter)
