"""A bridge on which nothing runs by itself, and tasks that fail as they are told, for tests of flows."""

from __future__ import annotations

from taskbridge import Bridge, FlowEnd, RetryPolicy, become
from taskbridge.stores.backend import Backend


class Shop:
    """The bridge and its tasks.

    Attributes:
        bridge: The bridge.
        sick: The numbers that fail.
        runs: The numbers that have run.
        ends: The states that callbacks were given; they fail for those that are in `odd`.
        odd: Those.
    """

    def __init__(self) -> None:
        self.bridge = Bridge("inline://?threads=0")
        self.sick: set[int] = set()
        self.runs: list[int] = []
        self.ends: list[str] = []
        self.odd: set[str] = set()

        @self.bridge.task(name="load", retry=RetryPolicy.never())
        def load(number: int) -> int:
            self.runs.append(number)
            if number in self.sick:
                raise ValueError(number)
            return number

        @self.bridge.task(name="nest")
        def nest(number: int) -> int:
            return become(load.call(number).then(load))

        @self.bridge.task(name="tell", retry=RetryPolicy.never())
        def tell(end: FlowEnd) -> None:
            self.ends.append(end.state)
            if end.state in self.odd:
                raise ValueError(end.state)

        self.load = load
        self.nest = nest
        self.tell = tell

    def has_run(self, times: int) -> bool:
        return len(self.runs) >= times

    def dead(self, number: int) -> str:
        """Return the id of the dead message of a number."""
        letters = [(each.id, each.message) for each in self.bridge.dead_letters()]
        [found] = [key for key, message in letters if message is not None and message.arguments()[0][0] == number]
        return found

    @property
    def backend(self) -> Backend:
        assert self.bridge.store is not None
        return self.bridge.store.backend
