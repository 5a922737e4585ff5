"""A flow that has begun on Celery and Redis ends on Dramatiq and RabbitMQ, with one store (rule W12)."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskbridge.flows import reading
from tests.flows.switch import half_way
from tests.servers import PrivateRabbitMQ, PrivateRedis

MEMBERS = 200


def test_a_group_that_is_flipped_half_way_runs_each_member_once(
    tmp_path: Path, redis_server: PrivateRedis, rabbitmq_server: PrivateRabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_STALLED_S", 3.0)  # here, where it is asked about; else this takes over a minute
    engines = half_way(tmp_path, redis_server.url, rabbitmq_server.url, MEMBERS)

    assert engines["celery"] >= MEMBERS // 2
    assert engines["dramatiq"] >= 2
