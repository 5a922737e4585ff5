"""CR with an SQL store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from taskbridge import Bridge
from tests.unit.test_scheduler import a_day_in_disorder
from tests.unit.test_stored_schedules import many_put_and_delete


def test_five_schedulers_that_are_killed_and_stopped_send_each_tick_once(tmp_path: Path) -> None:
    settings = {"TASKBRIDGE_URL": "celery+memory://", "TASKBRIDGE_STORE": f"sqlite:///{tmp_path}/ticks.db"}
    command = [sys.executable, "-m", "taskbridge", "store", "init"]
    subprocess.run(command, env=settings, capture_output=True, timeout=120, check=True)
    bridge = Bridge(settings["TASKBRIDGE_URL"], store=settings["TASKBRIDGE_STORE"])
    store = bridge.store
    assert store is not None

    a_day_in_disorder(store.ticks)

    bridge.close()


def test_what_many_put_and_delete_at_once_is_there(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/schedules.db"
    many_put_and_delete(lambda: Bridge("celery+memory://", store=store, send_timeout=60))
