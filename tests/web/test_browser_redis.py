"""The page in a real browser, clicked through, on a real worker and a private Redis."""

from __future__ import annotations

import re
import sys
import threading
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import pytest

from taskbridge import Bridge, Handle
from taskbridge.contract.ports import free_port
from taskbridge.message import DeadLetter, Message
from tests.browser import PATIENCE_S, Browser, browser
from tests.examples.conftest import START_TIMEOUT_S, Process, environment, wait_until
from tests.servers import PrivateRedis
from tests.web import shop

SEND_TIMEOUT_S: Final = 60.0
MANY: Final = 10_000
WIDTHS: Final = (1280, 390)
PAGES: Final = ("", "running", "failures", "messages", "dead", "flows", "schedules", "workers")


class Page:
    """The page in a browser."""

    def __init__(self, made: Browser, base: str) -> None:
        self.browser = made
        self._base = base

    def open(self, path: str) -> None:
        self.browser.open(f"{self._base}/{path}")

    @property
    def text(self) -> str:
        return self.browser.text()

    def press(self, label: str) -> None:
        """Send the form of the button with this label."""
        self.browser.click(label, loads=True)

    def act(self, action: str, target: str) -> None:
        """Press the button that does something with what a row is about."""
        self.browser.click(f'css:button[formaction$="/act/{action}"][value="{target}"]', loads=True)

    def shows(self, text: str, path: str) -> None:
        """Open a page again and again until it says something: an answer may be two seconds old."""

        def is_there() -> bool:
            self.open(path)
            return text in self.text.replace("\n", " ")

        until(is_there, f"{text!r} on {path!r}")


Start = Callable[..., Process]
FORM: Final = """(action, target, token) => {
    const form = Object.assign(document.createElement("form"), {action, method: "post"});
    for (const [name, value] of Object.entries({target, token}))
        form.append(Object.assign(document.createElement("input"), {name, value}));
    document.body.append(form);
    form.submit();
}"""
"""Sends a form, as a script of a page can."""


@contextmanager
def site(text: str) -> Generator[str]:
    """Have another site, of this one page; yield its address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join(PATIENCE_S)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file; while it is there, receipts can be sent."""
    return tmp_path_factory.mktemp("shop") / "fixed"


@pytest.fixture(scope="module")
def bridge(redis_server: PrivateRedis) -> Iterator[Bridge]:
    url, namespace = f"dramatiq+{redis_server.url}", f"web-{uuid4().hex[:8]}"
    with shop.bridge.temporarily(url=url, namespace=namespace, send_timeout=SEND_TIMEOUT_S, **shop.SETTINGS):
        yield shop.bridge


@pytest.fixture(scope="module")
def start(bridge: Bridge, fixed: Path, redis_server: PrivateRedis, tmp_path_factory: Any) -> Iterator[Start]:
    """Starts a command of `taskbridge` for the shop."""
    variables = {
        "TASKBRIDGE_URL": f"dramatiq+{redis_server.url}",
        "TASKBRIDGE_NAMESPACE": bridge.settings.namespace,
        "TASKBRIDGE_SEND_TIMEOUT": str(SEND_TIMEOUT_S),
        "SHOP_FIXED": str(fixed),
    }
    folder, root = tmp_path_factory.mktemp("output"), Path(__file__).parents[2]
    with ExitStack() as stack:

        def start(name: str, *words: str) -> Process:
            output = stack.enter_context((folder / "-".join([name, *words])).open("w"))
            command = (sys.executable, "-m", "taskbridge", name, "tests.web.shop:bridge", *words)
            process = Process(command, environment(variables), output, root)
            stack.callback(process.kill)
            return process

        yield start


def serve(start: Start, *words: str) -> tuple[Process, str]:
    """Have `taskbridge web` serve the page; return its process and address."""
    port = free_port()
    page = start("web", "--port", str(port), *words)
    wait_until(lambda: "serving" in page.output, what="the page", timeout_s=START_TIMEOUT_S, processes=[page])
    return page, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def base(bridge: Bridge, start: Start) -> Iterator[str]:
    """The address of a page on which everything can be done; a worker runs."""
    start("worker", "--processes", "1", "--threads", "4")
    page, address = serve(start, "--allow-acts")
    until(bridge.operations.workers, "the worker")
    yield address
    assert page.stop() == 0


@pytest.fixture(scope="module")
def page(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as made:
        made.resize(WIDTHS[0])
        yield Page(made, base)


@pytest.fixture(autouse=True)
def clean(bridge: Bridge, fixed: Path) -> None:
    """Undo what a test before has left, if it failed, too."""
    fixed.unlink(missing_ok=True)
    for pause in bridge.paused():
        bridge.resume(pause.queue, task=pause.task)
    for entry in bridge.schedules.list():
        bridge.schedules.resume(entry.name)
    bridge.dead.purge_all()


def until(is_so: Callable[[], object], what: str) -> None:
    wait_until(lambda: bool(is_so()), what=what, timeout_s=PATIENCE_S)


def dead_receipts(bridge: Bridge, number: int) -> list[Handle[str]]:
    sent = [shop.receipt.send(f"customer{n}@example.org", secret="hunter2") for n in range(number)]
    until(lambda: bridge.counts().dead == number, "the dead letters")
    return sent


def test_without_more_a_browser_can_only_read(page: Page, bridge: Bridge, start: Start) -> None:
    dead_receipts(bridge, 1)
    served, address = serve(start)
    for path in PAGES:
        page.browser.open(f"{address}/{path}")
        assert page.browser.evaluate("document.querySelectorAll('[formaction]').length") == 0, path
    page.browser.open(f"{address}/dead")
    page.browser.evaluate(f"({FORM})('{address}/act/pause', 'email', document.querySelector('[name=token]').value)")
    page.browser.sees("You may not do this: pause.")

    assert bridge.paused() == ()
    assert served.stop() == 0
    assert "- may not do pause: email" in served.output


def test_another_site_can_do_nothing(page: Page, bridge: Bridge, base: str) -> None:
    """It has a token, that of a browser of its own, and the browser that visits it has been on the page."""
    with urllib.request.urlopen(f"{base}/dead", timeout=PATIENCE_S) as answer:
        (token,) = set(re.findall(r'name="token" value="([^"]+)"', answer.read().decode()))
    page.open("")
    with site("<title>elsewhere</title>") as elsewhere:
        page.browser.open(elsewhere)
        page.browser.evaluate(f"({FORM})('{base}/act/pause', 'email', '{token}')")
        page.browser.sees("This form is not of this page, or too old")
        page.browser.open(elsewhere)
        body = f"new URLSearchParams({{target: 'email', token: '{token}'}})"
        how = f"{{method: 'POST', mode: 'no-cors', credentials: 'include', body: {body}}}"
        page.browser.evaluate(f"fetch('{base}/act/pause', {how}).then(() => 1, () => 1)")
        page.browser.complaints.clear()
        page.browser.evaluate(
            f"void document.body.append(Object.assign(document.createElement('iframe'), {{src: '{base}'}}))"
        )
        until(lambda: page.browser.evaluate("1") and page.browser.complaints, "the frame to be refused")
    assert "frame-ancestors" in page.browser.complaints[0]
    assert bridge.paused() == ()

    page.open("")
    page.act("pause", "email")
    page.browser.sees("Queue email is paused")


def test_one_dead_letter_is_replayed_and_then_all(page: Page, bridge: Bridge, fixed: Path) -> None:
    sent = dead_receipts(bridge, 3)
    fixed.touch()
    page.open("dead")
    assert page.text.count("shop.mail.receipt") == 3

    page.act("replay", sent[1].id)
    assert "Replayed 1 dead letter" in page.text
    assert sent[1].result(PATIENCE_S) == "sent to customer1@example.org"
    assert bridge.counts().dead == 2

    page.browser.click("Replay all …")
    page.press("Replay all")
    assert "Replayed 2 dead letters" in page.text
    assert [each.result(PATIENCE_S) for each in sent] == [f"sent to customer{n}@example.org" for n in range(3)]
    assert "No dead letters" in page.text


def test_dead_letters_are_purged(page: Page, bridge: Bridge) -> None:
    sent = dead_receipts(bridge, 3)
    page.open(f"letter?id={sent[0].id}")
    assert "hunter2" not in page.text
    assert "secret='***'" in page.text
    assert "Traceback (most recent call last)" in page.text

    page.act("purge", sent[0].id)
    page.browser.sees("Purged 1 dead letter")
    assert sent[0].id not in [entry.id for entry in bridge.dead.list().entries]

    page.open("dead?reason=exhausted")
    page.browser.click("Purge these …")
    page.press("Purge reason=exhausted for good")
    page.browser.sees("Purged 2 dead letters")
    assert bridge.counts().dead == 0


def test_a_queue_is_paused_and_goes_on(page: Page, bridge: Bridge, fixed: Path) -> None:
    fixed.touch()
    page.open("")
    page.act("pause", "email")
    page.browser.sees("Queue email is paused")
    assert [pause.queue for pause in bridge.paused()] == ["email"]
    sent: list[Handle[str]] = []

    def is_known() -> bool:
        """Tell whether a receipt waits while orders, which are sent later, run."""
        sent.append(shop.receipt.send("paused@example.org"))
        return all(shop.order.send(n).result(PATIENCE_S) for n in range(3)) and sent[-1].status().state == "queued"

    until(lambda: all(is_known() for _ in range(3)), "the pause to be known")
    assert is_known()  # and other queues go on
    page.open("")
    page.act("resume", "email")
    page.browser.sees("Queue email goes on")
    assert {each.result(PATIENCE_S) for each in sent} == {"sent to paused@example.org"}


def test_a_run_is_seen_with_its_progress_and_cancelled(page: Page, bridge: Bridge, tmp_path: Path) -> None:
    sent = shop.import_products.send(str(tmp_path / "never"))
    until(lambda: (status := sent.status()).state == "running" and status.progress, "the progress")
    page.open(f"message?id={sent.id}")
    assert "reading <b>products</b>" in page.text
    assert page.browser.evaluate("document.querySelector('progress').value") > 0

    page.shows("shop.import_products", "running")
    page.act("cancel", sent.id)
    page.browser.sees("was told to stop")
    until(lambda: sent.status().is_final, "the end of the run")
    until(lambda: sent.id not in [run.id for run in bridge.operations.running()], "the end to be told")


def test_a_schedule_is_run_now_paused_and_resumed(page: Page, bridge: Bridge) -> None:
    page.open("schedules")
    page.act("run_schedule", "shop.report")
    page.browser.sees("Schedule shop.report is sent as message")
    said: str = page.browser.evaluate("document.querySelector('.said').innerText")
    assert bridge.handle(said.rsplit(maxsplit=1)[-1]).result(PATIENCE_S) == "nothing was sold"

    page.act("pause_schedule", "shop.report")
    page.browser.sees("Schedule shop.report is paused")
    assert [entry.paused for entry in bridge.schedules.list()] == [True]
    page.act("resume_schedule", "shop.report")
    page.browser.sees("Schedule shop.report is active")
    assert [entry.paused for entry in bridge.schedules.list()] == [False]


def test_messages_are_filtered_and_one_is_shown_with_its_attempts(page: Page, bridge: Bridge) -> None:
    (sent,) = dead_receipts(bridge, 1)
    shop.order.send(7).result(PATIENCE_S)
    until(lambda: sent.id in [each.id for each in bridge.operations.messages(state="dead").items], "it to be listed")
    page.open("messages")
    page.browser.fill("input[name=task]", "shop.mail.*")
    page.browser.choose("select[name=state]", "dead")
    page.press("Filter")
    page.browser.sees(sent.id[:8])
    assert "shop.order" not in page.text

    page.browser.click(f'css:a[href$="{sent.id}"]', loads=True)
    page.browser.sees("Attempts")
    assert page.browser.evaluate("document.querySelectorAll('.attempts li').length") == 2
    assert page.text.count("smtp.example.org does not answer") >= 2


def test_a_failed_flow_is_found_retried_and_followed_to_its_end(page: Page, bridge: Bridge, fixed: Path) -> None:
    flow = shop.parcels(1, shop.BROKEN, 2).using(id=f"nightly-{uuid4()}").send()
    until(lambda: flow.status().is_final, "the flow's end")
    page.open("flows?state=failed")
    page.browser.click(f'css:td.name a[href$="{flow.id}"]', loads=True)
    page.browser.sees("nobody packs order 13")
    page.browser.sees("1 of 2")
    fixed.touch()
    page.act("retry_flow", flow.id)
    page.browser.sees(f"Flow {flow.id} goes on")
    page.browser.sees("2 of 2")  # nobody loads it again

    assert flow.result(PATIENCE_S) == "3 parcels go by bike"


def test_a_flow_is_cancelled_while_a_step_of_it_runs(page: Page, bridge: Bridge, tmp_path: Path) -> None:
    flow = shop.import_products.call(str(tmp_path / "never")).then_call(shop.order.call(1)).send()
    until(lambda: flow.status().running and bridge.handle(flow.status().oldest).status().state == "running", "its run")
    page.open("flows?state=running")
    page.act("cancel_flow", flow.id)
    page.browser.sees(f"Flow {flow.id} is cancelled")

    assert flow.status().state == "cancelled"
    until(lambda: not [run for run in bridge.operations.running() if run.task == shop.import_products.name], "its end")


def test_the_page_follows_what_goes_on(page: Page, bridge: Bridge) -> None:
    page.shows(" 0 dead", "")

    dead_receipts(bridge, 3)

    page.browser.sees(" 3 dead")  # nobody loads it again


def test_it_works_without_scripts(page: Page, bridge: Bridge, fixed: Path) -> None:
    sent = dead_receipts(bridge, 1)[0]
    fixed.touch()
    page.browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open("dead")
        assert page.browser.evaluate("typeof refresh") == "undefined"
        page.act("replay", sent.id)
        page.browser.sees("Replayed 1 dead letter")
        assert sent.result(PATIENCE_S) == "sent to customer0@example.org"
    finally:
        page.browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_hostile_texts_do_nothing_and_nothing_overflows(page: Page, bridge: Bridge) -> None:
    sent = shop.hostile.send(shop.HOSTILE)
    until(lambda: sent.status().state == "dead", "the hostile task's end")
    until(lambda: any("<img" in each.task for each in bridge.operations.failures()), "the failure to be told")
    page.shows(shop.HOSTILE[:20], "failures")
    page.shows(shop.HOSTILE[:20], "")
    page.shows(shop.HOSTILE[:20], "messages")
    flow = shop.hostile.call(shop.HOSTILE).then_call(shop.order.call(1)).using(id=shop.HOSTILE).send()
    until(lambda: flow.status().is_final, "the hostile flow's end")
    page.browser.complaints.clear()
    for width in reversed(WIDTHS):
        page.browser.resize(width)
        for path in (*PAGES, f"letter?id={sent.id}", f"message?id={sent.id}", f"flow?id={quote(flow.id)}"):
            page.open(path)
            assert page.browser.evaluate("document.title") != "owned"
            assert not page.browser.is_wider_than_screen(), (path, width)
            if path not in ("running", "schedules", "workers"):
                assert shop.HOSTILE[:20] in page.text, path
    assert page.browser.complaints == []


def test_ten_thousand_are_replayed_staggered(page: Page, bridge: Bridge) -> None:
    for number in range(MANY):
        message = Message(
            id=f"n{number}", task="shop.newsletter", queue="bulk", args_json="[1]", kwargs_json="{}", enqueued_at=1.0
        )
        bridge.broker.bury(DeadLetter(message=message, reason="exhausted", died_at=bridge.now()), timeout_s=PATIENCE_S)
    page.shows("10\N{NARROW NO-BREAK SPACE}000 in all", "dead?task=shop.news*")
    delayed = bridge.counts().delayed

    page.browser.click("Replay these …")
    page.browser.fill("input[name=per_second]", "0.1")
    page.press("Replay task=shop.news*")
    page.browser.sees(f"Replayed {MANY} dead letters")

    counts = bridge.counts()
    assert counts.delayed - delayed >= MANY - 1_000  # some have started by now: each 10 s one
    assert counts.delayed - delayed + counts.dead + counts.waiting["bulk"] <= MANY
