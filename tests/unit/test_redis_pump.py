"""Parked messages on Redis: published once, never early, at most 1 s late, and not lost whatever is killed when."""

from __future__ import annotations

import logging
import math
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from taskbridge import Bridge
from taskbridge.brokers.redis import RedisBroker
from taskbridge.brokers.redis import pump as redis_pump
from taskbridge.brokers.redis.client import client_of
from taskbridge.brokers.redis.keys import Keys
from taskbridge.contract.ports import free_port
from taskbridge.contract.stopwatch import STALL_S, Stopwatch
from taskbridge.engines.pump import Pump
from taskbridge.message import DeadLetter, Message
from tests.servers import PrivateRedis
from tests.unit.redis_helpers import HashWire, OneListWire, Place, message, place_on, pump_process, pumping, wait_until


@pytest.fixture
def place(redis_server: PrivateRedis) -> Iterator[Place]:
    with place_on(redis_server.url) as place:
        yield place


@contextmanager
def arrivals(place: Place, queue: str = "email", engine: str = "celery") -> Generator[dict[str, float]]:
    """Note when each message arrives in its queue, taking it out."""
    seen: dict[str, float] = {}
    stop, key = threading.Event(), f"{place.namespace}.{engine}.{queue}"

    def watch() -> None:
        while not stop.is_set():
            item = place.client.blpop(key, timeout=0.2)
            if item is not None:
                rest = place.client.lpop(key, 1000) or []  # all that there is: who takes it must not be what is late
                now = time.time()
                seen.update({each.decode(): now for each in (item[1], *rest)})

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(5)


class TestParking:
    def test_it_is_kept_by_the_servers_clock_and_rounded_up(self, place: Place) -> None:
        broker = place.broker()
        parked = message(attempt=2)

        before = place.now_ms()
        broker.park([(parked, 1.0001)], timeout_s=3)
        after = place.now_ms()

        [(member, due)] = place.delayed().items()
        assert member == f"{parked.id}:2"
        assert before + 1000.1 <= due <= math.ceil(after) + 1001
        assert place.texts() == {member.encode(): parked.dumps().encode()}

    def test_a_part_of_a_millisecond_makes_it_later_never_earlier(self, place: Place) -> None:
        broker = place.broker()
        for _ in range(50):
            parked = message()
            before = place.now_ms()
            broker.park([(parked, 1)], timeout_s=3)

            due = place.delayed()[f"{parked.id}:1"]
            assert before + 1000 <= due == int(due)

    def test_the_same_attempt_again_replaces_the_first(self, place: Place) -> None:
        broker = place.broker()
        first = message()
        again = replace(first, waits=1, waits_since=5.0)

        broker.park([(first, 60)], timeout_s=3)
        broker.park([(again, 0.1), (replace(first, attempt=2), 60)], timeout_s=3)

        assert broker.counts([]).delayed == 2
        with pumping(broker):
            wait_until(lambda: place.waiting() != [], timeout_s=20, saw=place.delayed)
        assert place.waiting() == [again]
        assert list(place.delayed()) == [f"{first.id}:2"]
        assert len(place.texts()) == 1

    def test_it_may_last_for_8_years(self, place: Place) -> None:
        place.broker().park([(message(), 8 * 365.25 * 86400)], timeout_s=3)

        [due] = place.delayed().values()
        assert due - place.now_ms() == pytest.approx(8 * 365.25 * 86400_000, abs=5000)

    def test_any_number_is_parked_at_once(self, place: Place) -> None:
        broker = place.broker()
        large = [(message(args_json=f'["{"x" * 100_000}"]'), 60.0) for _ in range(10)]

        broker.park([*large, *[(message(), 60.0) for _ in range(1040)]], timeout_s=5)

        assert broker.counts([]).delayed == 1050
        assert len(place.texts()) == 1050


class TestAmongMany:
    """A pump among hundreds asks less often, for any of them does the work; the others are only names here."""

    @pytest.fixture
    def place(self, make_redis: Callable[..., PrivateRedis]) -> Iterator[Place]:
        """A server of its own, whose commands are counted."""
        with place_on(make_redis().url) as place:
            yield place

    def test_it_looks_half_as_often_when_nothing_is_due(self, place: Place) -> None:
        add_pumps(place, 100)
        with pumping(place.broker()):
            before, began = looks(place), time.monotonic()
            time.sleep(3)
            found, took_s = looks(place) - before, time.monotonic() - began

        assert 1 <= found <= 3 * took_s, "5 a second alone"

    def test_its_sleep_ends_when_it_is_told_to_stop(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        sleeps = threading.Event()

        def sleep_s(*_: object) -> float:
            sleeps.set()
            return 60.0

        monkeypatch.setattr(redis_pump, "_sleep_s", sleep_s)
        with pumping(place.broker(), stop_s=0.5 + STALL_S):
            assert sleeps.wait(60)

    def test_it_does_not_wake_for_each_message_and_none_is_over_1_s_late(self, place: Place) -> None:
        broker = place.broker(HashWire)
        parked = [(message(), 0.5 + 0.002 * number) for number in range(1000)]
        due = {each.id: time.time() + delay_s for each, delay_s in parked}
        broker.park(parked, timeout_s=3)
        add_pumps(place, 100)
        with pumping(broker), arrivals(place) as seen:
            before = looks(place)
            wait_until(lambda: len(seen) == len(parked), timeout_s=20, saw=lambda: len(seen))
            found = looks(place) - before

        late_s = [seen[each] - due[each] for each in due]
        assert min(late_s) >= 0
        assert sorted(late_s)[len(late_s) // 2] <= 1
        assert found <= 60, "over 200 alone"


def add_pumps(place: Place, number: int) -> None:
    later = place.now_ms() + 60_000
    for each in range(number):
        place.client.zadd(f"{place.namespace}:pumps:celery", {f"other{each}": later})


def looks(place: Place) -> int:
    """Return how often pumps have looked: nothing else here asks by score."""
    return int(place.client.info("commandstats").get("cmdstat_zrangebyscore", {"calls": 0})["calls"])


class TestOnTime:
    def test_never_early_and_at_most_1_s_late(self, place: Place) -> None:
        broker, wire_delays_s = place.broker(HashWire), [0, 0.001, 0.05, 0.2, 0.201, 0.5, 0.77, 1.0, 1.5, 2.0]
        rng = random.Random(7)
        due: dict[str, float] = {}

        with pumping(broker), arrivals(place) as seen:
            for delay_s in [*wire_delays_s, *(rng.uniform(0, 2) for _ in range(40))]:
                parked = message()
                due[parked.id] = time.time() + delay_s
                broker.park([(parked, delay_s)], timeout_s=3)
                time.sleep(0.01)
            wait_until(lambda: len(seen) == len(due), timeout_s=20, saw=lambda: len(seen))

        late_s = [seen[parked_id] - due[parked_id] for parked_id in due]
        assert min(late_s) >= 0
        assert max(late_s) <= 1, sorted(late_s)[-5:]

    def test_behind_a_long_delay_a_short_one_is_on_time(self, place: Place) -> None:
        broker = place.broker(HashWire)
        with pumping(broker), arrivals(place) as seen:
            broker.park([(message(), 3600) for _ in range(500)], timeout_s=3)
            time.sleep(0.5)
            due = time.time() + 0.3
            broker.park([(message(), 0.3)], timeout_s=3)
            wait_until(lambda: len(seen) == 1, timeout_s=20, saw=place.delayed)

        [arrived] = seen.values()
        assert 0 <= arrived - due <= 1

    def test_what_fell_due_while_nobody_pumped_comes_first_and_in_order(self, place: Place) -> None:
        broker = place.broker()
        parked = [message() for _ in range(250)]
        broker.park([(each, 0.002 * (index + 1)) for index, each in enumerate(parked)], timeout_s=3)
        time.sleep(0.6)

        with pumping(broker):
            wait_until(lambda: len(place.waiting()) == 250, timeout_s=20, saw=lambda: len(place.waiting()))

        assert place.waiting() == parked
        assert place.texts() == {}
        assert place.delayed() == {}

    def test_an_idle_pump_costs_next_to_nothing(self, make_redis: Callable[..., PrivateRedis]) -> None:
        with place_on(make_redis().url) as place:
            broker = place.broker()
            broker.park([(message(), 3600)], timeout_s=3)
            with pumping(broker) as thread:
                time.sleep(0.3)
                place.client.config_resetstat()
                used_s, began = -cpu_s(thread), time.monotonic()
                time.sleep(2)
                used_s += cpu_s(thread)
                calls = place.client.info("commandstats")["cmdstat_evalsha"]["calls"]
                took_s = time.monotonic() - began

        assert 5 <= calls <= 7 * took_s, "a look each 0.2 s, and a sign of life now and then"
        assert used_s < 0.1


def cpu_s(thread: threading.Thread) -> float:
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def promoted(place: Place) -> int:
    return int(place.client.llen(f"{place.namespace}.celery.email"))


def wait_for_more(place: Place, than: int) -> None:
    wait_until(lambda: promoted(place) > than, timeout_s=20, saw=lambda: (than, promoted(place)))


class TestExactlyOnce:
    def test_by_several_pumps_in_threads(self, place: Place) -> None:
        parked = [message() for _ in range(500)]
        brokers = [place.broker() for _ in range(4)]
        brokers[0].park([(each, 0.3) for each in parked], timeout_s=3)

        with ExitStack() as stack:
            for broker in brokers:
                stack.enter_context(pumping(broker))
            wait_until(lambda: len(place.waiting()) >= 500, timeout_s=20, saw=lambda: len(place.waiting()))
            wait_until(lambda: place.delayed() == {}, timeout_s=20, saw=place.delayed)

        assert Counter(each.id for each in place.waiting()) == Counter(each.id for each in parked)

    def test_by_several_pumps_in_processes(self, place: Place) -> None:
        parked = [message() for _ in range(500)]

        with ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(pump_process(place))
            place.broker().park([(each, random.uniform(0.1, 0.5)) for each in parked], timeout_s=3)
            wait_until(lambda: len(place.waiting()) >= 500, timeout_s=20, saw=lambda: len(place.waiting()))
            wait_until(lambda: place.delayed() == {}, timeout_s=20, saw=place.delayed)

        assert Counter(each.id for each in place.waiting()) == Counter(each.id for each in parked)

    @pytest.mark.slow
    def test_though_pumps_are_killed_while_they_promote(self, place: Place) -> None:
        broker, parked = place.broker(), list[Message]()

        for _ in range(4):
            more = [message() for _ in range(1200)]
            broker.park([(each, 0) for each in more], timeout_s=20)
            parked += more
            before = promoted(place)
            # It takes 12 looks, each with a script that publishes what was found.
            with pump_process(place, dies_at=(random.randint(4, 12), random.uniform(0.00001, 0.001))) as process:
                assert process.wait(60) == -signal.SIGALRM
            waiting = {each.id for each in place.waiting()}
            left = {member[:-2] for member in place.delayed()}
            assert waiting & left == set()
            assert (promoted(place) > before, left != set()) == (True, True), "it was killed in the midst of it"
        with pumping(broker):
            wait_until(lambda: place.delayed() == {}, timeout_s=60, saw=place.delayed)

        assert Counter(each.id for each in place.waiting()) == Counter(each.id for each in parked)
        assert place.texts() == {}

    @pytest.mark.parametrize("others", [0, 100])
    def test_what_a_killed_pump_had_looked_up_is_on_time_by_another(self, place: Place, others: int) -> None:
        broker = place.broker()
        add_pumps(place, others)
        broker.park([(message(), 0) for _ in range(50)], timeout_s=3)
        dies = threading.Event()

        class Dying(OneListWire):
            def encode(self, message: Message) -> tuple[tuple[str, ...], ...]:
                dies.set()
                raise SystemExit

        dying = place.broker(Dying)
        with pytest.raises(SystemExit):
            dying.pump(knows=lambda task: True, stop=threading.Event())
        assert dies.is_set()
        assert len(place.delayed()) == 50, "they are claimed, and still parked"

        with pumping(broker):
            took_s = wait_until(lambda: len(place.waiting()) == 50, timeout_s=20, saw=place.delayed)

        assert took_s <= 1, "as rule D2 has it"

    def test_though_the_server_is_killed(self, make_redis: Callable[..., PrivateRedis]) -> None:
        server = make_redis()
        with place_on(server.url) as place:
            broker = place.broker(HashWire)
            parked = [message() for _ in range(3000)]

            with pumping(broker):
                for portion in (parked[:1500], parked[1500:]):
                    before = promoted(place)
                    broker.park([(each, 0.2) for each in portion], timeout_s=10)
                    wait_for_more(place, than=before)
                    server.kill()
                    server.start()
                wait_until(lambda: broker.counts(["email"]).delayed == 0, timeout_s=20, saw=place.delayed)

            items = place.client.lrange(f"{place.namespace}.celery.email", 0, -1)
            assert Counter(item.decode() for item in items) == Counter(each.id for each in parked)
            assert place.client.hlen(f"{place.namespace}.celery.email.msgs") == 3000


class TestOutages:
    def test_it_is_waited_out_and_told_once(
        self, make_redis: Callable[..., PrivateRedis], caplog: pytest.LogCaptureFixture
    ) -> None:
        server = make_redis()
        caplog.set_level(logging.INFO, "taskbridge.pump")
        with place_on(server.url) as place:
            broker = place.broker()
            with pumping(broker):
                broker.park([(message(), 0.5)], timeout_s=3)
                server.shut_down()
                time.sleep(1.5)
                server.start()
                wait_until(lambda: len(place.waiting()) == 1, timeout_s=20, saw=place.delayed)
                time.sleep(0.3)

        records = [record for record in caplog.records if record.name == "taskbridge.pump"]
        told = [record.getMessage() for record in records if record.levelno >= logging.WARNING]
        assert [text.partition(":")[0] for text in told] == [
            "delayed messages wait until Redis is back",
            "Redis is back, delayed messages are published again",
        ]

    @pytest.mark.parametrize("how", ["refused", "black-holed", "black-holed from the start"])
    def test_a_worker_that_stops_does_not_wait_for_it(self, make_redis: Callable[..., PrivateRedis], how: str) -> None:
        server = make_redis()
        with closing(Bridge(f"celery+{server.url}", namespace="stopping")) as bridge:
            pump = Pump(bridge)
            if how == "black-holed from the start":
                server.pause()
            pump.start()
            time.sleep(0.5)
            if how == "refused":
                server.kill()
                time.sleep(1)
            elif how == "black-holed":
                server.pause()
                time.sleep(0.5)
            with Stopwatch() as watch:
                pump.stop()
            server.resume()

        assert watch.took_s < 0.7 + STALL_S, "a call may take 5 s"

    def test_messages_are_published_though_redis_is_out_of_memory(
        self, make_redis: Callable[..., PrivateRedis]
    ) -> None:
        with place_on(make_redis().url) as place:
            broker = place.broker(HashWire)
            broker.park([(message(), 0.2) for _ in range(10)], timeout_s=3)
            place.client.set("filler", b"x" * (1 << 20))
            place.client.config_set("maxmemory", "1mb")

            with pumping(broker):
                wait_until(lambda: broker.counts(["email"]).waiting["email"] == 10, timeout_s=20, saw=place.delayed)

            assert place.delayed() == {}

    def test_on_a_replica_nothing_is_lost(self, make_redis: Callable[..., PrivateRedis]) -> None:
        with place_on(make_redis().url) as place:
            broker = place.broker()
            broker.park([(message(), 0.1) for _ in range(10)], timeout_s=3)
            place.client.replicaof("127.0.0.1", free_port())
            with pumping(broker):
                time.sleep(0.5)
                assert len(place.delayed()) == 10
                place.client.replicaof("NO", "ONE")
                wait_until(lambda: len(place.waiting()) == 10, timeout_s=20, saw=place.delayed)


class TestWhatCannotBePublished:
    def park_text(self, place: Place, member: str, text: str | bytes) -> None:
        place.client.zadd(f"{place.namespace}:parked:celery", {member: place.now_ms()})
        place.client.hset(f"{place.namespace}:parked:celery:messages", member, text)

    @pytest.mark.parametrize("text", [b"\x80\xff no JSON", b"[]", b'{"id":"x"}', b"null"])
    def test_what_cannot_be_read_is_dead_as_it_came(self, place: Place, text: bytes) -> None:
        broker, good = place.broker(), message()
        self.park_text(place, "bad:1", text)
        broker.park([(good, 0.1)], timeout_s=3)

        with pumping(broker):
            wait_until(lambda: place.waiting() == [good], timeout_s=20, saw=place.delayed)

        [letter] = broker.dead_letters()
        assert (letter.message, letter.reason, letter.raw) == (None, "undecodable", text)
        assert letter.died_at == pytest.approx(time.time(), abs=60)
        assert (place.delayed(), place.texts()) == ({}, {})

    @pytest.mark.parametrize("engine", ["celery", "dramatiq"])
    def test_the_record_of_one_that_cannot_be_read_says_that_it_is_dead(self, place: Place, engine: str) -> None:
        with closing(Bridge(f"{engine}+{place.url}", namespace=place.namespace)) as bridge:
            handle = bridge.task(name="shop.nothing")(lambda: None).schedule(0.1)
            parked = f"{place.namespace}:parked:{engine}:messages"
            place.client.hset(parked, f"{handle.id}:1", f'{{"id": "{handle.id}"}}')

            pump = Pump(bridge)
            pump.start()
            try:
                wait_until(lambda: handle.status().state == "dead", timeout_s=20, saw=handle.status)
            finally:
                pump.stop()

            assert handle.status().reason == "undecodable"
            assert [letter.reason for letter in bridge.dead_letters()] == ["undecodable"]

    def test_what_a_newer_release_parked_waits_for_it(self, place: Place) -> None:
        broker, good = place.broker(), message()
        text = message().dumps().replace('"form":1', '"form":99')
        self.park_text(place, "new:1", text)
        broker.park([(good, 0.1)], timeout_s=3)

        with pumping(broker):
            wait_until(lambda: place.waiting() == [good], timeout_s=20, saw=place.delayed)

        assert list(place.delayed()) == ["new:1"]
        assert 25_000 < place.delayed()["new:1"] - place.now_ms() < 31_000
        assert place.texts() == {b"new:1": text.encode()}
        assert broker.dead_letters() == []

    def test_a_member_without_a_text_does_not_block_the_others(self, place: Place) -> None:
        broker, good = place.broker(), message()
        place.client.zadd(f"{place.namespace}:parked:celery", {"gone:1": 1})
        broker.park([(good, 0.1)], timeout_s=3)

        with pumping(broker):
            wait_until(lambda: place.waiting() == [good], timeout_s=20, saw=place.delayed)

        assert place.delayed() == {}

    def test_a_queue_of_the_wrong_type_does_not_block_the_others(self, place: Place) -> None:
        place.client.set(f"{place.namespace}.celery.broken", "not a list")
        broker, bad, good = place.broker(HashWire), message("broken"), message()
        broker.park([(bad, 0), (good, 0.001)], timeout_s=3)

        with pumping(broker):
            wait_until(lambda: broker.counts(["email"]).waiting["email"] == 1, timeout_s=20, saw=place.delayed)

        assert list(place.delayed()) == [f"{bad.id}:1"]
        assert place.texts() == {f"{bad.id}:1".encode(): bad.dumps().encode()}

    def test_one_that_the_wire_cannot_encode_does_not_block_the_others(self, place: Place) -> None:
        class Picky(OneListWire):
            def encode(self, message: Message) -> tuple[tuple[str | bytes | int | float, ...], ...]:
                if message.task == "bad":
                    raise ZeroDivisionError
                return super().encode(message)

        broker, bad, good = place.broker(Picky), message(task="bad"), message()
        broker.park([(bad, 0), (good, 0.001)], timeout_s=3)
        told: list[DeadLetter] = []

        with pumping(broker, buried=told.append):
            wait_until(lambda: place.waiting() == [good] and len(told) == 1, timeout_s=20, saw=place.delayed)

        [letter] = broker.dead_letters()
        assert (letter.message, letter.reason, told) == (bad, "internal_error", [letter])
        assert "ZeroDivisionError" in letter.traceback
        assert place.delayed() == {}

    def test_one_of_another_engine_that_the_wire_cannot_encode_stays(self, place: Place) -> None:
        class Unable(OneListWire):
            def encode(self, message: Message) -> tuple[tuple[str | bytes | int | float, ...], ...]:
                if message.task == "bad":
                    raise ZeroDivisionError
                return super().encode(message)

        bad, good = message(task="bad"), message()
        place.broker(engine="dramatiq").park([(bad, 0), (good, 0.001)], timeout_s=3)

        with pumping(place.broker(Unable)):
            wait_until(lambda: place.waiting() == [good], timeout_s=20, saw=lambda: place.delayed("dramatiq"))

        assert list(place.delayed("dramatiq")) == [f"{bad.id}:1"]

    @pytest.mark.parametrize("member", [b"\xff:1", "\ud800".encode(errors="surrogatepass")])
    def test_an_odd_member_does_not_block_the_others(self, place: Place, member: bytes) -> None:
        place.client.set(f"{place.namespace}.celery.broken", "not a list")
        broker, bad, good = place.broker(), message("broken"), message()
        place.client.zadd(f"{place.namespace}:parked:celery", {member: 1})
        place.client.hset(f"{place.namespace}:parked:celery:messages", member, bad.dumps())  # which Redis refuses
        broker.park([(good, 0.1)], timeout_s=3)

        with pumping(broker):
            wait_until(lambda: place.waiting() == [good], timeout_s=20, saw=lambda: None)

    @pytest.mark.parametrize("name", ["dead", "dead:letters"])
    def test_letters_are_buried_though_their_keys_held_something_else(self, place: Place, name: str) -> None:
        place.client.set(f"{place.namespace}:{name}", "of another type")
        broker = place.broker()
        assert broker.counts([]).dead == 0

        broker.bury(DeadLetter(message=message(), reason="exhausted", died_at=time.time()), timeout_s=3)

        assert (len(broker.dead_letters()), broker.counts([]).dead) == (1, 1)
        assert place.client.get(f"{place.namespace}:{name}:odd") == b"of another type"

    @pytest.mark.parametrize(
        "name", ["pumps:celery", "pumps:dramatiq", "engines", "parked:celery", "parked:celery:messages"]
    )
    def test_keys_of_another_type_than_ours_stop_nothing(self, place: Place, name: str) -> None:
        broker, good = place.broker(), message()
        place.broker(engine="dramatiq").park([(message(), 9)], timeout_s=3)
        place.client.delete(f"{place.namespace}:{name}")
        place.client.set(f"{place.namespace}:{name}", "of another type")
        broker.park([(good, 0.1)], timeout_s=3)

        with pumping(broker):
            wait_until(lambda: place.waiting() == [good], timeout_s=20, saw=place.delayed)

    @pytest.mark.parametrize("engine", [b"\xff", b"", b"odd"])
    @pytest.mark.parametrize("kind", ["string", "messages", "nothing"])
    def test_an_odd_engine_stops_nothing(self, place: Place, engine: bytes, kind: str) -> None:
        broker, good = place.broker(), message()
        parked = f"{place.namespace}:parked:".encode() + engine
        place.client.sadd(f"{place.namespace}:engines", engine)
        if kind == "string":
            place.client.set(parked, "of another type")
        else:
            place.client.zadd(parked, {"odd:1": 1})
        if kind == "messages":
            place.client.set(parked + b":messages", "of another type")
        broker.park([(good, 0.1)], timeout_s=3)

        with pumping(broker):
            wait_until(lambda: place.waiting() == [good], timeout_s=20, saw=place.delayed)
            assert broker.counts([]).dead == 0

    def test_one_parked_again_meanwhile_is_not_published_as_it_was(self, place: Place) -> None:
        parked = message()
        later = replace(parked, waits=1, waits_since=1.0)

        class Slow(OneListWire):
            def encode(self, message: Message) -> tuple[tuple[str | bytes | int | float, ...], ...]:
                if message == parked:
                    place.broker().park([(later, 0.3)], timeout_s=3)
                return super().encode(message)

        broker = place.broker(Slow)
        broker.park([(parked, 0)], timeout_s=3)

        with pumping(broker):
            wait_until(lambda: place.waiting() != [], timeout_s=20, saw=place.delayed)

        assert place.waiting() == [later]
        assert place.texts() == {}


class TestOtherEngines:
    """Rule Q5, and that an engine switch keeps delays."""

    def parked_by_dramatiq(self, place: Place, *tasks: str) -> tuple[RedisBroker, list[Message]]:
        broker = place.broker(engine="dramatiq")
        messages = [message(task=task) for task in tasks]
        broker.park([(each, 0) for each in messages], timeout_s=3)
        return broker, messages

    def test_without_a_pump_its_known_tasks_are_adopted(self, place: Place) -> None:
        _, [known, unknown] = self.parked_by_dramatiq(place, "known", "unknown")

        with pumping(place.broker(), lambda task: task == "known"):
            took_s = wait_until(lambda: place.waiting() != [], timeout_s=20, saw=lambda: place.delayed("dramatiq"))
            time.sleep(1)

        assert took_s < 1
        assert place.waiting() == [known]
        assert list(place.delayed("dramatiq")) == [f"{unknown.id}:1"]

    def test_with_a_pump_nothing_is_adopted(self, place: Place) -> None:
        dramatiq, [known] = self.parked_by_dramatiq(place, "known")

        with pumping(dramatiq):
            wait_until(lambda: len(place.waiting(engine="dramatiq")) == 1, timeout_s=20, saw=place.delayed)
            dramatiq.park([(known, 2.0)], timeout_s=3)
            with pumping(place.broker()):
                wait_until(lambda: len(place.waiting(engine="dramatiq")) == 2, timeout_s=20, saw=place.delayed)

        assert place.waiting() == []

    def test_a_pump_that_stops_is_followed_soon_unless_it_was_not_the_last(self, place: Place) -> None:
        dramatiq, _ = self.parked_by_dramatiq(place)
        second = place.broker(engine="dramatiq")
        with pumping(place.broker()):
            with pumping(second):
                with pumping(dramatiq):
                    time.sleep(0.5)
                time.sleep(1.8)
                dramatiq.park([(message(), 0)], timeout_s=3)
                wait_until(lambda: len(place.waiting(engine="dramatiq")) == 1, timeout_s=20, saw=place.delayed)
            dramatiq.park([(message(), 0)], timeout_s=3)
            took_s = wait_until(lambda: len(place.waiting()) == 1, timeout_s=20, saw=place.delayed)

        assert took_s < 2.5

    def test_a_pump_that_was_killed_is_followed_in_7_s(self, place: Place) -> None:
        with pumping(place.broker()):
            with pump_process(place, "dramatiq"):
                signs = f"{place.namespace}:pumps:dramatiq"
                wait_until(lambda: place.client.zcard(signs) == 1, timeout_s=20, saw=place.client.keys)
                lived_at = time.monotonic()
            self.parked_by_dramatiq(place, "known")
            wait_until(lambda: len(place.waiting()) == 1, timeout_s=20, saw=place.delayed)
            took_s = time.monotonic() - lived_at

        assert 2 < took_s < 7 + 1, "it was believed to live for up to 5 s"

    def test_what_is_left_there_is_not_looked_at_as_often_as_what_is_its_own(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.parked_by_dramatiq(place, "unknown")
        [due_ms] = place.delayed("dramatiq").values()
        wait_until(lambda: place.now_ms() > due_ms + 1, timeout_s=20, saw=place.now_ms)  # else it is waited for
        own, dramatiq = (Keys(place.namespace, engine) for engine in ("celery", "dramatiq"))
        clock = [1000.0]
        looked = Counter[str]()
        monkeypatch.setattr(redis_pump, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
        client = client_of(place.url)

        def execute(request: Any, **given: Any) -> Any:
            looked.update({own.due, dramatiq.due}.intersection(request[0]))
            return client.execute(request, **given)

        counting: Any = SimpleNamespace(execute=execute)
        wire: Any = OneListWire("celery", place.namespace)
        made = redis_pump.Pump(counting, wire, own, knows=lambda task: False, stop=threading.Event())
        while clock[0] < 1010:
            clock[0] += made._round()

        assert 45 <= looked[own.due] <= 60, "every 0.2 s"
        assert 10 <= looked[dramatiq.due] <= 14, "every 0.8 s"

    def test_pumps_that_do_not_know_a_task_hide_it_from_none_that_does(self, place: Place) -> None:
        def waits(count: int) -> bool:
            return len(place.waiting()) == count

        with ExitStack() as stack:
            for name in ["other"] * 12 + ["known"]:
                stack.enter_context(pumping(place.broker(), name.__eq__))
            for count in (1, 2, 3):
                self.parked_by_dramatiq(place, "known")
                wait_until(partial(waits, count), timeout_s=20, saw=place.delayed)

    def test_many_unknown_ones_do_not_hide_a_known_one(self, place: Place) -> None:
        self.parked_by_dramatiq(place, *["unknown"] * 450)
        _, [known] = self.parked_by_dramatiq(place, "known")

        with pumping(place.broker(), lambda task: task == "known"):
            wait_until(lambda: place.waiting() == [known], timeout_s=20, saw=place.waiting)

        assert len(place.delayed("dramatiq")) == 450

    def test_adopted_ones_are_published_once_by_several_pumps_and_on_time(self, place: Place) -> None:
        dramatiq, _ = self.parked_by_dramatiq(place, "unknown")
        parked = [message(task="known") for _ in range(500)]
        dramatiq.park([(each, 1.0) for each in parked], timeout_s=3)
        due = time.monotonic() + 1.0

        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(pumping(place.broker(), lambda task: task == "known"))
            wait_until(lambda: promoted(place) >= 500, timeout_s=20, saw=lambda: promoted(place))
            late_s = time.monotonic() - due
            time.sleep(0.5)

        assert Counter(each.id for each in place.waiting()) == Counter(each.id for each in parked)
        assert late_s < 2

    def test_what_it_cannot_read_is_left_to_its_own_engine(self, place: Place) -> None:
        self.parked_by_dramatiq(place, "known")
        place.client.zadd(f"{place.namespace}:parked:dramatiq", {"bad:1": 1})
        place.client.hset(f"{place.namespace}:parked:dramatiq:messages", "bad:1", "no JSON")
        broker = place.broker()

        with pumping(broker):
            wait_until(lambda: len(place.waiting()) == 1, timeout_s=20, saw=lambda: place.delayed("dramatiq"))

        assert list(place.delayed("dramatiq")) == ["bad:1"]
        assert broker.dead_letters() == []

    def test_signs_of_life_vanish(self, place: Place) -> None:
        key = f"{place.namespace}:pumps:celery"
        with pump_process(place):
            wait_until(lambda: place.client.zcard(key) == 1, timeout_s=20, saw=place.delayed)
        assert 0 < place.client.pttl(key) <= 5000, "killed, it is forgotten in time"

        with pumping(place.broker()):
            wait_until(lambda: place.client.zcard(key) == 2, timeout_s=20, saw=place.delayed)
        assert place.client.zcard(key) == 1, "stopped, it is forgotten at once"
