"""The app configures the default bridge, finds tasks, and says what to do where something is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import modify_settings, override_settings

from taskbridge import Bridge, default_bridge
from taskbridge.django import conf
from tests.django.project import ROOT, SETTINGS, Project, project
from tests.django.site.ledger import tasks


def test_the_default_bridge_has_the_settings_of_the_project() -> None:
    settings = default_bridge().settings

    assert settings.url.engine == "inline"
    assert settings.namespace == "site"


def test_the_tasks_of_all_apps_are_declared() -> None:
    assert default_bridge().knows("tests.django.site.shop.tasks.add")
    assert default_bridge().knows("tests.django.site.ledger.tasks.nothing")


def test_hooks_and_what_is_around_runs_work_in_the_module_tasks() -> None:
    tasks.seen.clear()
    tasks.nothing.send()
    default_bridge().run_until_idle()

    assert tasks.seen == ["hook nothing", "around nothing"]


@pytest.mark.parametrize(
    ("given", "environ", "said"),
    [
        ("celery", {}, "TASKBRIDGE must hold settings by name, such as {'URL': ...}, not 'celery'"),
        ({"url": "inline://"}, {}, "TASKBRIDGE has 'url', and there is no such setting; did you mean 'URL'?"),
        ({"ROUTE": {}}, {}, "TASKBRIDGE has 'ROUTE', and there is no such setting; did you mean 'ROUTES'?"),
        ({1: 2}, {}, "TASKBRIDGE has 1, and there is no such setting"),
        ({"URL": "celeri+redis://x"}, {}, "TASKBRIDGE['URL']: there is no engine 'celeri'; did you mean 'celery'?"),
        ({"GRACE": -1}, {}, "TASKBRIDGE['GRACE']: "),
        ({}, {"TASKBRIDGE_GRACE": "long"}, "variable TASKBRIDGE_GRACE: it must be a number of seconds, not 'long'"),
        ({}, {"TASKBRIDGE_GRACES": "1"}, "variable TASKBRIDGE_GRACES: there is no such setting; did you mean 'grace'?"),
        ({"WAIT_REPLICAS": 1, "URL": "inline://"}, {}, "TASKBRIDGE: not possible on inline: wait_replicas is for"),
    ],
)
def test_a_wrong_setting_is_told_with_its_name(
    given: Any, environ: Mapping[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = Bridge("inline://")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with override_settings(TASKBRIDGE=given), pytest.raises(ImproperlyConfigured) as raised:
        conf.configure(bridge)
    assert str(raised.value).startswith(said)


def test_settings_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKBRIDGE_NAMESPACE", "theirs")
    monkeypatch.setenv("TASKBRIDGE_GRACE", "7")
    bridge = Bridge("inline://")
    with override_settings(TASKBRIDGE={"NAMESPACE": "ours", "ROUTES": {"a.*": "one", "*": "two"}}):
        conf.configure(bridge)

    assert (bridge.settings.namespace, bridge.settings.grace_s) == ("ours", 7)
    assert [route.queue for route in bridge.settings.routes] == ["one", "two"]


def ids() -> list[str]:
    return [message.id for message in run_checks(tags=["taskbridge"]) if message.id]


def test_other_apps_in_a_test_change_nothing_of_the_bridge() -> None:
    bridge = default_bridge()
    before = bridge.around_of("any")
    with (
        bridge.temporarily(url="inline://?threads=1"),
        modify_settings(INSTALLED_APPS={"append": "django.contrib.sites"}),
    ):
        assert bridge.settings.url.threads == 1
    assert bridge.around_of("any") == before


def test_nothing_is_said_of_a_project_where_all_is_well() -> None:
    assert ids() == []


def test_a_check_warns_where_nothing_chooses_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TASKBRIDGE_URL", raising=False)
    bridge = Bridge("celery+redis://localhost")
    with override_settings(TASKBRIDGE={"NAMESPACE": "x"}):
        assert ids() == ["taskbridge.W001"]
        conf.configure(bridge)
        assert bridge.settings.url.engine == "inline"
        monkeypatch.setenv("TASKBRIDGE_URL", "celery+redis://localhost")
        assert ids() == []
        conf.configure(bridge)
        assert bridge.settings.url.engine == "celery"


@pytest.mark.parametrize(("health_checks", "said"), [(False, ["taskbridge.W002"]), (True, [])])
def test_a_check_warns_of_a_pool_whose_connections_are_not_checked(
    health_checks: bool, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"], "OPTIONS", {"pool": {"max_size": 4}})
    monkeypatch.setitem(connections.settings["default"], "CONN_HEALTH_CHECKS", health_checks)
    assert ids() == said


def test_an_outbox_without_its_table_is_told_with_what_to_do(tmp_path: Path, url_of: Callable[[str], str]) -> None:
    database = str(tmp_path / "site.sqlite3")
    with project(tmp_path, url_of("celery+redis"), database=database, TASKBRIDGE_COMMIT="outbox") as site:

        def checked() -> str:
            done = site.run(sys.executable, "-m", "django", "check", "--database", "default")
            assert done.returncode == 0, done.stderr
            return done.stderr

        assert "taskbridge.W003" in checked()
        assert "Run: manage.py migrate taskbridge" in checked()
        assert "W003" not in site.run(sys.executable, "-m", "django", "check").stderr, "no database is asked"
        site.worker("--processes", "1")
        assert re.search(
            r"WARNING \d+ taskbridge: Sends go to the outbox, and database .default. has no table", site.log()
        )
        site.manage("migrate", "taskbridge")
        assert "taskbridge." not in checked()


def test_a_worker_starts_while_the_database_of_its_outbox_is_away(tmp_path: Path, url_of: Callable[[str], str]) -> None:
    database = "postgresql://nobody@127.0.0.1:1/none"
    with project(tmp_path, url_of("celery+redis"), database=database, TASKBRIDGE_COMMIT="outbox") as site:
        site.worker("--processes", "1")
        assert re.search(r"WARNING \d+ taskbridge: the database does not answer: ", site.log())


SETS_UP: str = """
import sys, threading
events = []
def note(event, args):
    if event in ("socket.__new__", "socket.connect", "_thread.start_new_thread", "sqlite3.connect"):
        events.append(event)
sys.addaudithook(note)
import django
django.setup()
from taskbridge import default_bridge
print(events, threading.active_count(), default_bridge().settings.url.target)
"""


@pytest.mark.parametrize("pair", ["celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp"])
def test_setting_up_opens_no_connection_and_starts_no_thread(pair: str, tmp_path: Path) -> None:
    """So that a server may fork afterwards, and `runserver` may set up in two processes."""
    with project(tmp_path, f"{pair}://127.0.0.1:1", database="postgresql://nobody@127.0.0.1:1/none") as site:
        done = site.run(sys.executable, "-c", SETS_UP)
    assert done.stdout == f"[] 1 {pair}\n", done.stderr


# The application of a command line


def command_line(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `taskbridge` in a folder, without a project unless the variables name one."""
    site = Project(folder, "inline://")
    del site.env["DJANGO_SETTINGS_MODULE"]
    path = f"{ROOT}:{site.env.get('PYTHONPATH', '')}"
    site.env |= {"PYTHONPATH": path, **env}
    return site.run(sys.executable, "-m", "taskbridge", *words, cwd=folder)


APPS = 'SECRET_KEY = "x"\nINSTALLED_APPS = ["taskbridge.django"]\n'


UNUSABLE = "Django can't be set up with the settings 'conf': "


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (None, f"{UNUSABLE}ModuleNotFoundError: No module named 'conf'"),
        (f"{APPS}1 / 0", f"{UNUSABLE}ZeroDivisionError: division by zero (conf.py, line 3)"),
        (f"{APPS}INSTALLED_APPS.append('shoop')", f"{UNUSABLE}ModuleNotFoundError: No module named 'shoop'"),
        (
            f"{APPS}INSTALLED_APPS.append('broken')",
            f"{UNUSABLE}NameError: name 'oops' is not defined (broken/tasks.py, line 1)",
        ),
        (
            f"{APPS}TASKBRIDGE = {{'ROUTE': 1}}",
            f"{UNUSABLE}ImproperlyConfigured: TASKBRIDGE has 'ROUTE', and there is no such setting; "
            "did you mean 'ROUTES'?",
        ),
        (
            "SECRET_KEY = 'x'",
            "settings 'conf': 'taskbridge.django' is not in INSTALLED_APPS: add it, or name the MODULE that declares "
            "the tasks",
        ),
    ],
)
def test_what_is_wrong_with_a_project_is_told_in_one_line(settings: str | None, said: str, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tasks.py").write_text("oops")
    if settings is not None:
        (tmp_path / "conf.py").write_text(settings)
    done = command_line(tmp_path, "worker", DJANGO_SETTINGS_MODULE="conf")

    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"taskbridge: {said}\n")


def test_without_a_project_a_worker_asks_for_a_module(tmp_path: Path) -> None:
    done = command_line(tmp_path, "worker")
    said = "worker: which MODULE declares the tasks? Such as: taskbridge worker shop.tasks"
    assert (done.returncode, done.stderr) == (2, f"taskbridge: {said}\n")


def test_a_module_of_a_project_that_is_not_set_up_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from django.contrib.auth.models import User")
    (tmp_path / "conf.py").write_text(APPS)
    done = command_line(tmp_path, "check", "own", DJANGO_SETTINGS_MODULE="conf")

    assert done.returncode == 2
    assert "AppRegistryNotReady" in done.stderr
    assert "Is it a Django project? Set DJANGO_SETTINGS_MODULE, and name no module." in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_url_on_the_command_line_wins_over_the_project(way: str, tmp_path: Path) -> None:
    url = "dramatiq+redis://127.0.0.1:1/3"
    words, env = (["--url", url], {}) if way == "option" else ([], {"TASKBRIDGE_APP_URL": url})
    done = command_line(tmp_path, "check", *words, DJANGO_SETTINGS_MODULE=SETTINGS, **env)

    assert url in done.stdout, done.stdout + done.stderr
    assert "tests.django.site.shop.tasks.add" in done.stdout


def test_the_folders_of_a_projects_own_apps_are_watched(tmp_path: Path) -> None:
    code = "from taskbridge.django import app; print(*app.watched(), sep='\\n')"
    with project(tmp_path, "inline://") as site:
        folders = site.run(sys.executable, "-c", code).stdout.split()

    here = Path(__file__).parent / "site"
    assert {str(here / "shop"), str(here / "ledger")} <= set(folders)
    assert not [folder for folder in folders if "site-packages" in folder]
