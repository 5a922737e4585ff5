"""Whatever somebody who may write to the broker puts there ends by itself, and stops nothing (rules I1 and I3).

Every field of every form is tried with every odd value by hand, `python -m tests.hostile`; here with each in turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import pytest

from taskbridge import Bridge
from taskbridge.contract.pace import Pace
from tests.hostile.forms import cases_of, forms_of
from tests.hostile.odd import BASE64, JSON_TEXT, VALUES, changed, fields
from tests.hostile.stage import Stage, chunked, run

_SHARE: Final = 3
_SEED: Final = 7


@pytest.mark.slow
def test_odd_messages_stop_nothing(
    target: str, target_url: str, store_of: Callable[[str], str | None], tmp_path: object
) -> None:
    store = store_of(target) if target == "celery+amqp" else None
    with_forms = Bridge(target_url)
    cases = [case for form in forms_of(with_forms) for case in cases_of(form)]
    with_forms.close()
    random.Random(_SEED).shuffle(cases)

    faults = run(lambda: Stage(target_url, store=store, pace=Pace.of_this_run()), chunked(cases[::_SHARE]))

    assert not faults, "\n".join(faults)


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
