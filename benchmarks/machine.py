"""What the benchmark runs on, and the versions of what it measures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

_PACKAGES: Final = ("taskbridge-queue", "celery", "kombu", "dramatiq", "redis", "hiredis", "pika", "amqp")
_ELSEWHERE: Final[Mapping[str, Sequence[str]]] = {
    "peers": ("rq", "huey", "arq", "taskiq", "taskiq-redis", "saq", "redis", "hiredis"),
    "taskferry": ("taskferry", "taskferry-celery", "taskferry-dramatiq"),
    "threadmill": ("threadmill", "django", "redis"),
    "observed": ("opentelemetry-sdk", "opentelemetry-instrumentation-celery", "django"),
}
_ASK: Final = """
import importlib.metadata, platform, sys
print(platform.python_version(), *[importlib.metadata.version(each) for each in sys.argv[1:]])
"""
_NO_VERSION: Final = "?"
_PATIENCE_S: Final = 60.0
_RABBITMQ: Final = Path("/usr/lib/rabbitmq/lib")
_OTP: Final = """
{ok, Text} = file:read_file(filename:join([code:root_dir(), releases, erlang:system_info(otp_release), "OTP_VERSION"])),
io:format("~s", [Text]), halt().
"""


def machine() -> Mapping[str, str]:
    """Return what it runs on."""
    return {
        "processors": f"{len(os.sched_getaffinity(0))} x {_processor()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"Linux {platform.release().partition('-')[0]}",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def versions(pythons: Mapping[str, str]) -> Mapping[str, str]:
    """Return the versions of what is measured.

    Args:
        pythons: The interpreters with the packages of the others, by `Contender.home`.
    """
    found = {"Python": platform.python_version(), **servers()}
    found |= {name: known for name in _PACKAGES if (known := _installed(name)) is not None}
    for home, python in pythons.items():
        names = _ELSEWHERE[home]
        told = subprocess.run([python, "-c", _ASK, *names], capture_output=True, text=True, check=True)
        for name, each in zip(("Python", *names), told.stdout.split(), strict=True):
            found[name if name.startswith(home) else f"{name} ({home})"] = each
    return found


def servers() -> Mapping[str, str]:
    """Return the versions of the servers, `?` where one does not tell it."""
    return {
        "Redis": _said(["redis-server", "--version"], r"v=(\S+)"),
        "RabbitMQ": _rabbitmq(),
        "Erlang": _said(["erl", "-noshell", "-eval", _OTP], r"(\d[\d.]*)"),
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else platform.machine()


def _rabbitmq() -> str:
    """Return RabbitMQ's version, from the name of its folder: its own commands ask a node, which takes seconds."""
    names = [path.name for path in _RABBITMQ.glob("rabbitmq_server-*")]
    return max(names).partition("-")[2] if names else _said(["rabbitmqctl", "version"], r"(\d[\d.]+)")


def _said(argv: Sequence[str], pattern: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired):
        return _NO_VERSION
    found = re.search(pattern, done.stdout)
    return found[1] if found else _NO_VERSION
