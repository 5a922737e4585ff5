"""Where the suites come from: source distributions of the versions that are installed; pip fetches them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
VENV: Final = ROOT / ".venv-suites"
INSIDE: Final = Path(__file__).with_name("inside")

_NEEDED: Final = (
    *("-e", f"{ROOT}[all]"),
    *("pytest", "pytest-timeout", "pytest-subtests", "tblib", "prometheus-client", "pydantic"),
)
"""What the suites import, beside what they test."""


class NoSources(Exception):
    """The sources of a version can't be had; the text says why."""


def python() -> Path:
    """Return the interpreter of the environment in which the suites run, which is made first if need be."""
    interpreter, stamp = VENV / "bin/python", VENV / ".installed"
    wanted = "\n".join((sys.version, *_NEEDED))
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"Installing what the suites need into {VENV.name} ...", file=sys.stderr)
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        subprocess.run([str(interpreter), "-m", "pip", "install", "-q", *_NEEDED], check=True)
        stamp.write_text(wanted)
    return interpreter


def version_of(package: str) -> str:
    """Return the version of a package in that environment."""
    code = f"import importlib.metadata as found; print(found.version({package!r}))"
    shown = subprocess.run([str(python()), "-c", code], check=True, capture_output=True, text=True)
    return shown.stdout.strip()


def fetched(package: str, version: str, into: Path) -> Path:
    """Return the folder with the sources of a version, below a folder that is thrown away later.

    Raises:
        NoSources: pip can't get them.
    """
    asked = (f"{package}=={version}", "--no-deps", "--no-binary", package, "-d", str(into))
    command = [str(python()), "-m", "pip", "download", "-q", *asked]
    got = subprocess.run(command, check=False, capture_output=True, text=True)
    archives = sorted(into.glob(f"{package}-*.tar.gz"))
    if not archives:
        raise NoSources(f"pip can't fetch the source distribution of {package} {version}:\n{got.stderr[-2000:]}")
    shutil.unpack_archive(archives[-1], into)
    return into / archives[-1].name.removesuffix(".tar.gz")


def complete(tests: Path) -> None:
    """Put beside Dramatiq's own tests what they import and its source distribution leaves out."""
    for name, source in (("__init__.py", None), ("common.py", INSIDE / "dramatiq_common.py")):
        if not (tests / name).exists():
            (tests / name).write_text("" if source is None else source.read_text())
