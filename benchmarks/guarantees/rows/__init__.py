"""The rows; importing the package fills the table."""

from benchmarks.guarantees.rows import crashes, delays, failures, groups, messages, running, sending

__all__ = ["crashes", "delays", "failures", "groups", "messages", "running", "sending"]
