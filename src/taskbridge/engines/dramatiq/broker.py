"""What the three brokers of this engine have in common, on top of Dramatiq's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Protocol, TypeGuard, TypeVar

from dramatiq import Broker
from dramatiq.middleware import Middleware, MiddlewareError

from taskbridge import locks
from taskbridge.engines.dramatiq.deliveries import Delivery, Reception
from taskbridge.engines.dramatiq.slots import Slots

_BOOT_LOOK_S: Final = 0.2

ItemT = TypeVar("ItemT")


class Work(Protocol):
    """Where the worker's threads take their messages from, on the fast way (`fast.work`)."""

    def put(self, item: Any) -> None:
        """Put something in that has a method `opened`, which the thread that takes it calls."""
        ...

    def withdrawn(self, is_one: Callable[[object], TypeGuard[ItemT]]) -> list[ItemT]:
        """Take out what is of a kind, unopened, and return it."""
        ...


class EngineBroker(Broker):
    """A Dramatiq broker whose consumers take a message only for a thread that is free, and look at it first.

    Attributes:
        slots: The worker's free threads; None while no worker runs on this broker.
        draining: Whether nothing is to be taken any more.
        booted: Set once the worker may take messages.
        stopping: Set once the worker's grace is over: nothing waits for a server any longer.
        reception: Looks at each message.
        hand_over: On the fast way, gives a message that a thread has opened back to Dramatiq's consumer thread.
        work: On the fast way, where the worker's threads take their messages from; else None.
    """

    slots: Slots | None = None
    draining: bool = False
    _known_listeners: tuple[list[Middleware], dict[tuple[str, tuple[type, ...]], Sequence[Middleware]]] = ([], {})
    booted: threading.Event
    stopping: threading.Event
    reception: Reception
    hand_over: Callable[[Delivery], None] | None = None
    work: Work | None = None

    # What it tells its middleware

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call what the middleware has for before something, in order; as Dramatiq does, but without what does nothing.

        Raises:
            MiddlewareError: One of them wants it to end here.
        """
        name = f"before_{signal}"
        for each in self._listeners(name, args):
            try:
                getattr(each, name)(self, *args, **kwargs)
            except MiddlewareError:
                raise
            except Exception:
                self.logger.critical("%s of %r failed", name, each, exc_info=True)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call what the middleware has for after something, the last first; as Dramatiq does."""
        name = f"after_{signal}"
        for each in reversed(self._listeners(name, args)):
            try:
                getattr(each, name)(self, *args, **kwargs)
            except Exception:
                self.logger.critical("%s of %r failed", name, each, exc_info=True)

    def _listeners(self, name: str, args: Sequence[Any]) -> Sequence[Middleware]:
        """Return who is told of a signal: ten are told of each message four times, and most don't listen."""
        of, known = self._known_listeners
        if of != self.middleware:
            of, known = self._known_listeners = list(self.middleware), {}
        ignored = _ignored(args[0]) if args and isinstance(args[0], Delivery) else ()
        found = known.get((name, ignored))
        if found is None:
            listening = (each for each in of if _listens(each, name) and not isinstance(each, ignored))
            found = known[name, ignored] = tuple(listening)
        return found

    def kept_or_now(self, delivery: Delivery) -> Delivery | None:
        """Return a message that a thread is to run now; one that is delayed, or of no actor, is left to Dramatiq.

        Raises:
            Exception: A user's middleware wants it to end here; nobody has the message.
        """
        is_for_now = "eta" not in delivery.options and delivery.actor_name in self.actors
        if delivery.task_message is not None or is_for_now or self.hand_over is None:
            return delivery
        self.hand_over(delivery)
        return None

    def opens(self, threads: int) -> None:
        """Get ready to consume for so many threads."""
        self.draining = False
        self.booted = locks.Event()
        self.slots = Slots(threads)

    def is_booted(self) -> bool:
        """Return whether the worker may take messages; wait for that for a moment."""
        return self.slots is None or self.booted.wait(_BOOT_LOOK_S)

    def closes(self) -> None:
        """Take nothing any more. A signal handler calls it: no lock, no waiting."""
        self.draining = True

    def closed(self, *, keep: Collection[Delivery] = ()) -> None:
        """Give back all that is still in hand: consumers and threads have ended, or been given up.

        Args:
            keep: What is not given back, so that it counts as lost with this worker.
        """


class ForActors:
    """Marks a middleware that is told nothing about a message of taskbridge's."""


class ForOptions:
    """Marks a middleware that is told about a message of taskbridge's only if that has options of Dramatiq's."""


def _ignored(delivery: Delivery) -> tuple[type, ...]:
    """Return the kinds of middleware that are told nothing about a message."""
    if delivery.task_message is None:
        return ()
    return (ForActors,) if delivery.has_options else (ForActors, ForOptions)


def _listens(middleware: Middleware, name: str) -> bool:
    """Return whether a middleware does anything for a signal: it has a method of its own for it."""
    method = getattr(middleware, name, None)
    return method is not None and getattr(method, "__func__", None) is not getattr(Middleware, name, None)
