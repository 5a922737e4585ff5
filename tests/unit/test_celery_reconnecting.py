"""How often a Celery worker tries to connect while its broker is away."""

from __future__ import annotations

import pytest
from kombu.utils import functional

from taskbridge import Bridge
from taskbridge.contract.ports import free_port

TRIES = 12


class EnoughError(Exception):
    """The test has seen enough."""


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_it_tries_at_least_every_2_s(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setattr(functional, "sleep", lambda seconds: None)
    bridge = Bridge(f"celery+{scheme}://127.0.0.1:{free_port()}")
    pauses: list[float] = []

    def note(error: Exception, pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == TRIES:
            raise EnoughError

    with pytest.raises(EnoughError):
        bridge.native.connection_for_read().ensure_connection(note, None)
    bridge.close()

    assert pauses[0] <= 0.5
    assert max(pauses) <= 2
