"""What `send` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from taskbridge.exceptions import TaskBridgeError

if TYPE_CHECKING:
    from typing_extensions import Self  # only here, for it takes 5 ms to import

    from taskbridge.bridge import Bridge
    from taskbridge.durations import Duration
    from taskbridge.results import MessageResults
    from taskbridge.stores.states import Status

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Handle(Generic[R_co]):
    """A message that was sent; its type says what the task returns.

    It is a value: two handles of the same id are equal. Keep the id, in a database say, and `Bridge.handle(id)` makes
    a handle of it again, in any process and on any engine with the same store. A handle that was pickled has lost its
    bridge, but not its id.

    Attributes:
        id: The message's id, known at once and the same for all attempts.
        task: The task's name; empty if only the id is known.
        queue: The queue it was sent to; empty if only the id is known.
        is_new: Whether `send` has made the message; else it is one that holds the same unique key, or has the same id.
        bridge: Who can say what becomes of it.
    """

    id: str
    task: str = field(default="", compare=False)
    queue: str = field(default="", compare=False)
    is_new: bool = field(default=True, compare=False, repr=False)
    bridge: Bridge | None = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled without the bridge."""
        return _unbound, (self.id, self.task, self.queue, self.is_new)

    def __copy__(self) -> Self:
        """Return itself: it never changes."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: it never changes."""
        return self

    def status(self) -> Status:
        """Return what is known of the message (rules ST).

        Raises:
            UnsupportedError: The bridge has no store, or the task is declared with `results=False`.
            NoSuchRecord: The record is older than `result_ttl`.
            StoreUnavailable: The store doesn't answer within `send_timeout`.
        """
        return self._results().status(self.id, task=self.task)

    async def astatus(self) -> Status:
        """Do as `status` without blocking the event loop."""
        return await self._results().aside(self.status)

    def result(self, timeout: Duration | None = None) -> R_co:
        """Wait until the message is at its end, and return what the task returned, equal and of the same type (RS).

        On `inline://?threads=0`, where nobody else runs anything, this runs what waits and what is parked until the
        message has ended; the clock jumps to each due time. Without a `timeout` it waits for ever.

        Raises:
            TaskFailed: It is dead.
            TaskCancelled: It was cancelled.
            TaskDiscarded: It expired, or the task raised `Discard`.
            ResultNotEncodable: It is done, but what the task returned could not be recorded.
            ResultTimeout: It is not at its end in time.
            ResultInTask: A task asks, with another `timeout` than 0.
            UnsupportedError, NoSuchRecord, StoreUnavailable: As `status` does.
        """
        return cast("R_co", self._results().result(self.id, task=self.task, timeout=timeout))

    async def aresult(self, timeout: Duration | None = None) -> R_co:
        """Do as `result` without blocking the event loop, and without holding a thread while it waits."""
        return cast("R_co", await self._results().aresult(self.id, task=self.task, timeout=timeout))

    def cancel(self, *, interrupt: bool = False) -> Status:
        """Cancel the message unless it has ended, for good (rules CA), and return its status after that.

        A state of `cancelled` says that it starts no more; a worker that took it in the second before may still have
        started it. `running` says that it runs, and that the task sees `current().cancelled` from now on; whatever
        becomes of this run, there is no further one. Any other state is its end, which came before.

        With `interrupt`, `Cancelled` is raised in the run, if it runs: within 2 s, but not in the middle of a call into
        C. In a coroutine, `asyncio.CancelledError` is raised. This itself raises what `status` raises.
        """
        return self._results().cancel(self.id, task=self.task, interrupt=interrupt)

    async def acancel(self, *, interrupt: bool = False) -> Status:
        """Do as `cancel` without blocking the event loop."""
        return await self._results().aside(lambda: self.cancel(interrupt=interrupt))

    def _results(self) -> MessageResults:
        if self.bridge is None:
            raise TaskBridgeError(
                f"the handle of message {self.id} has lost its bridge as it was pickled: use bridge.handle(handle.id)"
            )
        return self.bridge.results


def _unbound(id: str, task: str, queue: str, is_new: bool = True) -> Handle[Any]:
    return Handle(id=id, task=task, queue=queue, is_new=is_new)
