"""A process of the application that sends, as a web process would; it is told what, one JSON line after the other.

A line is `["send", {"key": ...}]`; the answer is one JSON line too, with the seconds that it took and the error, if
there was one. What hangs, hangs here, where it can be ended.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from functools import partial
from typing import Any

from benchmarks.guarantees.applications.setup import Setup


def main() -> None:
    """Answer until standard input is closed."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    application: Any = importlib.import_module(Setup.load().module)
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answers.write(json.dumps(_answer(application, name, arguments)) + "\n")


def _answer(application: Any, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    value: Any = None
    error = ""
    try:
        call = partial(_send_many, application) if name == "send_many" else getattr(application, name)
        value = call(**arguments)
    except Exception as exc:
        error = f"{type(exc).__name__}: {exc}".partition("\n")[0]
    return {"value": value, "error": error, "seconds": time.monotonic() - began}


def _send_many(application: Any, key: str, count: int, **options: Any) -> None:
    for number in range(count):
        application.send(key=f"{key}-{number}", **options)


if __name__ == "__main__":
    main()
