"""Leases on Redis, for both engines: at no instant is a message in nobody's hands (rules A2, A3 and A8)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest
import redis

from taskbridge.brokers.base import Held
from taskbridge.brokers.redis import RedisBroker
from taskbridge.engines.celery.wire import RedisWire as CeleryWire
from taskbridge.engines.dramatiq.wire import RedisWire as DramatiqWire
from taskbridge.engines.redis_leases import CELERY, DRAMATIQ, Leases, Lists
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.message import DeadLetter, Message, new_id
from taskbridge.settings import load
from tests.servers import PrivateRedis

_ID = re.compile(rb'"(?:message_)?id": ?"([^"]+)"')

_BRIEF_S = 2.0
"""A lease that is to end, and that is not lost before the next line is reached."""

LAYOUTS = {"celery": (CELERY, CeleryWire), "dramatiq": (DRAMATIQ, DramatiqWire)}


class Place:
    """A namespace on a server, with its queues and any number of workers."""

    def __init__(self, url: str, engine: str, **given: Any) -> None:
        found = {"url": f"{engine}+{url}", "namespace": f"t{time.time_ns()}", "lease": 60, **given}
        self.settings = load(found, environ={})[0]
        self.layout, make_wire = LAYOUTS[engine]
        self.wire: Any = make_wire(self.settings)
        self.client: Any = redis.Redis.from_url(url)
        self._made: list[Leases] = []

    def worker(self, **options: Any) -> Leases:
        self._made.append(Leases(self.settings, self.layout, **options))
        return self._made[-1]

    def put(self, priority: Any = "normal", queue: str = "q") -> str:
        sent = Message(
            id=new_id(), task="t", queue=queue, args_json="[]", kwargs_json="{}", enqueued_at=1.0, priority=priority
        )
        for command in self.wire.encode(sent):
            self.client.execute_command(*command)
        return sent.id

    def lists(self, *queues: str) -> Lists:
        return Lists([self.wire.places(queue) for queue in queues or ("q",)])

    def waiting(self, queue: str = "q") -> list[int]:
        return [self.client.llen(place) for place in self.wire.places(queue)]

    def held(self) -> list[bytes]:
        return [
            tag for key in self.client.scan_iter(f"{self.settings.namespace}*.held.*") for tag in self.client.hkeys(key)
        ]

    def lapse(self, leases: Leases, worker: str = "") -> None:
        """Have a worker be one that has not renewed its lease for longer than that lasts."""
        self.client.zincrby(leases.leases_key, -2000 * self.settings.lease_s, worker or leases.worker)

    def close(self) -> None:
        for each in self._made:
            each.stop()
        self.client.close()


@pytest.fixture(params=LAYOUTS)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lease_s() -> float:
    return 60


@pytest.fixture
def place(redis_server: PrivateRedis, engine: str, lease_s: float) -> Iterator[Place]:
    made = Place(redis_server.url, engine, lease=lease_s)
    yield made
    made.close()


def take(leases: Leases, lists: Lists, most: int = 1) -> list[Held]:
    return leases.take(lists, most, timeout_s=5)


def ids(taken: Sequence[Held]) -> list[str]:
    """Return the ids of messages, whichever engine wrote them."""
    return [_ID.findall(each.text)[0].decode() for each in taken]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class TestTaking:
    def test_it_takes_no_more_than_it_was_asked_for_and_all_of_it_is_held(self, place: Place) -> None:
        sent = [place.put() for _ in range(5)]
        leases = place.worker()

        taken = take(leases, place.lists(), 3)

        assert ids(taken) == sent[:3]
        assert [each.suspect for each in taken] == [False] * 3
        assert sorted(place.held()) == [each.tag.encode() for each in taken]
        assert place.client.zrange(leases.leases_key, 0, -1) == [leases.worker.encode()]
        assert sum(place.waiting()) == 2

    def test_higher_priorities_come_first_in_their_own_queue(self, place: Place) -> None:
        low, normal = place.put("low", "a"), place.put("normal", "b")
        critical, high = place.put("critical", "b"), place.put("high", "b")
        leases, lists = place.worker(), place.lists(*"ab")

        assert ids(take(leases, lists, 3)) == [low, critical, high]
        assert ids(take(leases, lists, 3)) == [normal]

    def test_queues_have_their_turn_within_a_script_and_from_one_to_the_next(self, place: Place) -> None:
        a, b, c = ([place.put(queue=queue) for _ in range(4)] for queue in "abc")
        leases, lists = place.worker(), place.lists(*"abc")

        taken = take(leases, lists, 4)

        assert (ids(taken), [each.queue for each in taken]) == ([a[0], b[0], c[0], a[1]], [0, 1, 2, 0])
        assert ids(take(leases, lists, 4)) == [b[1], c[1], a[2], b[2]]

    def test_without_queues_it_takes_nothing_and_ends(self, place: Place) -> None:
        """So it is for a moment as a worker stops."""
        assert take(place.worker(), Lists([]), 3) == []

    @pytest.mark.parametrize("queues", [1, 15, 16, 17, 40])
    def test_none_of_many_queues_is_passed_over(self, place: Place, queues: int) -> None:
        names = [f"q{number}" for number in range(queues)]
        sent = {place.put(queue=name) for name in names}
        lists = place.lists(*names)
        lists.turn = queues // 2

        assert set(ids(take(place.worker(), lists, queues + 1))) == sent

    def test_who_takes_ends_what_is_done_with(self, place: Place) -> None:
        place.put()
        leases, lists = place.worker(), place.lists()
        for _ in range(2):
            (done,) = take(leases, lists)
            leases.end_soon(done.tag)
            assert place.held() == [done.tag.encode()], "nothing is sent for it alone"
            place.put()

        (last,) = take(leases, lists)

        assert place.held() == [last.tag.encode()]
        leases.end(last.tag)
        assert set(place.client.scan_iter(f"{place.settings.namespace}*")) == {leases.leases_key.encode()}


class TestGivingBack:
    def test_it_is_the_next_one_of_its_own_queue_and_priority(self, place: Place) -> None:
        sent = [place.put("low"), place.put("low"), place.put("low"), place.put(queue="other")]
        leases, lists = place.worker(), place.lists("q", "other")
        before = place.waiting(), place.waiting("other")
        taken = take(leases, lists, 3)

        leases.give_back(*(each.tag for each in taken))

        assert (place.waiting(), place.waiting("other")) == before
        again = take(leases, place.lists(), 3)
        assert ids(again) == sent[:3]
        assert [each.suspect for each in again] == [True, True, False]

    @pytest.mark.parametrize("suspect", [True, False])
    def test_it_says_whether_it_may_have_been_started_and_changes_nothing_else(
        self, place: Place, suspect: bool
    ) -> None:
        place.put()
        leases, lists = place.worker(), place.lists()
        (first,) = taken = take(leases, lists)
        for _ in range(3):
            leases.give_back(taken[0].tag, suspect=suspect)
            taken = take(leases, lists)

        assert (taken[0].text, taken[0].suspect) == (first.text, suspect)
        leases.end(taken[0].tag)
        assert set(place.client.scan_iter(f"{place.settings.namespace}*")) == {leases.leases_key.encode()}

    def test_a_worker_that_stops_gives_back_all_that_it_holds(self, place: Place) -> None:
        sent = [place.put() for _ in range(12)]
        leases, lists = place.worker(), place.lists()
        taken = take(leases, lists, 12)

        leases.end_soon(taken[0].tag)
        leases.stop()

        assert (place.held(), place.client.zcard(leases.leases_key)) == ([], 0)
        assert ids(take(place.worker(), lists, 12)) == sent[1:]

    def test_after_a_stop_it_is_another_worker(self, place: Place) -> None:
        place.put()
        leases, lists = place.worker(), place.lists()
        (first,) = take(leases, lists)
        leases.stop()
        (second,) = take(leases, lists)

        leases.stop()

        assert (sum(place.waiting()), place.held()) == (1, [])
        assert place.client.zcard(leases.leases_key) == 0
        assert first.tag != second.tag, "what ends the first one late must not end the second"

    def test_what_another_thread_takes_meanwhile_is_not_lost(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        leases, lists = place.worker(), place.lists()
        take(leases, lists)
        carry_out, calls = leases._carry_out, []

        def carry_out_and_take(timeout_s: float, **_: bool) -> None:
            carry_out(timeout_s)
            calls.append(timeout_s)
            if len(calls) == 2:  # the lease is about to end
                place.put()
                take(leases, lists)

        monkeypatch.setattr(leases, "_carry_out", carry_out_and_take)
        worker = leases.worker  # until it stops
        leases.stop()
        assert len(place.held()) == 1

        place.lapse(leases, worker)
        place.worker().beat()

        assert (sum(place.waiting()), place.held()) == (1, [])

    @pytest.mark.parametrize("act", ["stop", "beat"])
    def test_a_forked_child_does_nothing_in_the_name_of_its_parent(self, place: Place, act: str) -> None:
        place.put()
        leases = place.worker()
        (taken,) = take(leases, place.lists())
        leases.beat()
        before = place.client.zrange(leases.leases_key, 0, -1, withscores=True)
        time.sleep(0.01)
        child = os.fork()
        if child == 0:
            try:
                getattr(leases, act)()
                os._exit(0)
            finally:
                os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        assert place.held() == [taken.tag.encode()]
        assert before[0] in place.client.zrange(leases.leases_key, 0, -1, withscores=True), "the parent has renewed it"

    def test_a_forked_child_is_another_worker(self, place: Place) -> None:
        for _ in range(3):
            place.put()
        leases, lists = place.worker(), place.lists()
        assert len(take(leases, lists)) == 1
        child = os.fork()
        if child == 0:
            try:
                os._exit(len(take(leases, lists)))
            finally:
                os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1

        assert len(take(leases, lists)) == 1

        assert len(place.held()) == 3, "each is held, whoever died with it"


class TestLeases:
    @pytest.fixture
    def lease_s(self) -> float:
        return _BRIEF_S

    def test_what_nobody_renews_goes_back_first_and_what_is_renewed_stays(self, place: Place) -> None:
        lost, waiting = place.put("critical"), place.put("critical")
        dead, leases, lists = place.worker(), place.worker(), place.lists()
        take(dead, lists)
        place.lapse(dead)
        leases.beat()
        (again,) = take(leases, lists)
        assert (ids([again]), again.suspect) == ([lost], True)
        other = place.worker()
        for _ in range(5):
            time.sleep(_BRIEF_S / 4)
            leases.beat()
            other.beat()
        (last,) = take(leases, lists)

        assert (ids([last]), last.suspect) == ([waiting], False)
        dead.end("0")
        assert len(place.held()) == 2, "who was dead says nothing any more"

    def test_a_thread_renews_the_lease_and_looks_after_others(self, place: Place) -> None:
        place.put()
        dead, busy, other, lists = place.worker(), place.worker(), place.worker(), place.lists()
        take(dead, lists)
        place.lapse(dead)
        busy.start()
        wait_until(lambda: sum(place.waiting()))
        take(busy, lists)
        other.start()

        time.sleep(1.5 * _BRIEF_S)

        assert (sum(place.waiting()), len(place.held())) == (0, 1)

    def test_after_a_time_without_redis_others_have_a_lease_to_show_that_they_live(self, place: Place) -> None:
        place.put()
        place.put()
        alive, dead, leases = place.worker(), place.worker(), place.worker()
        lives, lost = take(alive, place.lists()), take(dead, place.lists())
        leases.beat()
        time.sleep(1.1 * _BRIEF_S)  # nobody could renew anything, for longer than the lease

        leases.beat()  # this one is the first to reach Redis again

        assert len(place.held()) == len([*lives, *lost])

        def judged() -> bool:
            alive.beat()
            leases.beat()
            return len(place.held()) == 1

        wait_until(judged)
        assert place.client.hkeys(alive.held_prefix + alive.worker) == [lives[0].tag.encode()]

    def test_where_redis_knows_no_recent_renewal_of_its_own_it_judges_nobody(
        self, redis_server: PrivateRedis, engine: str
    ) -> None:
        """As when another server has taken over within one call: what others renewed since may be missing, too."""
        with closing(Place(redis_server.url, engine, lease=60)) as place:
            place.put()
            alive, leases = place.worker(), place.worker()
            take(alive, place.lists())
            alive.beat()
            leases.beat()
            place.client.zadd(leases.leases_key, {alive.worker: 1, leases.worker: 1})
            leases.beat()
            assert len(place.held()) == 1

    def test_what_was_taken_but_never_arrived_goes_back(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        sent = place.put()
        leases, lists = place.worker(), place.lists()
        run = leases._client.execute

        def lose(*call: Any, **given: Any) -> None:
            run(*call, **given)
            monkeypatch.undo()
            leases.beat()
            assert len(place.held()) == 1, "its reply may be on its way"
            raise BrokerUnavailable("no answer in time")

        monkeypatch.setattr(leases._client, "execute", lose)
        with pytest.raises(BrokerUnavailable):
            take(leases, lists)
        leases.beat()

        (again,) = take(leases, lists)
        assert (ids([again]), again.suspect) == ([sent], True), "it may have been ended before Redis lost that"

    def test_once_a_minute_something_else_is_done(self, place: Place) -> None:
        done: list[bool] = []
        leases = place.worker(each_minute=lambda: done.append(True))

        for _ in range(2):
            leases.beat()

        assert len(done) == 1


class TestOutages:
    @pytest.fixture
    def server(self, make_redis: Callable[[], PrivateRedis]) -> PrivateRedis:
        return make_redis()

    @pytest.fixture
    def place(self, server: PrivateRedis, engine: str) -> Iterator[Place]:
        made = Place(server.url, engine)
        yield made
        made.close()

    def test_a_full_redis_lets_a_worker_take_keep_and_end_what_will_empty_it(self, place: Place) -> None:
        place.put()
        place.put()
        place.client.config_set("maxmemory", 1)
        leases, lists = place.worker(), place.lists()

        (first,) = take(leases, lists)
        leases.give_back(first.tag)
        taken = take(leases, lists, 2)
        before = place.client.zscore(leases.leases_key, leases.worker)
        time.sleep(0.05)
        leases.beat()

        assert place.client.zscore(leases.leases_key, leases.worker) > before
        leases.end(*(each.tag for each in taken))
        assert (place.held(), sum(place.waiting())) == ([], 0)

    def test_what_is_said_while_redis_is_away_is_carried_out_later(self, place: Place, server: PrivateRedis) -> None:
        for _ in range(4):
            place.put()
        leases, lists = place.worker(), place.lists()
        ended, soon, back, _ = take(leases, lists, 4)
        leases.end_soon(soon.tag)
        server.shut_down()

        leases.end(ended.tag)
        leases.give_back(back.tag)
        with pytest.raises(BrokerUnavailable):
            take(leases, lists)

        server.start()
        leases.beat()
        assert (len(place.held()), sum(place.waiting())) == (1, 1)


class TestOddEntries:
    """Whatever somebody else has written into the keys of leases ends as one entry, and stops nobody (rule I1)."""

    @pytest.fixture
    def lost(self, place: Place) -> str:
        """Return the key of what a worker held that is gone: a message."""
        place.put()
        gone = place.worker()
        take(gone, place.lists())
        place.lapse(gone)
        return gone.held_prefix + gone.worker

    def letters(self, place: Place) -> list[DeadLetter]:
        return RedisBroker(place.settings, place.wire).dead_letters()

    @pytest.mark.parametrize("entry", [b"", b"\xff no list", b"NS.string\nitem", b"NS\xed\xa0\x80\nitem"])
    def test_what_a_dead_worker_held_goes_back_beside_them(self, place: Place, lost: str, entry: bytes) -> None:
        namespace = place.settings.namespace
        place.client.set(f"{namespace}.string", "of another type")
        for tag in (b"\xff", b"", b"x", b"-1", b"nan", b"0x10", b"9" * 400, b"1\n2"):
            place.client.hset(lost, tag, entry.replace(b"NS", namespace.encode()))

        leases = place.worker()
        leases.beat()

        assert (sum(place.waiting()), place.held()) == (1, [])
        assert place.client.zrange(leases.leases_key, 0, -1) == [leases.worker.encode()]

    def test_what_can_not_go_back_is_dead(self, place: Place, lost: str) -> None:
        list_key = next(key for key in place.wire.places("q") if place.client.exists(key) == 0)
        place.client.hset(lost, "8", b"no list")
        place.client.set(list_key, "of another type")
        place.client.hset(lost, "9", list_key.encode() + b"\nitem")

        leases = place.worker()
        leases.beat()

        letters = self.letters(place)
        assert {(letter.reason, letter.raw) for letter in letters} == {
            ("internal_error", b"no list"),
            ("internal_error", b"item"),
        }
        assert (place.held(), place.client.exists(f"{leases.leases_key}.odd")) == ([], 0)
        leases.beat()
        assert len(self.letters(place)) == 2

    def test_what_somebody_has_set_aside_by_hand_is_dead(self, place: Place) -> None:
        leases = place.worker()
        place.client.rpush(f"{leases.leases_key}.odd", b"by hand")

        leases.beat()

        assert [letter.raw for letter in self.letters(place)] == [b"by hand"]

    def test_what_two_workers_bury_at_once_is_one_letter(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        one, two = place.worker(), place.worker()
        place.client.hset(one.held_prefix + one.worker, "x", b"no list")
        bury = one._bury

        def late(entry: bytes) -> None:
            two.beat()  # reads and buries the same entry
            bury(entry)

        monkeypatch.setattr(one, "_bury", late)
        one.beat()

        assert [letter.raw for letter in self.letters(place)] == [b"no list"]

    def test_a_message_whose_list_is_overwritten_while_it_is_held_is_dead_and_no_other_is(self, place: Place) -> None:
        """It is not removed before it is somewhere else."""
        place.put()
        leases, lists = place.worker(), place.lists()
        (taken,) = take(leases, lists)
        other = place.put(queue="other")
        (second,) = take(leases, place.lists("other"))
        for key in place.wire.places("q"):
            place.client.set(key, "of another type")

        leases.give_back(taken.tag, second.tag)
        leases.beat()

        assert [letter.raw for letter in self.letters(place)] == [taken.text]
        assert ids(take(leases, place.lists("q", "other"))) == [other], "what can't be read stops no other queue"

    def test_what_the_key_of_a_list_holds_instead_is_kept_beside_it_and_the_queue_goes_on(self, place: Place) -> None:
        leases, lists = place.worker(), place.lists("q", "other")
        for key in place.wire.places("q"):
            place.client.set(key, "of another type")
        other = place.put(queue="other")

        assert ids(take(leases, lists)) == [other]
        assert [place.client.get(f"{key}:odd") for key in place.wire.places("q")] == [b"of another type"] * 4
        assert ids([*take(leases, lists), *take(leases, lists)]) == []
        sent = place.put()
        assert ids(take(leases, lists)) == [sent]

    @pytest.mark.parametrize("tag", ["x", "\u0661", "9" * 400])
    def test_an_odd_tag_of_its_own_hinders_neither_the_lease_nor_its_end(self, place: Place, tag: str) -> None:
        place.put()
        leases, lists = place.worker(), place.lists()
        (taken,) = take(leases, lists)
        place.client.hset(leases.held_prefix + leases.worker, tag, "nonsense")

        leases.beat()
        assert place.held() == [taken.tag.encode()]

        place.client.hset(leases.held_prefix + leases.worker, tag, "nonsense")
        leases.stop()
        assert (sum(place.waiting()), place.held()) == (1, [])

    @pytest.mark.parametrize("which", ["leases", "own", "dead"])
    def test_a_key_of_another_type_is_made_anew(self, place: Place, lost: str, which: str) -> None:
        leases = place.worker()
        own = leases.held_prefix + leases.worker
        key = {"leases": leases.leases_key, "own": own, "dead": lost}[which]
        place.client.delete(key)
        place.client.set(key, "of another type")
        sent = place.put("critical")

        taken = take(leases, place.lists())
        leases.beat()

        assert ids(taken) == [sent]
        assert place.client.zrange(leases.leases_key, 0, -1) == [leases.worker.encode()]
        assert place.client.hkeys(own) == [taken[0].tag.encode()]


@pytest.mark.parametrize("raw", [b'}{ ,"","', b"\xff\n\x00", b"{}", b'{"redelivered":true', b"[" * 1000])
def test_what_can_not_be_read_comes_as_it_is_however_often(redis_server: PrivateRedis, raw: bytes) -> None:
    """Whoever takes it buries it (rule Q7)."""
    place = Place(redis_server.url, "celery")
    place.client.lpush(place.wire.places("q")[0], raw)
    dead, leases = place.worker(), place.worker()
    take(dead, place.lists())
    place.lapse(dead)
    leases.beat()

    (again,) = take(leases, place.lists())

    assert again.text == raw
    place.close()


class TestDramatiqsLists:
    @pytest.fixture
    def engine(self) -> str:
        return "dramatiq"

    def test_an_id_without_a_message_is_dropped_and_what_is_no_id_comes_as_it_is(self, place: Place) -> None:
        key = place.wire.places("q")[2]
        place.client.rpush(key, new_id(), "critical:" + new_id(), b"\xffno id")
        sent = place.put()
        leases = place.worker()

        odd, good = take(leases, place.lists(), 9)

        assert (odd.text, ids([good])) == (b"\xffno id", [sent])
        leases.give_back(odd.tag)
        assert place.client.lrange(key, 0, -1) == [b"\xffno id"]

    def test_what_failed_is_among_dramatiqs_own_dead(self, place: Place) -> None:
        place.put("high")
        leases = place.worker()
        (taken,) = take(leases, place.lists())

        leases.end(taken.tag, dead=True)

        key = place.wire.places("q")[2]
        (found,) = place.client.zrange(f"{key}.XQ", 0, -1)
        assert place.client.hget(f"{key}.XQ.msgs", found) == taken.text
        assert (place.held(), place.client.hlen(f"{key}.msgs")) == ([], 0)

    @pytest.mark.parametrize("name", ["recovered", "XQ", "XQ.msgs"])
    def test_a_key_beside_a_queue_of_another_type_stops_nothing(self, place: Place, name: str) -> None:
        sent = place.put()
        place.client.set(f"{place.wire.places('q')[2]}.{name}", "of another type")
        leases, lists = place.worker(), place.lists()
        (taken,) = take(leases, lists)
        leases.give_back(taken.tag)
        (taken,) = take(leases, lists)

        assert (ids([taken]), taken.suspect) == ([sent], True)
        leases.end(taken.tag, dead=True)
        assert place.held() == []
