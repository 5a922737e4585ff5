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

_TOGETHER: Final = 80
"""How many inputs are put on a queue at once, at most; most often it is fewer than ten."""

_CHUNKS: Final = 500
_SHOWN: Final = 3_000

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


class _Trial:
    """Random inputs for one stage after another."""

    def __init__(self, make: Callable[[], Stage]) -> None:
        self._make = make
        self.stage: Stage = make().__enter__()
        self.tried: int = 0
        forms = [form for form in self.stage.forms if form.place == "queue"]
        self._inputs: Any = st.one_of([_of_form(form, _paths(form)) for form in forms])

    def round(self, number: int) -> None:
        """Try a few thousand inputs; raises `AssertionError` with the smallest that stop something."""

        @seed(number)
        @settings(
            max_examples=_CHUNKS,
            phases=(Phase.generate, Phase.shrink),
            deadline=None,
            database=None,
            suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
        )
        @given(st.lists(self._inputs, min_size=1, max_size=_TOGETHER), st.integers(0, 1))
        def chunk(makers: list[Callable[[str, str], Payload]], worker: int) -> None:
            self._try(makers, self.stage.queues[worker % len(self.stage.queues)])

        chunk()

    def _try(self, makers: Sequence[Callable[[str, str], Payload]], queue: str) -> None:
        self.tried += len(makers)
        try:
            self.stage.attempt_all(makers, queue)
            self.stage.check_processes()
        except Stopped as exc:
            self.stage.close()
            self.stage = self._make().__enter__()
            shown = "\n".join(repr(each("token", queue))[:_SHOWN] for each in makers)
            raise AssertionError(f"{exc}\n{exc.log}\n{shown}") from None


def try_random(make: Callable[[], Stage], count: int, number: int) -> tuple[int, list[str]]:
    """Put random inputs on the queues, and return how many there were and what stopped.

    Args:
        make: Makes a stage, with workers of its own.
        count: How many inputs, at least.
        number: The seed.
    """
    trial = _Trial(make)
    try:
        while trial.tried < count:
            trial.round(number)
            trial.stage.forget_letters()
            number += 1
        trial.stage.settle(counts=True)
    except (AssertionError, Stopped) as exc:
        return trial.tried, [str(exc)]
    finally:
        trial.stage.close()
    return trial.tried, []
