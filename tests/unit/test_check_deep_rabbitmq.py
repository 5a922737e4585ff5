"""`taskbridge check --deep` on RabbitMQ: each thing that puts messages at risk is one line, and exit code 1."""

from __future__ import annotations

import json
import re
import threading
import uuid
from base64 import b64encode
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import pika
import pytest

from taskbridge.brokers.base import Remark
from taskbridge.brokers.rabbitmq.examination import judge, policies_on
from taskbridge.brokers.rabbitmq.publication import Encoder
from taskbridge.contract.ports import free_port
from taskbridge.settings import load
from tests.servers import PrivateRabbitMQ
from tests.unit.command_line import Run, runner

QUORUM: Mapping[str, Any] = {"x-queue-type": "quorum"}
CLASSIC: Mapping[str, Any] = {"x-queue-type": "classic"}


def policy(definition: Mapping[str, Any], pattern: str = ".*", to: str = "queues", priority: int = 0) -> dict[str, Any]:
    return {"pattern": pattern, "definition": definition, "apply-to": to, "priority": priority}


@pytest.mark.parametrize(
    ("arguments", "definition", "says"),
    [
        (QUORUM, {"message-ttl": 22000}, ["message-ttl=22000 for shop.dead: messages vanish"]),
        (CLASSIC, {"expires": 1000}, ["expires=1000"]),
        (CLASSIC, {"max-length": 50}, ["max-length=50 for shop.dead: what is more"]),
        (CLASSIC, {"max-length-bytes": 9, "message-ttl": 1}, ["max-length-bytes=9", "message-ttl=1"]),
        (CLASSIC, {"max-length": 50, "overflow": "drop-head"}, ["max-length=50"]),
        (CLASSIC, {"max-length": 50, "overflow": "reject-publish"}, []),
        ({**CLASSIC, "x-overflow": "reject-publish"}, {"max-length": 50}, []),
        (QUORUM, {"delivery-limit": 3}, ["delivery-limit=3"]),
        (QUORUM, {"delivery-limit": 20}, ["delivery-limit=20"]),
        (QUORUM, {"delivery-limit": -1}, []),
        (CLASSIC, {"delivery-limit": 3}, []),
        (CLASSIC, {"ha-mode": "all", "queue-mode": "lazy"}, []),
    ],
)
@pytest.mark.parametrize("kind", [0, 1])
def test_policies_are_judged(arguments: Any, definition: dict[str, Any], says: Sequence[str], kind: int) -> None:
    policies: list[list[dict[str, Any]]] = [[], []]
    policies[kind].append(policy(definition))
    found = [each.text for each in judge({"shop.dead": arguments}, policies, "shop.") if each.outcome == "failed"]
    assert len(found) == len(says)
    for text, part in zip(sorted(found), says, strict=True):
        assert part in text
        assert "'shop.'" in text


@pytest.mark.parametrize(
    ("policies", "is_harmed"),
    [
        ([policy({"expires": 1}, "^shop")], True),
        ([policy({"expires": 1}, "dead$")], True),
        ([policy({"expires": 1}, "^(?!shop)")], False),
        ([policy({"expires": 1}, "^dead")], False),
        ([policy({"expires": 1}, to="exchanges")], False),
        ([policy({"expires": 1}, to="all")], True),
        ([policy({"expires": 1}, to="classic_queues")], True),
        ([policy({"expires": 1}, to="quorum_queues")], False),
        ([policy({"expires": 1}, priority=1), policy({}, "^shop", priority=2)], False),
        ([policy({"expires": 1}, priority=3), policy({}, "^shop", priority=2)], True),
    ],
)
def test_the_policy_of_the_highest_priority_that_matches_applies(policies: Any, is_harmed: bool) -> None:
    found = list(judge({"shop.dead": CLASSIC}, [policies, []], "shop."))
    assert [each.outcome for each in found] == (["failed"] if is_harmed else ["ok"])


def test_what_is_refused_by_one_policy_is_not_lost_by_the_other() -> None:
    policies = [[policy({"overflow": "reject-publish"})], [policy({"max-length": 5})]]
    assert [each.outcome for each in judge({"shop.dead": CLASSIC}, policies, "shop.")] == ["ok"]


def test_one_policy_for_many_queues_is_one_line() -> None:
    declared = {f"shop.delay.{number}": QUORUM for number in range(9)}
    [found] = judge(declared, [[policy({"message-ttl": 22000})], []], "shop.")
    assert "for shop.delay.0, shop.delay.1, shop.delay.2 and 6 more: " in found.text


class _Hostile(BaseHTTPRequestHandler):
    """Answers what the server holds, and remembers who asked."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append(self.headers.get("Authorization"))
        self.wfile.write(server.answer)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def answering(answer: bytes) -> Generator[Any]:
    """Give an HTTP server that answers everything with these bytes."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Hostile)
    server.answer, server.asked = answer, []
    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def looked_at(server: Any) -> list[Remark]:
    settings, _ = load({"url": "dramatiq+amqp://guest:guest@127.0.0.1:1"}, environ={})
    wire: Any = SimpleNamespace(engine="dramatiq")
    queues, login = {"shop.q": CLASSIC}, pika.ConnectionParameters("127.0.0.1")
    api = f"http://127.0.0.1:{server.server_port}"
    return list(policies_on(queues, Encoder(settings, wire), login, management=api, timeout_s=20))


def said(body: object) -> bytes:
    return b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(body).encode()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"AMQP\0\0\x09\x01", r"127\.0\.0\.1:\d+: BadStatusLine: AMQP"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", "JSONDecodeError"),
        (said({"error": "bad_request"}), "TypeError"),
        (said([{"pattern": "a"}]), "KeyError: 'apply-to'"),
        (said([policy({"message-ttl": 1}, r"^\Qshop.\E")]), r"Qshop.*: \w*[eE]rror: "),
        (said([policy({"delivery-limit": "x", "max-length": 5, "overflow": 3})]), "AttributeError"),
    ],
)
def test_an_answer_that_is_not_understood_is_a_note(answer: bytes, says: str) -> None:
    with answering(answer) as server:
        [found] = looked_at(server)
    assert (found.subject, found.outcome) == ("policies", "note")
    assert re.search(says, found.text)
    assert found.text.isprintable()


def test_who_asks_is_told_to_no_other_host() -> None:
    with answering(said([])) as other:
        there = f"http://127.0.0.1:{other.server_port}/".encode()
        with answering(b"HTTP/1.0 302 Found\r\nLocation: " + there + b"\r\n\r\n") as server:
            looked_at(server)
    assert server.asked[0] == f"Basic {b64encode(b'guest:guest').decode()}"
    assert set(other.asked) == {None}


# On a server


class ManagedRabbitMQ(PrivateRabbitMQ):
    """A server with its management API."""

    def __init__(self) -> None:
        self.api_port = free_port()
        super().__init__(extra_config=(f"management.tcp.port = {self.api_port}", "management.tcp.ip = 127.0.0.1"))

    def _prepare(self) -> None:
        super()._prepare()
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    def tell(self, method: str, path: str, body: Any = None) -> Any:
        """Ask something of the API, which is a hundred times faster than `ctl`."""
        login = {"Authorization": f"Basic {b64encode(b'guest:guest').decode()}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(f"{self.api}/api/{path}", data, login, method=method), timeout=180) as answer:
            return json.loads(answer.read() or b"null")

    def _is_ready(self) -> bool:
        with suppress(OSError):
            return super()._is_ready() and bool(self.tell("GET", "overview"))
        return False


@pytest.fixture(scope="module")
def server() -> Iterator[ManagedRabbitMQ]:
    with ManagedRabbitMQ() as started:
        yield started


class Host:
    """A virtual host of the test's own, and its user."""

    def __init__(self, server: ManagedRabbitMQ) -> None:
        self.server = server
        self.name = f"deep-{uuid.uuid4().hex[:8]}"
        self.make()

    def make(self, **options: str) -> None:
        self.server.tell("PUT", f"vhosts/{self.name}", options)
        self.permit("guest", ".*", ".*", ".*")

    def permit(self, user: str, configure: str, write: str, read: str) -> None:
        self.server.tell(
            "PUT", f"permissions/{self.name}/{user}", {"configure": configure, "write": write, "read": read}
        )

    def url(self, engine: str = "celery", user: str = "guest:guest") -> str:
        return f"{engine}+{self.server.url}".replace("%2F", self.name).replace("guest:guest", user)

    def user(self, *patterns: str) -> str:
        """Make a user with these permissions, and without the API, and return its name and password."""
        self.server.tell("PUT", f"users/{self.name}", {"password": "hidden", "tags": ""})
        self.permit(self.name, *patterns)
        return f"{self.name}:hidden"

    def queues(self) -> set[str]:
        return {each["name"] for each in self.server.tell("GET", f"queues/{self.name}?columns=name")}

    def declare(self, queue: str, **arguments: Any) -> None:
        self.server.tell("PUT", f"queues/{self.name}/{queue}", {"durable": True, "arguments": arguments})


@pytest.fixture
def host(server: ManagedRabbitMQ) -> Iterator[Host]:
    made = Host(server)
    yield made
    server.tell("DELETE", f"vhosts/{made.name}")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "shop.py").write_text("from taskbridge import task\n\n@task\ndef mail() -> None: ...\n")
    return runner(tmp_path, TASKBRIDGE_SEND_TIMEOUT="20")


def found(run: Run, url: str, *arguments: str) -> tuple[list[list[str]], int, dict[str, str]]:
    """Return what `check --deep` found to be wrong (subject, text), its exit code, and its notes by subject."""
    done = run("check", "shop", "--deep", "--json", *arguments, TASKBRIDGE_URL=url)
    assert done.stdout, done.stderr
    assert "hidden" not in done.stdout + done.stderr
    findings: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    assert not any("\n" in each["text"] for each in findings)
    wrong = [[each["subject"], each["text"]] for each in findings if each["outcome"] in ("failed", "error", "warning")]
    return wrong, done.returncode, {each["subject"]: each["text"] for each in findings if each["outcome"] == "note"}


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_all_is_well_whatever_the_default_type_and_nothing_is_left(run: Run, host: Host, engine: str) -> None:
    host.make(default_queue_type="quorum")
    wrong, code, notes = found(run, host.url(engine))
    assert (wrong, code) == ([], 0)
    assert "--management URL" in notes["policies"]
    assert not {name for name in host.queues() if "check" in name}


def test_a_queue_of_another_type_is_told(run: Run, host: Host) -> None:
    host.declare("taskbridge.celery.default", **{"x-queue-type": "quorum"})
    [[subject, text]], code, _ = found(run, host.url())
    assert (subject, code) == ("queues", 1)
    assert "taskbridge.celery.default" in text


@pytest.mark.parametrize(
    ("patterns", "subject", "says"),
    [
        (("^taskbridge[-.]", "^taskbridge[-.]", "^taskbridge[-.]"), "sending", "amq.default"),
        (("^$", "^(amq\\.default|taskbridge[-.].*)$", "^taskbridge[-.]"), "queues", "taskbridge.celery.default"),
        (("^taskbridge[-.]", "^(amq\\.default|taskbridge[-.].*)$", "^$"), "queues", "taskbridge.due"),
    ],
)
def test_a_missing_permission_is_told(run: Run, host: Host, patterns: Sequence[str], subject: str, says: str) -> None:
    wrong, code, _ = found(run, host.url(user=host.user(*patterns)))
    assert code == 1
    assert wrong[0][0] == subject, wrong
    assert says in wrong[0][1]
    assert "Security" in wrong[0][1]


@pytest.mark.parametrize(
    ("kind", "pattern", "definition", "says"),
    [
        ("policies", ".*", {"message-ttl": 22000}, r"message-ttl=22000 for taskbridge\.\S+, "),
        ("operator-policies", "^taskbridge.delay", {"message-ttl": 9000}, r"message-ttl=9000 for taskbridge\.delay\.0"),
        ("operator-policies", "celery", {"max-length": 50}, r"max-length=50 for taskbridge\.celery\.default"),
        ("policies", ".*", {"max-length": 50, "overflow": "reject-publish"}, ""),
        ("policies", "^other", {"expires": 60000}, ""),
    ],
)
def test_a_policy_that_harms_is_told(
    run: Run, host: Host, kind: str, pattern: str, definition: dict[str, Any], says: str
) -> None:
    host.server.tell("PUT", f"{kind}/{host.name}/of-the-operator", policy(definition, pattern))
    wrong, code, notes = found(run, host.url(), "--management", host.server.api)
    assert not notes.get("policies")
    assert [subject for subject, _ in wrong] == (["policies"] if says else []), wrong
    assert all(re.search(says, text) for _, text in wrong), wrong
    assert code == (1 if says else 0)


def test_a_delay_that_a_policy_cuts_short_is_seen(run: Run, host: Host, tmp_path: Path) -> None:
    with (tmp_path / "shop.py").open("a") as shop:  # with a second, a server that is slow to answer would hide it
        shop.write("\nfrom taskbridge.cli import deep\ndeep._DELAY_S = 30.0\n")
    host.server.tell("PUT", f"policies/{host.name}/of-the-operator", policy({"message-ttl": 20}, "delay"))
    [[subject, text]], code, _ = found(run, host.url("dramatiq"))
    assert (subject, code) == ("delays", 1)
    assert re.fullmatch(r"a message that was delayed by 30 s came after \d+\.\d\d s", text)


def test_a_user_without_the_api_is_a_note_and_another_may_be_named(run: Run, host: Host) -> None:
    url = host.url(user=host.user(".*", ".*", ".*"))
    wrong, code, notes = found(run, url, "--management", host.server.api)
    assert (wrong, code) == ([], 0)
    assert re.search(rf"127\.0\.0\.1:{host.server.api_port}: HTTPError: HTTP Error 401", notes["policies"]), notes
    own = host.server.api.replace("//", "//guest:guest@")
    assert not found(run, url, "--management", f"{own}/")[2].get("policies")


def test_a_memory_alarm_is_told(run: Run, host: Host) -> None:
    host.server.ctl("set_vm_memory_high_watermark", "0")
    try:
        wrong, code, _ = found(run, host.url("dramatiq"))
    finally:
        host.server.ctl("set_vm_memory_high_watermark", "0.4")
    assert code == 1
    assert wrong[0][0] == "sending"
    assert "takes no messages" in wrong[0][1]
