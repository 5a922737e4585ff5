"""Private servers: a Redis or RabbitMQ of one's own, on 127.0.0.1, to be killed, paused and restarted.

    with PrivateRedis() as redis:
        bridge = Bridge(f"celery+{redis.url}")

They run as whoever starts them, keep everything in a temporary folder, and use no configuration of the machine's own
servers. They end with the process that started them: at the end of the `with`, at its exit, and when it is killed.
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
from typing import ClassVar, Final

from typing_extensions import Self

from taskbridge import TaskBridgeError
from taskbridge.contract import leftovers
from taskbridge.contract.ports import free_port
from taskbridge.contract.workers import wait_until_still

_HOST: Final = "127.0.0.1"

_RABBITMQ_FOLDERS: Final = (
    "/usr/lib/rabbitmq/bin",  # Debian, Ubuntu, Fedora; what stands in /usr/sbin there changes the user
    "/opt/rabbitmq/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)

_POLL_S: Final = 0.02
_EXIT_S: Final = 20.0
_KEPT_LOG_LINES: Final = 15


class ServerNotInstalled(TaskBridgeError):
    """A server program is not installed; `program` is its name and `package` what to install."""

    def __init__(self, program: str, package: str) -> None:
        super().__init__(f"{program} is not installed: apt-get install {package}, or the same by your system's means")
        self.program = program
        self.package = package


class ServerFailed(TaskBridgeError):
    """A private server ended, or was not ready in time; `log` holds the last lines that it wrote."""

    def __init__(self, name: str, problem: str, log: str) -> None:
        super().__init__(f"{name}: {problem}\n{log}".rstrip())
        self.name = name
        self.problem = problem
        self.log = log


class PrivateServer(ABC):
    """A server in a process of its own, with its own port and folder, which ends with this process.

    Args:
        start_timeout_s: How long a start may take before it is a `ServerFailed`.

    Attributes:
        port: The port on 127.0.0.1; the same through every restart.
        folder: Where the server keeps its data and its log; removed by `stop`.
    """

    name: ClassVar[str]

    def __init__(self, *, start_timeout_s: float = 90.0) -> None:
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
        self.kill()
        self._end_helpers()
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
        self.folder = Path(tempfile.mkdtemp(prefix=f"taskbridge-{self.name}-")).resolve()
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
        identity = self._identity()
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environment(),
                start_new_session=True,
                user=None if identity is None else identity[0],
                group=None if identity is None else identity[1],
                extra_groups=None if identity is None else [],
            )
        leftovers.end_group(process.pid)
        return process

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
        appendonly: Whether data outlives a restart and a kill; what was acknowledged is then kept.
        extra_args: Further arguments, such as `("--maxmemory", "10mb")`.
        start_timeout_s: How long a start may take before it is a `ServerFailed`.
    """

    name: ClassVar[str] = "redis"

    def __init__(
        self, *, appendonly: bool = True, extra_args: Sequence[str] = (), start_timeout_s: float = 30.0
    ) -> None:
        super().__init__(start_timeout_s=start_timeout_s)
        self._appendonly = appendonly
        self._extra_args = tuple(extra_args)

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`."""
        return f"redis://{_HOST}:{self.port}/0"

    def _command(self) -> list[str]:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise ServerNotInstalled("redis-server", "redis-server")
        return [
            program,
            *("--port", str(self.port)),
            *("--bind", _HOST),
            *("--dir", "."),
            *("--daemonize", "no"),
            *("--save", ""),
            *("--appendonly", "yes" if self._appendonly else "no"),
            *("--loglevel", "notice"),
            *self._extra_args,
        ]

    def _is_ready(self) -> bool:
        with socket.create_connection((_HOST, self.port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")  # not while it loads its data: that is an error reply

    def command(self, *words: str) -> str:
        """Carry a command out, such as `command("CONFIG", "SET", "maxmemory", "1")`, and return its reply's first line.

        Raises:
            ServerFailed: Redis answers with an error.
        """
        packed = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with (
            socket.create_connection((_HOST, self.port), timeout=_EXIT_S) as connection,
            connection.makefile("rb") as replies,
        ):
            connection.sendall(packed.encode())
            reply = replies.readline().decode().strip()
            if reply.startswith("$"):
                reply = replies.read(int(reply[1:])).decode()
        if reply.startswith("-"):
            raise ServerFailed(self.name, f"{words[0]} failed", reply)
        return reply

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
        while f"rdb_last_bgsave_status:{status}" not in self.command("INFO", "persistence"):
            if time.monotonic() > deadline:
                raise self._failure(f"the status of its last save is not {status!r}")
            time.sleep(_POLL_S)


class PrivateRabbitMQ(PrivateServer):
    """A private RabbitMQ node, with its own name server (epmd), cookie and configuration. It takes about 10 s to start.

    Args:
        extra_config: Further lines of rabbitmq.conf, such as `"consumer_timeout = 60000"`.
        advanced_config: What advanced.config holds, in Erlang's own words, for what rabbitmq.conf has no name for.
        start_timeout_s: How long a start may take before it is a `ServerFailed`.
    """

    name: ClassVar[str] = "rabbitmq"

    def __init__(
        self, *, extra_config: Sequence[str] = (), advanced_config: str = "[].", start_timeout_s: float = 90.0
    ) -> None:
        super().__init__(start_timeout_s=start_timeout_s)
        self._extra_config = tuple(extra_config)
        self._advanced_config = advanced_config
        self._epmd: subprocess.Popen[bytes] | None = None
        self._epmd_port = free_port()
        self._dist_port = free_port()

    @property
    def url(self) -> str:
        """`amqp://guest:guest@127.0.0.1:PORT/%2F`."""
        return f"amqp://guest:guest@{_HOST}:{self.port}/%2F"

    @property
    def node(self) -> str:
        """The Erlang name of the node."""
        return f"taskbridge-{self.port}@localhost"

    def ctl(self, *args: str, timeout_s: float = 60.0) -> str:
        """Run `rabbitmqctl` on this node, such as `ctl("set_vm_memory_high_watermark", "0")`; it takes about 2 s.

        Returns:
            What it printed.

        Raises:
            ServerFailed: If it fails or takes too long.
        """
        try:
            done = subprocess.run(
                [_rabbitmq_program("rabbitmqctl"), "--quiet", "--node", self.node, *args],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                cwd=self.folder,
                env=self._environment(),
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as exc:
            raise ServerFailed(self.name, f"rabbitmqctl {args[0]} took over {timeout_s:g} s", "") from exc
        if done.returncode != 0:
            raise ServerFailed(self.name, f"rabbitmqctl {args[0]} failed", (done.stdout + done.stderr).decode())
        return done.stdout.decode()

    def _command(self) -> list[str]:
        _epmd_program()
        return [_rabbitmq_program("rabbitmq-server")]

    def _prepare(self) -> None:
        config = [
            f"listeners.tcp.local = {_HOST}:{self.port}",
            "disk_free_limit.absolute = 10MB",
            "log.console = true",
            "log.console.level = warning",
            "log.console.use_colors = off",
            "log.file = false",
            *self._extra_config,
        ]
        (self.folder / "rabbitmq.conf").write_text("\n".join(config) + "\n")
        (self.folder / "advanced.config").write_text(f"{self._advanced_config}\n")
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "rabbitmq-env.conf").touch()
        # Names are looked up in here, not by helper processes (inet_gethost), which would outlive a killed node.
        (self.folder / "inetrc").write_text('{lookup, [file]}.\n{host, {127,0,0,1}, ["localhost"]}.\n')
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)

    def _environment(self) -> Mapping[str, str]:
        # Variables of a system-wide RabbitMQ would send this node to its files.
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_", "NOTIFY_"))
        }
        folder = str(self.folder)
        return {
            **inherited,
            "HOME": folder,
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": _HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
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
        if self._epmd is not None and self._epmd.poll() is None:
            return
        self._epmd = self._spawn([_epmd_program(), "-address", _HOST, "-port", str(self._epmd_port)])
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
        with socket.create_connection((_HOST, self.port), timeout=2.0) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"  # the first byte of the frame Connection.Start


def _end(process: subprocess.Popen[bytes], signal_number: int) -> None:
    """Send a signal to a process and its group, and return when they are gone; SIGKILL follows after 20 s."""
    if process.poll() is None:
        os.killpg(process.pid, signal_number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_EXIT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=_EXIT_S)


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection((_HOST, port), timeout=1.0):
        return True
    return False


def _rabbitmq_program(name: str) -> str:
    for folder in _RABBITMQ_FOLDERS:
        if os.access(f"{folder}/{name}", os.X_OK):
            return f"{folder}/{name}"
    program = shutil.which(name)
    if program is None:
        raise ServerNotInstalled(name, "rabbitmq-server")
    return program


def _epmd_program() -> str:
    program = shutil.which("epmd")
    if program is None:
        raise ServerNotInstalled("epmd", "erlang-base")
    return program
