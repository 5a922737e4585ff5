"""What `taskbridge worker` names to Dramatiq's command line: the broker of the application in `TASKBRIDGE_APP`."""

from __future__ import annotations

from typing import Any

from taskbridge.loading import worker_bridge

broker: Any = worker_bridge("dramatiq").native
