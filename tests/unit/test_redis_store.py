"""The store in a real Redis: what only it has."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from taskbridge import Bridge, Event, Handle, Message, Unique
from taskbridge.brokers.redis.client import Client
from taskbridge.brokers.redis.places import Place
from taskbridge.durations import moment
from taskbridge.exceptions import BrokerUnavailable, SendError, StoreUnavailable
from taskbridge.message import new_id
from taskbridge.stores.backend import ABSENT, Backend, Commit, Entry, PartlyCommitted, Tally, Write
from taskbridge.stores.base import Store
from taskbridge.stores.notifications import Notifications
from taskbridge.stores.records import Ending
from taskbridge.stores.redis.backend import RedisBackend
from taskbridge.stores.redis.notifications import RedisNotifications
from tests.servers import PrivateRedis

T = TypeVar("T")


def opened(server: PrivateRedis, **settings: object) -> Store:
    given = {"namespace": f"ns-{new_id()[:8]}", **settings}
    store = Bridge(f"celery+{server.url}", **given).store  # type: ignore[arg-type]
    assert store is not None
    assert isinstance(store.backend, RedisBackend)
    return store


def a_message() -> Message:
    return Message(id=new_id(), task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=time.time())


def until_it_runs(store: Store, message: Message) -> None:
    """Return when the start of a run is recorded, which nobody waits for."""
    deadline = time.monotonic() + 20
    while (record := store.records.get(message.id, timeout_s=5)) is None or record.state != "running":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_sender_whose_clock_is_fast_goes_by_the_stores(
    redis_server: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, events = time.time, list[Event]()
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    with closing(Bridge(f"celery+{redis_server.url}", namespace=f"ns-{new_id()[:8]}")) as bridge:
        bridge.on("after_send")(events.append)
        handles = [
            bridge.task(name=str(results), results=results)(lambda: None).using(expires=60).send()
            for results in (True, False)
        ]
        assert handles[0].status().enqueued_at.timestamp() == pytest.approx(real(), abs=30)
        for event in events:
            assert event.message is not None
            assert event.message.expires_at == pytest.approx(real() + 60, abs=30)


def test_a_record_is_made_by_one_command_of_a_transaction(redis_server: PrivateRedis) -> None:
    store, client, message = opened(redis_server), Client(redis_server.url), a_message()
    [command] = store.records.creating(message, 60.0, lists=True)
    client.execute([("SCRIPT", "FLUSH")], timeout_s=5)

    client.execute([command, ("SET", "published", "1")], timeout_s=5)

    record = store.records.get(message.id, timeout_s=5)
    assert record is not None
    assert (record.state, record.due_at) == ("scheduled", moment(message.enqueued_at + 60))
    assert client.execute([("GET", "published")], timeout_s=5) == b"1"
    store.close()
    client.close()


_SOUND = {"task": "t", "queue": "q", "state": "running", "enqueued_at": 1.0, "attempt": 1}
_ODD_FIELDS: dict[str, list[Any]] = {
    "task": [5],
    "queue": [None],
    "state": [[], {}],
    "enqueued_at": [float("nan")],
    "due_at": [1e300],
    "ended_at": ["x"],
    "attempts": [5, [[1]], [[1, "w", 2.0, None, "E"]]],
    "result": [5],
    "reason": [1],
    "error": [["E"], "Ex"],
    "replays": ["x", -1],
    "cancel_asked": [1],
    "attempt": [None, 1.5],
    "over": ["1", 10**400],
    "writer": [[]],
    "written_at": [True],
}
ODD_RECORDS = (
    *(b"", b"\xff", b"x", b"1\n", b"1\n5", b"1\n[]", b"1\nnull", b"x\n{}", b'1\n{"state":"done"}'),
    *(b"0\n" + b"[" * 10_000, b"9" * 9_999, b"-1\n" + json.dumps(_SOUND).encode()),
    *(b"3\n" + json.dumps({**_SOUND, name: odd}).encode() for name, odds in _ODD_FIELDS.items() for odd in odds),
)


@pytest.mark.parametrize("odd", [*ODD_RECORDS, None])
def test_a_record_that_can_not_be_read_stays_until_a_write_begins_it_anew(
    redis_server: PrivateRedis, odd: bytes | None
) -> None:
    """None is a key of another type. A newer release may have written it, which can read it (rule S8)."""
    store, client, message = opened(redis_server), Client(redis_server.url), a_message()
    key = f"{store.backend._prefix}record:{message.id}"  # type: ignore[attr-defined]
    client.execute([("LPUSH", key, "x") if odd is None else ("SET", key, odd)], timeout_s=5)
    assert store.records.get(message.id, timeout_s=5) is None
    assert store.records.cancel(message.id, at=1.0, timeout_s=5) is None
    if odd is not None:
        assert client.execute([("GET", key)], timeout_s=5) == odd

    ending = Ending(state="dead", at=2.0, reason="exhausted")
    assert store.records.ended(replace(message, attempt=2), ending, timeout_s=5) == "dead"
    record = store.records.get(message.id, timeout_s=5)
    assert record is not None
    assert (record.state, record.task) == ("dead", "t")
    store.close()
    client.close()


@pytest.mark.parametrize("version", ["01", " 1", "+1", "1_0", "\u0663", "1000000000"])
def test_a_record_whose_version_is_written_in_another_way_is_written_all_the_same(
    redis_server: PrivateRedis, version: str
) -> None:
    store, client, message = opened(redis_server), Client(redis_server.url), a_message()
    key = f"{store.backend._prefix}record:{message.id}"  # type: ignore[attr-defined]
    client.execute([("SET", key, f"{version}\n{json.dumps(_SOUND)}")], timeout_s=5)
    ending = Ending(state="dead", at=2.0, reason="exhausted")
    assert store.records.ended(message, ending, timeout_s=5) == "dead"
    store.close()
    client.close()


def test_keys_of_cancellations_that_hold_something_else_are_made_anew(redis_server: PrivateRedis) -> None:
    """Else no worker would start anything, for none would know what is cancelled."""
    store, client, message = opened(redis_server), Client(redis_server.url), a_message()
    key = f"{store.backend._prefix}cancelled"  # type: ignore[attr-defined]
    store.records.create([(message, 0.0)], timeout_s=5)
    client.execute([("LPUSH", key, "x")], timeout_s=5)
    assert store.records.cancelled_since("", timeout_s=5) == ("", [])

    client.execute([("LPUSH", key, "x"), ("LPUSH", f"{key}:until", "x")], timeout_s=5)
    record = store.records.cancel(message.id, at=1.0, timeout_s=5)
    assert record is not None
    assert record.state == "cancelled"
    assert list(store.records.cancelled_since("", timeout_s=5)[1]) == [message.life]
    store.close()
    client.close()


def end(backend: Backend, index: int, *, total: int = 3, text: str = "1") -> bool | None:
    """Count a member of a group as done."""
    tally = Tally("flow:f:group:0", total, index, "done", text, Entry("flow", "f", 0.0), "last")
    return backend.tally(Write(f"record:{index}", ABSENT, "1"), tally, timeout_s=5)


@pytest.mark.parametrize("suffix", ["", ":ended", ":0"])
@pytest.mark.parametrize(
    "odd", [("LPUSH", "x"), ("SET", b"\xff"), ("HSET", "ended", "many", "sent", b"\xff", "until", "x")]
)
def test_a_group_of_which_a_key_holds_something_else_stops_nobody(
    redis_server: PrivateRedis, suffix: str, odd: tuple[str | bytes, ...]
) -> None:
    store, client = opened(redis_server), Client(redis_server.url)
    backend, group = store.backend, "flow:f:group:0"
    key = f"{backend._prefix}{group}{suffix}"  # type: ignore[attr-defined]
    end(backend, 0)
    client.execute([("DEL", key), (odd[0], key, *odd[1:])], timeout_s=5)
    assert len(backend.members(group, 0, 3, timeout_s=5)) == 3
    assert len(backend.counts_of([group], timeout_s=5)) == 1
    backend.first_open(group, 3, timeout_s=5)
    backend.note_sent(group, 3, timeout_s=5)
    ended = [end(backend, index) for index in (1, 2)]
    assert None not in ended
    uncounting = Commit([Write("state", ABSENT, "1")], uncounts=[(group, index) for index in range(3)])
    assert backend.commit([uncounting], timeout_s=5) == [True]
    again = [end(backend, index + 3, total=6) for index in range(3)]
    assert None not in again
    backend.end_groups([group], kept_s=60, timeout_s=5)
    for left in client.execute([("KEYS", f"{backend._prefix}{group}*")], timeout_s=5):  # type: ignore[attr-defined]
        assert client.execute([("PTTL", left)], timeout_s=5) > 0
    store.close()
    client.close()


def test_a_member_takes_few_bytes_beside_its_record(redis_server: PrivateRedis) -> None:
    store, client = opened(redis_server), Client(redis_server.url)
    for index in range(1000):
        end(store.backend, index, total=1000, text=str(index))
    keys = client.execute([("KEYS", f"{store.backend._prefix}flow:f:group:0*")], timeout_s=5)  # type: ignore[attr-defined]
    sizes = [client.execute([("MEMORY", "USAGE", key, "SAMPLES", 0)], timeout_s=5) for key in keys]
    assert sum(sizes) <= 60 * 1000
    store.close()
    client.close()


def test_what_is_refused_of_many_commits_is_nothing_and_the_others_are_done(redis_server: PrivateRedis) -> None:
    namespace = f"ns-{new_id()[:8]}"
    backend, client = opened(redis_server, namespace=namespace).backend, Client(redis_server.url)
    client.execute([("SET", f"{namespace}:queue1", "no list"), ("LPUSH", f"{namespace}:key2", "odd")], timeout_s=5)
    commits = [
        Commit((Write(f"key{at}", ABSENT, "text", kept_s),), commands=[("RPUSH", f"{namespace}:queue{at}", "message")])
        for at, kept_s in enumerate((None, 60, 60))
    ]

    with pytest.raises(PartlyCommitted) as refused:
        backend.commit(commits, timeout_s=5)
    assert (refused.value.done, refused.value.maybe_taken) == ([True, None, True], False)
    with pytest.raises(StoreUnavailable) as alone:
        backend.commit(commits[1:2], timeout_s=5)
    assert not alone.value.maybe_taken
    assert backend.get(["key0", "key1", "key2"], timeout_s=5) == ["text", None, "text"]
    lasting = [client.execute([("PTTL", f"{namespace}:key{at}")], timeout_s=5) for at in (0, 2)]
    assert lasting[0] == -1
    assert 50_000 < lasting[1] <= 60_000
    assert backend.commit([commits[0], commits[2]], timeout_s=5) == [False, False]
    assert client.execute([("LLEN", f"{namespace}:queue0")], timeout_s=5) == 1


def test_many_commits_that_are_alike_are_one_script_and_each_is_as_if_it_were_alone(
    make_redis: Callable[..., PrivateRedis],
) -> None:
    server = make_redis()  # whose commands are counted
    backend, client = opened(server, namespace="ns").backend, Client(server.url)

    def scripts(commits: list[Commit]) -> tuple[list[bool | None], int]:
        client.execute([("CONFIG", "RESETSTAT")], timeout_s=5)
        try:
            done: Any = backend.commit(commits, timeout_s=5)
        except PartlyCommitted as exc:
            done = ["maybe"] if exc.maybe_taken else exc.done
        counts = client.execute([("INFO", "commandstats")], timeout_s=5).decode()
        return list(done), int(counts.partition("cmdstat_evalsha:calls=")[2].partition(",")[0])

    def commit(number: int, queue: str = "queue", text: str = "text") -> Commit:
        commands = [("HSET", f"ns:{queue}.bodies", f"id{number}", text), ("RPUSH", f"ns:{queue}", f"id{number}")]
        return Commit((Write(f"key{number}", ABSENT, text), Write(f"text{number}", ABSENT, text, 60)), (), commands)

    def is_there(*numbers: int) -> list[bool]:
        keys = [f"{name}{number}" for number in numbers for name in ("key", "text")]
        return [each is not None for each in backend.get(keys, timeout_s=5)]

    scripts([commit(1000), commit(1001)])  # now the server knows the script
    assert scripts([commit(number) for number in range(100)]) == ([True] * 100, 1)
    bodies = client.execute([("HLEN", "ns:queue.bodies")], timeout_s=5)
    queue = client.execute([("LRANGE", "ns:queue", 2, -1)], timeout_s=5)
    assert (bodies, queue) == (102, [b"id%d" % number for number in range(100)])

    client.execute([("SET", "ns:odd", "no list"), ("HSET", "ns:key205", "odd", "")], timeout_s=5)
    client.execute([("SET", "ns:text206", "taken")], timeout_s=5)
    backend.commit([commit(number, "odd2") for number in (201, 203)], timeout_s=5)
    mixed = [commit(number) for number in (200, 201, 202, 203, 204, 204, 205, 206)]
    assert scripts(mixed) == ([True, False, True, False, True, False, True, False], 2), "one is made anew, where odd"
    assert is_there(200, 202, 204, 205, 206) == [True] * 8 + [False, True]
    assert client.execute([("LLEN", "ns:queue")], timeout_s=5) == 106

    client.execute([("SET", "ns:text208", "taken"), ("HSET", "ns:text210", "odd", "")], timeout_s=5)
    assert scripts([*map(commit, range(207, 212))]) == ([True, False, True, True, True], 2), "no key is taken, or twice"
    assert is_there(207, 208, 209, 210, 211) == [*[True] * 2, False, *[True] * 7]
    assert client.execute([("LLEN", "ns:queue")], timeout_s=5) == 110

    refused = [*map(commit, (300, 301, 200)), commit(302, "odd"), commit(303, "odd"), commit(201, "odd"), commit(304)]
    assert scripts(refused)[0] == [True, True, False, None, None, False, True]
    assert is_there(300, 301, 302, 303, 304) == [True] * 4 + [False] * 4 + [True] * 2

    in_turn = [commit(number, f"turn{int(number in (351, 352))}") for number in range(350, 355)]
    assert scripts(in_turn) == ([True] * 5, 3)
    assert client.execute([("LRANGE", "ns:turn0", 0, -1)], timeout_s=5) == [b"id350", b"id353", b"id354"]

    large = [commit(number, text="x" * 600_000) for number in (400, 401)]
    assert scripts(large) == ([True, True], 2), "so that none holds the server for long"
    client.execute([("CONFIG", "SET", "maxmemory", "1")], timeout_s=5)
    with pytest.raises(PartlyCommitted, match="out of memory") as full:
        backend.commit([commit(500), commit(200), commit(501)], timeout_s=5)
    assert (full.value.done, full.value.maybe_taken) == ([None, False, None], False)
    client.execute([("CONFIG", "SET", "maxmemory", "0")], timeout_s=5)
    assert is_there(500, 501) == [False] * 4
    backend.close()
    client.close()


def called(client: Client, act: Callable[[], T], *names: str) -> tuple[T, list[int]]:
    """Return what an act returns, and how often the server carried out each of these commands meanwhile."""
    client.execute([("CONFIG", "RESETSTAT")], timeout_s=5)
    outcome = act()
    stats = client.execute([("INFO", "commandstats")], timeout_s=5).decode()
    counts = (stats.partition(f"cmdstat_{name}:calls=")[2].partition(",")[0] for name in names)
    return outcome, [int(count or 0) for count in counts]


def test_what_lasts_of_many_commits_is_made_by_one_command_unless_something_is_there(
    make_redis: Callable[..., PrivateRedis],
) -> None:
    server = make_redis()  # whose commands are counted
    backend, client = opened(server, namespace="ns").backend, Client(server.url)

    def made(queue: str, *numbers: int) -> tuple[list[bool], list[int]]:
        commits = [
            Commit(
                (Write(f"key{number}", ABSENT, f"of {queue}"), Write(f"text{number}", ABSENT, "text", 60)),
                (),
                [("RPUSH", f"ns:{queue}", f"id{number}")],
            )
            for number in numbers
        ]
        names = "evalsha", "msetnx", "setnx", "set", "rpush"
        return called(client, lambda: backend.commit(commits, timeout_s=5), *names)

    made("first", 1000, 1001)  # now the server knows the script
    assert made("quick", *range(50)) == ([True] * 50, [1, 1, 0, 50, 1])
    wanted = [number != 75 for number in range(50, 100)]
    made("first", 75, 1002)
    assert made("held", *range(50, 100)) == (wanted, [1, 1, 50, 49, 1])
    assert made("twice", 100, 101, 100) == ([True, True, False], [1, 0, 3, 2, 1])

    keys = backend.get([f"key{number}" for number in range(102)], timeout_s=5)
    own = ["of quick"] * 50 + ["of held"] * 50 + ["of twice"] * 2
    assert keys == [*own[:75], "of first", *own[76:]]
    assert None not in backend.get([f"text{number}" for number in range(102)], timeout_s=5)
    queues = [client.execute([("LRANGE", f"ns:{name}", 0, -1)], timeout_s=5) for name in ("quick", "held", "twice")]
    numbers = (range(50), [number for number in range(50, 100) if number != 75], (100, 101))
    assert queues == [[b"id%d" % number for number in each] for each in numbers]
    backend.close()
    client.close()


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_many_unique_messages_take_their_keys_by_one_command_unless_one_is_held(
    make_redis: Callable[..., PrivateRedis], engine: str
) -> None:
    server = make_redis()  # whose commands are counted
    client = Client(server.url)
    with closing(Bridge(f"{engine}+{server.url}")) as bridge, closing(client):
        task = bridge.task(name="unique", unique="number")(lambda number: number)

        def sent(numbers: range) -> tuple[list[Handle[int]], list[int]]:
            calls = [task.call(number) for number in numbers]
            return called(client, lambda: bridge.send_many(calls), "evalsha", "msetnx", "setnx")

        sent(range(1000, 1002))  # now the server knows the script
        handles, commands = sent(range(100))
        assert (all(handle.is_new for handle in handles), commands) == (True, [1, 1, 0])
        held = task.send(150)
        handles, commands = sent(range(100, 200))
        assert commands[1] == 1, "it is tried"
        assert commands[2] >= 100, "and one after the other is taken where one is held"
        assert [handle.is_new for handle in handles] == [number != 150 for number in range(100, 200)]
        assert handles[50].id == held.id
        assert sum(bridge.counts().waiting.values()) == 2 + 100 + 1 + 99


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_of_many_unique_messages_what_a_queue_refuses_is_unsent(redis_server: PrivateRedis, engine: str) -> None:
    client, told = Client(redis_server.url), list[str]()
    with closing(Bridge(f"{engine}+{redis_server.url}", namespace=f"ns-{new_id()[:8]}", queues=["odd"])) as bridge:
        bridge.on("after_send")(lambda event: told.append(event.message.id if event.message else ""))
        task = bridge.task(name="sync", unique="number")(lambda number: number)
        client.execute([("SET", place, "no list") for place in bridge.wire.places("odd")], timeout_s=5)
        with pytest.raises(SendError) as refused:
            bridge.send_many([task.call(0), task.using(queue="odd").call(1), task.call(2), task.call(2)])
        sent, unsent = refused.value.sent, refused.value.unsent
        again = [task.send(number) for number in range(3)]

    assert (list(sent), len(unsent), refused.value.maybe_taken) == (told[:2], 1, False)
    assert [(handle.is_new, handle.id) for handle in again] == [(False, sent[0]), (True, told[2]), (False, sent[1])]
    client.close()


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_free_key_is_taken_the_quick_way_by_one_commit(
    redis_server: PrivateRedis, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Bridge(f"{engine}+{redis_server.url}", namespace=f"ns-{new_id()[:8]}")) as bridge:
        task = bridge.task(name="unique", unique=Unique("number"))(lambda number: number)
        task.send(0)  # by now, all is connected
        assert bridge.store is not None
        backend, claims, done = bridge.store.backend, bridge.store.claims, list[str]()

        def noting(place: Any, name: str) -> None:
            act = getattr(place, name)

            def noted(*args: Any, **given: Any) -> Any:
                done.append(name)
                return act(*args, **given)

            monkeypatch.setattr(place, name, noted)

        for place, name in ((claims, "send"), (backend, "commit"), (backend, "get"), (backend, "create")):
            noting(place, name)
        assert task.send(1).is_new
        assert done == ["commit"]
        assert not task.send(1).is_new
        assert done[1:3] == ["commit", "send"], "where the key is held, it goes the long way"
        assert "get" in done[3:]


def test_a_start_is_recorded_on_a_server_that_knows_no_script(redis_server: PrivateRedis) -> None:
    store, client, message = opened(redis_server), Client(redis_server.url), a_message()
    store.records.started(message, worker="w:1", at=1.0)
    client.execute([("SCRIPT", "FLUSH")], timeout_s=5)
    again = a_message()
    store.records.started(again, worker="w:1", at=1.0)
    until_it_runs(store, again)
    store.close()
    client.close()


def test_the_end_of_a_run_is_one_round_trip_if_nothing_else_was_heard_of_its_message(
    make_redis: Callable[..., PrivateRedis],
) -> None:
    server = make_redis()  # whose commands are counted
    store, client = opened(server), Client(server.url)
    ran, delayed, unrecorded, never_ran = (a_message() for _ in range(4))
    store.records.create([(ran, 0.0), (never_ran, 0.0)], timeout_s=5)
    store.records.create([(delayed, 60.0)], timeout_s=5)
    store.records.ended(a_message(), Ending(state="done", at=1.0), timeout_s=5)  # now the server knows the script
    for message in (ran, delayed, unrecorded):
        store.records.started(message, worker="w:1", at=2.0)
        until_it_runs(store, message)
    client.execute([("CONFIG", "RESETSTAT")], timeout_s=5)

    for message in (ran, delayed, unrecorded):
        assert store.records.ended(message, Ending(state="done", at=3.0), timeout_s=5) == "done"
    assert store.records.ended(never_ran, Ending(state="discarded", at=3.0), timeout_s=5) == "discarded"

    counts = client.execute([("INFO", "commandstats")], timeout_s=5).decode()
    assert "cmdstat_evalsha:calls=4," in counts
    assert "cmdstat_get:calls=4," in counts  # by the script, and nobody else
    record = store.records.get(ran.id, timeout_s=5)
    assert record is not None
    assert [(each.worker, each.started_at, each.ended_at) for each in record.attempts] == [
        ("w:1", moment(2.0), moment(3.0))
    ]
    store.close()
    client.close()


def test_whose_key_it_is_is_told_though_redis_is_full(make_redis: Callable[..., PrivateRedis]) -> None:
    server = make_redis()  # which is full
    bridge, client = Bridge(f"celery+{server.url}"), Client(server.url)
    with closing(bridge), closing(client):
        task = bridge.task(name="t", unique=True)(lambda number: None)
        first = task.send(1)
        client.execute([("CONFIG", "SET", "maxmemory", "1")], timeout_s=5)
        again = task.send(1)
        with pytest.raises(BrokerUnavailable, match="out of memory"):
            task.send(2)
        client.execute([("CONFIG", "SET", "maxmemory", "0")], timeout_s=5)

        assert (again.id, again.is_new) == (first.id, False)
        assert task.send(2).is_new, "of what was refused nothing is left"


def test_a_replica_does_not_tell_whose_key_it_is(make_redis: Callable[..., PrivateRedis]) -> None:
    """The one before it may know more: the message that holds the key may have ended."""
    server = make_redis()  # which becomes one
    bridge, client = Bridge(f"celery+{server.url}", send_timeout=1), Client(server.url)
    with closing(bridge), closing(client):
        task = bridge.task(name="t", unique=True)(lambda number: None)
        first = task.send(1)
        client.execute([("REPLICAOF", "127.0.0.1", "1")], timeout_s=5)
        with pytest.raises(BrokerUnavailable, match="replica"):
            task.send(1)
        with pytest.raises(SendError, match="replica"):
            bridge.send_many(task.call(number) for number in (1, 2))
        client.execute([("REPLICAOF", "NO", "ONE")], timeout_s=5)

        assert task.send(1).id == first.id


def test_all_keys_are_in_the_namespace_and_records_expire(make_redis: Callable[..., PrivateRedis]) -> None:
    namespace, server = f"ns-{new_id()[:8]}", make_redis()  # whose keys are looked at
    store, client = opened(server, result_ttl=100, namespace=namespace), Client(server.url)
    waiting, final, cancelled, late = (a_message() for _ in range(4))
    store.records.create([(waiting, 0.0), (final, 0.0), (cancelled, 0.0)], timeout_s=5)
    store.records.create([(late, 1000.0)], timeout_s=5)
    store.records.ended(final, Ending(state="done", at=1.0), timeout_s=5)
    store.records.cancel(cancelled.id, at=1.0, timeout_s=5)
    store.ticks.begin("s", now=lambda: 1.0, timeout_s=5)
    keys = [key.decode() for key in client.execute([("KEYS", "*")], timeout_s=5)]
    assert [key for key in keys if not key.startswith(f"{namespace}:")] == []

    def life_s(message: Message) -> int:
        return int(client.execute([("TTL", f"{namespace}:record:{message.id}")], timeout_s=5))

    assert 90 <= life_s(final) <= 100
    assert 90 <= life_s(cancelled) <= 100
    assert 29 * 86400 < life_s(waiting) <= 30 * 86400
    assert 30 * 86400 < life_s(late) <= 30 * 86400 + 1000
    store.close()
    client.close()


def test_any_number_of_watches_takes_one_connection(make_redis: Callable[..., PrivateRedis]) -> None:
    server = make_redis()  # whose connections are looked at
    client = Client(server.url)

    def listeners() -> list[str]:
        listed = client.execute([("CLIENT", "LIST", "TYPE", "pubsub")], timeout_s=5)
        return [line.decode() for line in listed.splitlines()]

    store = opened(server)
    stops = [store.records.watch(f"id-{number}", lambda: None) for number in range(50)]
    [mine] = listeners()
    assert " sub=50 " in mine
    for stop in stops:
        stop()
    store.close()
    client.close()


def two_recorded(server: PrivateRedis) -> tuple[str, Store, Client, Message, Message]:
    """Return a namespace, its store, a client of its server, and two messages that have records."""
    namespace = f"ns-{new_id()[:8]}"
    store, one, two = opened(server, namespace=namespace), a_message(), a_message()
    store.records.create([(one, 0.0), (two, 0.0)], timeout_s=5)
    return namespace, store, Client(server.url), one, two


def test_a_number_of_a_cancellation_grows_even_when_all_were_forgotten(redis_server: PrivateRedis) -> None:
    namespace, store, client, one, two = two_recorded(redis_server)
    store.records.cancel(one.id, at=1.0, timeout_s=5)
    cursor, _ = store.records.cancelled_since("", timeout_s=5)
    client.execute([("DEL", f"{namespace}:cancelled", f"{namespace}:cancelled:until")], timeout_s=5)
    store.records.cancel(two.id, at=1.0, timeout_s=5)
    assert store.records.cancelled_since(cursor, timeout_s=5)[1] == [two.id]
    store.close()
    client.close()


@pytest.mark.parametrize("number", ["+inf", "1e300", "9e18"])
def test_a_cancellation_that_anybody_wrote_beyond_all_times_hides_none(redis_server: PrivateRedis, number: str) -> None:
    namespace, store, client, one, two = two_recorded(redis_server)
    client.execute([("ZADD", f"{namespace}:cancelled", number, "odd")], timeout_s=5)
    store.records.cancel(one.id, at=1.0, timeout_s=5)
    cursor, lives = store.records.cancelled_since("", timeout_s=5)
    assert list(lives) == [one.id]
    store.records.cancel(two.id, at=1.0, timeout_s=5)
    assert list(store.records.cancelled_since(cursor, timeout_s=5)[1]) == [two.id]
    store.close()
    client.close()


def test_cancellations_are_heard_of_after_a_clock_was_far_ahead(redis_server: PrivateRedis) -> None:
    store, one = opened(redis_server, namespace=f"ns-{new_id()[:8]}"), a_message()
    store.records.create([(one, 0.0)], timeout_s=5)
    store.records.cancel(one.id, at=1.0, timeout_s=5)
    in_a_year = f"{(time.time() + 365 * 86400) * 1e6:.0f}"
    assert list(store.records.cancelled_since(in_a_year, timeout_s=5)[1]) == [one.id]
    store.close()


class _Refused(Notifications):
    """A connection that is closed by the server after so many seconds, each time."""

    def __init__(self, works_for_s: float) -> None:
        super().__init__(1.0)
        self.begun_at: list[float] = []
        self._works_for_s = works_for_s

    def _connect(self) -> Any:
        self.begun_at.append(time.monotonic())
        return SimpleNamespace(close=lambda: None)

    def _wait(self, connection: Any, wait_s: float) -> bool:
        time.sleep(self._works_for_s)
        raise ConnectionError("not permitted")

    def _ask(self, connection: Any) -> None: ...


def test_a_connection_that_is_refused_is_tried_more_and_more_seldom() -> None:
    refused, broken = _Refused(0.0), _Refused(1.1)
    for each in (refused, broken):
        each.start()
    time.sleep(5.0)
    for each in (refused, broken):
        each.close()

    assert len(refused.begun_at) <= 10, "after 0.05, 0.1, 0.2, 0.4, 0.8 and 1 s"
    pauses = [later - earlier - 1.1 for earlier, later in pairwise(broken.begun_at)]
    assert min(pauses[1:]) < 0.3, "what has worked for a while is tried again soon"


def test_many_cancellations_are_told_part_by_part(redis_server: PrivateRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskbridge.stores.records.CANCELLATIONS_AT_ONCE", 3)
    store, messages = opened(redis_server), [a_message() for _ in range(7)]
    store.records.create([(each, 0.0) for each in messages], timeout_s=5)
    for each in messages:
        store.records.cancel(each.id, at=1.0, timeout_s=5)
    told, cursor = list[str](), ""
    while found := store.records.cancelled_since(cursor, timeout_s=5)[1]:
        cursor, _ = store.records.cancelled_since(cursor, timeout_s=5)
        assert len(found) <= 3
        told.extend(found)

    assert [each for each in told if each in {message.id for message in messages}] == [each.id for each in messages]
    store.close()


def test_a_forked_process_has_connections_of_its_own(redis_server: PrivateRedis) -> None:
    store, message = opened(redis_server), a_message()
    store.records.create([(message, 0.0)], timeout_s=5)
    store.records.started(message, worker="parent:1", at=time.time())
    until_it_runs(store, message)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, that there are threads
        child = os.fork()
    if child == 0:
        try:
            second = replace(message, attempt=2)
            store.records.started(second, worker="child:1", at=time.time())
            store.records.ended(second, Ending(state="done", at=time.time()), timeout_s=5)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    record = store.records.get(message.id, timeout_s=5)
    assert record is not None
    assert [attempt.worker for attempt in record.attempts] == ["parent:1", "child:1"]
    store.close()


def test_a_key_that_was_left_and_is_watched_again_is_heard_of_when_redis_says_so() -> None:
    notifications = RedisNotifications(1.0, Place("redis://nowhere"), "prefix:")
    sent, woken = list[bytes](), list[str]()
    connection: Any = SimpleNamespace(send=sent.append)
    subscribed, unsubscribed = ([word, b"prefix:key", 1] for word in (b"subscribe", b"unsubscribe"))

    with closing(notifications):
        stop, was_heard = notifications._watches.add("key", lambda: None)
        notifications._follow(connection, ["key"])
        notifications._take(subscribed)
        stop()
        notifications._follow(connection, ["key"])
        _, is_heard = notifications._watches.add("key", lambda: woken.append("again"))
        notifications._follow(connection, ["key"])
        notifications._take(unsubscribed)
        heard = [was_heard.is_set(), is_heard.is_set()]
        notifications._take(subscribed)

    assert [b"UNSUBSCRIBE" in each for each in sent] == [False, True, False]
    assert (heard, is_heard.is_set(), woken) == ([True, False], True, [])


def test_a_key_that_is_looked_at_twice_is_heard_of_once_redis_has_answered() -> None:
    notifications, woken = RedisNotifications(1.0, Place("redis://nowhere"), "prefix:"), list[str]()
    connection: Any = SimpleNamespace(send=lambda _: None)

    with closing(notifications):
        _, heard = notifications._watches.add("key", lambda: woken.append("for nothing"))
        notifications._begin(connection)
        notifications._follow(connection, ["key"])  # it was added just before the thread began
        was_heard = heard.is_set()
        notifications._take([b"subscribe", b"prefix:key", 1])

    assert (was_heard, heard.is_set(), woken) == (False, True, [])


def test_who_was_heard_of_before_an_outage_is_woken_by_the_next_subscription() -> None:
    notifications, woken = RedisNotifications(1.0, Place("redis://nowhere"), "prefix:"), list[str]()
    connection: Any = SimpleNamespace(send=lambda _: None)

    with closing(notifications):
        notifications._watches.add("key", lambda: woken.append("first"))
        for _ in range(2):
            notifications._begin(connection)
            notifications._take([b"subscribe", b"prefix:key", 1])
            notifications._watches.add("key", lambda: woken.append("second"))
            notifications._follow(connection, ["key"])  # which is subscribed to: it is heard of at once

    assert sorted(woken) == ["first", "second"]
