"""A real browser: Debian's chromium without a window, told what to do in the DevTools protocol, over a pipe.

It needs no driver of the browser's version and no package. Each act waits until the page has what it acts on.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from taskbridge.contract import leftovers

PATIENCE_S: Final = 120.0
_PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS: Final = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # else it refuses to run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little of it
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--lang=en",
)

# Finds what is visible and enabled, by a CSS selector or by the whole text of a button, link, label or other element.
_FIND: Final = """
(what => {
    const seen = each => each.checkVisibility() && !each.disabled;
    const said = each => (each.value && each.type === "submit" ? each.value : each.innerText || "").trim();
    const like = "a, button, input[type=submit], summary, label, [role=button]";
    const found = what.startsWith("css:")
        ? [...document.querySelectorAll(what.slice(4))]
        : [...document.querySelectorAll(like)].filter(each => said(each).toLowerCase() === what.toLowerCase());
    return found.find(seen);
})(%s)
"""


class NoBrowser(Exception):
    """Chromium is not installed."""


class Browser:
    """A browser with one page, which is forgotten with its folder.

    Attributes:
        complaints: What the browser has said of pages, such as what their content security policy forbids.
    """

    def __init__(self, folder: Path) -> None:
        program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
        if program is None:
            raise NoBrowser("chromium is not installed: apt-get install chromium")
        self._log = folder / "chromium.log"
        folder.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            # It reads commands from descriptor 3, and writes what comes of them to 4.
            self._process = subprocess.Popen(
                ["sh", "-c", 'exec "$0" "$@" 3<&0 4>&1 1>&2', program, *_OPTIONS, f"--user-data-dir={folder}/profile"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        leftovers.end_group(self._process.pid)
        self._number = 0
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        self.complaints: list[str] = []
        self.call("Log.enable")

    def _read(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while part := os.read(self._process.stdout.fileno(), 65536):
            *whole, rest = (rest + part).split(b"\0")
            for each in whole:
                self._answers.put(json.loads(each))
        self._answers.put(None)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return what a method of the protocol answers; of events that come meanwhile, complaints are kept."""
        assert self._process.stdin is not None
        self._number += 1
        self._process.stdin.write(
            json.dumps({"id": self._number, "method": method, "params": params, **self._session}).encode() + b"\0"
        )
        self._process.stdin.flush()
        while True:
            answer = self._answers.get(timeout=PATIENCE_S)
            assert answer is not None, f"chromium has ended:\n{self._log.read_text(errors='replace')[-3000:]}"
            if answer.get("method") == "Log.entryAdded":
                self.complaints.append(answer["params"]["entry"]["text"])
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression of JavaScript in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, what: str = "") -> Any:
        """Wait until an expression is true in the page, and return its value."""
        deadline, problem = time.monotonic() + PATIENCE_S, ""
        while True:
            try:
                if value := self.evaluate(script):
                    return value
            except AssertionError as exc:  # while one page takes the place of another, there is none to ask
                problem = str(exc)
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {what or script} {problem}\n{self._told()}")
            time.sleep(0.02)

    def _told(self) -> str:
        with suppress(AssertionError):
            return f"{self.evaluate('location.href')}\n{self.text()}"
        return ""

    def open(self, url: str) -> None:
        """Load a page, to its end."""
        answer = self.call("Page.navigate", url=url)
        assert not answer.get("errorText"), f"{url}: {answer['errorText']}"
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'", url)

    def text(self) -> str:
        """Return what the page says, as it is seen."""
        return str(self.evaluate("document.body.innerText"))

    def sees(self, text: str) -> None:
        """Wait until a loaded page says something, in one line or several."""
        said = r"document.body.innerText.replaceAll('\n', ' ')"
        script = f"document.readyState === 'complete' && {said}.includes({json.dumps(text)})"
        self.until(script, f"the text {text!r}")

    def click(self, what: str, *, loads: bool = False) -> None:
        """Click with the mouse on a button, link or label with this text, or on `css:SELECTOR`.

        Args:
            what: It must be visible, and nothing may cover it.
            loads: Whether to wait for the page that takes this one's place.
        """
        script = f"""(() => {{
            const found = {_FIND % json.dumps(what)};
            if (document.readyState !== "complete" || !found) return null;
            found.scrollIntoView({{block: "center", behavior: "instant"}});
            found.focus({{preventScroll: true}});  // nothing that refreshes itself is replaced under the pointer
            const {{left, top, width, height}} = found.getClientRects()[0];  // of a link, its first line
            const [x, y] = [left + width / 2, top + height / 2];
            const there = document.elementFromPoint(x, y);
            if (!found.contains(there)) return null;
            window.isFormer = {json.dumps(loads)};
            return [x, y];
        }})()"""
        x, y = self.until(script, f"{what!r} to click on")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        if loads:
            self.until("!window.isFormer && document.readyState === 'complete'", f"the page after {what!r}")

    def fill(self, selector: str, text: str) -> None:
        """Write text into a field, in the place of what it holds, as by keyboard."""
        self.click(f"css:{selector}")
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Choose the option with a value in a `select`."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.until(f"{field} && [...{field}.options].some(each => each.value === {json.dumps(value)})", selector)
        self.evaluate(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('change'))")

    def resize(self, width: int, height: int = 800) -> None:
        """Have the page be so wide and high, in pixels."""
        is_mobile = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_mobile
        )

    def is_wider_than_screen(self) -> bool:
        """Return whether the whole page must be scrolled sideways."""
        # Not `innerWidth`: a small screen zooms out until it holds what is too wide.
        return bool(self.evaluate("document.scrollingElement.scrollWidth > document.documentElement.clientWidth"))

    def screenshot(self, path: Path) -> None:
        """Keep a picture of what is visible, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        with suppress(AssertionError, OSError, queue.Empty):
            self._session = {}
            self.call("Browser.close")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


@contextmanager
def browser(folder: Path) -> Generator[Browser]:
    """Have a browser while the block runs."""
    made = Browser(folder)
    try:
        yield made
    finally:
        made.close()
