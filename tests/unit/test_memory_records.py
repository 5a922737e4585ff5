"""The records of one process: what only they have."""

from __future__ import annotations

from taskbridge import Bridge, Message
from taskbridge.stores.memory import MemoryBackend
from taskbridge.stores.records import Ending, Records


def test_what_is_kept_does_not_grow_by_records_that_are_gone() -> None:
    now = [1.8e9]
    backend = MemoryBackend(lambda: now[0])
    records = Records(Bridge("inline://", result_ttl=60).settings, backend)

    def pass_through(number: int) -> None:
        message = Message(id=f"m{number}", task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=now[0])
        records.create([(message, 0.0)], timeout_s=1)
        records.started(message, worker="w:1", at=now[0])
        records.ended(message, Ending(state="done", at=now[0]), timeout_s=1)
        now[0] += 1.0

    for number in range(5000):
        pass_through(number)

    assert len(backend._kept) < 1200
    assert records.get("m4999", timeout_s=1) is not None
    now[0] += 70.0
    assert records.get("m4999", timeout_s=1) is None
