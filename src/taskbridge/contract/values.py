"""Values of every type that a message can hold, but for one that is not equal to itself."""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal
from typing import Final
from uuid import UUID

VALUES: Final[tuple[object, ...]] = (
    None,
    True,
    False,
    0,
    -(2**70),
    1.5,
    -0.0,
    1e300,
    math.inf,
    -math.inf,
    "",
    "text with \u00fc, \u4e2d, \U0001f600, \x00 and \ud800",
    b"",
    bytes(range(256)),
    datetime(2024, 2, 29, 12, 30, 15, 123456),  # noqa: DTZ001 - a naive one must arrive naive
    datetime(2024, 2, 29, 12, 30, tzinfo=timezone.utc),
    datetime(2024, 10, 27, 2, 30, tzinfo=timezone(timedelta(hours=5, minutes=45)), fold=1),
    date(1, 1, 1),
    time_of_day(23, 59, 59, 999999),
    time_of_day(1, 2, 3, tzinfo=timezone.utc),
    timedelta(days=-3, seconds=5, microseconds=7),
    timedelta.max,
    Decimal("1.10"),
    Decimal("-Infinity"),
    UUID("12345678-1234-5678-1234-567812345678"),
    (),
    (1, (2, [3, (4,)])),
    [],
    [[1], (2,), {"a": (3,)}],
    {},
    {"b": 1, "a": [None]},
    {1: "int", (2, 3): "tuple", None: "none", 1.5: "float", b"x": "bytes", date(2024, 1, 1): "date"},
    {"$": "tuple", "v": [1]},
    {"__type__": "datetime", "__value__": "2024-01-01"},
    {"__kwargs__": 1, "$": {"$": 2}},
    set[int](),
    {1, 2, 3},
    frozenset({"a", (1, 2)}),
    {"deep": [{"er": (set[int](), {Decimal(1): [UUID(int=0)]})}]},
)
"""What arguments and results are, as they go in and as they must come out."""
