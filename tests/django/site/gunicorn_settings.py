"""What gunicorn is to do: load the application, have it send, and then fork the processes that serve."""

from __future__ import annotations

from typing import Any

preload_app = True
workers = 2
threads = 2


def pre_fork(server: Any, worker: Any) -> None:
    from tests.django.site.ledger.tasks import nothing

    nothing.send()  # so that connections are open as it forks
