"""What an application is told about its cell: where its broker is, and how it is to be set up."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from typing_extensions import Self

from taskbridge.contract.probe import Probe

VARIABLE: Final = "TASKBRIDGE_CONTRACT_GUARANTEES"

Kind = Literal["raw_celery", "raw_dramatiq", "bridged"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """How an application is set up. Its processes get it by the environment.

    Attributes:
        kind: The application, by its module's name.
        engine: `celery` or `dramatiq`.
        broker_url: Where the broker is, such as `redis://127.0.0.1:6379/0`.
        store_url: Where taskbridge keeps attempt marks, and engines alone what they know of groups; None is the broker.
        folder: Where the probe's file is.
        name: What queue and namespace are called.
        lease_s: Visibility timeout, heartbeat timeout or lease; None is the default of each.
        attempts: How often a failing task is run, in all.
        grace_s: How long a worker that is told to stop lets tasks run.
        send_timeout_s: How long a send may take, where that can be set.
        defaults: Whether the engine's own defaults are left alone.
        late: Whether the application knows the task `late`.
        groups: Whether groups are sent: engines alone need a Redis for that.
    """

    kind: Kind
    engine: str
    broker_url: str
    store_url: str | None = None
    folder: str
    name: str
    lease_s: float | None = None
    attempts: int = 5
    grace_s: float = 4.0
    send_timeout_s: float = 5.0
    defaults: bool = False
    late: bool = True
    groups: bool = False

    @property
    def on_redis(self) -> bool:
        """Whether the broker is Redis; it is RabbitMQ otherwise."""
        return self.broker_url.startswith("redis")

    @property
    def groups_url(self) -> str | None:
        """Where engines alone keep what they know of groups; None where none are sent."""
        return (self.store_url or self.broker_url) if self.groups else None

    @property
    def module(self) -> str:
        """The application's module."""
        return f"{__package__}.{self.kind}"

    def env(self) -> dict[str, str]:
        """Return the variables by which a process gets it."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def load(cls, env: Mapping[str, str] = os.environ) -> Self:
        """Return the setup that this process was given."""
        given: dict[str, Any] = json.loads(env[VARIABLE])
        return cls(**given)

    def probe(self, now: Any) -> Probe:
        """Return where the application writes down what happens."""
        return Probe(Path(self.folder) / PROBE_FILE, now)


PROBE_FILE: Final = "probe.jsonl"

RETRY_DELAY_S: Final = 1.0
"""How long after a failed run the next one is, the same for all."""
