"""How a Celery worker's event loop looks again for messages on Redis, as the connections for that come and go."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ClusterDownError, NoPermissionError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from taskbridge.brokers.redis.places import Place
from taskbridge.engines.celery import redis_queues
from taskbridge.engines.celery.redis_queues import Watch
from taskbridge.exceptions import BrokerUnavailable

PLACE = Place("redis://")


class Loop:
    """An event loop with a clock of its own; its timers are those that have neither ended nor been cancelled."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Any] = []
        self.read: Any = lambda: None

    def call_later(self, in_s: float, act: Any) -> Any:
        timer = SimpleNamespace(at=self.now + in_s, act=act)
        timer.cancel = lambda: self.timers.remove(timer)
        self.timers.append(timer)
        return timer

    def call_repeatedly(self, *_: Any) -> None: ...

    def add_reader(self, _: int, read: Any) -> None:
        self.read = read

    def remove_reader(self, _: int) -> None:
        self.read = lambda: None

    def turn(self, seconds: float) -> None:
        self.now += seconds
        self.read()
        for timer in [each for each in self.timers if each.at <= self.now]:
            self.timers.remove(timer)
            timer.act()


class Server:
    """Answers to a watch; `refused` has by the first word of a command the error that it answers with."""

    def __init__(self) -> None:
        self.refused: dict[str, Exception] = {}
        self.connected: list[int] = []
        self.sent: list[tuple[Any, ...]] = []
        self.replies: deque[Any] = deque()

    def connector(self, place: Place, *, protocol: int) -> Any:
        return lambda timeout_s: self._link(protocol)

    def _link(self, protocol: int) -> Any:
        self.connected.append(protocol)
        self.replies.clear()
        if protocol == 3 and "HELLO" in self.refused:
            raise self.refused["HELLO"]
        owner = SimpleNamespace(can_read=lambda _: bool(self.replies), read_response=self._read)
        return SimpleNamespace(
            fileno=lambda: 0, close=lambda: None, has_come=lambda _: False, send=self._send, owner=owner, address=None
        )

    def _send(self, command: tuple[Any, ...]) -> None:
        self.sent.append(command)
        replies = {"CLIENT": b"OK", "EXISTS": 0, "PING": b"PONG", "PSUBSCRIBE": [b"psubscribe", b"p", 1]}
        self.replies.append(self.refused.get(command[0], replies[command[0]]))

    def _read(self, **_: Any) -> Any:
        reply = self.replies.popleft()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def count(self, name: str) -> int:
        return sum(command[0] == name for command in self.sent)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(redis_queues, "connector", made.connector)
    monkeypatch.setattr(redis_queues, "pack", lambda request: request[0])
    return made


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch, server: Server) -> Loop:
    made = Loop()
    monkeypatch.setattr(redis_queues, "monotonic", lambda: made.now)
    return made


@pytest.mark.parametrize("refused", ["CLIENT", "HELLO"])
def test_where_tracking_is_refused_timers_do_not_pile_up(server: Server, loop: Loop, refused: str) -> None:
    """Before Redis 6 there is no `HELLO`."""
    server.refused[refused] = ResponseError("NOPERM this user has no permissions")
    watch = Watch(PLACE, lambda: None, answers=lambda: True)
    watch.serve(loop)
    asked = seen = most = 0
    for turn in range(1200):  # of 0.05 s each
        if turn % 100 == 0:
            watch._beat()
        if watch.changes != seen:
            seen = watch.changes
            asked += watch.is_quiet(["q"], in_vain=True)
        most = max(most, len(loop.timers))
        loop.turn(0.05)

    assert most == 1
    assert 400 <= asked <= 650, "ten times a second, in a minute"
    assert (server.connected, server.count("EXISTS")) == ([3, 2], 0), "on RESP2, which is older"
    watch.look_again(loop.now + 1.0)
    watch.close()
    watch.look_again(loop.now + 0.5)
    assert len(loop.timers) == 1, "what the loop still has is the last"


def test_a_sooner_look_does_not_wait_for_a_later_one(server: Server, loop: Loop) -> None:
    watch = Watch(PLACE, lambda: None, answers=lambda: True)
    watch.serve(loop)
    for in_s in (2.0, 0.5, 1.0, 0.5):
        watch.look_again(loop.now + in_s)

    assert [timer.at for timer in loop.timers] == [102.0, 100.5]
    loop.turn(0.5)
    assert watch.changes == 1


def test_what_is_told_before_a_reply_is_not_taken_for_it(server: Server, loop: Loop) -> None:
    watch = Watch(PLACE, lambda: None, answers=lambda: True)
    watch.serve(loop)
    heard: deque[Any] = deque()
    watch.listen("/0.shop.celery.pidbox", "q", heard)
    pushes = [[b"pmessage", b"/0.shop.celery.pidbox", b"c", b"hello"], None, [b"invalidate", [b"key"]]]
    server.replies.extend([*pushes, b"PONG", [b"pong", b""]])

    assert watch.is_quiet(["q"], in_vain=False)
    assert (list(heard), watch.changes) == ([("q", b"hello")], 3)
    assert not server.replies


def test_a_connection_that_is_cut_does_not_count_as_a_refusal(server: Server, loop: Loop) -> None:
    watch = Watch(PLACE, lambda: None, answers=lambda: True)
    server.refused["CLIENT"] = RedisConnectionError("cut")
    with pytest.raises(BrokerUnavailable):
        watch.is_quiet(["q"], in_vain=False)

    server.refused.clear()
    assert watch.is_quiet(["q"], in_vain=False)
    assert server.connected == [3, 3]
    assert server.count("EXISTS") == 1


def test_it_connects_by_itself_only_once_redis_has_answered_otherwise(server: Server, loop: Loop) -> None:
    is_away = True
    watch = Watch(PLACE, lambda: None, answers=lambda: not is_away)
    watch.serve(loop)

    watch._beat()
    assert (server.connected, watch.changes) == ([], 1)

    is_away = False
    watch._beat()
    assert server.connected == [3]


def test_a_connection_on_which_nothing_is_heard_is_made_again(server: Server, loop: Loop) -> None:
    watch = Watch(PLACE, lambda: None, answers=lambda: True)
    watch.serve(loop)
    for _ in range(5):
        watch._beat()
        loop.turn(5.0)
    assert server.connected == [3]

    for _ in range(5):
        watch._beat()
        server.replies.clear()
        loop.turn(5.0)
    assert server.connected == [3, 3]


def test_where_listening_is_not_permitted_it_stays_connected_and_says_so_once(
    server: Server, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    server.refused["PSUBSCRIBE"] = NoPermissionError("no such channel")
    watch = Watch(PLACE, lambda: None, answers=lambda: True)
    watch.serve(loop)
    watch.listen("/0.shop.celery.pidbox", "q", deque())
    server.replies.append([b"invalidate", None])
    watch._read()
    assert (server.connected, watch.changes, server.count("PSUBSCRIBE")) == ([3], 1, 1)

    server.sent.clear()
    watch._lose()
    watch._beat()
    assert (server.connected, [command[0] for command in server.sent]) == ([3, 3], ["CLIENT", "PING"])
    assert [record.getMessage().partition(",")[0] for record in caplog.records if record.levelname == "WARNING"] == [
        "PSUBSCRIBE is not permitted"
    ]


def test_a_cluster_that_is_down_does_not_count_as_a_refusal(server: Server, loop: Loop) -> None:
    server.refused["HELLO"] = ClusterDownError("the cluster is down")
    watch = Watch(Place("redis://h", "{shop}"), lambda: None, answers=lambda: True)
    with pytest.raises(BrokerUnavailable):
        watch.is_quiet(["q"], in_vain=False)

    server.refused.clear()
    assert watch.is_quiet(["q"], in_vain=False)
    assert server.connected == [3, 3]


def test_it_follows_the_queues_to_another_server(server: Server, loop: Loop) -> None:
    place = Place("redis://h", "{shop}")
    watch = Watch(place, lambda: None, answers=lambda: True)
    watch.serve(loop)
    assert watch.is_quiet(["q"], in_vain=False)
    place.found = ("other", 1)
    assert watch.is_quiet(["q"], in_vain=False)
    assert server.connected == [3, 3]


def test_it_pings_more_often_than_it_looks(server: Server, loop: Loop) -> None:
    """Redis closes silent connections by its setting `timeout`; each look costs the server a script."""
    watch = Watch(PLACE, lambda: None, answers=lambda: True)
    watch.serve(loop)
    for _ in range(60):
        watch._beat()
        loop.turn(1.0)
    assert (server.count("PING"), watch.changes) == (60, 12)

    server.replies.append(RedisConnectionError("Connection closed by server."))
    loop.turn(0.2)
    watch._beat()
    assert (watch.changes, server.connected) == (14, [3, 3]), "it looks at once when it was lost, and is back"
