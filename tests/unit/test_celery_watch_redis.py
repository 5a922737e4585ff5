"""How a Celery worker's event loop looks again for messages on Redis, as the connections for that come and go."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from taskbridge.engines.celery import redis_queues
from taskbridge.engines.celery.redis_queues import Watch
from taskbridge.exceptions import BrokerUnavailable


class Loop:
    """An event loop with a clock of its own; its timers are those that have neither ended nor been cancelled."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Any] = []

    def call_later(self, in_s: float, act: Any) -> Any:
        timer = SimpleNamespace(at=self.now + in_s, act=act)
        timer.cancel = lambda: self.timers.remove(timer)
        self.timers.append(timer)
        return timer

    def call_repeatedly(self, *_: Any) -> None: ...

    def add_reader(self, *_: Any) -> None: ...

    def remove_reader(self, *_: Any) -> None: ...

    def turn(self, seconds: float) -> None:
        self.now += seconds
        for timer in [each for each in self.timers if each.at <= self.now]:
            self.timers.remove(timer)
            timer.act()


class Server:
    """Answers to a watch; what is in `refused` is the error that it answers to `CLIENT TRACKING` with."""

    def __init__(self) -> None:
        self.refused: str | None = None
        self.connected = 0

    def connect(self, timeout_s: float) -> Any:
        self.connected += 1
        return SimpleNamespace(fileno=lambda: 0, close=lambda: None, can_read=lambda *_: False)

    def call(self, link: Any, *command: Any) -> Any:
        if command[:2] == ("CLIENT", "TRACKING") and self.refused:
            raise ResponseError(self.refused)
        return 0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(redis_queues, "connector", lambda url: made.connect)
    monkeypatch.setattr(redis_queues, "_call", made.call)
    monkeypatch.setattr(redis_queues, "_send", lambda *_: None)
    return made


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch, server: Server) -> Loop:
    made = Loop()
    monkeypatch.setattr(redis_queues, "monotonic", lambda: made.now)
    return made


def test_where_tracking_is_refused_timers_do_not_pile_up(server: Server, loop: Loop) -> None:
    server.refused = "NOPERM this user has no permissions"
    watch = Watch("redis://", lambda: None, answers=lambda: True)
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
    watch.look_again(1.0)
    watch.close()
    assert loop.timers == []


def test_a_sooner_look_takes_the_place_of_a_later_one(server: Server, loop: Loop) -> None:
    watch = Watch("redis://", lambda: None, answers=lambda: True)
    watch.serve(loop)
    for in_s in (2.0, 0.5, 1.0):
        watch.look_again(in_s)

    assert [timer.at for timer in loop.timers] == [100.5]
    loop.turn(0.5)
    assert (watch.changes, loop.timers) == (1, [])


def test_a_listener_that_was_cut_does_not_count_as_a_refusal(server: Server, loop: Loop) -> None:
    watch = Watch("redis://", lambda: None, answers=lambda: True)
    server.refused = "The client ID you want redirect to does not exist"
    with pytest.raises(BrokerUnavailable):
        watch.is_quiet(["q"], in_vain=False)

    server.refused = None
    assert watch.is_quiet(["q"], in_vain=False)
    assert watch._tracker is not None


def test_it_connects_by_itself_only_once_redis_has_answered_otherwise(server: Server, loop: Loop) -> None:
    is_away = True
    watch = Watch("redis://", lambda: None, answers=lambda: not is_away)
    watch.serve(loop)

    watch._beat()
    assert (server.connected, watch.changes) == (0, 1)

    is_away = False
    watch._beat()
    assert server.connected == 2


def test_where_listening_is_not_permitted_it_stays_connected_and_says_so_once(
    server: Server, loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(redis_queues, "_send", lambda _, *command: sent.append(command[0]))
    watch = Watch("redis://", lambda: None, answers=lambda: True)
    watch.serve(loop)
    watch.listen("/0.shop.celery.pidbox", "q", deque())
    replies: list[Any] = [NoPermissionError("no such channel"), [b"message", b"__redis__:invalidate", None]]

    def read() -> Any:
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    listener: Any = watch._listener
    listener.can_read, listener.read = lambda *_: bool(replies), read
    watch._read()
    assert (server.connected, watch.changes, replies) == (2, 1, []), "what came behind the refusal was read, too"

    sent.clear()
    watch._lose()
    watch._beat()
    assert (server.connected, sent) == (4, ["PING"])
    assert [record.getMessage().partition(",")[0] for record in caplog.records if record.levelname == "WARNING"] == [
        "PSUBSCRIBE is not permitted"
    ]
