"""The shop in Django, run by the commands of its page and of its compose file, without Docker, on a private Redis."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
import yaml

from tests.examples.conftest import ROOT, START_TIMEOUT_S, Start, run, wait_until
from tests.examples.django_site import Commands, Site
from tests.servers import PrivateRedis

FOLDER: Final = ROOT / "examples" / "django_shop"
PAGE: Final = Commands("examples/django_shop/README.md", FOLDER)
OWN_DATABASE: Final = {"SHOP_DB": ":memory:"}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's database, made by the commands of the page."""
    database = tmp_path_factory.mktemp("shop") / "shop.sqlite3"
    PAGE.make_database({"SHOP_DB": str(database)})
    return database


@pytest.mark.parametrize(
    ("runner", "more", "tests"),
    [
        ("python manage.py test", (), "Ran 12 tests"),
        ("pytest", ("-p", "no:cacheprovider"), "15 passed"),
    ],
)
def test_its_tests_pass(runner: str, more: tuple[str, ...], tests: str) -> None:
    assert tests in PAGE.run(runner, *more, env=OWN_DATABASE)


def test_no_migration_is_missing() -> None:
    run("python", "manage.py", "makemigrations", "--check", "--dry-run", cwd=FOLDER, env=OWN_DATABASE)


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_an_order_gets_its_receipt_and_its_refund(
    engine: str, redis_server: PrivateRedis, database: Path, start: Start
) -> None:
    assert PAGE.url_of(engine) == f"{engine}+redis://localhost:6379/0"
    variables = {
        "TASKBRIDGE_URL": f"{engine}+{redis_server.url}",
        "TASKBRIDGE_NAMESPACE": f"shop-{uuid4().hex[:8]}",
        "SHOP_DB": str(database),
    }
    worker = start(*PAGE.shown("python manage.py taskbridge worker"), cwd=FOLDER, env=variables)
    site = Site(start, PAGE.shown("python manage.py runserver"), FOLDER, variables)

    order = site.order(1)
    site.wait_for(order, "Receipt: sent", worker)
    wait_until(lambda: "Subject: Your order" in worker.output, what="the mail", timeout_s=START_TIMEOUT_S)
    site.log_in()
    site.refund(order)
    site.wait_for(order, "Refunded", worker)

    assert worker.stop() == 0
    site.process.stop()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_changed_task_reloads_the_web_site_and_the_worker(
    engine: str, redis_server: PrivateRedis, database: Path, start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.sqlite3*", ".venv", "__pycache__"))
    variables = {
        "TASKBRIDGE_URL": f"{engine}+{redis_server.url}",
        "TASKBRIDGE_NAMESPACE": f"shop-{uuid4().hex[:8]}",
        "SHOP_DB": str(database),
    }
    worker = start(*PAGE.shown("python manage.py taskbridge worker"), "--watch", cwd=folder, env=variables)
    site = Site(start, PAGE.shown("python manage.py runserver"), folder, variables)
    site.wait_for(site.order(1), "Receipt: sent", worker)

    # A site sends the task by its new name, and a worker runs that, only if they have loaded the file again.
    tasks, processes = folder / "shop" / "tasks.py", [site.process, worker]
    text = tasks.read_text(encoding="utf-8").replace('@task(queue="email"', '@task(name="new", queue="email"')
    tasks.write_text(text.replace('f"Your order', 'f"Your new order'), encoding="utf-8")
    wait_until(
        lambda: site.process.output.count("Watching for file changes") == 2,
        what="the web site to start anew",
        timeout_s=START_TIMEOUT_S,
        processes=processes,
    )
    wait_until(site.is_up, what="the web site", timeout_s=START_TIMEOUT_S, processes=processes)
    site.wait_for(site.order(1), "Receipt: sent", worker)
    wait_until(lambda: "Subject: Your new order" in worker.output, what="the mail", timeout_s=START_TIMEOUT_S)

    assert worker.stop() == 0
    site.process.stop()


def test_the_compose_file_has_the_pages_commands_and_one_url_for_the_engine() -> None:
    text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    services: dict[str, Any] = yaml.safe_load(text)["services"]

    assert set(services) == {"migrate", "web", "worker", "redis"}
    assert services["web"]["command"].startswith(shlex.join(PAGE.shown("python manage.py runserver")))
    assert services["worker"]["command"].startswith("python manage.py taskbridge worker ")
    for command in ("python manage.py migrate", "python manage.py loaddata products"):
        assert shlex.join(PAGE.shown(command)) in services["migrate"]["command"]
    for engine in ("celery", "dramatiq"):
        assert f"TASKBRIDGE_URL: {PAGE.url_of(engine).replace('localhost', 'redis')}" in text
    for name in ("migrate", "web", "worker"):
        build = services[name]["build"]
        assert (FOLDER / build["context"] / build["dockerfile"]).is_file()
