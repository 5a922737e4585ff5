"""The shop in Django, run by the commands of its page and of its compose file, without Docker, on a private Redis."""

from __future__ import annotations

import re
import shlex
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
import yaml

from taskbridge.contract.ports import free_port
from tests.docs.pages import blocks_of
from tests.examples.conftest import ROOT, START_TIMEOUT_S, Process, Start, run, wait_until
from tests.servers import PrivateRedis

PAGE: Final = "examples/django_shop/README.md"
FOLDER: Final = ROOT / "examples" / "django_shop"
ADMIN: Final = {"DJANGO_SUPERUSER_PASSWORD": "secret", "DJANGO_SUPERUSER_EMAIL": "boss@example.org"}
OWN_DATABASE: Final = {"SHOP_DB": ":memory:"}


def shown(start: str) -> list[str]:
    """Return the arguments of the page's first command that begins like this."""
    lines = [line for block in blocks_of(PAGE) if block.info == "shell" for line in block.text.splitlines()]
    return shlex.split(next(line for line in lines if line.startswith(start)))


def url_of(engine: str) -> str:
    return shown(f"export TASKBRIDGE_URL={engine}+")[1].partition("=")[2]


class Browser:
    """Looks at the shop's pages, and fills in their forms."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def get(self, path: str) -> str:
        return self._open(path, None)

    def post(self, form_at: str, path: str, **fields: str) -> str:
        """Post a form, with the token that the page which shows it has, and return the page that this leads to."""
        found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get(form_at))
        assert found is not None
        return self._open(path, urllib.parse.urlencode({"csrfmiddlewaretoken": found[1], **fields}).encode())

    def _open(self, path: str, data: bytes | None) -> str:
        with self._opener.open(f"{self._base}{path}", data, timeout=60) as answer:
            self.at = str(answer.url).removeprefix(self._base)
            text: str = answer.read().decode()
        return text


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's database, made by the commands of the page."""
    database = tmp_path_factory.mktemp("shop") / "shop.sqlite3"
    variables = {"SHOP_DB": str(database), **ADMIN}
    run(*shown("python manage.py migrate"), cwd=FOLDER, env=variables)
    run(*shown("python manage.py loaddata"), cwd=FOLDER, env=variables)
    create = shown("python manage.py createsuperuser")
    run(*create, "--noinput", "--username", "boss", cwd=FOLDER, env=variables)
    return database


class Shop:
    """The web site and a worker, started by the commands of the page."""

    def __init__(self, start: Start, variables: Mapping[str, str]) -> None:
        port = free_port()
        self.web: Process = start(*shown("python manage.py runserver"), f"{port}", cwd=FOLDER, env=variables)
        self.worker: Process = start(*shown("python manage.py taskbridge worker"), cwd=FOLDER, env=variables)
        self.browser = Browser(f"http://127.0.0.1:{port}")
        wait_until(self._is_up, what="the web site", timeout_s=START_TIMEOUT_S, processes=[self.web])

    def _is_up(self) -> bool:
        try:
            return "The shop" in self.browser.get("/")
        except OSError:
            return False

    def wait_for(self, path: str, text: str) -> None:
        wait_until(
            lambda: text in self.browser.get(path),
            what=f"{text!r} at {path}",
            timeout_s=START_TIMEOUT_S,
            processes=[self.web, self.worker],
        )


@pytest.mark.parametrize(("runner", "tests"), [("python manage.py test", "Ran 9 tests"), ("pytest", "12 passed")])
def test_its_tests_pass(runner: str, tests: str) -> None:
    command = shown(runner)
    if runner == "pytest":
        command += ["-p", "no:cacheprovider"]

    printed = run("sh", "-c", 'exec "$@" 2>&1', "sh", *command, cwd=FOLDER, env=OWN_DATABASE)

    assert tests in printed


def test_no_migration_is_missing() -> None:
    run("python", "manage.py", "makemigrations", "--check", "--dry-run", "shop", cwd=FOLDER, env=OWN_DATABASE)


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_an_order_gets_its_receipt_and_its_refund(
    engine: str, redis_server: PrivateRedis, database: Path, start: Start
) -> None:
    assert url_of(engine) == f"{engine}+redis://localhost:6379/0"
    variables = {
        "TASKBRIDGE_URL": f"{engine}+{redis_server.url}",
        "TASKBRIDGE_NAMESPACE": f"shop-{uuid4().hex[:8]}",
        "SHOP_DB": str(database),
    }
    shop = Shop(start, variables)

    page = shop.browser.post("/", "/orders/", product="1", quantity="1", email="ann@example.org")
    order = shop.browser.at
    assert "1 x Book" in page
    shop.wait_for(order, "Receipt: sent")
    wait_until(
        lambda: re.search(r"^Subject: Your order", shop.worker.output, re.MULTILINE) is not None,
        what="the mail",
        timeout_s=START_TIMEOUT_S,
    )
    shop.browser.post("/admin/login/", "/admin/login/", username="boss", password="secret", next="/admin/")
    orders = "/admin/shop/order/"
    answer = shop.browser.post(orders, orders, action="refund", _selected_action=order.split("/")[2])
    assert "1 refunds are on their way." in answer
    shop.wait_for(order, "Refunded")

    assert shop.worker.stop() == 0
    shop.web.stop()


def test_the_compose_file_has_the_pages_commands_and_one_url_for_the_engine() -> None:
    text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    services: dict[str, Any] = yaml.safe_load(text)["services"]

    assert set(services) == {"migrate", "web", "worker", "redis"}
    assert services["web"]["command"].startswith(shlex.join(shown("python manage.py runserver")))
    assert services["worker"]["command"].startswith("python manage.py taskbridge worker ")
    for command in ("python manage.py migrate", "python manage.py loaddata products"):
        assert shlex.join(shown(command)) in services["migrate"]["command"]
    for engine in ("celery", "dramatiq"):
        assert f"TASKBRIDGE_URL: {url_of(engine).replace('localhost', 'redis')}" in text
    for name in ("migrate", "web", "worker"):
        build = services[name]["build"]
        assert (FOLDER / build["context"] / build["dockerfile"]).is_file()
