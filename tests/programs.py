"""Where servers' programs come from: this system, or another Debian release that `./scripts/servers` has unpacked.

The variable `TASKBRIDGE_TEST_SERVERS`, or pytest's `--servers`, says which, in words with commas:

    trixie                          every server of that release
    rabbitmq@sid,valkey@trixie      these; Valkey takes the place of Redis, and the others are this system's
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from taskbridge import TaskBridgeError

VARIABLE: Final = "TASKBRIDGE_TEST_SERVERS"
FOLDER_VARIABLE: Final = "TASKBRIDGE_TEST_SERVERS_FOLDER"

SYSTEM: Final = "system"
"""The release of what is not unpacked."""

_ROOT: Final = Path(__file__).parents[1]
_SCRIPT: Final = _ROOT / "scripts" / "servers"

_KINDS: Final = {"redis": "redis", "valkey": "redis", "rabbitmq": "rabbitmq", "postgresql": "postgresql"}
"""Which kind of server each name is."""

_FOLDERS: Final = ("/usr/bin", "/usr/sbin")


class ServerNotInstalled(TaskBridgeError):
    """A server program is not there; `program` is its name, `package` what to install, `release` where it should be."""

    def __init__(self, program: str, package: str, release: str = SYSTEM) -> None:
        how = f"apt-get install {package}, or the same by your system's means"
        super().__init__(
            f"{program} is not installed: {how}"
            if release == SYSTEM
            else f"{program} of {release} is not unpacked: ./scripts/servers {release}"
        )
        self.program = program
        self.package = package
        self.release = release


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a server's programs are.

    Attributes:
        name: Which server: `redis`, `valkey`, `rabbitmq`, `postgresql`.
        release: The Debian release; `SYSTEM` for what this machine has installed.
    """

    name: str
    release: str = SYSTEM

    @property
    def root(self) -> Path:
        """The folder that the programs see as their root directory."""
        if self.release == SYSTEM:
            return Path("/")
        folder = os.environ.get(FOLDER_VARIABLE)
        return (_ROOT / ".servers" if folder is None else Path(folder)).resolve() / self.release

    def find(self, program: str, *, package: str, folders: Sequence[str] = ()) -> str:
        """Return a program's path, below the root.

        Args:
            program: Its name.
            package: What it comes with.
            folders: Where to look first; a `*` stands for any name, of which the highest number counts.

        Raises:
            ServerNotInstalled: It is nowhere.
        """
        is_here = self.release == SYSTEM
        for pattern in (*folders, *(() if is_here else _FOLDERS)):
            for folder in sorted(self.root.glob(pattern.lstrip("/")), key=_numbers, reverse=True):
                if os.path.lexists(folder / program):  # a link's target may be below the root
                    return f"/{(folder / program).relative_to(self.root)}"
        found = shutil.which(program) if is_here else None
        if found is None:
            raise ServerNotInstalled(program, package, self.release)
        return found

    def command(self, argv: Sequence[str], identity: tuple[int, int] | None = None) -> list[str]:
        """Return the command line that runs a program which `find` has found.

        Args:
            argv: The program and its arguments.
            identity: The ids of the user and group that it becomes, if it is elsewhere.
        """
        if self.release == SYSTEM:
            return [*argv]
        user = () if identity is None else ("--as", f"{identity[0]}:{identity[1]}")
        return [str(_SCRIPT), "--run", *user, self.release, *argv]


def _numbers(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.parts if part.isdecimal())


def origin_of(kind: str) -> Origin:
    """Return where the servers of a kind come from: `redis`, `rabbitmq` or `postgresql`."""
    return chosen(os.environ.get(VARIABLE, "")).get(kind, Origin(name=kind))


def chosen(words: str) -> dict[str, Origin]:
    """Return the origins that words with commas choose, by kind.

    Raises:
        ValueError: One names no server.
    """
    origins: dict[str, Origin] = {}
    for word in filter(None, map(str.strip, words.split(","))):
        name, _, release = word.rpartition("@")
        if name and name not in _KINDS:
            raise ValueError(f"there is no server {name!r} in {word!r}: write one of {', '.join(_KINDS)}")
        for each in [name] if name else set(_KINDS.values()):
            origins[_KINDS[each]] = Origin(name=each, release=release)
    return origins


def versions() -> dict[Origin, str]:
    """Return the versions of all servers that are installed or unpacked."""
    told = subprocess.run([str(_SCRIPT), "--versions"], capture_output=True, text=True, check=True, timeout=120).stdout
    lines = (line.split() for line in told.splitlines())
    return {Origin(name=name, release=release): version for release, name, version in lines}
