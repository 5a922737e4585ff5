"""The project `tests.django.site` in processes of its own: its commands, its workers, and what they write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from taskbridge import Bridge
from taskbridge.contract import leftovers

ROOT: Final = Path(__file__).parents[2]
SETTINGS: Final = "tests.django.site.settings"
PATIENCE_S: Final = 180.0


class Project:
    """The project on a broker and a database; `env` holds the variables that its processes are given."""

    def __init__(self, folder: Path, url: str, *, database: str = ":memory:", **env: str) -> None:
        namespace = f"site-{uuid4().hex[:8]}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TASKBRIDGE_", "SITE_"))}
        self.env: dict[str, str] = {
            **inherited,
            "DJANGO_SETTINGS_MODULE": SETTINGS,
            "SITE_URL": url,
            "SITE_NAMESPACE": namespace,
            "SITE_DATABASE": database,
            **env,
        }
        self.bridge = Bridge(url, namespace=namespace, send_timeout=60)  # to send with
        self._log = folder / "log"
        self._log.touch()
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(self, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run a command line to its end."""
        return subprocess.run(
            words, cwd=cwd, env=self.env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    def manage(self, *words: str) -> str:
        """Run a command of Django, and return what it prints."""
        done = self.run(sys.executable, "-m", "django", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def worker(self, *options: str, command: Sequence[str] = ("-m", "taskbridge"), cwd: Path = ROOT) -> None:
        """Start `taskbridge worker`, and wait until it is ready."""
        self.start(*command, "worker", *options, cwd=cwd, until="taskbridge: ready\n")

    def start(self, *arguments: str, until: str, cwd: Path = ROOT) -> None:
        """Start Python with these arguments, and wait until the log says something."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        leftovers.end_group(process.pid)  # if this process is killed
        self.until(lambda: until in self.log() or process.poll() is not None, f"{until!r} in the log")
        assert process.poll() is None, self.log()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.log()[-6000:]}"
            time.sleep(0.02)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()  # its processes end with it
                process.wait()
        self.bridge.close()


@contextmanager
def project(folder: Path, url: str, *, database: str = ":memory:", **env: str) -> Generator[Project]:
    made = Project(folder, url, database=database, **env)
    try:
        yield made
    finally:
        made.close()
