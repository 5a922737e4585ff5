"""`manage.py taskbridge`: the whole command line, and workers that find the project from any folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from tests.django.project import ROOT, Project, project

MANAGE = """
import os, sys
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    sys.path.append(str(Path(__file__).parent / "apps"))
    from django.core.management import execute_from_command_line
    execute_from_command_line(sys.argv)
"""

SETTINGS = """
import os
SECRET_KEY = "only for tests"
INSTALLED_APPS = ["taskbridge.django", "diary"]
TASKBRIDGE = {"URL": os.environ["SITE_URL"], "NAMESPACE": os.environ["SITE_NAMESPACE"]}
"""

TASKS = """
import os
from taskbridge import task

@task
def write(text: str) -> None:
    with open(os.environ["DIARY"], "a") as diary:
        diary.write(f"{text}\\n")
"""


def write_project(folder: Path) -> Path:
    """Write a project whose apps are where only its manage.py looks, and return that."""
    for name, text in {"manage.py": MANAGE, "config/settings.py": SETTINGS, "apps/diary/tasks.py": TASKS}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "manage.py"


def of_project(site: Project, folder: Path) -> Path:
    """Have the processes of `site` be of a project in a folder; return its manage.py."""
    del site.env["DJANGO_SETTINGS_MODULE"]
    site.env |= {"DIARY": str(folder / "diary"), "PYTHONPATH": str(ROOT / "src")}
    return write_project(folder)


def test_the_help_is_that_of_taskbridge(tmp_path: Path) -> None:
    with project(tmp_path, "inline://") as site:
        assert "\nExit codes: 0 all is well;" in site.manage("help", "taskbridge")
        assert "\n  --max-tasks-per-child N " in site.manage("taskbridge", "worker", "--help")


def test_arguments_errors_and_exit_codes_are_those_of_taskbridge(tmp_path: Path) -> None:
    with project(tmp_path, "inline://") as site:
        manage = [sys.executable, "-m", "django", "taskbridge"]
        unknown = site.run(*manage, "que")
        assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
        assert "there is no 'que'; did you mean 'queues'?" in unknown.stderr
        away = site.run(*manage, "check", "--url", "celery+redis://127.0.0.1:1", "--json")
        assert away.returncode == 2
        assert '"broker"' in away.stdout
        fine = site.run(*manage, "check", "--settings", "tests.django.site.settings", f"--pythonpath={ROOT}")
        assert fine.returncode == 0, fine.stdout + fine.stderr


def test_a_command_can_be_called(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("taskbridge", "routes")
    assert "tests.django.site.shop.tasks.add" in capsys.readouterr().out
    with pytest.raises(CommandError, match="taskbridge queues ended with exit code 2") as raised:
        call_command("taskbridge", "queues")
    assert raised.value.returncode == 2


@pytest.mark.parametrize("pair", ["celery+redis", "dramatiq+amqp"])
def test_a_worker_started_from_another_folder_finds_the_project(
    pair: str, tmp_path: Path, url_of: Callable[[str], str]
) -> None:
    with project(tmp_path, url_of(pair)) as site:
        manage = of_project(site, tmp_path / "project")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        site.worker("--processes", "1", command=(str(manage), "taskbridge"), cwd=elsewhere)
        site.bridge.send("diary.tasks.write", "one")
        diary = Path(site.env["DIARY"])
        site.until(lambda: diary.exists() and diary.read_text() == "one\n", "the task to run")


def test_a_watched_worker_starts_anew_when_an_app_elsewhere_changes(
    tmp_path: Path, url_of: Callable[[str], str]
) -> None:
    with project(tmp_path, url_of("dramatiq+redis")) as site:
        manage = of_project(site, tmp_path / "project")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        site.worker("--processes", "1", "--watch", command=(str(manage), "taskbridge"), cwd=elsewhere)
        changed = tmp_path / "project" / "apps" / "diary" / "tasks.py"

        def is_noticed() -> bool:  # the folders are watched a little after the worker is ready
            whole = tmp_path / "tasks.py"
            whole.write_text(TASKS.replace("{text}", "new {text}"))
            whole.replace(changed)  # at once, for a worker may be importing it
            return "tasks.py changed: starting the workers anew" in site.log()

        site.until(is_noticed, "the change to be noticed")
        diary = Path(site.env["DIARY"])

        def is_new() -> bool:  # the old worker may take one as it is told to stop
            site.bridge.send("diary.tasks.write", "two")
            time.sleep(1)
            return diary.exists() and "new two\n" in diary.read_text()

        site.until(is_new, "the new code to run")
