"""Measures what other JSON libraries would take of the standard library's time, and of a send's.

    .venv/bin/pip install orjson msgspec
    .venv/bin/python -m benchmarks.json_libraries

Each writes and reads the arguments of a small message and of a larger one. A send is one on `inline://`, which waits
for no server, so that the share of one over a network is smaller than what is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from timeit import repeat
from typing import Any, Final

from taskbridge import Bridge
from taskbridge.codec import dumps_array, loads_array

_ARGUMENTS: Final[dict[str, list[Any]]] = {
    "small": [42, "welcome"],
    "larger": [{"order": number, "lines": ["a text of some length"] * 3, "cents": 995} for number in range(50)],
}
_ROUNDS: Final = 7
_TIMES: Final = 2000


def _libraries() -> Iterator[tuple[str, Callable[[Any], Any], Callable[[Any], Any]]]:
    yield "taskbridge's codec", lambda values: dumps_array(values, "args"), loads_array
    for name, path, writes, reads in (
        ("json", "json", "dumps", "loads"),
        ("orjson", "orjson", "dumps", "loads"),
        ("msgspec", "msgspec.json", "encode", "decode"),
    ):
        try:
            module = import_module(path)
        except ImportError:
            sys.stderr.write(f"{name} is not installed: it is left out\n")
        else:
            yield name, getattr(module, writes), getattr(module, reads)


def _us(act: Callable[[], object], times: int = _TIMES) -> float:
    """Return how many microseconds something takes: the best of some rounds."""
    return min(repeat(act, number=times, repeat=_ROUNDS)) / times * 1e6


def main() -> None:
    """Print a line for each library and size."""
    bridge = Bridge("inline://?threads=0")

    @bridge.task(name="benchmark.mail")
    def mail(user: int, text: str) -> None:
        pass

    send_us = _us(lambda: mail.send(42, "welcome"), 200)
    print(f"a send of the small arguments: {send_us:.1f} us")
    for size, arguments in _ARGUMENTS.items():
        for name, write, read in _libraries():
            written = write(arguments)
            times = _TIMES if size == "small" else _TIMES // 20
            writing, reading = _us(lambda: write(arguments), times), _us(lambda: read(written), times)  # noqa: B023
            print(f"{size:<7} {name:<19} writes {writing:8.2f} us, reads {reading:8.2f} us")


if __name__ == "__main__":
    main()
