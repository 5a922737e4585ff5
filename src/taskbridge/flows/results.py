"""What the members of a group returned, as the task after it gets it: read from the store in pages (rule W7)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeAlias, TypeVar, cast, overload

from taskbridge.context import running
from taskbridge.exceptions import TaskBridgeError

R_co = TypeVar("R_co", covariant=True)

PAGE: Final = 100
"""How many results are read from the store at a time."""

_MOST: Final = 10**9  # no flow has so many stages, and no group so many members

Members: TypeAlias = Callable[[str, int, int, int], Sequence[Any]]
"""Returns results of a group: of this flow, its stage of this number, from this one on, so many."""

_reader: Final[ContextVar[Members | None]] = ContextVar("taskbridge_reader", default=None)


@contextmanager
def read_by(members: Members) -> Generator[None]:
    """Have results that are found while the block runs read by this, such as those in what a step has returned."""
    token = _reader.set(members)
    try:
        yield
    finally:
        _reader.reset(token)


class Results(Sequence[R_co]):
    """What each call of a group returned, in the order of the calls; with `on_error="collect"`, an `Outcome` of each.

    It is a sequence that reads the store as it is asked, 100 at a time, and keeps no more than that: to go through it
    takes the same memory at any length. It can be an argument and a result of tasks. Reading raises `StoreUnavailable`
    if the store doesn't answer, `NoSuchRecord` if the flow ended longer than `result_ttl` ago, and `TaskBridgeError`
    outside a task if it came from none and from no handle. Two of the same group are equal.
    """

    __slots__ = ("_members", "_page", "flow", "parts")

    def __init__(self, flow: str, stage: int, total: int, collects: bool, members: Members | None = None) -> None:
        self.flow = flow
        self.parts: Final = (flow, stage, total, collects)
        self._members = members
        self._page: tuple[int, Sequence[Any]] = 0, ()

    def __len__(self) -> int:
        return self.parts[2]

    @overload
    def __getitem__(self, index: int) -> R_co: ...

    @overload
    def __getitem__(self, index: slice) -> list[R_co]: ...

    def __getitem__(self, index: int | slice) -> R_co | list[R_co]:
        places = range(len(self))[index]  # raises what a list would
        return [self._at(place) for place in places] if isinstance(places, range) else self._at(places)

    def __iter__(self) -> Iterator[R_co]:
        return map(self._at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Results) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled without what reads them."""
        return Results, self.parts

    def __repr__(self) -> str:
        return f"<Results of {len(self)} calls, of stage {self.parts[1] + 1} of flow {self.flow}>"

    def _at(self, place: int) -> R_co:
        first, page = self._page
        if not first <= place < first + len(page):
            first = place - place % PAGE
            members = self._source()
            with read_by(members):
                page = members(self.flow, self.parts[1], first, min(PAGE, len(self) - first))
            self._page = first, page  # both at once, for threads may share it
        return cast("R_co", page[place - first])

    def _source(self) -> Members:
        if self._members is None and (found := running.get()) is not None:
            self._members = found[1].members
        if self._members is None:
            raise TaskBridgeError(
                f"the results of flow {self.flow} are read by the task that got them, or by who has them of a handle: "
                "elsewhere ask bridge.flow(id).result()"
            )
        return self._members


def made(parts: Any, path: str) -> Results[Any]:
    """Return the results that travelled as these parts; raise `TypeError`, which says where they stood, if not."""
    match parts:
        case [str(flow), int(stage), int(total), bool(collects)] if 0 <= stage < _MOST and 0 <= total < _MOST:
            return Results(flow, stage, total, collects, _reader.get())
        case _:
            raise TypeError(f"{path}: no results of a flow: {parts!r}")
