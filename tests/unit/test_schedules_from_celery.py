"""What Celery's own schedules are here."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from taskbridge import Cron
from taskbridge.schedules.from_celery import cron_of, time_of


@pytest.mark.parametrize(
    ("fields", "expression"),
    [
        (("*/15", "8-18", "*", "*", "*"), "*/15 8-18 * * *"),
        ((0, [7, 19], "*", "*", "monday-friday"), "0 7,19 * * mon-fri"),
        (("0, 30", "8", "1,15", "january", "*"), "0,30 8 1,15 jan *"),
        (("0", "0", "*/2", "*", "mon"), "0 0 */2 * mon"),
    ],
)
def test_a_crontab_is_a_cron_expression(fields: tuple[Any, ...], expression: str) -> None:
    assert cron_of(*fields) == expression
    assert Cron(expression).expression == expression


def test_a_crontab_whose_days_cron_reads_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="write two schedules"):
        cron_of("0", "0", "1", "*", "mon")


def test_intervals_are_whole_seconds() -> None:
    assert time_of(timedelta(minutes=2), "Europe/Rome") == {"every": 120}
    assert time_of(30.0, None) == {"every": 30}
    for wrong in (0, 0.5, 1.5, timedelta(milliseconds=1)):
        with pytest.raises(ValueError, match="whole seconds"):
            time_of(wrong, None)
