"""Outboxes: what is decided, and perhaps not published yet (rule OB1); and the thread that publishes it.

An outbox is where a decision is kept, in the same transaction: that of a store, for what unique keys decide; or that of
an application's own database, for what `commit="outbox"` sends. So a message is published if, and only if, it was
decided to send it, whoever dies meanwhile. It may be published twice. Each copy says so (`Message.relayed`): whoever
takes it claims the mark of its attempt, and of two copies, one is run (rule A7). The mark, or the record, outlives the
entry.

What a store's outbox holds is recorded, and holds its key. What an application's holds is neither: it is known to the
store as it is relayed, and again if it is relayed twice, which changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from taskbridge.background import Background
from taskbridge.brokers.base import Buried, Taken, hand_over, unpublished
from taskbridge.exceptions import BrokerUnavailable, DecodeError, NewerFormError, PartlyPublished
from taskbridge.logs import logger
from taskbridge.message import DeadLetter, Message
from taskbridge.stores.backend import Outbox
from taskbridge.stores.entries import KEPT, OF_FLOWS, Held, loads_held
from taskbridge.transactions import OUTBOX

if TYPE_CHECKING:
    from taskbridge.bridge import Bridge

__all__ = ["ApplicationOutbox", "Held", "Outbox", "Relay"]

_log = logger("taskbridge.outbox")

_LOOK_S: Final = 0.4
"""How often a worker looks: what a killed sender leaves is published within a second (`OWN_S` is the sender's)."""

_BUSY_S: Final = 0.1
"""How often while something is in the application's outbox, so that what is put there steadily waits for less."""

_FLOWS_S: Final = 2.0
"""How often where only flows need the store's outbox: so what a killed sender leaves begins within 5 s (rule W2)."""

_SELDOM_S: Final = 5.0
"""How often where nothing needs an outbox: if one does all the same, it was left by another release or with settings of
another process."""

_IN_USE_S: Final = 3600.0
"""For how long an application's outbox counts as in use after something was found there; else it is looked into seldom,
for a look takes a connection."""

_STORES: Final = "the store's"
_APPLICATIONS: Final = "the application's"

_TOGETHER: Final = 100
_LEASE_S: Final = 6.0  # how long an entry is left to the worker that was told of it, and how soon it is tried again


class ApplicationOutbox(Outbox, Protocol):
    """An outbox in an application's own database, written in the application's own transactions (`Transactions.put`).

    Attributes:
        may_hold: Whether something may be there, as far as this process knows.
    """

    may_hold: bool

    def leave(self) -> None:
        """Close the connections of the calling thread, which does not look again soon."""
        ...


Give = Callable[[Sequence[Message], Sequence[float]], None]
"""Publishes messages, or parks them if the first one has a delay; of each, in seconds."""


class Relay(Background):
    """Publishes what is due in outboxes, by its bridge's engine and broker. Any number may do so at once.

    Args:
        host: The bridge.
        send: Publishes what the application's outbox holds, with its records; see `Sending.relay`.
        buried: Called with each dead letter of what can't be published.
    """

    def __init__(self, host: Bridge, send: Callable[..., None], buried: Buried) -> None:
        super().__init__("relay", join_s=0.2)
        self._host = host
        self._send = send
        self._buried = buried
        self._left: dict[Outbox, set[str]] = {}
        self._has_found = False
        self._is_busy = False
        self._away_since: dict[str, float] = {}  # what waits for broker, store or database: its last try, monotonic
        self._in_use_until = 0.0  # the application's, monotonic
        self._next_look = 0.0  # into it, monotonic

    @property
    def _outbox(self) -> Outbox | None:
        store = self._host.store
        return None if store is None else store.backend

    @property
    def _application(self) -> ApplicationOutbox | None:
        """The application's outbox, if something may be in it."""
        transactions, settings = self._host.transactions, self._host.settings
        if transactions is None or self._outbox is None:
            return None
        if settings.url.broker != "memory" or settings.commit == OUTBOX or transactions.outbox.may_hold:
            return transactions.outbox
        return None  # what runs only what it sends itself, in a test say, asks the database for nothing

    @property
    def _timeout_s(self) -> float:
        return self._host.settings.send_timeout_s

    def run(self, stop: threading.Event) -> None:
        """Publish what is due until `stop` is set; outages are waited out.

        The application's outbox has a thread of its own, for its database may hang, and holds nothing else back.
        """
        is_beside = False
        while not stop.is_set() and self._outbox is not None:
            if not is_beside and self._host.transactions is not None:  # which may be set after this has started
                beside, name = partial(self._look_aside, stop), f"{self._name}-application"
                threading.Thread(target=beside, name=name, daemon=True).start()
                is_beside = True
            if not self._looked(self.step_store, _STORES):
                stop.wait(self._pause_s())

    def _look_aside(self, stop: threading.Event) -> None:
        while not stop.is_set():
            if not self._looked(self._step_application, _APPLICATIONS):
                stop.wait(_BUSY_S if self._is_busy else _LOOK_S)
        if (transactions := self._host.transactions) is not None:
            transactions.outbox.leave()

    def _looked(self, step: Callable[[], int], outbox: str) -> bool:
        """Return whether there may be more in an outbox; a failure is logged once, until it is over."""
        away = self._away_since
        try:
            found = step()
            # What could not be published is due again after its lease; perhaps others have published it.
            if outbox in away and (found or monotonic() > away[outbox] + 2 * _LEASE_S):
                self._host.broker.ping(timeout_s=self._timeout_s)
                del away[outbox]
                _log.info("what is in %s outbox is published again", outbox)
            return found == _TOGETHER
        except Exception as exc:
            if outbox not in away:
                is_foreseen = isinstance(exc, BrokerUnavailable)
                _log.warning(
                    "what is in %s outbox waits: %s", outbox, getattr(exc, "problem", exc), exc_info=not is_foreseen
                )
            away[outbox] = monotonic()
            return False

    def _pause_s(self) -> float:
        """Return how long it is until the next look into the store's.

        Where a record is in its message's database, a store's outbox holds what follows another message, and what is
        replayed.
        """
        if self._has_found or not self._host.settings.goes_along:
            return _LOOK_S
        return _LOOK_S if any(each.unique for each in self._host.declarations()) else _FLOWS_S

    def _is_in_use(self) -> bool:
        """Return whether there is an application's outbox that processes write to, as far as is known here."""
        application = self._application
        if application is None:
            return False
        return self._host.settings.commit == OUTBOX or application.may_hold or monotonic() < self._in_use_until

    def step(self) -> bool:
        """Look into both outboxes here and now, publish what is due, and return whether there may be more.

        If broker or store are away, that raises `BrokerUnavailable`. A failure of the application's database is logged,
        and keeps back nothing else.
        """
        found = self.step_store()
        return self._looked(self._step_application, _APPLICATIONS) or found == _TOGETHER

    def step_store(self) -> int:
        """Publish what is due in the store's outbox, up to 100 entries, and return how many there were.

        If broker or store are away, that raises `BrokerUnavailable`, and what is not published is due again soon.
        """
        outbox = self._outbox
        if outbox is None:
            return 0
        found = outbox.due_entries(most=_TOGETHER, lease_s=_LEASE_S, timeout_s=self._timeout_s)
        flows = [key for key, _ in found if key.startswith(OF_FLOWS)]
        texts = [each for each in found if not each[0].startswith(OF_FLOWS)]
        read = {key: self._read(outbox, key, text, is_store=True) for key, text in texts}
        self._has_found = bool(found)
        ready = [each for each in read.values() if each is not None and self._is_ready(outbox, each)]
        self.publish(ready, timeout_s=self._timeout_s)
        self._hand_on(outbox, read)
        for key in flows:  # which may take long
            self._look_after(key)
        return len(found)

    def _look_after(self, entry: str) -> None:
        """Do what is due in a flow; what fails keeps back nothing else, and is tried again after the lease."""
        try:
            self._host.flows.advance(entry, resumes=True)
            self._host.flows.advance_due()
        except BrokerUnavailable:
            raise
        except Exception:
            _log.exception("what follows in a flow waits (entry %r of the outbox)", entry)

    def _step_application(self) -> int:
        self._is_busy = False
        application = self._application
        if application is None or (monotonic() < self._next_look and not self._is_in_use()):
            return 0
        found = list[tuple[str, str]]()
        try:
            found = application.due_entries(most=_TOGETHER, lease_s=_LEASE_S, timeout_s=self._timeout_s)
            flows = {key: text for key, text in found if text.startswith(KEPT)}
            read = {
                key: None if key in flows else self._read(application, key, text, is_store=False) for key, text in found
            }
            known = [(key, each) for key, each in read.items() if each is not None]
            for is_claimed in (False, True):
                part = [(key, each) for key, each in known if each.message.is_claimed is is_claimed]
                self._publish(application, part, partial(self._send, timeout_s=self._timeout_s))
            for key, text in flows.items():
                if self._is_begun(application, key, text):
                    del read[key]
            if len(found) < _TOGETHER:  # else see `_hand_on`, which is not told of the flows that were sent
                self._hand_on(application, read)
        finally:
            self._is_busy = bool(found)
            if found:
                self._in_use_until = monotonic() + _IN_USE_S
            if not self._is_in_use():
                self._next_look = monotonic() + _SELDOM_S
                application.leave()
        return len(found)

    def _is_begun(self, application: ApplicationOutbox, key: str, text: str) -> bool:
        """Send the flow that an entry holds, and remove the entry; False if it is left to other workers."""
        try:
            if not self._host.flows.begin_kept(text):
                return False
        except BrokerUnavailable:
            raise
        except Exception as exc:
            self._bury(text.partition("\n")[2], exc)
        self._remove(application, [key])
        return True

    def _hand_on(self, outbox: Outbox, read: Mapping[str, Held | None]) -> None:
        """Leave to other workers what can't be published here, unless there may be more behind it."""
        if len(read) == _TOGETHER:  # so many, handed on, would keep back what is put there after them
            return
        left = {key for key, each in read.items() if each is None}
        others = left - self._left.get(outbox, set())  # once in a while: perhaps nobody knows them
        self._left[outbox] = left
        if others:
            outbox.hand_on_entries(others, timeout_s=self._timeout_s)

    def publish(self, held: Sequence[Held], *, timeout_s: float) -> None:
        """Publish what the store's outbox holds, and remove it; `PartlyPublished` if not all: the others stay there."""
        lives = {each.message.id: each.message.replays for each in held if each.kind == "replayed"}

        def decide(letter: DeadLetter) -> Taken | None:
            message = letter.message
            return Taken() if message is not None and message.replays < lives[letter.id] else None

        if lives:
            self._host.broker.take_dead(decide, ids=list(lives), timeout_s=timeout_s)
        if (outbox := self._outbox) is not None:
            give = partial(hand_over, self._host.broker, timeout_s=timeout_s)
            self._publish(outbox, [(each.key, each) for each in held], give)

    def _publish(self, outbox: Outbox, held: Sequence[tuple[str, Held]], give: Give) -> None:
        now, accepted = self._host.now(), set[int]()
        for is_later in (False, True):
            part = [index for index, (_, each) in enumerate(held) if (each.starts_at > now) is is_later]
            try:
                self._give(outbox, [(*held[index], max(0.0, held[index][1].starts_at - now)) for index in part], give)
            except BrokerUnavailable as exc:
                own = exc.accepted if isinstance(exc, PartlyPublished) else ()
                accepted.update(part[index] for index in own)
                raise PartlyPublished(exc, accepted=frozenset(accepted), unsure=frozenset()) from exc
            accepted.update(part)

    def _give(self, outbox: Outbox, held: Sequence[tuple[str, Held, float]], give: Give) -> None:
        """Publish messages, or park them; one that can't be is buried, and keeps back no other."""
        if not held:
            return
        try:
            give([each.message for _, each, _ in held], [delay_s for _, _, delay_s in held])
        except PartlyPublished as exc:
            self._remove(outbox, [held[index][0] for index in sorted(exc.accepted)])
            raise
        except BrokerUnavailable:
            raise
        except Exception as exc:
            if len(held) > 1:
                for each in held:
                    self._give(outbox, [each], give)
                return
            self._bury(held[0][1].message.dumps(), exc)
        self._remove(outbox, [key for key, _, _ in held])

    def _remove(self, outbox: Outbox, ids: Sequence[str]) -> None:
        try:
            if ids:
                outbox.remove_entries(ids, timeout_s=self._timeout_s)
        except BrokerUnavailable as exc:
            _log.warning("%d messages stay in the outbox, and are published again: %s", len(ids), exc.problem)

    def _read(self, outbox: Outbox, key: str, text: str, *, is_store: bool) -> Held | None:
        """Return what an entry holds; None if it is left to other workers, or can't be read, and is buried."""
        try:
            held = loads_held(text)
            if is_store and held.key != key:
                raise DecodeError(f"entry {key!r} of the outbox holds message {held.message.id!r}")
            return held if self._host.knows(held.message.task) else None
        except NewerFormError as exc:
            _log.info("entry %s of the outbox is left to a newer release: %s", key, exc)
        except Exception as exc:
            self._bury(text.partition("\n")[2], exc)
            self._remove(outbox, [key])
        return None

    def _is_ready(self, outbox: Outbox, held: Held) -> bool:
        """Return whether what an entry holds is to be published now; if it never is, the entry is removed."""
        if held.kind != "follows" or (store := self._host.store) is None:
            return True
        is_next = store.claims.is_next(held.message, timeout_s=self._timeout_s)
        if is_next is None:
            self._remove(outbox, [held.key])
        return bool(is_next)

    def _bury(self, text: str, error: Exception) -> None:
        letter = unpublished(text.encode(errors="surrogateescape"), error, None)
        self._host.broker.bury(letter, timeout_s=self._timeout_s)
        self._buried(letter)
