"""A project on Celery, django-celery-beat and django-celery-results is moved by the steps of its page."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from tests.examples.conftest import ROOT, START_TIMEOUT_S, Start, run, wait_until
from tests.examples.django_site import Commands
from tests.servers import PrivateRedis

EXAMPLE: Final = ROOT / "examples" / "moving_django"


def successes(database: Path) -> int:
    """Return how many results of Celery's are in the project's database."""
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        found = connection.execute("select count(*) from django_celery_results_taskresult where status = 'SUCCESS'")
        number: int = found.fetchone()[0]
    return number


def taskbridge(page: Commands, *command: str, env: Mapping[str, str], codes: tuple[int, ...] = (0,)) -> Any:
    """Run a command of taskbridge, and return the JSON that it prints."""
    printed = run("python", "manage.py", "taskbridge", *command, "--json", cwd=page.folder, env=env, codes=codes)
    return json.loads(printed)


@pytest.mark.slow
def test_a_project_is_moved_step_by_step(redis_server: PrivateRedis, start: Start, tmp_path: Path) -> None:
    project = tmp_path / "project"
    page = Commands("examples/moving_django/README.md", project)
    shutil.copytree(EXAMPLE / "before", project)
    variables = {
        "REDIS_URL": redis_server.url,
        "TASKBRIDGE_URL": f"celery+{redis_server.url}",
        "TASKBRIDGE_NAMESPACE": f"moving-{uuid4().hex[:8]}",
    }
    page.run("python manage.py migrate", env=variables)
    page.run("python manage.py loaddata", env=variables)
    worker = start(*page.shown("celery --app config worker"), cwd=project, env=variables)
    beat = start(*page.shown("celery --app config beat"), cwd=project, env=variables)
    wait_until(
        lambda: successes(project / "db.sqlite3") > 0,
        what="a result that beat has sent for",
        timeout_s=START_TIMEOUT_S,
        processes=[worker, beat],
    )
    beat.stop()
    worker.stop()

    (project / "config" / "celery.py").unlink()
    shutil.copytree(EXAMPLE / "after", project, dirs_exist_ok=True)
    page.run("python manage.py migrate", env=variables)
    planned = taskbridge(page, "import_beat", "--dry-run", env=variables, codes=(1,))
    taken = taskbridge(page, "import_beat", env=variables, codes=(1,))
    again = taskbridge(page, "import_beat", env=variables, codes=(1,))

    def what(rows: list[dict[str, str]]) -> set[tuple[str, str]]:
        return {(row["schedule"], row["what"]) for row in rows if row["task"] == "reports.tasks.make_report"}

    names, left_out = ("Often", "Each morning", "weekly"), ("At sunrise", "left out")
    assert what(planned) == {left_out, *((name, "to be put") for name in names)}
    assert what(taken) == {left_out, *((name, "put") for name in names)}  # of what beat has copied, the row counts
    assert what(again) == {left_out, *((name, "as before") for name in names)}
    for engine in ("celery", "dramatiq"):
        variables["TASKBRIDGE_URL"] = f"{engine}+{redis_server.url}"
        before = {each["name"]: each for each in taskbridge(page, "schedules", env=variables)}
        assert (before["Often"]["paused"], before["Each morning"]["paused"]) == (False, True)
        worker = start(*page.shown("python manage.py taskbridge worker"), cwd=project, env=variables)

        def last_id() -> str | None:
            [often] = [each for each in taskbridge(page, "schedules", env=variables) if each["name"] == "Often"]
            found: str | None = often["last_id"]
            return found

        wait_until(
            lambda sent_before=before["Often"]["last_id"]: last_id() != sent_before,  # type: ignore[misc]
            what="a report by the schedule that was taken over",
            timeout_s=START_TIMEOUT_S,
            processes=[worker],
        )
        message = last_id()
        assert message is not None
        wait_until(
            lambda sent=message: taskbridge(page, "status", sent, env=variables)["state"] == "done",  # type: ignore[misc]
            what="the report",
            timeout_s=START_TIMEOUT_S,
            processes=[worker],
        )
        assert worker.stop() == 0
