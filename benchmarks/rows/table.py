"""All rows, in the order in which they are measured and shown."""

from __future__ import annotations

from typing import Final

from benchmarks.rows import (
    asking,
    crowding,
    delaying,
    growing,
    holding,
    idling,
    keying,
    lasting,
    resulting,
    sending,
    starting,
    working,
)
from benchmarks.rows.base import Row

_ALL: Final = (
    *sending.ROWS,
    *working.ROWS,
    *starting.ROWS,
    *idling.ROWS,
    *resulting.ROWS,
    *keying.ROWS,
    *delaying.ROWS,
    *lasting.ROWS,
    *asking.ROWS,
    *holding.ROWS,
    *growing.ROWS,
    *crowding.ROWS,
)

ROWS: Final[tuple[Row, ...]] = tuple(sorted(_ALL, key=lambda row: row.is_extra))
