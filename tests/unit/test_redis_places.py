"""How a client finds the Redis that takes its commands, where there is more than one, and what it does meanwhile."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import ReadOnlyError

from taskbridge.brokers.redis import broker
from taskbridge.brokers.redis.client import Client, Script, client_of, connector, pool
from taskbridge.brokers.redis.places import Place
from taskbridge.contract.ports import free_port
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.engines.celery.redis_queues import RedisQueues
from taskbridge.exceptions import BrokerUnavailable, SettingsError, UnsupportedError
from taskbridge.settings import hosts_of, load
from taskbridge.stores.redis.backend import open_store
from tests.servers import PrivateRedis

SCRIPT = Script(broker.__file__, "count")


@dataclass
class Server:
    """A server that answers as it is told; `answers` has replies by the first word of a command."""

    port: int = 0
    answers: dict[str, Any] = field(default_factory=dict[str, Any])
    heard: list[list[str]] = field(default_factory=list[list[str]])
    closes_after: str = ""

    def reply(self, words: list[str]) -> bytes:
        self.heard.append(words)
        answer: Any = self.answers.get(words[0], b"+OK\r\n")
        return answer if isinstance(answer, bytes) else answer(words)

    def count(self, name: str) -> int:
        return sum(words[0] == name for words in self.heard)


def master_state(name: str, *, flags: str, port: int = 6379) -> bytes:
    """Return what a Sentinel answers to SENTINEL MASTERS, if it watches one master."""
    words = ["name", name, "ip", "127.0.0.1", "port", str(port), "flags", flags, "num-other-sentinels", "0"]
    return f"*1\r\n*{len(words)}\r\n".encode() + b"".join(f"${len(word)}\r\n{word}\r\n".encode() for word in words)


MASTER = b"$11\r\nrole:master\r\n"
REPLICA = b"$10\r\nrole:slave\r\n"


@contextmanager
def serving(**answers: Any) -> Generator[Server]:
    server = Server(answers={"INFO": MASTER, "EXISTS": b":0\r\n", "CLUSTER": b"-ERR disabled\r\n", **answers})

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline():
                words: list[str] = []
                for _ in range(int(line[1:])):
                    size = int(self.rfile.readline()[1:])
                    words.append(self.rfile.read(size + 2)[:-2].decode())
                reply = server.reply(words)
                if words[0] == server.closes_after:
                    return
                self.wfile.write(reply)

    class Listener(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True
        block_on_close = False

    with Listener(("127.0.0.1", 0), Handler) as listener:
        server.port = listener.server_address[1]
        thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        listener.shutdown()
        thread.join(10)


def hosts(*ports: int) -> str:
    return "redis://" + ",".join(f"127.0.0.1:{port}" for port in ports) + "/0"


def unavailable(act: Callable[[], object], *, within_s: float) -> BrokerUnavailable:
    """Expect an error, within the time."""
    with Stopwatch() as watch, pytest.raises(BrokerUnavailable) as caught:
        act()
    assert watch.took_s < within_s
    return caught.value


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "normal"),
        [
            ("redis://h1:1,h2/3", "redis://h1:1,h2/3"),
            ("valkey://h", "redis://h/0"),
            ("valkeys://u:p@h:1/2", "rediss://u:p@h:1/2"),
            ("redis+sentinel://h1,h2:2/shop", "redis+sentinel://h1,h2:2/shop/0"),
            ("valkeys+sentinel://u:p@h1/shop/4?ssl_ca_certs=/ca", "rediss+sentinel://u:p@h1/shop/4?ssl_ca_certs=/ca"),
        ],
    )
    def test_forms_are_the_same_for_brokers_and_stores(self, url: str, normal: str) -> None:
        settings, _ = load({"url": f"celery+{url}", "store": url}, environ={})
        assert (settings.url.broker, settings.url.broker_url, settings.store) == ("redis", normal, normal)

    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("redis+sentinel://h1,h2", "master's name is missing: redis\\+sentinel://host:26379"),
            ("rediss+sentinel://h1/shop/x", "the database 'x' is not a number"),
            ("redis://h1,,h2/0", "the host is missing"),
            ("redis://h1:a,h2/0", "its port is not a number"),
        ],
    )
    def test_wrong_forms_say_what_is_wrong(self, url: str, problem: str) -> None:
        with pytest.raises(SettingsError, match=problem):
            load({"url": f"dramatiq+{url}"}, environ={})

    def test_a_store_may_have_several_postgresql_hosts(self) -> None:
        url = "postgresql://u:p@h1:5432,h2:5433/shop?target_session_attrs=read-write"
        assert load({"store": url}, environ={})[0].store == url

    def test_hosts_are_read_behind_the_credentials(self) -> None:
        assert hosts_of("u,v:p@h1:1,[::1]:2,h3") == [("h1", 1), ("::1", 2), ("h3", None)]

    def test_options_of_the_sentinels_are_theirs(self) -> None:
        place: Any = Place("redis+sentinel://u:p@h1/shop/1?sentinel_password=s&sentinel_username=t&timeout=3", "")
        assert place._of_sentinels == {"password": "s", "username": "t", "ssl": False}
        assert {key: place.options[key] for key in ("username", "password", "db")} == {
            "username": "u",
            "password": "p",
            "db": 1,
        }

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("ssl_ca_certs=ca", {"ssl": True, "ssl_ca_certs": "ca"}),
            ("ssl_ca_certs=ca&sentinel_ssl=false", {"ssl": False}),
            ("ssl_ca_certs=ca&sentinel_ssl_ca_certs=other", {"ssl": True, "ssl_ca_certs": "other"}),
        ],
    )
    def test_sentinels_have_the_servers_tls_unless_they_have_their_own(
        self, query: str, expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("ca", "other"):
            (tmp_path / name).touch()
        place: Any = Place(f"rediss+sentinel://h1/shop/0?{query}", "")
        assert place._of_sentinels == expected
        assert place.options["ssl_ca_certs"] == "ca"

    @pytest.mark.parametrize(
        ("url", "named"),
        [
            ("rediss://h/0?ssl_certfile=/no/such.pem", "ssl_certfile=/no/such.pem"),
            ("rediss+sentinel://h/shop/0?sentinel_ssl_ca_certs=/no/such.pem", "sentinel_ssl_ca_certs=/no/such.pem"),
        ],
    )
    def test_a_file_that_can_not_be_read_is_named_with_its_option(self, url: str, named: str) -> None:
        with pytest.raises(SettingsError, match=f"TLS can't be read, of {named}: .*No such file"):
            Place(url, "")

    def test_each_sentinel_that_does_not_answer_is_named_with_why_and_nothing_else(self) -> None:
        refused, other = free_port(), free_port()
        client = Client(f"redis+sentinel://127.0.0.1:{refused},127.0.0.1:{other}/shop/0?sentinel_password=secret")
        with pytest.raises(BrokerUnavailable) as caught:
            client.execute([("PING",)], timeout_s=5)
        why = [f"127.0.0.1:{port}: Connection refused" for port in (refused, other)]
        assert caught.value.problem.endswith(f"the Sentinels name no master 'shop' that is up: {', '.join(why)}")

    def test_a_sentinel_that_knows_the_master_and_takes_it_for_down_says_so(self) -> None:
        with serving(SENTINEL=master_state("shop", flags="master,o_down")) as sentinel:
            client = Client(f"redis+sentinel://127.0.0.1:{sentinel.port}/shop/0?sentinel_protocol=2")
            with pytest.raises(BrokerUnavailable, match=rf"'shop' that is up: 127.0.0.1:{sentinel.port}: it is down"):
                client.execute([("PING",)], timeout_s=5)

    @pytest.mark.parametrize("option", ["sentinel_pasword=x", "sentinel_db=x", "pasword=x"])
    def test_a_wrong_option_is_refused(self, option: str) -> None:
        with pytest.raises(SettingsError, match="redis-py can't read"):
            Place(f"redis+sentinel://h1/shop/0?{option}")

    @pytest.mark.parametrize("value", [-1, 1.5, True, "x"])
    def test_a_wrong_number_of_replicas_is_refused(self, value: object) -> None:
        with pytest.raises(SettingsError, match=r"wait_replicas.*whole number"):
            load({"url": "celery+redis://h", "wait_replicas": value}, environ={})

    @pytest.mark.parametrize("url", ["celery+amqp://h", "dramatiq+memory://", "inline://"])
    def test_replicas_are_for_redis(self, url: str) -> None:
        with pytest.raises(UnsupportedError, match="wait_replicas"):
            load({"url": url}, environ={"TASKBRIDGE_WAIT_REPLICAS": "1"})


class TestSeveralHosts:
    def test_the_first_that_answers_and_is_no_replica_is_used_from_then_on(self) -> None:
        with serving(INFO=REPLICA) as replica, serving() as server:
            client = Client(hosts(free_port(), replica.port, server.port))
            assert client.execute([("SET", "a", "b")], timeout_s=5) == b"OK"
            client.close()
            assert client.execute([("SET", "c", "d")], timeout_s=5) == b"OK"
        assert (replica.count("SET"), replica.count("INFO")) == (0, 1), "it was not asked again"
        assert server.count("SET") == 2

    def test_a_silent_host_takes_only_its_share_of_the_time(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=1) as silent, serving() as server:
            client = Client(hosts(silent.getsockname()[1], server.port))
            assert client.execute([("SET", "a", "b")], timeout_s=2) == b"OK"

    def test_what_a_replica_refuses_is_taken_by_its_successor(self) -> None:
        with serving() as first, serving(INFO=REPLICA) as second:
            client = Client(hosts(first.port, second.port))
            client.execute([("SET", "a", "b")], timeout_s=5)

            def demote() -> None:
                second.answers["INFO"] = MASTER

            first.answers |= {"SET": b"-READONLY You can't write against a read only replica.\r\n", "INFO": REPLICA}
            timer = threading.Timer(0.3, demote)
            timer.start()
            assert client.execute([("SET", "c", "d")], timeout_s=5) == b"OK"
            timer.join()
        assert second.count("SET") == 1

    def test_what_may_have_been_taken_is_not_sent_again(self) -> None:
        with serving() as first, serving() as second:
            client = Client(hosts(first.port, second.port))
            first.closes_after = "SET"
            error = unavailable(lambda: client.execute([("SET", "a", "b")], timeout_s=5), within_s=3)
        assert error.maybe_taken
        assert (first.count("SET"), second.count("SET")) == (1, 0)

    def test_of_several_requests_only_what_was_refused_is_sent_again(self) -> None:
        answered: list[bytes] = [b"+OK\r\n", b"-READONLY no\r\n"]

        def reply(words: list[str]) -> bytes:
            return answered.pop(0) if answered else b"+OK\r\n"

        with serving(SET=reply) as server:
            client = Client(hosts(server.port, free_port()))
            outcomes = client.execute_all([[("SET", "a", "1")], [("SET", "b", "2")]], timeout_s=5)
        assert outcomes == [b"OK", b"OK"]
        assert [words[1] for words in server.heard if words[0] == "SET"] == ["a", "b", "b"]

    def test_the_error_says_why_and_comes_in_time(self) -> None:
        client = Client(hosts(free_port(), free_port()))
        error = unavailable(lambda: client.execute([("PING",)], timeout_s=2), within_s=2.2)
        assert "refused" in error.problem
        assert not error.maybe_taken

    def test_a_last_try_for_which_there_is_no_time_does_not_hide_why(self) -> None:
        def slowly(_: list[str]) -> bytes:
            time.sleep(0.3)
            return MASTER

        with serving(SET=b"-READONLY no\r\n", INFO=slowly) as server:
            client = Client(hosts(server.port, server.port))
            error = unavailable(lambda: client.execute([("SET", "a", "b")], timeout_s=2), within_s=2.2)
        assert "read-only replica" in error.problem

    def test_one_host_alone_is_not_tried_again(self) -> None:
        client = Client(hosts(free_port()))
        unavailable(lambda: client.execute([("PING",)], timeout_s=5), within_s=1)

    def test_who_tries_again_by_itself_is_told_at_once(self) -> None:
        with serving(SET=b"-READONLY no\r\n") as server:
            client = Client(hosts(server.port, free_port()))
            error = unavailable(lambda: client.execute([("SET", "a", "b")], timeout_s=5, once=True), within_s=2)
        assert (server.count("SET"), error.maybe_taken) == (2, False)

    def test_a_worker_does_not_wait_for_a_server_while_it_could_do_something_else(self) -> None:
        url = f"celery+{hosts(free_port(), free_port())}"
        queues = RedisQueues(load({"url": url, "send_timeout": 20}, environ={})[0])
        for act in (queues.check, queues.beat, lambda: queues.take(timeout_s=5)):
            unavailable(act, within_s=2)

    def test_where_the_store_is_away_a_mark_is_tried_now_and_then(self) -> None:
        with serving(SET=b"") as server:
            url = hosts(server.port, free_port())
            store = open_store(load({"url": f"celery+{url}"}, environ={})[0], url)
            began = time.monotonic()
            for _ in range(20):
                store.backend.put_soon("mark", "ended", kept_s=60)
            assert time.monotonic() - began < 4
            assert server.count("SET") == 1
            store.close()

    def test_what_was_published_leaves_the_outbox_though_a_mark_could_not_be_written(self) -> None:
        with serving(SET=b"-OOM no\r\n", HDEL=b":1\r\n", ZREM=b":1\r\n") as server:
            url = hosts(server.port, free_port())
            store = open_store(load({"url": f"celery+{url}"}, environ={})[0], url)
            store.backend.put_soon("mark", "ended", kept_s=60)
            store.backend.put_soon("mark", "ended", kept_s=60)
            store.backend.remove_entries(["a"], timeout_s=5)
            assert [server.count(name) for name in ("SET", "HDEL", "ZREM")] == [1, 1, 1]
            store.close()

    def test_of_several_writes_some_of_which_were_done_it_is_not_said_that_none_was(self) -> None:
        replies = [b"+OK\r\n", b"-OOM no\r\n"]
        with serving(SET=lambda _: replies.pop(0)) as server:
            url = hosts(server.port)
            store = open_store(load({"url": f"celery+{url}"}, environ={})[0], url)
            entries = [(key, "1", 60.0) for key in "ab"]
            assert unavailable(lambda: store.backend.create(entries, timeout_s=5), within_s=2).maybe_taken
            store.close()

    @pytest.mark.parametrize(
        ("said", "maybe_taken", "problem"),
        [
            ("WRONGTYPE Operation against a key script: f00, on @user_script:9.", True, "WRONGTYPE"),
            ("ERR Error running script (call to f_00): @user_script:9: WRONGTYPE Operation", True, "WRONGTYPE"),
            ("OOM command not allowed script: f00, on @user_script:9.", False, "out of memory"),
            ("ERR Error running script (call to f_00): @user_script:9: -OOM no", False, "out of memory"),
            ("ERR Error running script (call to f_00): @user_script:9: -READONLY no", False, "read-only replica"),
            ("MISCONF Redis can't save script: f00, on @user_script:9.", False, "MISCONF"),
            ("ERR Error running script (call to f_00): @user_script:9: -NOREPLICAS no", False, "NOREPLICAS"),
            ("NOPERM this user has no permissions to run the 'evalsha' command", False, "no permissions"),
        ],
    )
    def test_a_script_that_fails_may_have_written_unless_its_first_write_was_refused(
        self, said: str, maybe_taken: bool, problem: str
    ) -> None:
        """Redis before 7 says otherwise what it was, and where."""
        with serving(EVALSHA=f"-{said}\r\n".encode()) as server:
            client = Client(hosts(server.port))
            error = unavailable(lambda: client.execute([SCRIPT(["a"])], timeout_s=5), within_s=2)
        assert (error.maybe_taken, problem in error.problem) == (maybe_taken, True)

    def test_wrong_credentials_are_not_tried_again(self) -> None:
        with serving(AUTH=b"-WRONGPASS invalid\r\n") as server:
            client = Client(hosts(server.port, free_port()).replace("//", "//u:p@"))
            error = unavailable(lambda: client.execute([("PING",)], timeout_s=5), within_s=2)
        assert "credentials" in error.problem

    def test_what_does_not_tell_its_role_is_used(self) -> None:
        with serving(INFO=b"-NOPERM no\r\n") as server:
            assert Client(hosts(server.port, free_port())).execute([("SET", "a", "b")], timeout_s=5) == b"OK"

    def test_redis_pys_own_connections_lead_there_too(self) -> None:
        with serving(INFO=REPLICA) as replica, serving(GET=b"$1\r\nx\r\n") as server:
            connections = pool(Place(hosts(replica.port, server.port)), protocol=2)
            with redis.Redis(connection_pool=connections) as client:
                assert client.get("a") == b"x"

    def test_redis_pys_own_connections_leave_a_server_that_has_become_a_replica(self) -> None:
        with serving(SET=b"-READONLY no\r\n") as first, serving() as second:
            connections = pool(Place(hosts(first.port, second.port)), protocol=2)
            with redis.Redis(connection_pool=connections) as client:
                with pytest.raises(ReadOnlyError):
                    client.set("a", "b")
                first.answers["INFO"] = REPLICA
                assert client.set("a", "b")
            assert second.count("SET") == 1

    def test_one_host_costs_no_question_more(self) -> None:
        with serving() as server:
            Client(hosts(server.port)).execute([("SET", "a", "b")], timeout_s=5)
        assert {"INFO", "EXISTS", "CLUSTER"}.isdisjoint(words[0] for words in server.heard)


class TestCluster:
    def test_a_namespace_in_braces_is_looked_for_and_followed(self) -> None:
        with serving() as third, serving() as second, serving() as first:
            first.answers["EXISTS"] = b"-MOVED 1 127.0.0.1:%d\r\n" % second.port
            client = client_of(hosts(first.port), "{shop}")
            assert client.execute([("SET", "{shop}:a", "b")], timeout_s=5) == b"OK"
            assert (first.count("SET"), second.count("SET")) == (0, 1)

            moved = b"-MOVED 1 127.0.0.1:%d\r\n" % third.port
            second.answers |= {"SET": moved, "EXISTS": moved}
            assert client.execute([("SET", "{shop}:a", "b")], timeout_s=5, once=True) == b"OK"
            assert (second.count("SET"), third.count("SET")) == (2, 1)
            assert connector(Place(hosts(first.port), "{shop}"))(5).address == ("127.0.0.1", third.port)

    def test_in_a_transaction_it_is_followed_too_and_carried_out_once(self) -> None:
        with serving(SET=b"+QUEUED\r\n", EXEC=b"*2\r\n+OK\r\n+OK\r\n") as second, serving() as first:
            client = Client(hosts(first.port), "{shop}")
            client.execute([("PING",)], timeout_s=5)
            moved = b"-MOVED 1 127.0.0.1:%d\r\n" % second.port
            first.answers |= {"SET": moved, "EXISTS": moved, "EXEC": b"-EXECABORT no\r\n"}
            assert client.execute([("SET", "{shop}:a", "1"), ("SET", "{shop}:b", "2")], timeout_s=5) == [b"OK", b"OK"]
        assert second.count("EXEC") == 1

    def test_where_the_url_s_node_is_gone_others_are_asked(self) -> None:
        with serving() as other:
            with serving() as first:
                nodes = b"".join(b"*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % each.port for each in (first, other))
                first.answers["CLUSTER"] = b"*1\r\n*4\r\n:0\r\n:16383\r\n" + nodes
                client = Client(hosts(first.port), "{shop}")
                client.execute([("SET", "{shop}:a", "b")], timeout_s=5)
                first.closes_after = "SET"
                unavailable(lambda: client.execute([("SET", "{shop}:a", "b")], timeout_s=5), within_s=3)
            assert client.execute([("SET", "{shop}:a", "b")], timeout_s=5) == b"OK"
        assert other.count("SET") == 1

    @pytest.mark.parametrize("said", [b"-TRYAGAIN x\r\n", b"-ASK 1 127.0.0.1:1\r\n", b"-CLUSTERDOWN x\r\n"])
    def test_what_is_refused_while_a_slot_moves_is_sent_again(self, said: bytes) -> None:
        replies = [said, said]
        with serving(SET=lambda _: replies.pop() if replies else b"+OK\r\n", EXISTS=said) as server:
            if said.startswith(b"-CLUSTERDOWN"):
                server.answers["EXISTS"] = b":0\r\n"
            client = Client(hosts(server.port), "{shop}")
            assert client.execute([("SET", "{shop}:a", "b")], timeout_s=5) == b"OK"
        assert server.count("SET") == 3

    def test_scripts_are_given_a_key_that_never_exists(self) -> None:
        call = SCRIPT(["{shop}:engines", "{shop}:dead"], "{shop}", 5)
        with serving(EVALSHA=b"*0\r\n") as server:
            Client(hosts(server.port), "{shop}").execute([call], timeout_s=5)
            Client(hosts(server.port), "").execute([call], timeout_s=5)
        (_, _, count, *guarded), (_, _, plain_count, *plain) = [w for w in server.heard if w[0] == "EVALSHA"]
        assert (count, guarded) == ("3", ["{shop}:engines", "{shop}:dead", "{shop}::absent", "{shop}", "5"])
        assert (plain_count, plain) == ("2", ["{shop}:engines", "{shop}:dead", "{shop}", "5"])

    @pytest.mark.parametrize("said", [b"-MOVED 1 127.0.0.1:1\r\n", b"-CROSSSLOT Keys in request\r\n"])
    def test_without_braces_the_error_says_what_to_do(self, said: bytes) -> None:
        with serving(SET=said) as server:
            client = client_of(hosts(server.port), "shop")
            error = unavailable(lambda: client.execute([("SET", "a", "b")], timeout_s=5), within_s=2)
        assert "needs a namespace in braces" in error.problem

    def test_nodes_that_send_on_for_ever_are_given_up(self) -> None:
        with serving() as server:
            server.answers["EXISTS"] = b"-MOVED 1 127.0.0.1:%d\r\n" % server.port
            client = Client(hosts(server.port), "{shop}")
            error = unavailable(lambda: client.execute([("PING",)], timeout_s=5, once=True), within_s=5.1)
        assert "do not agree" in error.problem


class TestReplicas:
    @pytest.mark.parametrize("commands", [[("SET", "a", "b")], [("SET", "a", "b"), ("SET", "c", "d")]])
    def test_it_is_done_when_so_many_have_it(self, commands: list[tuple[str, ...]]) -> None:
        with serving(WAIT=b":1\r\n", EXEC=b"*2\r\n+OK\r\n+OK\r\n") as server:
            client = Client(hosts(server.port))
            client.execute(commands, timeout_s=5, replicas=1)
            assert server.heard[-1][:2] == ["WAIT", "1"]
            assert 3500 < int(server.heard[-1][2]) <= 4500

            error = unavailable(lambda: client.execute(commands, timeout_s=5, replicas=2), within_s=2)
        assert "1 of 2 replicas confirmed it in time (setting wait_replicas)" in error.problem
        assert error.maybe_taken

    def test_of_several_none_counts_as_done(self) -> None:
        replies = [b"+OK\r\n", b"-OOM no\r\n", b"+OK\r\n"]
        with serving(WAIT=b":0\r\n", SET=lambda _: replies.pop(0)) as server:
            requests = [[("SET", str(number), "x")] for number in range(3)]
            outcomes = Client(hosts(server.port)).execute_all(requests, timeout_s=5, replicas=1)
        assert [each.maybe_taken for each in outcomes] == [True, False, True]
        assert server.count("WAIT") == 1

    @pytest.mark.parametrize("said", [b"-NOPERM no wait\r\n", b""])
    def test_what_is_not_known_may_have_been_taken(self, said: bytes) -> None:
        with serving(WAIT=said) as server:
            server.closes_after = "" if said else "WAIT"
            client = Client(hosts(server.port))
            assert unavailable(
                lambda: client.execute([("SET", "a", "b")], timeout_s=5, replicas=1), within_s=3
            ).maybe_taken


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_real_server_is_found_by_either_protocol(redis_server: PrivateRedis, protocol: int) -> None:
    url = hosts(free_port(), redis_server.port)
    link = connector(Place(url, "{shop}"), protocol=protocol)(5)
    assert link.ask("PING") == b"PONG"
    link.close()
