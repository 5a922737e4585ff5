"""Measures the machine's pace as tests begin, and prints it; for the conftest of tests with limits of time."""

from __future__ import annotations

import os

import pytest

from taskbridge.contract.pace import VARIABLE, Pace


def pytest_configure(config: pytest.Config) -> None:
    """Measure once, before xdist starts the processes that run the tests; these find it in the environment."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = Pace.measured().dumps()


def pytest_report_header(config: pytest.Config) -> str:
    return f"pace: {Pace.of_this_run()}"
