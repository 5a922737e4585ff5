"""What sending a flow returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from taskbridge.exceptions import TaskBridgeError

if TYPE_CHECKING:
    from typing_extensions import Self  # only here, for it takes 5 ms to import

    from taskbridge.bridge import Bridge
    from taskbridge.durations import Duration
    from taskbridge.flows.states import FlowStatus

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowHandle(Generic[R_co]):
    """A flow that was sent; its type says what its last step returns.

    It is a value, as a `Handle` is: `Bridge.flow(id)` makes it again, in any process and on any engine with the same
    store. One that was pickled has lost its bridge, but not its id.

    Attributes:
        id: The flow's id.
        is_new: Whether `send` has made the flow; else there was one of the same id.
        bridge: Who can say what becomes of it.
    """

    id: str
    is_new: bool = field(default=True, compare=False, repr=False)
    bridge: Bridge | None = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled without the bridge."""
        return _unbound, (self.id, self.is_new)

    def __copy__(self) -> Self:
        """Return itself: it never changes."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: it never changes."""
        return self

    def status(self) -> FlowStatus:
        """Return what is known of the flow, at the same cost for any number of steps (rule W9).

        Raises:
            UnsupportedError: The bridge has no store.
            NoSuchRecord: There is no such flow, or it ended longer than `result_ttl` ago.
            StoreUnavailable: The store doesn't answer within `send_timeout`.
        """
        return self._bound().flows.status(self.id)

    async def astatus(self) -> FlowStatus:
        """Do as `status` without blocking the event loop."""
        return await self._bound().results.aside(self.status)

    def result(self, timeout: Duration | None = None) -> R_co:
        """Wait until the flow is at its end, and return what its last step returned; of a group its `Results`.

        On `inline://?threads=0` it runs what waits, as `Handle.result` does. Without a `timeout` it waits for ever.

        Raises:
            TaskFailed, TaskCancelled, TaskDiscarded: It failed, or was cancelled: of the first step that ended badly.
            ResultNotEncodable: The last step is done, but what it returned could not be recorded.
            ResultTimeout: It is not at its end in time.
            ResultInTask: A task asks, with another `timeout` than 0.
            UnsupportedError, NoSuchRecord, StoreUnavailable: As `status` does.
        """
        return cast("R_co", self._bound().flows.result(self.id, timeout=timeout))

    async def aresult(self, timeout: Duration | None = None) -> R_co:
        """Do as `result` without blocking the event loop, and without holding a thread while it waits."""
        return cast("R_co", await self._bound().flows.aresult(self.id, timeout=timeout))

    def cancel(self) -> FlowStatus:
        """Cancel the flow unless it has ended, by one write, and return its status after that (rule W8).

        No step starts from 1 s after this on, and those that run see `current().cancelled`. Raises what `status` does.
        """
        return self._bound().flows.cancel(self.id)

    async def acancel(self) -> FlowStatus:
        """Do as `cancel` without blocking the event loop."""
        return await self._bound().results.aside(self.cancel)

    def retry(self) -> FlowStatus:
        """Go on with a flow that failed or is stalled, and return its status after that (rules W10 and W11).

        Its dead steps are replayed, and what was lost or given up because of them runs; what was done is not run again.
        Of a flow at its end whose callback was lost, that is sent again, and nothing else.
        Raises what `status` does.
        """
        return self._bound().flows.retry(self.id)

    async def aretry(self) -> FlowStatus:
        """Do as `retry` without blocking the event loop."""
        return await self._bound().results.aside(self.retry)

    def _bound(self) -> Bridge:
        if self.bridge is None:
            raise TaskBridgeError(
                f"the handle of flow {self.id} has lost its bridge as it was pickled: use bridge.flow(handle.id)"
            )
        return self.bridge


def _unbound(id: str, is_new: bool) -> FlowHandle[Any]:
    return FlowHandle(id=id, is_new=is_new)
