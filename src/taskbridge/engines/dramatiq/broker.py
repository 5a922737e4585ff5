"""What the three brokers of this engine have in common, on top of Dramatiq's own."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from dramatiq import Actor, Broker

from taskbridge.engines.dramatiq.deliveries import Delivery, Reception
from taskbridge.engines.dramatiq.slots import Slots


class EngineBroker(Broker):
    """A Dramatiq broker whose consumers take a message only for a thread that is free, and look at it first.

    Attributes:
        slots: The worker's free threads; None while no worker runs on this broker.
        draining: Whether nothing is to be taken any more.
        reception: Looks at each message.
        stranger: Makes the actor for messages whose task this worker doesn't know.
    """

    slots: Slots | None = None
    draining: bool = False
    reception: Reception
    stranger: Callable[[str], Actor[Any, Any]]

    def get_actor(self, actor_name: str) -> Actor[Any, Any]:
        """Return an actor by its name; in a worker, one that puts off its messages stands in for an unknown one.

        Raises:
            ActorNotFound: There is none, and no worker runs on this broker.
        """
        if self.slots is not None and actor_name not in self.actors:
            return self.stranger(actor_name)
        return super().get_actor(actor_name)

    def opens(self, threads: int) -> None:
        """Get ready to consume for so many threads."""
        self.draining = False
        self.slots = Slots(threads)

    def closes(self) -> None:
        """Take nothing any more. A signal handler calls it: no lock, no waiting."""
        self.draining = True

    def closed(self, *, keep: Collection[Delivery] = ()) -> None:
        """Give back all that is still in hand: consumers and threads have ended, or been given up.

        Args:
            keep: What is not given back, so that it counts as lost with this worker.
        """
