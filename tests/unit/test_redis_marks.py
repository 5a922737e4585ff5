"""Attempt marks in a real Redis: rules A5, A7 and R9 rest on these."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from taskbridge import Bridge, BrokerUnavailable, ErrorInfo, Message
from taskbridge.settings import load
from taskbridge.stores import marks as marks_module
from taskbridge.stores.base import Claim, Marks, Store
from taskbridge.stores.records import Ending
from taskbridge.stores.redis.backend import open_store
from tests.servers import PrivateRedis

LEASE_S = 2.0
_RUN = [""]


@pytest.fixture(scope="session")
def server() -> Iterator[PrivateRedis]:
    with PrivateRedis() as running:
        yield running


def store_of(server: PrivateRedis) -> Store:
    settings, _ = load({"url": f"celery+{server.url}", "lease": LEASE_S}, environ={})
    return open_store(settings, server.url)


def marks_of(server: PrivateRedis) -> Marks:
    return store_of(server).marks


@pytest.fixture(autouse=True)
def new_ids() -> None:
    """Give each test ids of its own, also when it is run again: the server keeps the marks."""
    _RUN[0] = secrets.token_hex(4)


def a_message(number: int) -> Message:
    return Message(id=f"id-{_RUN[0]}-{number}", task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=0)


def claim_when(marks: Marks, message: Message, wanted: Claim) -> Claim:
    """Return the claim as soon as it is the wanted one: a write that nobody waits for may still be on its way."""
    deadline = time.monotonic() + 20
    while (claim := marks.claim(message, timeout_s=5)) is not wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    return claim


def test_an_attempt_that_was_never_started_is_run_by_one_of_those_who_ask(server: PrivateRedis) -> None:
    one, other = marks_of(server), marks_of(server)

    assert one.claim(a_message(1), timeout_s=5) is Claim.RUN
    assert other.claim(a_message(1), timeout_s=5) is Claim.RUNNING
    one.close()
    other.close()


def test_a_live_workers_attempt_is_running_and_an_ended_one_ended(server: PrivateRedis) -> None:
    one, other = marks_of(server), marks_of(server)
    one.started(a_message(2))

    assert claim_when(other, a_message(2), Claim.RUNNING) is Claim.RUNNING
    assert one.claim(a_message(2), timeout_s=5) is Claim.RUNNING
    time.sleep(LEASE_S * 2)
    assert other.claim(a_message(2), timeout_s=5) is Claim.RUNNING
    one.ended(a_message(2))
    assert claim_when(other, a_message(2), Claim.ENDED) is Claim.ENDED
    one.close()
    other.close()


def test_a_dead_workers_attempt_is_lost_within_the_lease_even_if_it_was_killed_right_after_the_mark(
    server: PrivateRedis,
) -> None:
    code = (
        "import os, signal, sys\n"
        "from tests.unit.test_redis_marks import open_store, LEASE_S, load\n"
        "from taskbridge import Message\n"
        f"settings, _ = load({{'url': 'celery+{server.url}', 'lease': LEASE_S}}, environ={{}})\n"
        f"marks = open_store(settings, '{server.url}').marks\n"
        "message = Message(id=sys.argv[1], task='t', queue='q', args_json='[]', kwargs_json='{}', enqueued_at=0)\n"
        "marks.started(message)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    id_ = f"killed-{_RUN[0]}"
    died = subprocess.run([sys.executable, "-c", code, id_], timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    store = store_of(server)
    marks, records = store.marks, store.records
    message = Message(id=id_, task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=0)

    assert claim_when(marks, message, Claim.LOST) is Claim.LOST
    assert marks.claim(message, timeout_s=5) is Claim.RUNNING, "a second delivery, while the first is decided about"
    began, error = time.time(), ErrorInfo(type="WorkerLost", message="")
    records.ended(message, Ending(state="dead", at=began, error=error), timeout_s=5)
    status = records.get(id_, timeout_s=5)
    assert status is not None
    [attempt] = status.attempts  # though its worker was killed before it could record that
    assert (attempt.number, attempt.worker.partition(":")[0]) == (1, socket.gethostname())
    assert began - 30 < attempt.started_at.timestamp() < began
    marks.ended(message)
    assert claim_when(marks, message, Claim.ENDED) is Claim.ENDED
    store.close()


def test_marks_of_the_life_before_a_replay_do_not_count(server: PrivateRedis) -> None:
    one, other = marks_of(server), marks_of(server)
    one.started(a_message(9))
    one.ended(a_message(9))

    assert claim_when(other, a_message(9), Claim.ENDED) is Claim.ENDED
    assert other.claim(a_message(9).replayed(now=0), timeout_s=5) is Claim.RUN
    other.given_back(a_message(9).replayed(now=0), timeout_s=5)
    assert other.claim(a_message(9).replayed(now=0), timeout_s=5) is Claim.RUN
    one.close()
    other.close()


def test_what_was_given_back_may_start_again(server: PrivateRedis) -> None:
    one, other = marks_of(server), marks_of(server)
    for number in (4, 5, 6):
        one.started(a_message(number))
    claim_when(other, a_message(6), Claim.RUNNING)
    one.given_back(a_message(4), timeout_s=5)
    assert other.claim(a_message(4), timeout_s=5) is Claim.RUN
    assert other.claim(a_message(5), timeout_s=5) is Claim.RUNNING
    one.all_given_back(timeout_s=5)

    assert other.claim(a_message(5), timeout_s=5) is Claim.RUN
    one.close()
    other.close()


def test_a_message_that_came_back_is_counted_until_it_starts(server: PrivateRedis) -> None:
    message = a_message(40)
    assert [marks_of(server).taken(message) for _ in range(3)] == [1, 2, 3]
    marks = marks_of(server)
    assert marks.claim(message, timeout_s=5) is Claim.RUN
    assert marks.taken(message) == 0
    marks.given_back(message, timeout_s=5)
    assert marks.taken(message) == 1
    marks.started(message)
    claim_when(marks_of(server), message, Claim.RUNNING)
    assert marks.taken(message) == 0


def test_a_worker_of_an_earlier_release_does_not_take_a_count_for_a_run(server: PrivateRedis) -> None:
    """It would take the run for lost, and a message with one attempt for dead (rule S8)."""
    message = a_message(43)
    assert [marks_of(server).taken(message) for _ in range(2)] == [1, 2]
    with redis.Redis.from_url(server.url) as client:
        assert client.exists(f"taskbridge:mark:{message.id}:1") == 0


ODD_MARKS = b"", b"\xff", b"x", b"taken x", b"a b c", b"ended\nx", b"taken 1\n2", b"a|lost b", b"a|lost 1.000"


@pytest.mark.parametrize("odd", [*ODD_MARKS, None])
def test_an_odd_mark_counts_as_none(server: PrivateRedis, odd: bytes | None) -> None:
    """None is a key of another type, which is made anew."""
    message, marks = a_message(41), marks_of(server)
    with redis.Redis.from_url(server.url) as client:
        key = f"taskbridge:mark:{message.id}:1"
        client.delete(key)
        for each in (f"{key}:taken", key):
            client.delete(each)
            if odd is None:
                client.lpush(each, "x")
            else:
                client.set(each, odd)
            if each != key:
                assert marks.taken(message) == 1, "the first that is counted"
    assert marks.taken(message) == (2 if odd is None else 0)
    assert marks.claim(message, timeout_s=5) is Claim.RUN
    assert marks_of(server).claim(message, timeout_s=5) is Claim.RUNNING


def test_what_a_newer_release_says_at_the_end_of_a_mark_changes_nothing(server: PrivateRedis) -> None:
    """Else an attempt would be started twice while both releases are about (rules A7 and S8)."""
    first, message = marks_of(server), a_message(42)
    assert first.claim(message, timeout_s=5) is Claim.RUN
    with redis.Redis.from_url(server.url) as client:
        key = f"taskbridge:mark:{message.id}:1"
        client.append(key, " more words")
        assert marks_of(server).claim(message, timeout_s=5) is Claim.RUNNING
        first.close()
        assert marks_of(server).claim(message, timeout_s=5) is Claim.LOST
        client.set(key, "ended 1.000")
        assert marks_of(server).claim(message, timeout_s=5) is Claim.ENDED


def test_a_forked_process_is_another_worker(server: PrivateRedis) -> None:
    marks = marks_of(server)
    message = a_message(7)
    marks.started(message)
    claim_when(marks, message, Claim.RUNNING)
    child = os.fork()
    if child == 0:
        os._exit(0 if marks.claim(message, timeout_s=5) is Claim.RUNNING else 1)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    marks.close()


def test_without_a_server_marks_are_not_written_and_a_claim_says_so() -> None:
    with PrivateRedis() as server:
        marks = marks_of(server)
        marks.started(a_message(8))
        server.kill()
        for number in range(9, 12):
            marks.started(a_message(number))
            marks.ended(a_message(number))

        with pytest.raises(BrokerUnavailable, match="store"):
            marks.claim(a_message(8), timeout_s=5)
        marks.close()


def test_the_store_is_the_broker_if_that_is_redis_or_memory_and_else_the_setting() -> None:
    assert isinstance(Bridge("celery+redis://127.0.0.1:1/0").marks, Marks)
    assert isinstance(Bridge("celery+amqp://127.0.0.1:1/", store="redis://127.0.0.1:1/0").marks, Marks)
    assert Bridge("celery+amqp://127.0.0.1:1/").marks is None
    assert Bridge("inline://").marks is None


def test_a_worker_that_stood_still_learns_that_another_one_has_decided(server: PrivateRedis) -> None:
    code = (
        "import sys\n"
        "from tests.unit.test_redis_marks import open_store, LEASE_S, load, a_message\n"
        "from taskbridge import Message\n"
        f"settings, _ = load({{'url': 'celery+{server.url}', 'lease': LEASE_S}}, environ={{}})\n"
        f"marks = open_store(settings, '{server.url}').marks\n"
        "make = lambda id: Message(id=id, task='t', queue='q', args_json='[]', kwargs_json='{}', enqueued_at=0)\n"
        "for id in sys.argv[1:]: marks.started(make(id))\n"
        "print('started', flush=True)\n"
        "sys.stdin.readline()\n"
        "print([marks.still_ours(make(id), timeout_s=5) for id in sys.argv[1:]], flush=True)\n"
    )
    ids = [f"{name}-{_RUN[0]}" for name in ("decided", "undecided")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *ids], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as still:
        assert still.stdin is not None
        assert still.stdout is not None
        assert still.stdout.readline() == "started\n"
        still.send_signal(signal.SIGSTOP)
        marks = marks_of(server)
        decided = Message(id=ids[0], task="t", queue="q", args_json="[]", kwargs_json="{}", enqueued_at=0)
        assert claim_when(marks, decided, Claim.LOST) is Claim.LOST
        marks.ended(decided)
        assert claim_when(marks, decided, Claim.ENDED) is Claim.ENDED
        still.send_signal(signal.SIGCONT)
        still.stdin.write("\n")
        still.stdin.flush()
        assert still.stdout.readline() == "[False, True]\n"
        marks.close()


def test_a_connection_that_the_server_has_closed_costs_no_mark(server: PrivateRedis) -> None:
    client = redis.Redis.from_url(server.url)
    one, other = marks_of(server), marks_of(server)
    one.started(a_message(20))
    assert claim_when(other, a_message(20), Claim.RUNNING) is Claim.RUNNING
    client.client_kill_filter(_type="normal", skipme=True)
    time.sleep(0.1)
    for number in (21, 22):
        one.started(a_message(number))

    claims = [claim_when(other, a_message(number), Claim.RUNNING) for number in (21, 22)]

    assert claims == [Claim.RUNNING, Claim.RUNNING]
    one.close()
    other.close()
    client.close()


def test_a_user_who_may_not_turn_replies_off_leaves_none_in_the_server(server: PrivateRedis) -> None:
    client: Any = redis.Redis.from_url(server.url)
    client.execute_command("ACL", "SETUSER", "eve", "on", ">pw", "~*", "+@all", "-client")
    settings, _ = load({"url": f"celery+{server.url}", "lease": LEASE_S}, environ={})
    marks, other = open_store(settings, server.url.replace("//", "//eve:pw@")).marks, marks_of(server)

    for number in range(2000):
        marks.started(a_message(300 + number % 10))

    marks.started(a_message(310))
    assert claim_when(other, a_message(310), Claim.RUNNING) is Claim.RUNNING, "all before it is answered, too"
    marks.started(a_message(310))
    line: Any = vars(marks._backend)["_unanswered"]._line.made
    assert line._link.has_come(20)
    left = line._link.raw.recv(1 << 20, socket.MSG_PEEK)
    assert len(left) < 1000, "what nobody reads stays in the server in the end"
    marks.close()
    other.close()
    client.execute_command("ACL", "DELUSER", "eve")
    client.close()


def test_any_number_of_threads_writes_on_one_connection(make_redis: Callable[..., PrivateRedis]) -> None:
    server = make_redis()  # whose connections are counted
    client: Any = redis.Redis.from_url(server.url)
    before = len(client.client_list())
    settings, _ = load({"url": f"celery+{server.url}", "lease": LEASE_S}, environ={})
    store = open_store(settings, server.url)
    store.marks.prepare()  # as a worker does, one after the other
    assert store.clock is not None
    store.clock.ensure(timeout_s=5)

    def run(thread: int) -> None:
        for number in range(200):
            message = a_message(1000 * thread + number)
            store.marks.started(message)
            store.records.started(message, worker="w:1", at=1.0)
            store.marks.ended(message)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(2, 10)))

    marks = [
        f"taskbridge:mark:{a_message(1000 * thread + number).id}:1" for thread in range(2, 10) for number in range(200)
    ]
    deadline = time.monotonic() + 20
    while (ended := client.mget(marks).count(b"ended")) < len(marks) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ended == len(marks)
    # One for these writes, and one for all else, or two: a sign of life may be given while starts are recorded.
    assert len(client.client_list()) - before <= 3
    store.close()
    client.close()


def test_a_claim_whose_answer_never_came_is_answered_the_same_again(server: PrivateRedis) -> None:
    dead, other = marks_of(server), marks_of(server)
    never, lost = a_message(101), a_message(102)
    dead.started(lost)
    claim_when(other, lost, Claim.RUNNING)
    dead.close()

    for message, answer in ((never, Claim.RUN), (lost, Claim.LOST)):
        assert other.claim(message, timeout_s=5) is answer
        other._me.get().running.clear()
        other._me.get().deciding.clear()
        assert other.claim(message, timeout_s=5) is answer
    other.ended(lost)
    assert claim_when(other, lost, Claim.ENDED) is Claim.ENDED
    other.close()


def test_what_a_process_knows_of_its_own_attempts_counts_where_the_store_was_not_told(
    server: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = marks_of(server)
    running, ended, given_back = a_message(111), a_message(112), a_message(113)
    marks.prepare()
    with monkeypatch.context() as patch:
        patch.setattr(marks._backend, "put_soon", lambda *_, **__: None)  # the store was away
        for message in (running, ended, given_back):
            marks.started(message)
        marks.ended(ended)
    marks.given_back(given_back, timeout_s=5)

    assert marks.claim(running, timeout_s=5) is Claim.RUNNING
    assert marks.claim(ended, timeout_s=5) is Claim.ENDED
    assert marks.claim(given_back, timeout_s=5) is Claim.RUN
    monkeypatch.setattr(marks_module, "monotonic", lambda: time.monotonic() + LEASE_S + 60)
    assert marks.claim(ended, timeout_s=5) is Claim.RUN, "whose id is used again"
    marks.close()


def test_what_a_url_says_of_replies_and_checks_does_not_count(server: PrivateRedis) -> None:
    settings, _ = load({"url": f"celery+{server.url}", "lease": LEASE_S}, environ={})
    marks = open_store(settings, f"{server.url}?decode_responses=true&health_check_interval=1").marks
    other = marks_of(server)

    marks.started(a_message(110))
    assert claim_when(other, a_message(110), Claim.RUNNING) is Claim.RUNNING
    time.sleep(1.1)  # a check would be due, whose answer never comes
    began = time.monotonic()
    marks.ended(a_message(110))
    assert time.monotonic() - began < 2
    assert claim_when(other, a_message(110), Claim.ENDED) is Claim.ENDED
    assert marks.claim(a_message(111), timeout_s=5) is Claim.RUN
    marks.close()
    other.close()
