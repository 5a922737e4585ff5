"""The admin of the shop in a real browser: its pages, and each act by those who may, at two widths.

`TASKBRIDGE_TEST_PICTURES=docs/images` keeps pictures of its pages there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from taskbridge.contract.ports import free_port
from tests.browser import Browser, browser
from tests.django.project import ROOT, project

SHOP: Final = ROOT / "examples" / "django_shop"
WIDTHS: Final = {"wide": 1280, "narrow": 390}


class Admin:
    """The section "Tasks" of the shop's admin, in a browser; `ids` are those of `admin_data`."""

    def __init__(self, page: Browser, at: str, ids: dict[str, Any], pictures: Path) -> None:
        self.page = page
        self.ids = ids
        self._at = at
        self._pictures = pictures

    def log_in(self, name: str) -> None:
        self.page.call("Network.clearBrowserCookies")
        self.page.open(f"{self._at}/admin/login/")
        self.page.fill("#id_username", name)
        self.page.fill("#id_password", "secret")
        self.page.click("Log in", loads=True)

    def open(self, path: str) -> None:
        """Open a page of the section."""
        self.page.open(f"{self._at}/admin/taskbridge/{path}")

    def act(self, action: str, *ids: str) -> None:
        """Choose rows of a list and an action, and have it done."""
        for each in ids:
            self.page.click(f'css:input[name="_selected_action"][value="{each}"]')
        self.page.choose("select[name=action]", action)
        self.page.click("css:.actions button[type=submit]", loads=True)

    def picture(self, name: str) -> None:
        """Take pictures of this page at both widths; nothing but a table may be wider than the screen."""
        for kind, width in WIDTHS.items():
            self.page.resize(width)
            self.page.screenshot(self._pictures / f"django-admin-{name}-{kind}.png")
            assert not self.page.is_wider_than_screen(), f"{name} at {width} pixels"
        self.page.resize(WIDTHS["wide"])


@pytest.fixture(scope="module")
def admin(url_of: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    """The shop on one of the targets: on all of them, `test_admin` does without a browser what is done here."""
    folder, port, url = tmp_path_factory.mktemp("shop"), free_port(), url_of("dramatiq+redis")
    pictures = Path(os.environ.get("TASKBRIDGE_TEST_PICTURES", folder)).resolve()
    with project(folder, url) as site, browser(folder / "browser") as page:
        site.env |= {
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "PYTHONPATH": os.pathsep.join((str(SHOP), str(ROOT), str(ROOT / "src"))),
            "SHOP_DB": str(folder / "shop.sqlite3"),
            "TASKBRIDGE_URL": url,
            "TASKBRIDGE_NAMESPACE": site.env["SITE_NAMESPACE"],
        }
        site.manage("migrate", "--verbosity", "0")
        filled = site.run(sys.executable, "-m", "tests.django.admin_data")
        assert filled.returncode == 0, filled.stderr
        address = f"127.0.0.1:{port}"
        site.start("-m", "django", "runserver", "--noreload", address, until="Quit the server")
        yield Admin(page, f"http://{address}", json.loads(filled.stdout), pictures)


def test_whoever_may_acts_in_a_browser(admin: Admin) -> None:
    page, (first, second, third, *_) = admin.page, admin.ids["dead"]
    page.resize(WIDTHS["wide"])
    admin.log_in("boss")

    # Dead letters: one is replayed from its own page, one from the list, and one is purged after a question.
    admin.open("deadletter/")
    page.sees("7 dead letters")
    admin.picture("dead-letters")
    page.click(admin.ids["dead"][-1], loads=True)
    page.sees("<script>")
    admin.open("deadletter/")
    page.click(first, loads=True)
    page.sees("cents are more than the bank allows")
    admin.picture("letter")
    page.click("Replay", loads=True)
    page.sees("Replayed 1 dead letter.")
    admin.act("replay", second)
    page.sees("5 dead letters")
    admin.act("delete_selected", third)
    page.sees("Are you sure")
    page.click("css:form input[type=submit]", loads=True)  # "Yes, I am sure"
    page.sees("Successfully deleted 1 dead letter.")
    page.sees("4 dead letters")
    page.fill("#searchbar", "receipt")
    page.click("Search", loads=True)
    page.sees("1 dead letter")

    # A message: found by its id, and cancelled.
    admin.open("message/")
    page.fill("#searchbar", admin.ids["delayed"])
    page.click("Search", loads=True)
    page.click(admin.ids["delayed"], loads=True)
    admin.picture("message")
    page.click("Cancel", loads=True)
    page.sees(f"Message {admin.ids['delayed']} is cancelled: it starts no more.")

    admin.open("queue/")
    page.sees("payments")
    admin.picture("queues")
    admin.act("pause", "payments", "email")
    page.sees("Queue payments is paused.")
    page.sees("Queue email is paused.")
    admin.act("resume", "payments", "email")
    page.sees("Queue payments goes on.")

    # Schedules: one is added, paused, sent now, and deleted.
    admin.open("schedule/add/")
    page.fill("#id_name", "refund-7")
    page.choose("#id_task", "shop.tasks.refund")
    page.fill("#id_cron", "0 8 * *")
    page.fill("#id_timezone", "Europe/Rome")
    page.fill("#id_args", "[7]")
    page.click("Save", loads=True)
    page.sees("must have 5 fields")
    admin.picture("schedule")
    page.fill("#id_cron", "0 8 * * *")
    page.click("Save", loads=True)
    page.sees("The schedule “refund-7” was added successfully.")
    admin.picture("schedules")
    admin.act("pause", "refund-7")
    page.sees("Schedule refund-7 is paused.")
    admin.act("run_now", "refund-7")
    page.sees("Schedule refund-7 is sent as message")
    page.click("refund-7", loads=True)
    page.click("Delete", loads=True)
    page.click("css:form input[type=submit]", loads=True)  # "Yes, I am sure"
    page.sees("The schedule “refund-7” was deleted successfully.")
    assert page.evaluate("document.title") != "pwned"


def test_whoever_may_only_look_is_shown_no_act_and_no_argument(admin: Admin) -> None:
    page, letter = admin.page, admin.ids["dead"][-1]
    page.resize(WIDTHS["narrow"])
    admin.log_in("clerk")
    for path in ("queue/", "deadletter/", f"deadletter/{letter}/change/", "schedule/", "schedule/remind-owner/change/"):
        admin.open(path)
        page.sees("Tasks")
        acts = "#content :is(.taskbridge-act, [name=_save], select[name=action], .addlink, .deletelink)"
        assert page.evaluate(f"document.querySelectorAll('{acts}').length") == 0, (path, page.text())
        assert "4242" not in page.text()
        assert not page.is_wider_than_screen()
    admin.open(f"deadletter/{letter}/change/")
    page.sees("cents are more than the bank allows")
    assert "Arguments" not in page.text()
    admin.open("schedule/add/")
    page.sees("403 Forbidden")
