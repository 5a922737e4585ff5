"""Private servers start, keep their data, break on request, and leave nothing behind."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from taskbridge.contract.ports import free_port
from tests import servers
from tests.servers import PrivateRabbitMQ, PrivateRedis, PrivateServer, ServerFailed, ServerNotInstalled

pika = pytest.importorskip("pika", reason="the servers are plain Python; their tests need the clients")
redis = pytest.importorskip("redis", reason="the servers are plain Python; their tests need the clients")


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of the living processes whose working folder or environment names the folder."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                str(folder) in os.readlink(process / "cwd")
                or str(folder).encode() in (process / "environ").read_bytes()
            ):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has ended, or is a zombie
    return found


def may_raise_priorities() -> bool:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, process.pid) - 1)
        except PermissionError:
            return False
        finally:
            process.kill()
    return True


def refuses_connections(server: PrivateServer) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


@contextmanager
def redis_client(server: PrivateRedis) -> Generator[Any]:
    with redis.Redis.from_url(server.url, socket_timeout=20, decode_responses=True) as client:
        yield client


@contextmanager
def rabbitmq_channel(server: PrivateRabbitMQ) -> Generator[Any]:
    with closing(pika.BlockingConnection(pika.URLParameters(server.url))) as connection:
        yield connection.channel()


class TestRedis:
    def test_it_answers_as_soon_as_it_is_started(self, make_redis: Callable[..., PrivateRedis]) -> None:
        with redis_client(make_redis()) as client:
            assert client.ping()

    @pytest.mark.parametrize("way_down", [PrivateServer.shut_down, PrivateServer.kill])
    def test_what_was_acknowledged_is_there_after_a_restart(
        self, make_redis: Callable[..., PrivateRedis], way_down: Callable[[PrivateServer], None]
    ) -> None:
        server = make_redis()
        url, pid = server.url, server.pid
        with redis_client(server) as client:
            client.set("key", "value")

        way_down(server)
        assert not server.is_running
        assert refuses_connections(server)
        server.restart()

        assert server.url == url
        assert server.pid != pid
        with redis_client(server) as client:
            assert client.get("key") == "value"

    def test_while_paused_it_takes_connections_and_does_not_answer(
        self, make_redis: Callable[..., PrivateRedis]
    ) -> None:
        server = make_redis()

        server.pause()
        with socket.create_connection(("127.0.0.1", server.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            server.resume()
            connection.settimeout(20)
            assert connection.recv(64) == b"+PONG\r\n"

    def test_it_takes_further_arguments(self, make_redis: Callable[..., PrivateRedis]) -> None:
        with redis_client(make_redis(extra_args=("--maxmemory", "3mb"))) as client:
            assert client.config_get("maxmemory") == {"maxmemory": str(3 * 1024 * 1024)}

    @pytest.mark.parametrize("paused", [False, True])
    def test_stop_leaves_no_process_and_no_folder(self, make_redis: Callable[..., PrivateRedis], paused: bool) -> None:
        server = make_redis()
        assert processes_in(server.folder)

        if paused:
            server.pause()
        server.stop()
        server.stop()  # again

        assert processes_in(server.folder) == []
        assert not server.folder.exists()

    def test_a_server_that_ends_while_it_starts_is_an_error_with_its_own_words(self) -> None:
        server = PrivateRedis(extra_args=("--no-such-option", "1"))

        with pytest.raises(ServerFailed, match="ended with code 1 while it started") as caught:
            server.start()

        assert "no-such-option" in caught.value.log
        assert processes_in(server.folder) == []
        assert not server.folder.exists()

    def test_two_run_side_by_side(self, make_redis: Callable[..., PrivateRedis]) -> None:
        with redis_client(make_redis()) as one, redis_client(make_redis()) as two:
            one.set("key", "one")
            assert two.get("key") is None

    def test_a_forked_child_that_exits_leaves_it_running(self, make_redis: Callable[..., PrivateRedis]) -> None:
        server = make_redis()
        script = (
            "import os, sys\n"
            "from tests.servers import PrivateRedis\n"
            "server = PrivateRedis().start()\n"
            "child = os.fork()\n"
            "if child == 0: sys.exit(0)  # runs what is registered with atexit\n"
            "os.waitpid(child, 0)\n"
            "print(server._is_ready())\n"
        )

        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=90, check=True)

        assert done.stdout == "True\n"
        assert server.is_running


class TestTheEndOfTheProcessThatStartedIt:
    SERVER = "import time\nfrom tests.servers import PrivateRedis\nprint(PrivateRedis().start().folder, flush=True)\n"
    WORKER = (
        "import os, pathlib, tempfile, time\n"
        "from taskbridge.contract import leftovers, workers\n"
        "from taskbridge.engines.base import Command\n"
        "folder = pathlib.Path(tempfile.mkdtemp(prefix='taskbridge-'))\n"
        "leftovers.remove_folder(folder)\n"
        "command = Command(argv=('sleep', '60'))\n"
        "worker = workers.ProcessWorker([command], {**os.environ, 'HOME': str(folder)}, folder / 'log')\n"
        "print(folder, flush=True)\n"
    )

    def run_until_started(self, script: str, then: str) -> tuple[subprocess.Popen[str], Path]:
        # Whoever is started in the background of a shell inherits that SIGINT is ignored.
        heeding = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        process = subprocess.Popen(
            [sys.executable, "-c", heeding + script + then],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    def assert_nothing_is_left(self, process: subprocess.Popen[str], folder: Path) -> None:
        with process:
            process.wait(timeout=60)
        assert folder.name.startswith("taskbridge-")
        wait_until(lambda: not processes_in(folder), timeout_s=30, what=f"the end of {processes_in(folder)}")
        wait_until(lambda: not folder.exists(), timeout_s=30, what="the removal of its folder")

    @pytest.mark.parametrize("then", ["", "raise RuntimeError", "raise KeyboardInterrupt", "raise SystemExit(3)"])
    def test_its_exit_ends_the_server(self, then: str) -> None:
        self.assert_nothing_is_left(*self.run_until_started(self.SERVER, then))

    @pytest.mark.parametrize("script", [SERVER, WORKER], ids=["server", "worker"])
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_a_signal_ends_what_it_started_too(self, script: str, number: signal.Signals) -> None:
        process, folder = self.run_until_started(script, "time.sleep(60)")
        wait_until(lambda: processes_in(folder) != [], timeout_s=30, what="what it has started")  # /proc may lag behind

        process.send_signal(number)

        self.assert_nothing_is_left(process, folder)


class TestRabbitMQ:
    def test_one_life(self, make_rabbitmq: Callable[..., PrivateRabbitMQ]) -> None:
        """Start, restart, pause, a crash and the end, in one test: a start takes seconds."""
        server = make_rabbitmq(extra_config=("heartbeat = 7",))
        url = server.url
        with rabbitmq_channel(server) as channel:
            assert channel.connection._impl.params.heartbeat == 7, "further lines of configuration are taken"
            channel.confirm_delivery()
            channel.queue_declare("kept", durable=True)
            channel.basic_publish("", "kept", b"one", pika.BasicProperties(delivery_mode=2), mandatory=True)

        server.restart()
        assert server.url == url
        assert "kept\t1" in server.ctl("list_queues")
        with rabbitmq_channel(server) as channel:
            assert channel.basic_get("kept", auto_ack=True)[2] == b"one"
            channel.confirm_delivery()
            channel.basic_publish("", "kept", b"two", pika.BasicProperties(delivery_mode=2), mandatory=True)

        server.kill()
        assert refuses_connections(server)
        server.start()
        with rabbitmq_channel(server) as channel:
            assert channel.basic_get("kept", auto_ack=True)[2] == b"two"

        with pytest.raises(ServerFailed, match="rabbitmqctl no_such_command failed"):
            server.ctl("no_such_command")

        server.pause()
        server.stop()
        assert processes_in(server.folder) == []
        assert not server.folder.exists()

    def test_it_listens_on_the_loopback_interface_only(self, rabbitmq_server: PrivateRabbitMQ) -> None:
        table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        listening = [row[1].split(":") for row in table if row[3] == "0A"]  # TCP_LISTEN
        address_of = {int(port, 16): address for address, port in listening}

        ports = [rabbitmq_server.port, rabbitmq_server._dist_port, rabbitmq_server._epmd_port]
        assert {address_of[port] for port in ports} == {"0100007F"}  # 127.0.0.1


class TestPorts:
    SCRIPT = (
        "import random, sys\n"
        "from taskbridge.contract.ports import free_port\n"
        "sample = random.SystemRandom.sample\n"
        "random.SystemRandom.sample = lambda *given, k: [int(sys.argv[1]), *sample(*given, k=k)]\n"
        "print(free_port())\n"
    )

    def given_to_another(self, wished_for: int) -> int:
        """Return which port another process gets, which would have liked to have this one."""
        command = [sys.executable, "-c", self.SCRIPT, str(wished_for)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        return int(done.stdout)

    def test_no_other_process_gets_one_while_the_process_that_has_it_lives(self) -> None:
        ours = free_port()

        theirs = self.given_to_another(ours)
        again = self.given_to_another(theirs)

        assert theirs != ours
        assert again == theirs, "it had ended"

    def test_no_two_calls_get_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = free_port()
        monkeypatch.setattr(random.SystemRandom, "sample", lambda *_, k: [ours] * k)

        with pytest.raises(OSError, match="none of 200 ports"):
            free_port()


class TestAMissingProgram:
    @pytest.mark.parametrize("server", [PrivateRedis, PrivateRabbitMQ])
    def test_it_is_named_with_what_to_install(
        self, server: type[PrivateServer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "/nonexistent")
        monkeypatch.setattr(servers, "_RABBITMQ_FOLDERS", ())

        with pytest.raises(ServerNotInstalled, match="is not installed: apt-get install"):
            server().start()


def test_a_favoured_server_writes_to_memory_and_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(servers, "_MEMORY", tmp_path)
    monkeypatch.setattr(servers, "_MEMORY_FREE", 0)
    with PrivateRedis() as server:
        assert server.pid is not None
        assert server.folder.parent == tmp_path.resolve()
        can_ask_for_it = may_raise_priorities()
        assert (os.getpriority(os.PRIO_PROCESS, server.pid) < os.getpriority(os.PRIO_PROCESS, 0)) == can_ask_for_it
        autogroup = Path(f"/proc/{server.pid}/autogroup")
        if can_ask_for_it and autogroup.exists():
            assert int(autogroup.read_text().split()[-1]) < 0


@pytest.mark.parametrize("why", ["no room", "not asked for"])
def test_a_servers_data_is_on_the_disk(why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(servers, "_MEMORY", tmp_path)
    monkeypatch.setattr(servers, "_MEMORY_FREE", 1 << 60 if why == "no room" else 0)
    if why == "not asked for":
        monkeypatch.delenv(servers._FAVOURED)
    with PrivateRedis() as server:
        assert server.folder.parent == Path(tempfile.gettempdir()).resolve()
