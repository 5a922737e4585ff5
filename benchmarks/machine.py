"""What the benchmark runs on, and the versions of what it measures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

_PACKAGES: Final = ("taskbridge-queue", "celery", "kombu", "dramatiq", "redis", "hiredis", "pika", "amqp")
_PEERS: Final = ("rq", "huey", "arq", "taskiq", "taskiq-redis", "saq", "redis", "hiredis")
_IN_PEERS: Final = "import importlib.metadata as m, sys; print(*[m.version(each) for each in sys.argv[1:]])"


def machine() -> Mapping[str, str]:
    """Return what it runs on."""
    return {
        "processors": f"{len(os.sched_getaffinity(0))} x {_processor()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"Linux {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def versions(peers_python: str | None) -> Mapping[str, str]:
    """Return the versions of what is measured.

    Args:
        peers_python: The interpreter with the peers' packages; None if they are not measured.
    """
    found = {"Python": platform.python_version(), "Redis": _server("redis-server", r"v=(\S+)")}
    found |= {name: known for name in _PACKAGES if (known := _installed(name)) is not None}
    if peers_python is not None:
        told = subprocess.run([peers_python, "-c", _IN_PEERS, *_PEERS], capture_output=True, text=True, check=True)
        found |= {f"{name} (peers)": each for name, each in zip(_PEERS, told.stdout.split(), strict=True)}
    return found


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else platform.machine()


def _server(program: str, pattern: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(pattern, said)
    return found[1] if found else "?"
