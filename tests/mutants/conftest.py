"""Prints the machine's pace, which the processes of mutants are told."""

from tests.pacing import pytest_configure, pytest_report_header

__all__ = ["pytest_configure", "pytest_report_header"]
