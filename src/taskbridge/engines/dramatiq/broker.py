"""What the three brokers of this engine have in common, on top of Dramatiq's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any, Final

from dramatiq import Actor, Broker

from taskbridge.engines.dramatiq.deliveries import Delivery, Reception
from taskbridge.engines.dramatiq.slots import Slots
from taskbridge.engines.dramatiq.work import WorkQueue

_BOOT_LOOK_S: Final = 0.2


class EngineBroker(Broker):
    """A Dramatiq broker whose consumers take a message only for a thread that is free, and look at it first.

    Attributes:
        slots: The worker's free threads; None while no worker runs on this broker.
        draining: Whether nothing is to be taken any more.
        booted: Set once the worker may take messages.
        reception: Looks at each message.
        hand_over: Gives a message to the worker's threads; None while no worker runs on this broker.
        work: Where the worker's threads take their messages from, if that is not Dramatiq's own queue.
        stranger: Makes the actor for messages whose task this worker doesn't know.
    """

    slots: Slots | None = None
    draining: bool = False
    booted: threading.Event
    reception: Reception
    hand_over: Callable[[Delivery], None] | None = None
    work: WorkQueue | None = None
    stranger: Callable[[str], Actor[Any, Any]]

    def get_actor(self, actor_name: str) -> Actor[Any, Any]:
        """Return an actor by its name; in a worker, one that puts off its messages stands in for an unknown one.

        Raises:
            ActorNotFound: There is none, and no worker runs on this broker.
        """
        if self.slots is not None and actor_name not in self.actors:
            return self.stranger(actor_name)
        return super().get_actor(actor_name)

    def work_queue(self) -> WorkQueue | None:
        """Return what a worker's threads are to take their messages from; None is Dramatiq's own queue."""
        return None

    def opens(self, threads: int) -> None:
        """Get ready to consume for so many threads."""
        self.draining = False
        self.booted = threading.Event()
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
