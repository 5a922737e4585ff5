"""Odd values name this module; whoever imports it because of a message gives that away."""

from __future__ import annotations

import os
from pathlib import Path

from tests.hostile.names import CANARY_FILE, FOLDER_VARIABLE

if FOLDER_VARIABLE in os.environ:
    Path(os.environ[FOLDER_VARIABLE], CANARY_FILE).touch()


def sing() -> None:
    """Stand for what would be called."""
