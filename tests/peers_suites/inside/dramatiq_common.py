"""What Dramatiq's own tests import from a module beside them that its source distribution leaves out."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pika
import pytest

RABBITMQ_USERNAME = RABBITMQ_PASSWORD = "guest"
RABBITMQ_CREDENTIALS = pika.PlainCredentials(RABBITMQ_USERNAME, RABBITMQ_PASSWORD)

skip_in_ci = skip_on_pypy = skip_on_windows = skip_unless_rabbit_mq = pytest.mark.filterwarnings("default")


@contextmanager
def worker(*args: Any, **options: Any) -> Generator[Any]:
    """Start a worker, and stop it at the end of the block."""
    made = dramatiq.Worker(*args, **options)
    made.start()
    try:
        yield made
    finally:
        made.stop()
