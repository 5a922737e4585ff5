"""The tutorial for Django, done as a reader would: its project is made in a folder, and its commands run there."""

from __future__ import annotations

import re
import shutil
from typing import Final
from uuid import uuid4

import pytest

from tests.docs.pages import DOCS, blocks_of
from tests.examples.conftest import START_TIMEOUT_S, Start, run, wait_until
from tests.examples.django_site import Commands, Site
from tests.servers import PrivateRedis

PAGE: Final = "docs/tutorial-django.md"
INCLUDED: Final = re.compile(r"{literalinclude} (\S+)")
CAPTION: Final = re.compile(r"^:caption: (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """The reader's project, with the page's files, and a database."""
    folder = tmp_path_factory.mktemp("shop-tutorial")
    page = Commands(PAGE, folder)
    for command in ("django-admin startproject", "python manage.py startapp"):
        run(*page.shown(command), cwd=folder, env={})
    settings = folder / "config" / "settings.py"
    [added] = [block.text for block in blocks_of(PAGE) if block.text.startswith("# config/settings.py\n")]
    settings.write_text(f"{settings.read_text(encoding='utf-8')}\n{added}\n", encoding="utf-8")
    for block in blocks_of(PAGE):
        if (included := INCLUDED.match(block.info)) and (caption := CAPTION.search(block.text)):
            (folder / caption[1]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(DOCS / included[1], folder / caption[1])
    page.run("python manage.py makemigrations", env={})
    page.make_database({})
    return page


def test_its_tests_pass(project: Commands) -> None:
    assert "Ran 12 tests" in project.run("python manage.py test", env={})


@pytest.mark.slow
def test_the_shop_changes_its_engine_and_loses_nothing(
    redis_server: PrivateRedis, project: Commands, start: Start
) -> None:
    variables = {
        "TASKBRIDGE_URL": f"celery+{redis_server.url}",
        "TASKBRIDGE_NAMESPACE": f"tutorial-{uuid4().hex[:8]}",
    }

    def terminal(command: str) -> str:
        return project.run(f"python manage.py taskbridge {command}", env=variables)

    terminal("check")
    worker_command = project.shown("python manage.py taskbridge worker")
    worker = start(*worker_command, cwd=project.folder, env=variables)
    site = Site(start, project.shown("python manage.py runserver"), project.folder, variables)
    site.log_in()
    book, bookcase = site.order(1), site.order(2)
    for order in (book, bookcase):
        site.wait_for(order, "Receipt: sent", worker)
        site.refund(order)
    site.wait_for(book, "Refunded", worker)
    wait_until(lambda: "gave_up" in terminal("dead list"), what="a dead letter", timeout_s=START_TIMEOUT_S)
    assert "Refunded" not in site.get(bookcase)
    assert "payments" in terminal("queues")
    assert "shop.tasks.nightly_report" in terminal("schedules")
    assert worker.stop() == 0

    name, _, limit = project.shown("export SHOP_REFUND_LIMIT_CENTS=")[1].partition("=")
    variables |= {"TASKBRIDGE_URL": f"dramatiq+{redis_server.url}", name: limit}
    worker = start(*worker_command, cwd=project.folder, env=variables)
    terminal("dead replay")

    site.wait_for(bookcase, "Refunded", worker)
    assert worker.stop() == 0
