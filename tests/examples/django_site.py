"""A Django project that runs: its web site, a worker, and who looks at its pages."""

from __future__ import annotations

import re
import shlex
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Final

from taskbridge.contract.ports import free_port
from tests.docs.pages import blocks_of
from tests.examples.conftest import START_TIMEOUT_S, Process, Start, run, wait_until

BOSS: Final = {
    "DJANGO_SUPERUSER_USERNAME": "boss",
    "DJANGO_SUPERUSER_PASSWORD": "secret",
    "DJANGO_SUPERUSER_EMAIL": "boss@example.org",
}


class Commands:
    """The commands that a page shows, run in the project's folder."""

    def __init__(self, page: str, folder: Path) -> None:
        self._lines = [line for block in blocks_of(page) if block.info == "shell" for line in block.text.splitlines()]
        self.folder = folder

    def shown(self, start: str) -> list[str]:
        """Return the arguments of the page's first command that begins like this."""
        return shlex.split(next(line for line in self._lines if line.startswith(start)))

    def run(self, start: str, *more: str, env: Mapping[str, str]) -> str:
        """Run that command to its end, and return what it wrote."""
        return run("sh", "-c", 'exec "$@" 2>&1', "sh", *self.shown(start), *more, cwd=self.folder, env=env)

    def make_database(self, env: Mapping[str, str]) -> None:
        self.run("python manage.py migrate", env=env)
        self.run("python manage.py loaddata", env=env)
        self.run("python manage.py createsuperuser", "--noinput", env={**env, **BOSS})

    def url_of(self, engine: str) -> str:
        """Return the URL that the page exports for an engine."""
        return self.shown(f"export TASKBRIDGE_URL={engine}+")[1].partition("=")[2]


class Site:
    """The web site, and a browser that keeps cookies and fills in forms."""

    def __init__(self, start: Start, command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        port = free_port()
        self._base = f"http://127.0.0.1:{port}"
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self.at = ""
        self.process: Process = start(*command, f"{port}", cwd=folder, env=env)
        wait_until(self.is_up, what="the web site", timeout_s=START_TIMEOUT_S, processes=[self.process])

    def is_up(self) -> bool:
        try:
            return "The shop" in self.get("/")
        except OSError:
            return False

    def get(self, path: str) -> str:
        return self._open(path, None)

    def post(self, form_at: str, path: str, **fields: str) -> str:
        """Post a form, with the token of the page that shows it, and return the page that this leads to."""
        found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get(form_at))
        assert found is not None
        return self._open(path, urllib.parse.urlencode({"csrfmiddlewaretoken": found[1], **fields}).encode())

    def _open(self, path: str, data: bytes | None) -> str:
        with self._opener.open(f"{self._base}{path}", data, timeout=60) as answer:
            self.at = str(answer.url).removeprefix(self._base)
            text: str = answer.read().decode()
        return text

    def order(self, product: int) -> str:
        """Order a product, and return the path of the order's page."""
        assert "Receipt: " in self.post("/", "/orders/", product=f"{product}", quantity="1", email="ann@example.org")
        return self.at

    def log_in(self) -> None:
        page = "/admin/login/"
        self.post(page, page, username="boss", password=BOSS["DJANGO_SUPERUSER_PASSWORD"], next="/admin/")
        assert self.at == "/admin/"

    def refund(self, order: str) -> None:
        """Choose the admin's action for an order."""
        orders = "/admin/shop/order/"
        answer = self.post(orders, orders, action="refund", _selected_action=order.split("/")[2])
        assert "1 refunds are on their way." in answer

    def wait_for(self, path: str, text: str, *workers: Process) -> None:
        wait_until(
            lambda: text in self.get(path),
            what=f"{text!r} at {path}",
            timeout_s=START_TIMEOUT_S,
            processes=[self.process, *workers],
        )
