"""The page in a real browser, clicked through, on a real worker and a private Redis."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from taskbridge import Bridge, Handle
from taskbridge.contract.ports import free_port
from taskbridge.message import DeadLetter, Message
from tests.conftest import is_ci
from tests.examples.conftest import START_TIMEOUT_S, Process, environment, wait_until
from tests.servers import PrivateRedis
from tests.web import shop

PATIENCE_S: Final = 120.0
MANY: Final = 10_000
PAGES: Final = ("", "running", "failures", "messages", "dead", "schedules", "workers")


class Browser:
    """A browser on the page."""

    def __init__(self, base: str, *, scripts: bool = True) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = _program("chromium", "chromium-browser", "google-chrome")
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if not scripts:
            options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        self.driver: Any = webdriver.Chrome(options=options, service=Service(_program("chromedriver")))
        self.driver.set_page_load_timeout(PATIENCE_S)
        self._base = base

    def open(self, path: str) -> None:
        self.driver.get(f"{self._base}/{path}")

    @property
    def text(self) -> str:
        return str(self.driver.find_element(By.TAG_NAME, "body").text)

    def click(self, label: str, row: str = "") -> None:
        """Click the first button of this label, in the first row that holds a text."""
        within = f"//tr[contains(., '{row}')]" if row else ""
        found = f"{within}//button[starts-with(normalize-space(), '{label}')]"
        self.driver.execute_script("arguments[0].click()", self.driver.find_element(By.XPATH, found))

    def unfold(self, label: str) -> None:
        found = f"//summary[starts-with(normalize-space(), '{label}')]"
        self.driver.find_element(By.XPATH, found).click()

    def waits_for(self, text: str, *, reload: str | None = None) -> None:
        """Wait until the page shows a text; it is loaded again and again if a path is given."""

        def is_there(_: Any) -> bool:
            if reload is not None:
                self.open(reload)
            return text in self.text.replace("\n", " ")

        WebDriverWait(self.driver, PATIENCE_S, ignored_exceptions=(Exception,)).until(
            is_there, f"{text!r} is not there"
        )

    def complaints(self) -> list[str]:
        """Return what the browser's console says, of the content security policy above all."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


def _program(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        missing = f"{names[0]} is not installed: apt-get install chromium chromium-driver"
        if is_ci():
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file; while it is there, receipts can be sent."""
    return tmp_path_factory.mktemp("shop") / "fixed"


@pytest.fixture(scope="module")
def bridge(redis_server: PrivateRedis) -> Iterator[Bridge]:
    with shop.bridge.temporarily(
        url=f"dramatiq+{redis_server.url}", namespace=f"web-{uuid4().hex[:8]}", **shop.SETTINGS
    ):
        yield shop.bridge


@pytest.fixture(scope="module")
def base(bridge: Bridge, fixed: Path, redis_server: PrivateRedis, tmp_path_factory: Any) -> Iterator[str]:
    """The address of the page, which `taskbridge web` serves; a worker runs."""
    variables = {
        "TASKBRIDGE_URL": f"dramatiq+{redis_server.url}",
        "TASKBRIDGE_NAMESPACE": bridge.settings.namespace,
        "SHOP_FIXED": str(fixed),
    }
    folder, root, port = tmp_path_factory.mktemp("output"), Path(__file__).parents[2], free_port()
    with ExitStack() as stack:

        def start(name: str, *words: str) -> Process:
            output = stack.enter_context((folder / name).open("w"))
            command = (sys.executable, "-m", "taskbridge", name, "tests.web.shop:bridge", *words)
            process = Process(command, environment(variables), output, root)
            stack.callback(process.kill)
            return process

        start("worker", "--processes", "1", "--threads", "4")
        page = start("web", "--allow-acts", "--port", str(port))
        wait_until(lambda: "serving" in page.output, what="the page", timeout_s=START_TIMEOUT_S, processes=[page])
        until(bridge.operations.workers, "the worker")
        yield f"http://127.0.0.1:{port}"
        assert page.stop() == 0


@pytest.fixture(scope="module")
def browser(base: str) -> Iterator[Browser]:
    made = Browser(base)
    yield made
    made.driver.quit()


@pytest.fixture(autouse=True)
def clean(bridge: Bridge, fixed: Path) -> None:
    fixed.unlink(missing_ok=True)
    bridge.dead.purge_all()


def until(is_so: Callable[[], object], what: str) -> None:
    wait_until(lambda: bool(is_so()), what=what, timeout_s=PATIENCE_S)


def dead_receipts(bridge: Bridge, number: int) -> list[Handle[str]]:
    sent = [shop.receipt.send(f"customer{n}@example.org", secret="hunter2") for n in range(number)]
    until(lambda: bridge.counts().dead == number, "the dead letters")
    return sent


def test_one_dead_letter_is_replayed_and_then_all(browser: Browser, bridge: Bridge, fixed: Path) -> None:
    sent = dead_receipts(bridge, 3)
    fixed.touch()
    browser.open("dead")
    assert browser.text.count("shop.mail.receipt") == 3

    browser.click("Replay", row=sent[1].id[:8])
    browser.waits_for("1 replayed")
    assert sent[1].result(PATIENCE_S) == "sent to customer1@example.org"
    assert bridge.counts().dead == 2

    browser.unfold("Replay all")
    browser.click("Replay all")
    browser.waits_for("2 replayed")
    assert [each.result(PATIENCE_S) for each in sent] == [f"sent to customer{n}@example.org" for n in range(3)]
    assert "No dead letters" in browser.text


def test_dead_letters_are_purged(browser: Browser, bridge: Bridge) -> None:
    sent = dead_receipts(bridge, 3)
    browser.open(f"letter?id={sent[0].id}")
    assert "hunter2" not in browser.text
    assert "secret='***'" in browser.text
    assert "Traceback (most recent call last)" in browser.text

    browser.click("Purge")
    browser.waits_for("1 purged")
    assert [entry.id for entry in bridge.dead.list().entries].count(sent[0].id) == 0

    browser.open("dead?reason=exhausted")
    browser.unfold("Purge these")
    browser.click("Purge reason=exhausted")
    browser.waits_for("2 purged")
    assert bridge.counts().dead == 0


def test_a_queue_is_paused_and_goes_on(browser: Browser, bridge: Bridge, fixed: Path) -> None:
    fixed.touch()
    browser.open("")
    browser.click("Pause", row="email")
    browser.waits_for("Queue email is paused")
    assert [pause.queue for pause in bridge.paused()] == ["email"]

    def is_known() -> bool:
        """Tell whether a receipt waits while orders, which are sent later, run."""
        probe = shop.receipt.send("probe")
        return all(shop.order.send(n).result(PATIENCE_S) for n in range(3)) and probe.status().state == "queued"

    until(lambda: all(is_known() for _ in range(3)), "the pause to be known")
    sent = shop.receipt.send("paused@example.org")
    assert shop.order.send(1).result(PATIENCE_S) == "order 1 is on its way"  # other queues go on
    assert sent.status().state == "queued"
    browser.open("")
    browser.click("Resume", row="email")
    browser.waits_for("Queue email goes on")
    assert sent.result(PATIENCE_S) == "sent to paused@example.org"


def test_a_run_is_seen_with_its_progress_and_cancelled(browser: Browser, bridge: Bridge, tmp_path: Path) -> None:
    sent = shop.import_products.send(str(tmp_path / "never"))
    until(lambda: (status := sent.status()).state == "running" and status.progress, "the progress")
    browser.open(f"message?id={sent.id}")
    assert "reading <b>products</b>" in browser.text
    assert browser.driver.find_elements(By.TAG_NAME, "progress")

    browser.waits_for("shop.import_products", reload="running")
    browser.click("Cancel", row=sent.id[:8])
    browser.waits_for("was told to stop")
    until(lambda: sent.status().is_final, "the end of the run")
    until(lambda: sent.id not in [run.id for run in bridge.operations.running()], "the end to be told")


def test_a_schedule_is_run_now_paused_and_resumed(browser: Browser, bridge: Bridge) -> None:
    browser.open("schedules")
    browser.click("Run now", row="shop.report")
    browser.waits_for("Sent as message")
    said = browser.driver.find_element(By.CSS_SELECTOR, ".said").text
    assert bridge.handle(said.split()[-1]).result(PATIENCE_S) == "nothing was sold"

    browser.click("Pause", row="shop.report")
    browser.waits_for("The schedule is paused")
    assert [entry.paused for entry in bridge.schedules.list()] == [True]
    browser.click("Resume", row="shop.report")
    browser.waits_for("The schedule goes on")
    assert [entry.paused for entry in bridge.schedules.list()] == [False]


def test_messages_are_filtered_and_one_is_shown_with_its_attempts(browser: Browser, bridge: Bridge) -> None:
    (sent,) = dead_receipts(bridge, 1)
    shop.order.send(7).result(PATIENCE_S)
    browser.open("messages")
    browser.driver.find_element(By.NAME, "task").send_keys("shop.mail.*")
    browser.driver.find_element(By.XPATH, "//select[@name='state']/option[.='dead']").click()
    browser.click("Filter")
    browser.waits_for(sent.id[:8])
    assert "shop.order" not in browser.text

    browser.driver.find_element(By.CSS_SELECTOR, f"a[href$='{sent.id}']").click()
    browser.waits_for("Attempts")
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, ".attempts li")) == 2
    assert browser.text.count("smtp.example.org does not answer") >= 2


def test_the_page_follows_what_goes_on(browser: Browser, bridge: Bridge) -> None:
    browser.open("")
    assert "0 dead" in browser.text.replace("\n", " ")

    dead_receipts(bridge, 3)

    browser.waits_for("3 dead")  # nobody loads it again


def test_it_works_without_scripts(base: str, bridge: Bridge, fixed: Path) -> None:
    sent = dead_receipts(bridge, 1)[0]
    fixed.touch()
    browser = Browser(base, scripts=False)
    try:
        browser.open("dead")
        found = browser.driver.find_element(By.XPATH, "//tr[contains(., 'shop.mail.receipt')]//button[.='Replay']")
        found.click()
        assert sent.result(PATIENCE_S) == "sent to customer0@example.org"
        assert "1 replayed" in browser.text
    finally:
        browser.driver.quit()


def test_hostile_texts_do_nothing_and_nothing_overflows(browser: Browser, bridge: Bridge) -> None:
    sent = shop.hostile.send(shop.HOSTILE)
    until(lambda: sent.status().state == "dead", "the hostile task's end")
    until(lambda: any("<img" in each.task for each in bridge.operations.failures()), "the failure to be told")
    browser.complaints()
    for width in (1280, 390):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == 390}
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        for path in (*PAGES, f"letter?id={sent.id}", f"message?id={sent.id}"):
            browser.open(path)
            wide = browser.driver.execute_script("return document.documentElement.scrollWidth")
            assert browser.driver.title != "owned"
            assert wide <= width, path
            if path not in ("running", "schedules", "workers"):
                assert shop.HOSTILE[:20] in browser.text, path
    assert browser.complaints() == []


def test_ten_thousand_are_replayed_staggered(browser: Browser, bridge: Bridge) -> None:
    for number in range(MANY):
        message = Message(
            id=f"n{number}", task="shop.newsletter", queue="bulk", args_json="[1]", kwargs_json="{}", enqueued_at=1.0
        )
        bridge.broker.bury(DeadLetter(message=message, reason="exhausted", died_at=bridge.now()), timeout_s=PATIENCE_S)
    browser.open("dead?task=shop.news*")
    assert "10\N{NARROW NO-BREAK SPACE}000 in all" in browser.text
    delayed = bridge.counts().delayed

    browser.unfold("Replay these")
    browser.driver.find_element(By.NAME, "per_second").send_keys("0.1")
    browser.click("Replay task=shop.news*")
    browser.waits_for(f"{MANY} replayed")

    until(lambda: bridge.counts().dead <= 1, "the first one to run, perhaps")
    counts = bridge.counts()
    assert counts.delayed - delayed >= MANY - 1_000  # some have started by now: each 10 s one
    assert counts.delayed - delayed + counts.dead + counts.waiting["bulk"] <= MANY
