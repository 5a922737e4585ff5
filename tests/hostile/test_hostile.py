"""Whatever somebody who may write to the broker puts there ends by itself, and stops nothing (rules I1 and I3).

Every field of every form is tried with every odd value by hand, `python -m tests.hostile --table`; here each field is
tried with one, and each value in some field of each form. Which goes with which, a seed decides that the header shows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing

import pytest

from taskbridge import Bridge
from taskbridge.contract.pace import Pace
from tests.hostile.forms import Case, cases_of
from tests.hostile.names import SEED_VARIABLE
from tests.hostile.odd import BASE64, JSON_TEXT, VALUES, changed, fields
from tests.hostile.stage import Stage, chunked, run


@pytest.mark.slow
def test_odd_messages_stop_nothing(target: str, target_url: str, store_of: Callable[[str], str | None]) -> None:
    store = store_of(target) if target == "celery+amqp" else None
    seed = int(os.environ[SEED_VARIABLE])
    with closing(Bridge(target_url)) as bridge:
        cases = cases_of(bridge, seed=seed, each=1)

    faults = run(lambda: Stage(target_url, store=store, pace=Pace.of_this_run()), chunked(cases))

    assert not faults, "\n".join([f"{SEED_VARIABLE}={seed}", *faults])


@pytest.mark.parametrize("seed", range(2))
def test_each_field_and_each_value_of_each_form_is_tried(target: str, seed: int) -> None:
    engine, _, broker = target.partition("+")
    with closing(Bridge(f"{engine}+{broker}://localhost")) as bridge:
        every, some = cases_of(bridge, seed=seed), cases_of(bridge, seed=seed, each=1)

    assert _fields(some) == _fields(every)
    assert _values(some) == _values(every)
    assert len(some) < len(every) / 4


def _fields(cases: list[Case]) -> set[object]:
    return {(case.form.name, case.path) for case in cases}


def _values(cases: list[Case]) -> set[object]:
    return {(case.form.name, case.odd, case.value) for case in cases}


def test_a_value_is_put_wherever_json_has_a_place_for_it() -> None:
    plain = {"a": [1, {"b": None}], "text": '{"c": 2}', "coded": "WzNd"}

    assert list(fields(plain)) == [
        (),
        *(("a",), ("a", 0), ("a", 1), ("a", 1, "b")),
        *(("text",), ("text", JSON_TEXT), ("text", JSON_TEXT, "c")),
        *(("coded",), ("coded", BASE64), ("coded", BASE64, 0)),
    ]
    assert changed({"a": [1, 2]}, ("a", 1), b"NaN") == b'{"a": [1, NaN]}'
    assert changed({"a": 1, "b": 2}, ("a",), VALUES["left out"]) == b'{"b": 2}'
    assert changed({"a": 1}, ("c",), b"5") == b'{"a": 1, "c": 5}'
    assert changed({"t": '{"c": 2}'}, ("t", JSON_TEXT, "c"), b"5") == b'{"t": "{\\"c\\": 5}"}'
    assert changed({"t": "WzNd"}, ("t", BASE64, 0), b"4") == b'{"t": "WzRd"}'
