"""What a worker of the hostile-input suite loads: a bridge, configured by the environment, with two tasks."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

from taskbridge import Bridge, Event, RetryPolicy, current
from taskbridge.contract.probe import START, Probe
from tests.hostile.names import ACCEPT, FAILING, FOLDER_VARIABLE, PROBE_FILE

bridge: Bridge = Bridge()
_probe: Final = Probe(Path(os.environ.get(FOLDER_VARIABLE, "."), PROBE_FILE), time.time)


@bridge.task(name=ACCEPT, retry=RetryPolicy.never())
def accept(*values: Any, **named: Any) -> None:
    """Note that a message ran, and what its first argument is: of a healthy one, its token."""
    _probe.write(START, id=current().id, task=current().task, token=values[0] if _is_token(values) else "")


@bridge.task(name=FAILING, retry=RetryPolicy(max_attempts=2, min_delay=0.05, jitter=0))
def failing(token: str) -> None:
    """Fail once, so that the message is parked."""
    if current().attempt == 1:
        raise ValueError(token)
    _probe.write(START, id=current().id, task=current().task, token=token)


def _is_token(values: tuple[Any, ...]) -> bool:
    return bool(values) and isinstance(values[0], str) and len(values[0]) < 100


@bridge.on("discarded")
def note(event: Event) -> None:
    """Note that a message was discarded."""
    _probe.write(event.name, id="" if event.message is None else event.message.id)
