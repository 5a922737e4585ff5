"""The records of one process: what only they have."""

from __future__ import annotations

from taskbridge import Bridge, Message
from taskbridge.stores.memory.records import MemoryRecords
from taskbridge.stores.records import Ending


def test_what_is_kept_does_not_grow_by_records_that_are_gone() -> None:
    now = [1.8e9]
    records = MemoryRecords(Bridge("inline://", result_ttl=60).settings, lambda: now[0])

    def pass_through(number: int) -> None:
        message = Message(id=f"m{number}", task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=now[0])
        records.create([(message, 0.0)], timeout_s=1)
        records.started(message, worker="w:1", at=now[0])
        records.ended(message, Ending(state="done", at=now[0]), timeout_s=1)
        now[0] += 1.0

    for number in range(5000):
        pass_through(number)

    assert len(records._kept) < 100
    assert len(records._ends) < 1500
    assert records.get("m4999", timeout_s=1) is not None
    now[0] += 70.0
    for _ in range(10):
        records.get("nobody", timeout_s=1)
    assert len(records._kept) == 0
