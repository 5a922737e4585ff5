"""The page without a browser: what it answers, whom it obeys, and what it lets through."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import re
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount
from starlette.testclient import TestClient
from werkzeug.test import Client

from taskbridge import Bridge, DeadEntry, ErrorInfo, Event, Every, NotInstalledError, ScheduleEntry, Status
from taskbridge.flows.states import FlowEnd, FlowStatus
from taskbridge.operations import Alarm, Failures, FlowsPage, MessagesPage, QueueNow, Rates, Running, Worker
from taskbridge.pauses import Pause
from taskbridge.stores.states import Attempt, Progress
from taskbridge.web import app, everything, pages, wsgi
from taskbridge.web.acts import ACTS
from tests.web import shop

PAGES: Final = ("", "running", "failures", "messages", "dead", "flows", "schedules", "workers")
NOW: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    """The shop's bridge, with one dead receipt and one order that waits."""
    with shop.bridge.temporarily(url="inline://?threads=0", **shop.SETTINGS):
        shop.receipt.send("ann@example.org", secret="hunter2")
        shop.bridge.run_until_idle()
        shop.order.send(1)
        yield shop.bridge


@pytest.fixture
def client(bridge: Bridge) -> TestClient:
    return TestClient(app(bridge, allow=everything))


class Seen(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.urls: list[str] = []
        self.values: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)
        self.values += [value for name, value in attrs if name == "value"]
        self.urls += [value or "" for name, value in attrs if name in ("href", "src", "action", "formaction")]


def token_of(client: TestClient) -> str:
    [token] = set(re.findall(r'name="token" value="([^"]+)"', client.get("/dead").text))
    return str(token)


def dead_id(bridge: Bridge) -> str:
    return bridge.dead.list().entries[0].id


def test_each_page_is_answered_with_a_strict_policy_and_nothing_inline(client: TestClient, bridge: Bridge) -> None:
    dead, flow = dead_id(bridge), shop.parcels(1, 2).send()
    for path in (*PAGES, f"message?id={dead}", f"letter?id={dead}", f"flow?id={flow.id}"):
        answer = client.get(f"/{path}")
        seen = Seen(answer.text)
        assert answer.status_code == 200, path
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "'unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert seen.tags.count("script") == 1
        assert "style" not in seen.attributes | set(seen.tags)
        assert not [name for name in seen.attributes if name.startswith("on")]
        assert [url for url in seen.urls if not url.startswith("/")] == []
    for name in ("page.css", "page.js", "icon.svg"):
        assert client.get(f"/static/{name}").status_code == 200


def test_the_pages_say_what_there_is(client: TestClient, bridge: Bridge) -> None:
    dead = dead_id(bridge)

    assert "<b>1</b> waiting" in client.get("/").text
    assert "does not answer, for ann@example.org" in client.get("/failures").text
    assert dead in client.get("/messages", params={"state": "dead", "task": "shop.mail.*", "queue": "email"}).text
    assert "No messages" in client.get("/messages", params={"state": "dead", "task": "shop.order"}).text
    message = client.get("/message", params={"id": dead}).text
    assert message.count("<b>Unreachable") + message.count("Unreachable</b>") == 2  # two attempts
    assert "Traceback (most recent call last)" in client.get("/letter", params={"id": dead}).text
    assert "0 3 * * *" in client.get("/schedules").text


def test_arguments_and_errors_are_shown_as_the_redact_function_leaves_them(
    client: TestClient, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = dead_id(bridge)
    for path in ("letter", "message"):
        text = client.get(f"/{path}", params={"id": dead}).text
        assert "hunter2" not in text
        assert "secret=&#39;***&#39;" in text

    def hide(entry: DeadEntry) -> DeadEntry:
        raise RuntimeError

    monkeypatch.setattr(bridge.dead, "_redact", hide)
    flow = shop.receipt.call("ann@example.org").then(shop.hostile).send()
    bridge.run_until_idle()
    assert flow.status().end is not None
    for path in (
        "failures",
        "messages",
        "dead",
        f"message?id={dead}",
        f"letter?id={dead}",
        "flows",
        f"flow?id={flow.id}",
    ):
        assert "ann@example.org" not in client.get(f"/{path}").text, path


# Hostile texts


@pytest.fixture
def hostile(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """The page of a bridge all of whose texts are hostile."""
    evil: Any = shop.HOSTILE  # also for what has few values
    error = ErrorInfo(type=evil, message=evil)
    pause = Pause(queue=None, task=evil, since=NOW, until=NOW)
    attempt = Attempt(number=1, worker=evil, started_at=NOW, ended_at=NOW, error=error)
    status = Status(
        id=evil,
        task=evil,
        queue=evil,
        state=evil,
        enqueued_at=NOW,
        attempts=(attempt,),
        reason=evil,
        error=error,
        progress=Progress(done=1, total=2, note=evil, at=NOW),
        result_json=evil,
        sent=(f'["{evil}"', "{", {evil: evil}),
    )
    entry = DeadEntry(
        id=evil,
        reason=evil,
        task=evil,
        queue=evil,
        priority=evil,
        args=(evil,),
        kwargs={evil: evil},
        headers={evil: evil},
        error=error,
        traceback=evil,
        worker=evil,
        raw=evil.encode(),
    )
    end = FlowEnd(
        id=evil, name=evil, state=evil, step=evil, task=evil, ended=evil, reason=evil, error_type=evil, error=evil
    )
    counts: dict[str, Any] = dict.fromkeys(("total", "waiting", "running", "done", "dead", "discarded", "cancelled"), 1)
    flow = FlowStatus(
        id=evil,
        name=evil,
        state=evil,
        created_at=NOW,
        ended_at=NOW,
        stage=1,
        stages=2,
        oldest=evil,
        end=end,
        parent=evil,
        **counts,
    )
    flows = SimpleNamespace(status=lambda _: flow, steps=lambda *_, **__: [status])
    monkeypatch.setattr(Bridge, "flows", property(lambda _: flows))
    group: dict[str, Any] = {"first_at": NOW, "last_at": NOW, "last_id": evil, "count": 2, "is_dead_count": 1}
    minutes = (1,) * 60
    operations = SimpleNamespace(
        queues=lambda: (QueueNow(name=evil, engine=evil, waiting=1, paused=pause),),
        rates=lambda: Rates(
            started_at=NOW, done=minutes, retried=minutes, dead=minutes, discarded=minutes, by_task={evil: (1, 2, 3)}
        ),
        running=lambda: (Running(task=evil, id=evil, queue=evil, attempt=1, since=NOW, worker=evil),),
        failures=lambda: (Failures(task=evil, error=error, **group),),
        workers=lambda: (
            Worker(name=evil, engine=evil, version=evil, queues=(evil,), slots=1, busy=1, seen_at=NOW, started_at=NOW),
        ),
        messages=lambda **_: MessagesPage(items=(status,), cursor=evil),
        flows=lambda **_: FlowsPage(items=(flow,), cursor=evil),
        alarms=lambda **_: (Alarm(text=evil, level=evil),),
    )
    schedule = ScheduleEntry(name=evil, task=evil, timing=Every(60), next_runs=(NOW,), last_id=evil, source=evil)
    monkeypatch.setattr(Bridge, "operations", property(lambda _: operations))
    monkeypatch.setattr(bridge, "paused", lambda: (pause,))
    monkeypatch.setattr(bridge, "handle", lambda _: SimpleNamespace(status=lambda: status))
    monkeypatch.setattr(bridge, "queues", lambda: (evil,))
    monkeypatch.setattr(bridge.schedules, "list", lambda: [schedule])
    monkeypatch.setattr(bridge.dead, "list", lambda **_: SimpleNamespace(entries=(entry,), next=evil))
    monkeypatch.setattr(bridge.dead, "get", lambda _: entry)
    return TestClient(app(bridge, allow=everything))


def test_hostile_texts_are_shown_and_do_nothing(hostile: TestClient) -> None:
    queries = {"messages": {"task": shop.HOSTILE, "queue": shop.HOSTILE}, "dead": {"task": shop.HOSTILE}}
    for page in (*PAGES, "message", "letter", "flow"):
        answer = hostile.get(f"/{page}", params={"id": "m1", **queries.get(page, {})})
        seen = Seen(answer.text)
        assert answer.status_code == 200, answer.text
        assert "&lt;script&gt;document.title" in answer.text
        assert (seen.tags.count("script"), seen.tags.count("img")) == (1, 1)
        assert "onerror" not in seen.attributes
        assert "<script>document" not in answer.text


def test_a_chart_has_a_bar_for_each_minute(hostile: TestClient) -> None:
    assert hostile.get("/").text.count("v-40.0h3v40.0z") == 4 * 60


def test_a_flow_shows_how_far_it_has_come(client: TestClient, bridge: Bridge) -> None:
    flow = shop.parcels(*range(100, 160)).using(id="nightly").send()
    assert 'aria-label="0 of 61 steps are done"' in client.get("/flows", params={"state": "running"}).text
    bridge.run_until_idle()

    assert flow.result(timeout=0) == "60 parcels go by bike"
    assert "nightly" not in client.get("/flows", params={"state": "running"}).text
    assert "61/61" in client.get("/flows", params={"state": "done"}).text
    first = client.get("/flow", params={"id": "nightly"}).text
    assert 'aria-label="61 of 61 steps are done"' in first
    assert "2 of 2" in first
    more = [urlsplit(url) for url in Seen(first).urls if "first=" in url]
    assert [parse_qs(url.query) for url in more] == [{"id": ["nightly"], "first": ["50"]}]
    rest = client.get(f"/flow?{more[0].query}").text
    assert first.count('<td class="name">') == 50
    assert rest.count('<td class="name">') == 11
    assert rest.count("shop.ship</a>") == 1
    ids = [set(re.findall(r'title="([0-9a-f-]{36})"', text)) for text in (first, rest)]
    assert (len(ids[0] | ids[1]), ids[0] & ids[1]) == (61, set())


def test_flows_are_listed_page_by_page(client: TestClient) -> None:
    ids = [shop.parcels(number).using(id=f"flow-{number}").send().id for number in range(60)]

    text, shown = client.get("/flows").text, list[str]()
    for _ in range(2):
        shown += re.findall(r'class="id" href="[^"]*" title="([^"]+)"', text)
        [older] = [url for url in Seen(text).urls if "cursor=" in url] or [""]
        text = client.get(older).text if older else ""

    assert shown == ids[::-1]
    assert client.get("/flows", params={"state": "odd"}).status_code == 200


def test_a_failed_flow_says_why_and_is_retried(
    client: TestClient, bridge: Bridge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flow = shop.parcels(1, shop.BROKEN, 2).send()
    bridge.run_until_idle()
    for path in ("flows?state=failed", f"flow?id={flow.id}"):
        text = client.get(f"/{path}").text
        assert "<b>tests.web.shop.Unreachable</b> nobody packs order 13" in text
        assert "/act/retry_flow" in text
        assert "/act/cancel_flow" not in text
    (tmp_path / "fixed").touch()
    monkeypatch.setenv("SHOP_FIXED", str(tmp_path / "fixed"))

    said = client.post("/act/retry_flow", data={"token": token_of(client), "target": flow.id}).text
    assert f"Flow {flow.id} goes on" in said
    bridge.run_until_idle()

    assert flow.result(timeout=0) == "3 parcels go by bike"
    assert "/act/" not in client.get("/flow", params={"id": flow.id}).text.replace("/act/none", "")


def test_control_characters_and_long_texts_are_bounded(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(shop, "HOSTILE", "\x1b[2J\u202eevil" + "x" * 100_000)

    text = request.getfixturevalue("hostile").get("/running").text

    shown = re.sub(r' value="[^"]*"', "", text)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert r"\x1b[2J\u202eevil" in text
    assert len(text) < 20_000


def test_links_and_forms_bring_back_what_they_are_about(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    odd = "\x1b\u202e<\"'&+ " + "\N{SNOWMAN}" * 200
    monkeypatch.setattr(shop, "HOSTILE", odd)
    client: TestClient = request.getfixturevalue("hostile")

    for path in ("", "failures", "messages", "dead"):
        seen = Seen(client.get(f"/{path}", params={"task": odd}).text)
        assert odd in seen.values, path
        assert any(odd in parse_qs(urlsplit(url).query).get("task", ()) for url in seen.urls), path
    for path in ("messages", "dead"):
        assert client.get(f"/{path}", params={"task": "x" * 256}).status_code == 404


def test_to_pause_a_task_pauses_no_other_whatever_its_name(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(shop, "HOSTILE", "*")
    client: TestClient = request.getfixturevalue("hostile")

    for path in ("", "failures"):
        assert "[*]" in Seen(client.get(f"/{path}").text).values, path


def test_what_is_said_after_an_act_is_signed(client: TestClient) -> None:
    client.cookies.set("taskbridge_said", "Your%20password%20is%20wrong.c2lnbmF0dXJl")

    assert "password" not in client.get("/").text


def test_what_is_said_after_an_act_is_no_token_of_a_form(client: TestClient) -> None:
    form = {"token": token_of(client), "target": "email"}
    assert client.post("/act/pause", data=form, follow_redirects=False).status_code == 303
    said = client.cookies["taskbridge_said"]
    client.cookies.clear()
    client.cookies.set("taskbridge_forms", said)

    assert client.post("/act/resume", data={**form, "token": said}).status_code == 403


# Who may do what


def test_by_default_nothing_can_be_done_and_each_try_is_logged(
    bridge: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    client = TestClient(app(bridge))
    pages_read = [client.get(f"/{path}").text for path in (*PAGES, f"letter?id={dead_id(bridge)}")]
    token = token_of(client)
    before = bridge.counts()

    assert not [text for text in pages_read if "formaction" in text]
    for name in ACTS:
        caplog.clear()
        form = {"token": token, "target": dead_id(bridge)}
        assert client.post(f"/act/{name}", data=form).status_code == 403
        assert [record.levelname for record in caplog.records if f"may not do {name}" in record.message] == ["WARNING"]
    assert bridge.counts() == before
    assert bridge.paused() == ()


def test_reading_can_be_forbidden(bridge: Bridge, caplog: pytest.LogCaptureFixture) -> None:
    client = TestClient(app(bridge, allow=lambda request, action, target: target != "dead"))

    assert client.get("/").status_code == 200
    assert client.get("/dead").status_code == 403
    assert "- may not do read: dead" in caplog.text


def test_a_form_needs_the_token_of_its_own_browser(bridge: Bridge) -> None:
    client, other = TestClient(app(bridge, allow=everything)), TestClient(app(bridge, allow=everything))
    dead, token = dead_id(bridge), token_of(client)
    forged = "".join(reversed(token))

    for given in ({}, {"token": ""}, {"token": token_of(other)}, {"token": forged}):
        assert client.post("/act/purge", data={"target": dead, **given}).status_code == 403
    for cookie in ("", forged, "a.b"):
        stranger = TestClient(app(bridge, allow=everything), cookies={"taskbridge_forms": cookie})
        assert stranger.post("/act/purge", data={"target": dead, "token": cookie}).status_code == 403
    form = {"target": dead, "token": token}
    assert client.post("/act/purge", data=form, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert bridge.counts().dead == 1
    assert client.post("/act/purge", data=form, follow_redirects=False).status_code == 303
    assert bridge.counts().dead == 0
    assert client.get("/act/purge").status_code in (404, 405)


def test_what_is_said_replaces_what_was_said_before(client: TestClient) -> None:
    form = {"token": token_of(client), "target": "email"}
    for _ in range(2):
        answer = client.post("/act/pause", data=form, follow_redirects=False)
        cookies = answer.headers.get_list("set-cookie")
        assert [each.partition("%")[0] for each in cookies] == ["taskbridge_said=Queue"]


def test_no_token_tells_the_password_of_the_broker_quickly(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    stretched: list[bytes] = []
    stretch = hashlib.scrypt

    def counted(password: bytes, **how: Any) -> bytes:
        stretched.append(password)
        return stretch(password, **how)

    monkeypatch.setattr(hashlib, "scrypt", counted)
    client, other = TestClient(app(bridge, allow=everything)), TestClient(app(bridge, allow=everything))
    token = token_of(client)
    other.cookies.set("taskbridge_forms", token)

    assert token_of(other) == token  # any process that serves the page takes it
    assert len(stretched) == 2  # once in each app
    key, text = stretched[0], token.rpartition(".")[0]
    for signed in (text, f"taskbridge_forms={text}"):
        quick = base64.urlsafe_b64encode(hmac.digest(key, signed.encode(), "sha256")).decode().rstrip("=")
        assert token != f"{text}.{quick}"


def test_the_cookie_is_kept_from_scripts_and_other_sites(bridge: Bridge) -> None:
    cookie = TestClient(app(bridge), base_url="https://shop.example").get("/").headers["set-cookie"]

    for word in ("HttpOnly", "SameSite=strict", "Secure"):
        assert word in cookie


def test_each_act_is_done_told_and_logged_with_who(bridge: Bridge, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "taskbridge")
    told: list[tuple[str, str, str]] = []

    def tell(event: Event) -> None:
        told.append((event.operator, event.action, event.target))

    async def with_user(scope: Any, receive: Any, send: Any) -> None:
        scope["user"] = SimpleNamespace(display_name="ann")
        await page(scope, receive, send)

    page = app(bridge, allow=lambda request, action, target: request.user.display_name == "ann")
    client = TestClient(with_user)
    token, dead = token_of(client), dead_id(bridge)

    def act(name: str, **form: str) -> str:
        return client.post(f"/act/{name}", data={"token": token, **form}).text

    with bridge.hooks.added("operated", tell):
        assert "Replayed 1 dead letter" in act("replay", target=dead)
        bridge.run_until_idle()
        assert "Replayed 1 dead letter" in act("replay_all", task="shop.mail.*", per_second="0.001")
        bridge.run_until_idle()
        assert "Purged 1 dead letter" in act("purge", target=dead)
        shop.receipt.send("bob@example.org")
        bridge.run_until_idle()
        assert "Purged 1 dead letter" in act("purge_all", reason="exhausted")
        waiting = shop.order.send(2)
        assert "is cancelled" in act("cancel", target=waiting.id)
        assert "is paused" in act("pause", target="email")
        assert [each.queue for each in bridge.paused()] == ["email"]
        assert "goes on" in act("resume", target="email")
        assert "Every task that matches shop.* is paused" in act("pause_task", target="shop.*")
        assert "Every task that matches shop.* goes on" in act("resume_task", target="shop.*")
        assert "Schedule shop.report is paused" in act("pause_schedule", target="shop.report")
        assert "Schedule shop.report is active" in act("resume_schedule", target="shop.report")
        assert "Schedule shop.report is sent as message" in act("run_schedule", target="shop.report")
        flow = shop.parcels(shop.BROKEN).send()
        bridge.run_until_idle()
        assert "goes on" in act("retry_flow", target=flow.id)
        assert "is cancelled" in act("cancel_flow", target=flow.id)

    assert {action for _, action, _ in told} == set(ACTS)
    assert {operator for operator, _, _ in told} == {"ann"}
    assert ("ann", "replay_all", "task=shop.mail.*") in told
    assert "ann did pause: email" in caplog.text


@pytest.mark.parametrize(
    ("action", "form", "said"),
    [
        ("replay", {"target": "x" * 256}, "no message&#39;s or flow&#39;s id"),
        ("pause", {"target": "nowhere"}, "is not known"),
        ("replay_all", {"per_second": "fast"}, "must be a number above 0"),
        ("replay_all", {"per_second": "-1"}, "must be above 0"),
        ("run_schedule", {"target": "never"}, "there is no schedule"),
        ("cancel_flow", {"target": "unknown"}, "nothing is known"),
        ("cancel_flow", {"target": "DONE"}, "too late: flow .* is done"),
        ("retry_flow", {"target": "DONE"}, "nothing to retry: flow .* is done"),
        ("cancel", {"target": "unknown"}, "nothing is known"),
        ("cancel", {"target": "DEAD"}, "too late: message .* is dead"),
        ("replay", {"target": "unknown"}, "1 dead letter is not there any more: unknown"),
        ("replay_all", {"task": "none"}, "nothing to replay"),
        ("purge", {"target": "unknown"}, "nothing to purge"),
        ("purge_all", {"task": "none"}, "nothing to purge"),
        ("resume", {"target": "email"}, "was not paused"),
        ("resume_task", {"target": "shop.*"}, "every task that matches shop.\\* was not paused"),
    ],
)
def test_what_cannot_be_done_is_said_logged_and_told_to_nobody(
    client: TestClient,
    bridge: Bridge,
    caplog: pytest.LogCaptureFixture,
    action: str,
    form: dict[str, str],
    said: str,
) -> None:
    told: list[Event] = []
    if form.get("target") == "DEAD":
        form = {"target": dead_id(bridge)}
    if form.get("target") == "DONE":
        form = {"target": shop.parcels(1).send().id}
        bridge.run_until_idle()
    with bridge.hooks.added("operated", told.append):
        text = client.post(f"/act/{action}", data={"token": token_of(client), **form}).text

    assert re.search(f"Not done: .*{said}", text)
    assert told == []
    assert f"- tried {action}: " in caplog.text


def test_a_long_form_and_an_odd_one_are_refused(client: TestClient) -> None:
    assert client.post("/act/replay", data={"target": "x" * 20_000}).status_code == 413
    assert client.post("/act/replay", content=b"\xff\xfe=%zz").status_code == 403
    assert client.post("/act/nothing", data={"token": token_of(client)}).status_code == 404


@pytest.mark.parametrize("id", ["", "\x00", "x" * 300, "../../etc/passwd", "unknown"])
def test_an_odd_id_is_not_found(client: TestClient, id: str) -> None:
    for page in ("message", "letter", "flow"):
        assert client.get(f"/{page}", params={"id": id}).status_code == 404


def test_an_odd_place_in_a_list_is_not_found(client: TestClient) -> None:
    for odd in ("x", "nan", "-inf", "1e999"):
        assert client.get("/dead", params={"after": f"{odd}:m1"}).status_code == 404
        assert client.get("/messages", params={"cursor": f"{odd} m1"}).status_code == 404
        assert client.get("/flows", params={"cursor": f"{odd} f1"}).status_code == 404
    flow = shop.parcels(1).send()
    for odd in ("x", "-1", "\N{SUPERSCRIPT TWO}", "1" * 10, "1e3"):
        assert client.get("/flow", params={"id": flow.id, "first": odd}).status_code == 404
    assert client.get("/flow", params={"id": flow.id, "first": "999999999"}).status_code == 200
    assert client.get("/nothing").status_code == 404


# What is missing


def test_what_needs_a_setting_is_named(bridge: Bridge) -> None:
    with bridge.temporarily(listing=False):
        answer = TestClient(app(bridge)).get("/messages")
    assert "listing=True" in answer.text

    without_store = Bridge("celery+amqp://guest:guest@127.0.0.1:1//", send_timeout=0.2)
    client = TestClient(app(without_store))
    for page in ("running", "failures", "messages", "flows", "workers"):
        answer = client.get(f"/{page}")
        assert answer.status_code == 200
        assert "TASKBRIDGE_STORE" in answer.text
    assert client.get("/").status_code == 503


def test_many_viewers_cost_as_little_as_one(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_RECENT_S", 3600.0)
    asked: list[str] = []
    queues = bridge.operations.queues

    def counted(_: object) -> object:
        asked.append("queues")
        return queues()

    monkeypatch.setattr(type(bridge.operations), "queues", counted)
    client = TestClient(app(bridge, allow=everything))

    for _ in range(20):
        client.get("/")
    first = len(asked)
    client.post("/act/pause", data={"token": token_of(client), "target": "vip"})

    assert first == 1
    assert client.get("/").text.count('class="state paused"') == 1  # an act is seen at once


def test_an_answer_that_was_asked_for_before_an_act_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_RECENT_S", 3600.0)
    recent, asked, goes_on = pages._Recent(), threading.Event(), threading.Event()

    def slow() -> str:
        asked.set()
        goes_on.wait(60)
        return "old"

    viewer = threading.Thread(target=recent.get, args=("queues", slow))
    viewer.start()
    assert asked.wait(60)
    recent.forget()
    goes_on.set()
    viewer.join(60)

    assert recent.get("queues", lambda: "new") == "new"


# Where it stands


def test_it_can_be_mounted_under_a_prefix(bridge: Bridge) -> None:
    outer = Starlette(routes=[Mount("/ops/tasks", app(bridge, allow=everything))])
    client = TestClient(outer)
    text = client.get("/ops/tasks/dead").text
    [token] = set(re.findall(r'name="token" value="([^"]+)"', text))
    form = {"token": token, "target": dead_id(bridge)}

    assert [url for url in Seen(text).urls if not url.startswith("/ops/tasks/")] == []
    assert client.get("/ops/tasks/static/page.css").status_code == 200
    for came, goes in (
        ("http://testserver/ops/tasks/messages?state=dead", "/ops/tasks/messages?state=dead"),
        ("http://evil.example/ops/tasks//evil.example", "/ops/tasks/dead"),
        ("http://evil.example/elsewhere", "/ops/tasks/dead"),
        ("", "/ops/tasks/dead"),
    ):
        headers = {"Referer": came}
        answer = client.post("/ops/tasks/act/replay", data=form, headers=headers, follow_redirects=False)
        assert answer.headers["location"] == goes


def test_it_is_a_wsgi_app_too(bridge: Bridge) -> None:
    told: list[str] = []

    def allow(request: Request, action: str, target: str) -> bool:
        return bool(request.scope["wsgi_environ"]["REMOTE_USER"] == "bob")

    client = Client(wsgi(bridge, allow=allow))
    outside: dict[str, Any] = {"base_url": "http://shop.example/ops", "environ_overrides": {"REMOTE_USER": "bob"}}
    text = client.get("/dead", **outside).text
    [token] = set(re.findall(r'name="token" value="([^"]+)"', text))
    form = {"token": token, "target": dead_id(bridge)}

    with bridge.hooks.added("operated", lambda event: told.append(event.operator)):
        answer = client.post("/act/purge", data=form, **outside)

    assert [url for url in Seen(text).urls if not url.startswith("/ops/")] == []
    assert (answer.status_code, answer.headers["location"]) == (303, "/ops/dead")
    assert (told, bridge.counts().dead) == (["bob"], 0)
    mallory = {**outside, "environ_overrides": {"REMOTE_USER": "mallory"}}
    assert client.get("/dead", **mallory).status_code == 403


def test_a_missing_library_is_named(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "a2wsgi", None)

    with pytest.raises(NotInstalledError, match=re.escape("taskbridge-queue[web]")):
        wsgi(bridge)
