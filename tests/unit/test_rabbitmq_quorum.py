"""Quorum queues, and operators' policies, on a server where this test may set what it likes."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pika
import pytest
from pika import frame, spec

from taskbridge import Bridge, BrokerUnavailable, Queue, UnsupportedError
from taskbridge.brokers.rabbitmq import dead_letter_queue
from taskbridge.brokers.rabbitmq.connection import Deadline
from taskbridge.brokers.rabbitmq.frames import HEAD, Assembler, Delivery, method_bytes
from taskbridge.engines.settle import counted
from taskbridge.message import DeadLetter, Message, new_id
from tests.servers import PrivateRabbitMQ
from tests.unit.command_line import runner
from tests.unit.dead_letter_tests import bury
from tests.unit.test_rabbitmq_broker import wait_until

PATIENCE_S = 60.0

URGENT = """
from taskbridge import task

@task(priority="high")
def urgent() -> None: ...
"""


class Place:
    """A namespace of its own on a server."""

    def __init__(self, server: PrivateRabbitMQ, stack: ExitStack) -> None:
        self.server = server
        self.namespace = f"quorum{uuid.uuid4().hex[:8]}"
        self._stack = stack

    def bridge(self, engine: str = "celery", **settings: Any) -> Bridge:
        given: dict[str, Any] = {"queue_type": "quorum", "namespace": self.namespace, "send_timeout": PATIENCE_S}
        given |= settings
        return self._stack.enter_context(closing(Bridge(f"{engine}+{self.server.url}", **given)))

    def policy(self, pattern: str, definition: Mapping[str, object]) -> None:
        """Set a policy for queues whose names, after the namespace, match a pattern."""
        name = f"{self.namespace}-policy"
        self.server.ctl(
            "set_policy", name, f"^{self.namespace}{pattern}", json.dumps(definition), "--apply-to", "queues"
        )
        self._stack.callback(self.server.ctl, "clear_policy", name)

    def queues(self) -> dict[str, str]:
        """Return the type of each queue, by its name after the namespace."""
        listed = json.loads(self.server.ctl("list_queues", "name", "type", "--formatter", "json"))
        prefix = f"{self.namespace}."
        kinds = {each["name"]: each["type"] for each in listed if each["name"].startswith(prefix)}
        return {name.removeprefix(prefix): kind.split("_")[-2] if "_" in kind else kind for name, kind in kinds.items()}


@pytest.fixture
def place(rabbitmq_server: PrivateRabbitMQ) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(rabbitmq_server, stack)


def a_message(argument: int = 1, **fields: Any) -> Message:
    given: dict[str, Any] = {"id": new_id(), "task": "shop.note", "queue": "default", "enqueued_at": time.time()}
    return Message(args_json=f"[{argument}]", kwargs_json="{}", **given | fields)


def redelivered(headers: Mapping[str, Any] | None, *, lacks: int = 0) -> Delivery:
    """Return an empty message that RabbitMQ delivers again, with these headers, and some of its last bytes missing."""
    deliver = method_bytes(1, spec.Basic.Deliver("tag", 1, True, "", "queue"))
    header: bytes = frame.Header(1, 0, pika.BasicProperties(headers=headers)).marshal()
    assembler = Assembler()
    assembler.made_of(spec.FRAME_METHOD, deliver[HEAD.size : -1])
    made = assembler.made_of(spec.FRAME_HEADER, header[HEAD.size : -1 - lacks])
    assert isinstance(made, Delivery)
    assert made.redelivered
    return made


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_each_queue_is_of_the_type_that_is_set(place: Place, engine: str) -> None:
    bridge = place.bridge(engine, queues=["email", Queue("vip", type="classic")])
    note = bridge.task(name="shop.note")(lambda: None)
    for queue in ("email", "vip"):
        note.using(queue=queue).send()
    note.schedule(1)
    bury(bridge, 1)

    kinds = place.queues()
    assert kinds.pop(f"{engine}.vip") == "classic"
    assert {f"{engine}.email", f"due.{engine}", "dead"} <= kinds.keys()
    assert set(kinds.values()) == {"quorum"}, kinds


def test_a_type_can_not_be_changed_and_the_error_says_what_can(place: Place) -> None:
    place.bridge().task(name="shop.note")(lambda: None).schedule(1)
    note = place.bridge(queue_type="classic").task(name="shop.note")(lambda: None)

    with pytest.raises(BrokerUnavailable, match=r"can't be changed: set queue_type.*or delete it"):
        note.schedule(1)


def test_priorities_are_kept_or_refused(place: Place) -> None:
    bridge = place.bridge(queues=[Queue("vip", type="classic")])
    urgent = bridge.task(name="shop.urgent", priority="high")(lambda: None)

    if keeps_priorities(place.server):
        urgent.send()
        bridge.check_priorities()
        return
    with pytest.raises(UnsupportedError, match=r"'shop.urgent'.*'high'.*'default'.*4\.3"):
        urgent.send()
    with pytest.raises(UnsupportedError):
        bridge.check_priorities()
    urgent.using(queue="vip").send()
    urgent.using(priority="normal").send()


def keeps_priorities(server: PrivateRabbitMQ) -> bool:
    """Tell whether the quorum queues of a server do."""
    with pika.BlockingConnection(pika.URLParameters(server.url)) as connection:
        properties: Any = vars(connection)["_impl"].server_properties
    return tuple(map(int, str(properties["version"]).split(".")[:2])) >= (4, 3)


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_priorities_that_are_not_kept_keep_check_and_workers_from_being_well(
    place: Place, engine: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(URGENT)
    settings = {"URL": f"{engine}+{place.server.url}", "QUEUE_TYPE": "quorum", "NAMESPACE": place.namespace}
    run = runner(tmp_path, **{f"TASKBRIDGE_{name}": value for name, value in settings.items()})

    checked = run("check", "shop")
    errors = [line for line in checked.stdout.splitlines() if line.split()[1] == "error"]
    if keeps_priorities(place.server):
        assert (checked.returncode, errors) == (0, []), checked.stdout
        return
    started = run("worker", "shop")  # it ends by itself

    assert (checked.returncode, started.returncode) == (2, 2)
    [error] = errors
    for said in (error, started.stderr):
        assert [word for word in ("'shop.urgent'", "'high'", "'default'", "4.3") if word not in said] == [], said


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_full_quorum_queue_refuses(place: Place, engine: str) -> None:
    place.policy(rf"\.{engine}\.", {"max-length": 20})
    bridge = place.bridge(engine)
    note = bridge.task(name="shop.note")(lambda: None)

    refused: list[BrokerUnavailable] = []
    first_at = 0.0
    for _ in range(60):
        try:
            note.send()
        except BrokerUnavailable as exc:
            refused.append(exc)
            first_at = first_at or time.monotonic()

    assert time.monotonic() - first_at < len(refused) / 2, "only a queue that may be new is waited for, for a second"
    taken = 60 - len(refused)
    assert 20 <= taken < 60
    assert not any(each.maybe_taken for each in refused)
    assert all("full" in each.problem for each in refused)
    assert bridge.counts().waiting["default"] == taken, "what was accepted is there"


def test_what_is_given_back_often_is_not_dropped(place: Place) -> None:
    bridge = place.bridge()
    bridge.task(name="shop.note")(lambda: None).send()
    with pika.BlockingConnection(pika.URLParameters(place.server.url)) as connection:
        channel = connection.channel()
        for _ in range(30):  # from 4.0 the limit would be 20
            delivered = None
            while delivered is None:
                delivered = channel.basic_get(f"{place.namespace}.celery.default")[0]
            channel.basic_reject(delivered.delivery_tag, requeue=True)

    wait_until(lambda: bridge.counts().waiting["default"] == 1, timeout_s=PATIENCE_S, what="it waits again")


def test_dead_letters_of_a_quorum_queue_are_read_by_one_at_a_time(place: Place) -> None:
    bridge = place.bridge()
    letters = [DeadLetter(message=a_message(number), reason="exhausted", died_at=float(number)) for number in range(50)]
    for letter in letters:
        bridge.broker.bury(letter, timeout_s=PATIENCE_S)
    found: list[list[str]] = []

    def read() -> None:
        for _ in range(3):
            found.append([letter.id for letter in bridge.broker.dead_letters()])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(4 * PATIENCE_S)

    assert found == [[letter.id for letter in letters]] * 6
    purged = bridge.dead.purge([letter.id for letter in letters[:20]])
    assert len(purged) == 20
    assert [letter.id for letter in bridge.dead_letters()] == [letter.id for letter in letters[20:]]


@pytest.mark.parametrize("most", [65_535, 700])
def test_more_dead_letters_than_a_quorum_queue_delivers_without_a_limit(
    place: Place, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(dead_letter_queue, "_MOST_UNACKNOWLEDGED", most)
    bridge = place.bridge()
    broker: Any = bridge.broker
    letters = [DeadLetter(message=a_message(n), reason="exhausted", died_at=float(n)) for n in range(2500)]
    broker._deliver(map(broker._encoder.letter, letters), Deadline(4 * PATIENCE_S))

    for _ in range(3):
        assert [letter.id for letter in bridge.broker.dead_letters()] == [letter.id for letter in letters]
    assert len(bridge.dead.purge_all()) == 2500


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-delivery-count": 3}, 5),
        ({"x-delivery-count": 0}, None),
        ({"x-delivery-count": "many"}, None),
        ({"other": 1}, None),
        (None, None),
    ],
)
def test_what_a_quorum_queue_counts_is_added_to_what_a_message_says(
    headers: Mapping[str, Any] | None, expected: int | None
) -> None:
    times = redelivered(headers).times
    with closing(Bridge("celery+memory://", queue_type="quorum", queues=[Queue("old", type="classic")])) as bridge:
        found = counted(bridge, a_message(redelivered=2), times)
        moved = counted(bridge, a_message(redelivered=2, queue="old"), times)

    assert (None if found is None else found.redelivered) == expected
    assert moved is None, "a classic queue doesn't count, and it would be so for ever"


def test_headers_that_can_not_be_read_count_for_nothing() -> None:
    for lacks, expected in ((0, 3), (4, None)):
        times = redelivered({"x-delivery-count": 3}, lacks=lacks).times
        assert times is not None
        assert times() == expected
