"""What a producer costs as it starts: imports, the first message, memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks.contenders import BRIDGES, CELERY, DRAMATIQ, ENGINES, PEERS, REDIS_PY, Contender
from benchmarks.place import Place
from benchmarks.plan import Plan
from benchmarks.rows.base import Measure, Row

_TIMED: Final = """
import time
cpu, clock = time.process_time(), time.perf_counter()
{code}
cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
held = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')][0]
print('{{"ms": %f, "cpu_ms": %f, "MB": %f}}' % (clock * 1e3, cpu * 1e3, int(held) * 1.024e-3))
"""

_IMPORTS: Final[Mapping[str, str]] = {
    "import taskbridge": "import taskbridge",
    "from taskbridge import task": "from taskbridge import task",
    "Celery, with an app": "from celery import Celery; app = Celery('bench', broker='redis://127.0.0.1:1')",
    "Dramatiq": "import dramatiq",
    "Dramatiq, with its Redis broker": "from dramatiq.brokers.redis import RedisBroker",
    "redis-py": "import redis",
}


def _imported(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
    return _fastest(place, contender, plan, _IMPORTS[contender.name])


def _first_send(place: Place, contender: Contender, plan: Plan) -> Mapping[str, float]:
    place.empty("redis")
    return _fastest(place, contender, plan, f"from benchmarks.apps.{contender.app} import tick_each; tick_each('x', 1)")


def _fastest(place: Place, contender: Contender, plan: Plan, code: str) -> Mapping[str, float]:
    """Return the figures of the fastest of several starts: what slows a start comes from outside."""
    snippet = _TIMED.format(code=code)
    found = [place.run_snippet(contender, "redis", snippet) for _ in range(plan.starts)]
    return min(found, key=lambda figures: figures["ms"])


def _imports() -> tuple[Contender, ...]:
    kinds = (BRIDGES[0], BRIDGES[0], CELERY, DRAMATIQ, DRAMATIQ, REDIS_PY)
    return tuple(kind.like(name, settings="") for kind, name in zip(kinds, _IMPORTS, strict=True))


def _row(key: str, title: str, contenders: tuple[Contender, ...], measure: Measure, *metrics: str) -> Row:
    return Row(key=key, title=title, contenders=contenders, measure=measure, metrics=metrics, in_guard=True)


ROWS: Final = (
    _row("import", "import, over a bare interpreter", _imports(), _imported, "ms", "cpu_ms"),
    _row("first-send", "import and first message, Redis", (*BRIDGES, *ENGINES, *PEERS), _first_send, "ms", "cpu_ms"),
    _row(
        "memory",
        "memory of a producer after its first message, Redis",
        (*BRIDGES, *ENGINES, *PEERS, REDIS_PY),
        _first_send,
        "MB",
    ),
)
