"""Random inputs: forms with random values in them, and bytes changed at random. Hypothesis makes them smaller."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.hostile.forms import AmqpForm, Form, Payload
from tests.hostile.odd import VALUES, Path
from tests.hostile.stage import Stage, Stopped

_TOGETHER: Final = 40

_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**30), max_value=10**30)
    | st.floats()
    | st.text()
    | st.sampled_from(("$", "v", "__type__", "__value__", "set", "datetime", "tuple", "dict", "float"))
)
_plain = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5)
)
_values = st.one_of(
    _plain.map(lambda plain: json.dumps(plain).encode()),
    st.sampled_from([value for value in VALUES.values() if value is not None and len(value) < 20_000]),
    st.binary(max_size=20),
)


@st.composite
def _of_form(draw: st.DrawFn, form: Form, paths: Sequence[Path]) -> Callable[[str, str], Payload]:
    """Return what makes an input, given its token and its queue."""
    path, value = draw(st.sampled_from(paths)), draw(_values)
    cut = draw(st.none() | st.tuples(st.integers(0, 2000), st.integers(0, 9), st.binary(max_size=5)))

    def make(token: str, queue: str) -> Payload:
        payload = form.render(form.make(token, queue), path, value)
        if cut is None:
            return payload
        start, length, instead = cut
        return payload._replace(body=payload.body[:start] + instead + payload.body[start + length :])

    return make


def _paths(form: Form) -> list[Path]:
    """Return where values that are JSON can be put."""
    paths = [path for path, _ in form.paths()]
    if isinstance(form, AmqpForm):
        return [path for path in paths if path[0] == "body" or (path[0] == "headers" and len(path) > 1 + 1)]
    return paths


def try_random(make: Callable[[], Stage], count: int, number: int) -> tuple[int, list[str]]:
    """Put random inputs on the queues, so many, and return how many there were and what stopped.

    Args:
        make: Makes a stage, with workers of its own.
        count: How many inputs.
        number: The seed.
    """
    stages = [make().__enter__()]
    forms = [form for form in stages[0].forms if form.place == "queue"]
    inputs: Any = st.one_of([_of_form(form, _paths(form)) for form in forms])
    tried = 0

    @seed(number)
    @settings(
        max_examples=max(1, count // _TOGETHER),
        phases=(Phase.generate, Phase.shrink),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(inputs, min_size=1, max_size=2 * _TOGETHER), st.booleans())
    def chunk(makers: list[Callable[[str, str], Payload]], is_second: bool) -> None:
        nonlocal tried
        stage = stages[-1]
        queue = stage.queues[is_second % len(stage.queues)]
        tried += len(makers)
        try:
            stage.attempt_all(makers, queue)
            stage.check_processes()
        except Stopped as exc:
            stage.close()
            stages.append(make().__enter__())
            shown = [bytes(each("token", queue).body)[:2000] for each in makers]
            raise AssertionError(f"{exc}\n{exc.log}\n{shown}") from None

    faults: list[str] = []
    try:
        while tried < count and not faults:
            chunk()
        stages[-1].settle(counts=True)
    except (AssertionError, Stopped) as exc:
        faults.append(str(exc))
    finally:
        stages[-1].close()
    return tried, faults
