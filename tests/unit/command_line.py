"""Runs the command line as a user would, for the tests of its rooms."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.forking import run_cli

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def runner(folder: Path, **defaults: str) -> Run:
    """Return a function that runs `taskbridge` in a folder, with no settings but those it is given.

    Args:
        folder: The current directory of what is run.
        **defaults: Variables over the environment; each call may give others over these.
    """

    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}
        return run_cli(*arguments, env={**env, "NO_COLOR": "1", **defaults, **variables}, cwd=folder, timeout_s=180)

    return call
