"""Lets a test change the product in all processes of the contract, before they import it."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Final

PRELOAD: Final = "TASKBRIDGE_CONTRACT_PRELOAD"
"""Names a module that each process of the contract imports first. The project's tests break the product that way."""

_PASSED_ON: Final = (
    "TASKBRIDGE_CONTRACT_",
    "TASKBRIDGE_FAST",
    "TASKBRIDGE_QUEUE_TYPE",
    "TASKBRIDGE_WAIT_REPLICAS",
)


def preload() -> None:
    """Import the module that the variable names, if it is set."""
    if name := os.environ.get(PRELOAD):
        import_module(name)


def passed_on() -> dict[str, str]:
    """Return the variables of this process that the processes it starts are given too."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}


def without_settings() -> dict[str, str]:
    """Return this process's environment without the settings in it, but with what is passed on."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")} | passed_on()
