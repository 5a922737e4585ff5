"""Private servers: a Redis or RabbitMQ of one's own, on 127.0.0.1, to be killed, paused and restarted.

    with PrivateRedis() as redis:
        bridge = Bridge(f"celery+{redis.url}")

Their programs are this system's, or those that `TASKBRIDGE_TEST_SERVERS` names (`tests.programs`). They run as whoever
starts them, keep everything in a temporary folder, and use no configuration of the machine's own servers. They end with
the process that started them: at the end of the `with`, at its exit, and when it is killed.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final, TypedDict

from typing_extensions import Self

from taskbridge import TaskBridgeError
from taskbridge.contract import leftovers
from taskbridge.contract.ports import free_port
from taskbridge.contract.workers import wait_until_still
from tests.certificates import Certificates
from tests.programs import SYSTEM, Origin, ServerNotInstalled, origin_of

__all__ = ["MANAGED", "PrivateRabbitMQ", "PrivateRedis", "PrivateServer", "ServerFailed", "ServerNotInstalled"]

_HOST: Final = "127.0.0.1"

_RABBITMQ_FOLDERS: Final = (
    "/usr/lib/rabbitmq/bin",  # Debian, Ubuntu, Fedora; what stands in /usr/sbin there changes the user
    "/opt/rabbitmq/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)

MANAGED: Final = (
    *(
        word
        for command in ("CONFIG", "KEYS", "FLUSHALL", "FLUSHDB", "DEBUG", "SHUTDOWN", "SAVE", "BGSAVE", "MONITOR")
        for word in ("--rename-command", command, "")
    ),
    *("--user", "default", "on", "nopass", "~*", "&*", "+@all", "-client"),
)
"""Arguments that make of a Redis what hosted ones are: these commands are unknown, and all of CLIENT is refused."""

_POLL_S: Final = 0.02
_EXIT_S: Final = 60.0
_KEPT_LOG_LINES: Final = 15

_FAVOURED: Final = "TASKBRIDGE_TEST_FAVOURED_SERVERS"
_MEMORY: Final = Path("/dev/shm")
_MEMORY_FREE: Final = 4 << 30  # bytes, from which on servers keep their data there
_NICE: Final = -10


def favour() -> None:
    """Have the servers that this process starts from here on, and its children do, wait for nothing else here.

    Elsewhere a broker has a machine of its own. Beside a dozen workers that start on two cores it would stand still for
    seconds, and so it would for a disk that others write to; tests would take that for a late message. So the system
    gives it a processor first, where this user may ask for that, and its data is in memory, where there is room. What a
    killed server had written is there again all the same.
    """
    os.environ[_FAVOURED] = "1"


def _is_favoured() -> bool:
    return bool(os.environ.get(_FAVOURED))


def _folder_for_data() -> Path | None:
    """Return the folder in which servers get theirs; None for the usual one for temporary files."""
    if not _is_favoured() or not os.access(_MEMORY, os.W_OK):
        return None
    return _MEMORY if shutil.disk_usage(_MEMORY).free >= _MEMORY_FREE else None


def _give_priority(session: int) -> None:
    """Let the processes of a session go before others, if this user may; Linux may weigh whole sessions (sched(7))."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PGRP, session, _NICE)
    with suppress(OSError):
        Path(f"/proc/{session}/autogroup").write_text(str(_NICE))


class ServerFailed(TaskBridgeError):
    """A private server ended, or was not ready in time; `log` holds the last lines that it wrote."""

    def __init__(self, name: str, problem: str, log: str) -> None:
        super().__init__(f"{name}: {problem}\n{log}".rstrip())
        self.name = name
        self.problem = problem
        self.log = log


class _How(TypedDict):
    """How `subprocess` runs a program."""

    args: list[str]
    cwd: Path
    env: Mapping[str, str]
    user: int | None
    group: int | None
    extra_groups: list[int] | None


class PrivateServer(ABC):
    """A server in a process of its own, with its own port and folder, which ends with this process.

    Args:
        origin: Where its programs are; as `TASKBRIDGE_TEST_SERVERS` says if None.
        start_timeout_s: How long a start may take before it is a `ServerFailed`.

    Attributes:
        origin: Where its programs are.
        port: The port on 127.0.0.1; the same through every restart.
        folder: Where the server keeps its data and its log; removed by `stop`.
    """

    name: ClassVar[str]

    def __init__(self, *, origin: Origin | None = None, start_timeout_s: float = 300.0) -> None:
        self.origin: Origin = origin_of(self.name) if origin is None else origin
        self._start_timeout_s = start_timeout_s
        self._server: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self.port: int = free_port()
        self.folder: Path = Path()

    @property
    @abstractmethod
    def url(self) -> str:
        """The broker's URL, to be put after `celery+` or `dramatiq+`."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command line of the server, which must stay in the foreground."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Tell whether the server answers its own protocol; it may raise `OSError` if not."""

    def _prepare(self) -> None:  # noqa: B027  # not every server has files
        """Write the server's files into the new folder."""

    def _environment(self) -> Mapping[str, str]:
        """Return the environment of the server's processes."""
        return os.environ

    def _identity(self) -> tuple[int, int] | None:
        """Return the ids of the user and group as whom the server runs; None if as whoever starts it."""
        return None

    @property
    def pid(self) -> int | None:
        """The server's process id, which is its process group too; None when it doesn't run."""
        return None if self._server is None else self._server.pid

    @property
    def is_running(self) -> bool:
        """Whether the server's process is there, paused or not."""
        return self._server is not None and self._server.poll() is None

    def start(self) -> Self:
        """Start the server and return when it answers; on the data of its last run, if there was one.

        Raises:
            ServerNotInstalled: If its program is not there.
            ServerFailed: If it ends, or is not ready in time. Nothing is left then.
        """
        if self.is_running:
            return self
        command = self._command()
        first_start = self.folder == Path() or not self.folder.exists()
        if first_start:
            self._make_folder()
        try:
            self._launch(command)
        except BaseException:
            if first_start:
                self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server at once and remove its folder. May be called at any time, and again."""
        if os.getpid() != self._owner:  # a forked child's exit must not take its parent's server away
            return
        atexit.unregister(self.stop)
        try:
            self.kill()
            self._end_helpers()
        finally:
            if self.folder != Path():
                shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would. Its data stays for the next `start`."""
        self._end_server(signal.SIGKILL)

    def shut_down(self) -> None:
        """End the server with SIGTERM, as an administrator would. Its data stays for the next `start`."""
        self.resume()
        self._end_server(signal.SIGTERM)

    def restart(self) -> None:
        """Shut the server down if it runs, and start it again on the same port and data."""
        self.shut_down()
        self.start()

    def pause(self) -> None:
        """Stop the server's process where it is: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)
        if self._server is not None:
            wait_until_still([self._server.pid])

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def log(self) -> str:
        """Return the last lines that the server wrote."""
        with suppress(OSError):
            lines = (self.folder / "log").read_text(errors="replace").splitlines()
            return "\n".join(lines[-_KEPT_LOG_LINES:])
        return ""

    def __enter__(self) -> Self:
        """Start the server."""
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        """Stop the server."""
        self.stop()

    def __repr__(self) -> str:
        """Name the server and its port."""
        return f"<{type(self).__name__} on port {self.port}, {'running' if self.is_running else 'not running'}>"

    def _make_folder(self) -> None:
        self._owner = os.getpid()
        self.folder = Path(tempfile.mkdtemp(prefix=f"taskbridge-{self.name}-", dir=_folder_for_data())).resolve()
        leftovers.remove_folder(self.folder)
        atexit.register(self.stop)
        self._prepare()

    def _launch(self, command: Sequence[str]) -> None:
        self._server = self._spawn(command)
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            exit_code = self._server.poll()
            if exit_code is not None:
                raise self._failure(f"ended with code {exit_code} while it started")
            with suppress(OSError):
                if self._is_ready():
                    return
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready after {self._start_timeout_s:g} s")
            time.sleep(_POLL_S)

    def _failure(self, problem: str) -> ServerFailed:
        log = self.log()
        self.kill()
        return ServerFailed(self.name, problem, log)

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                **self._how(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        leftovers.end_group(process.pid)
        if _is_favoured():
            _give_priority(process.pid)
        return process

    def _how(self, command: Sequence[str]) -> _How:
        """Return the arguments by which `subprocess` runs one of the server's programs."""
        identity = self._identity()
        args = self.origin.command(command, identity)
        if self.origin.release != SYSTEM:  # until it is in its place, the program is whoever starts it
            identity = None
        user, group = (None, None) if identity is None else identity
        groups: list[int] | None = None if identity is None else []
        environment = self._environment()
        return _How(args=args, cwd=self.folder, env=environment, user=user, group=group, extra_groups=groups)

    def _end_helpers(self) -> None:  # noqa: B027  # not every server has helpers
        """End what the server needed beside itself."""

    def _end_server(self, signal_number: int) -> None:
        if self._server is not None:
            _end(self._server, signal_number)
            self._server = None

    def _signal(self, signal_number: int) -> None:
        if self._server is not None and self._server.poll() is None:
            os.killpg(self._server.pid, signal_number)


class PrivateRedis(PrivateServer):
    """A private redis-server.

    Args:
        appendonly: Whether data outlives a restart and a kill; what was acknowledged is then kept, for it is written
            before the answer. Only the machine's own end would lose it: nothing waits for the disk.
        extra_args: Further arguments, such as `("--maxmemory", "10mb")`.
        config: Lines of its configuration file, for what the server itself may write anew, such as `replicaof`.
        password: That of its users, if it is to ask for one.
        tls: What makes it take TLS alone, and from clients with a certificate alone.
        origin: Where its programs are; as `TASKBRIDGE_TEST_SERVERS` says if None.
        start_timeout_s: How long a start may take before it is a `ServerFailed`.
    """

    name: ClassVar[str] = "redis"

    def __init__(
        self,
        *,
        appendonly: bool = True,
        extra_args: Sequence[str] = (),
        config: Sequence[str] = (),
        password: str | None = None,
        tls: Certificates | None = None,
        origin: Origin | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        super().__init__(origin=origin, start_timeout_s=start_timeout_s)
        self._appendonly = appendonly
        self._extra_args = tuple(extra_args)
        self._config = tuple(config)
        self._password = password
        self._tls = tls

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`; with TLS `rediss://`, and the files that it takes."""
        password = "" if self._password is None else f":{self._password}@"
        address = f"{password}{_HOST}:{self.port}/0"
        return f"redis://{address}" if self._tls is None else f"rediss://{address}?{self._tls.redis_options}"

    def _program(self) -> str:
        if self.origin.release != SYSTEM:
            return self.origin.find(f"{self.origin.name}-server", package=f"{self.origin.name}-server")
        try:
            return self.origin.find("redis-server", package="redis-server")
        except ServerNotInstalled:
            if shutil.which("valkey-server") is None:
                raise
            return self.origin.find("valkey-server", package="valkey-server")

    def _prepare(self) -> None:
        (self.folder / "redis.conf").write_text("".join(f"{line}\n" for line in self._config))

    def _command(self) -> list[str]:
        return [
            self._program(),
            "redis.conf",
            *self._place(),
            *("--daemonize", "no"),
            *("--save", ""),
            *("--appendonly", "yes" if self._appendonly else "no"),
            *("--appendfsync", "no"),  # else its writes are put off, for up to 2 s, while a slow disk is busy
            *("--loglevel", "notice"),
            *self._extra_args,
        ]

    def _place(self) -> list[str]:
        """Return the arguments that say where it listens, and to whom."""
        place = ["--bind", _HOST, "--dir", "."]
        if self._password is not None:
            place += ["--requirepass", self._password, "--masterauth", self._password]
        if self._tls is None:
            return ["--port", str(self.port), *place]
        tls = self._tls
        files = ("--tls-cert-file", str(tls.server), "--tls-key-file", str(tls.server_key))
        trusted = ("--tls-ca-cert-file", str(tls.authority), "--tls-auth-clients", "yes")
        return ["--port", "0", "--tls-port", str(self.port), *files, *trusted, "--tls-replication", "yes", *place]

    def _is_ready(self) -> bool:
        try:
            return self.command("PING", timeout_s=1.0) == "+PONG"
        except ServerFailed:  # not while it loads its data: that is an error reply
            return False

    def command(self, *words: str, timeout_s: float = _EXIT_S) -> str:
        """Carry a command out, such as `command("CONFIG", "SET", "maxmemory", "1")`, and return its reply's first line.

        Raises:
            ServerFailed: Redis answers with an error.
            OSError: It does not answer.
        """
        with self._connection(timeout_s) as connection, connection.makefile("rb") as replies:
            login = [] if self._password is None else [("AUTH", self._password)]
            reply = ""
            for each in (*login, words):
                packed = f"*{len(each)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in each)
                connection.sendall(packed.encode())
                reply = replies.readline().decode().strip()
                if reply.startswith("$"):
                    reply = replies.read(int(reply[1:])).decode()
                if reply.startswith("-"):
                    raise ServerFailed(self.name, f"{each[0]} failed", reply)
        return reply

    def _connection(self, timeout_s: float) -> socket.socket:
        connection = socket.create_connection((_HOST, self.port), timeout=timeout_s)
        return connection if self._tls is None else self._tls.context().wrap_socket(connection, server_hostname=_HOST)

    def info(self, section: str) -> dict[str, str]:
        """Return what the server tells of itself under a heading, such as `replication`."""
        lines = (line.partition(":") for line in self.command("INFO", section).splitlines() if ":" in line)
        return {name: value for name, _, value in lines}

    def fail_to_save(self) -> None:
        """Refuse every write (`MISCONF`), as Redis does when it can't save its data, on a full disk for example."""
        self.command("CONFIG", "SET", "save", "3600 1")
        (self.folder / "dump.rdb").unlink(missing_ok=True)
        (self.folder / "dump.rdb" / "in the way").mkdir(parents=True)
        self.command("BGSAVE")
        self._wait_for_save("err")

    def save_again(self) -> None:
        """Take writes again after `fail_to_save`."""
        shutil.rmtree(self.folder / "dump.rdb")
        self.command("BGSAVE")
        self._wait_for_save("ok")
        self.command("CONFIG", "SET", "save", "")

    def _wait_for_save(self, status: str) -> None:
        deadline = time.monotonic() + _EXIT_S
        while self.info("persistence")["rdb_last_bgsave_status"] != status:
            if time.monotonic() > deadline:
                raise self._failure(f"the status of its last save is not {status!r}")
            time.sleep(_POLL_S)


class PrivateRabbitMQ(PrivateServer):
    """A private RabbitMQ node, with its own name server (epmd), cookie and configuration. It takes about 10 s to start.

    Args:
        extra_config: Further lines of rabbitmq.conf, such as `"consumer_timeout = 60000"`.
        advanced_config: What advanced.config holds, in Erlang's own words, for what rabbitmq.conf has no name for.
        beside: A node whose cluster it joins as it first starts; that one runs then, and is the last to be stopped.
        tls: What makes it take TLS alone, and from clients with a certificate alone.
        management: Whether it has its HTTP API, at `management_url`.
        origin: Where its programs are; as `TASKBRIDGE_TEST_SERVERS` says if None.
        start_timeout_s: How long a start may take before it is a `ServerFailed`.
    """

    name: ClassVar[str] = "rabbitmq"

    def __init__(
        self,
        *,
        extra_config: Sequence[str] = (),
        advanced_config: str = "[].",
        beside: PrivateRabbitMQ | None = None,
        tls: Certificates | None = None,
        management: bool = False,
        origin: Origin | None = None,
        start_timeout_s: float = 300.0,
    ) -> None:
        super().__init__(origin=origin, start_timeout_s=start_timeout_s)
        self._management_port = free_port() if management else None
        self._extra_config = tuple(extra_config)
        self._advanced_config = advanced_config
        self._beside = beside
        self._tls = tls
        self._epmd: subprocess.Popen[bytes] | None = None
        self._epmd_port: int = free_port() if beside is None else beside._epmd_port
        self._cookie: str = secrets.token_hex(16) if beside is None else beside._cookie
        self._dist_port = free_port()

    @property
    def url(self) -> str:
        """`amqp://guest:guest@127.0.0.1:PORT/%2F`; with TLS `amqps://`, and the files that it takes."""
        address = f"guest:guest@{_HOST}:{self.port}/%2F"
        return f"amqp://{address}" if self._tls is None else f"amqps://{address}?{self._tls.amqp_options}"

    @property
    def management_url(self) -> str:
        """`http://guest:guest@127.0.0.1:PORT`."""
        return f"http://guest:guest@{_HOST}:{self._management_port}"

    @property
    def node(self) -> str:
        """The Erlang name of the node."""
        return f"taskbridge-{self.port}@localhost"

    def ctl(self, *args: str, program: str = "rabbitmqctl", timeout_s: float = 180.0) -> str:
        """Run `rabbitmqctl` on this node, such as `ctl("set_vm_memory_high_watermark", "0")`; it takes about 2 s.

        Args:
            *args: Its arguments.
            program: Another of RabbitMQ's own, such as `rabbitmq-queues`.
            timeout_s: How long it may take.

        Returns:
            What it printed.

        Raises:
            ServerFailed: If it fails or takes too long.
        """
        try:
            done = subprocess.run(
                **self._how([self._program(program), "--quiet", "--node", self.node, *args]),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as exc:
            raise ServerFailed(self.name, f"{program} {args[0]} took over {timeout_s:g} s", "") from exc
        if done.returncode != 0:
            raise ServerFailed(self.name, f"{program} {args[0]} failed", (done.stdout + done.stderr).decode())
        return done.stdout.decode()

    def _program(self, name: str) -> str:
        return self.origin.find(name, package="rabbitmq-server", folders=_RABBITMQ_FOLDERS)

    def _epmd_program(self) -> str:
        return self.origin.find("epmd", package="erlang-base")

    def _command(self) -> list[str]:
        self._epmd_program()
        return [self._program("rabbitmq-server")]

    def _prepare(self) -> None:
        config = [
            *self._listeners(),
            *self._peers(),
            *self._management(),
            "disk_free_limit.absolute = 10MB",
            "log.console = true",
            "log.console.level = warning",
            "log.console.use_colors = off",
            "log.file = false",
            *self._extra_config,
        ]
        (self.folder / "rabbitmq.conf").write_text("\n".join(config) + "\n")
        (self.folder / "advanced.config").write_text(f"{self._advanced_config}\n")
        plugins = "" if self._management_port is None else "rabbitmq_management"
        (self.folder / "enabled_plugins").write_text(f"[{plugins}].\n")
        (self.folder / "rabbitmq-env.conf").touch()
        # Names are looked up in here, not by helper processes (inet_gethost), which would outlive a killed node.
        (self.folder / "inetrc").write_text('{lookup, [file]}.\n{host, {127,0,0,1}, ["localhost"]}.\n')
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)

    def _listeners(self) -> list[str]:
        if self._tls is None:
            return [f"listeners.tcp.local = {_HOST}:{self.port}"]
        return [
            "listeners.tcp = none",
            f"listeners.ssl.local = {_HOST}:{self.port}",
            f"ssl_options.cacertfile = {self._tls.authority}",
            f"ssl_options.certfile = {self._tls.server}",
            f"ssl_options.keyfile = {self._tls.server_key}",
            "ssl_options.verify = verify_peer",
            "ssl_options.fail_if_no_peer_cert = true",
        ]

    def _management(self) -> list[str]:
        if self._management_port is None:
            return []
        return [f"management.tcp.ip = {_HOST}", f"management.tcp.port = {self._management_port}"]

    def _peers(self) -> list[str]:
        if self._beside is None:
            return []
        kind = "cluster_formation.peer_discovery_backend = classic_config"
        nodes = (self._beside.node, self.node)
        return [kind, *(f"cluster_formation.classic_config.nodes.{n} = {node}" for n, node in enumerate(nodes, 1))]

    def _environment(self) -> Mapping[str, str]:
        # Variables of a system-wide RabbitMQ would send this node to its files.
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_", "NOTIFY_"))
        }
        folder = str(self.folder)
        tcp = {"RABBITMQ_NODE_IP_ADDRESS": _HOST, "RABBITMQ_NODE_PORT": str(self.port)}
        return {
            **inherited,
            "HOME": folder,
            "RABBITMQ_NODENAME": self.node,
            **({} if self._tls is not None else tcp),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/config",
            "RABBITMQ_SCHEMA_DIR": f"{folder}/schema",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/rabbitmq-env.conf",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_FEATURE_FLAGS_FILE": f"{folder}/feature_flags",
            "RABBITMQ_PID_FILE": f"{folder}/rabbitmq.pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +A 8 -kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": _HOST,
            "ERL_INETRC": f"{folder}/inetrc",
            "ERL_CRASH_DUMP_SECONDS": "0",
            # The script then becomes the node, instead of starting it and passing signals on.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _launch(self, command: Sequence[str]) -> None:
        self._start_epmd()
        super()._launch(command)

    def _start_epmd(self) -> None:
        """Start the node's own name server; one that Erlang starts by itself would outlive the node."""
        if self._beside is not None or (self._epmd is not None and self._epmd.poll() is None):
            return
        self._epmd = self._spawn([self._epmd_program(), "-address", _HOST, "-port", str(self._epmd_port)])
        deadline = time.monotonic() + _EXIT_S
        while not _accepts(self._epmd_port):
            if self._epmd.poll() is not None or time.monotonic() > deadline:
                raise self._failure("its name server, epmd, did not start")
            time.sleep(_POLL_S)

    def _end_helpers(self) -> None:
        if self._epmd is not None:
            _end(self._epmd, signal.SIGKILL)
            self._epmd = None

    def _is_ready(self) -> bool:
        with socket.create_connection((_HOST, self.port), timeout=2.0) as plain:
            tls = None if self._tls is None else self._tls.context()
            with plain if tls is None else tls.wrap_socket(plain, server_hostname=_HOST) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) == b"\x01"  # the first byte of the frame Connection.Start


def _end(process: subprocess.Popen[bytes], signal_number: int) -> None:
    """Send a signal to a process and its group, and return when they are gone; SIGKILL follows after a minute."""
    if process.poll() is None:
        os.killpg(process.pid, signal_number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_EXIT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=_EXIT_S)
    deadline = time.monotonic() + _EXIT_S
    while _is_one_left(process.pid) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _is_one_left(group: int) -> bool:
    """Tell whether a process of a group goes on; a killed one does until it has been given a core to end on.

    None is said to, if `ps` is missing or does not tell.
    """
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    command = ["ps", "-eo", "pgid=,state="]  # for what has ended is there until somebody asks how
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_EXIT_S, check=True)
        processes = [line.split() for line in done.stdout.splitlines()]
        return any(int(of) == group and state not in ("Z", "X") for of, state in processes)
    return False


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection((_HOST, port), timeout=1.0):
        return True
    return False
