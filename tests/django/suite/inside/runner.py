"""Runs Django's tests with taskbridge's backend in the place of Django's own, and writes how each ended."""

from __future__ import annotations

import json
import os
import unittest
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from django.tasks.backends import dummy, immediate
from django.test.runner import DiscoverRunner

from taskbridge.bridge import default_bridge
from tests.django.suite.inside.backends import HeldBackend, WaitingBackend

dummy.DummyBackend = HeldBackend  # type: ignore[assignment,misc]  # before the tests import it, and settings name it
immediate.ImmediateBackend = WaitingBackend  # type: ignore[assignment,misc]


class Runner(DiscoverRunner):
    """Leaves out the tests that `SUITE_LEFT_OUT` names, and writes what came of the others into `SUITE_REPORT`."""

    def build_suite(self, *args: Any, **kwargs: Any) -> Any:
        """Return the tests that are run."""
        found = super().build_suite(*args, **kwargs)
        left_out = set(json.loads(os.environ["SUITE_LEFT_OUT"]))
        self._ids = [test.id() for test in _each(found)]
        return type(found)(test for test in _each(found) if test.id().removeprefix("tasks.") not in left_out)

    def run_suite(self, suite: Any, **kwargs: Any) -> Any:
        """Run the tests; on `inline`, the worker is threads of this process."""
        ids = [test.id() for test in _each(suite)]
        is_inline = default_bridge().settings.url.engine == "inline"
        with default_bridge().embedded_worker(queues=["default"]) if is_inline else nullcontext():
            result = super().run_suite(suite, **kwargs)
        bad: list[tuple[Any, str]] = [*result.failures, *result.errors, *result.skipped]  # none is skipped here
        failed = {getattr(test, "test_case", test).id(): text for test, text in bad}
        report = {"found": self._ids, "ran": dict.fromkeys(ids, "") | failed}
        Path(os.environ["SUITE_REPORT"]).write_text(json.dumps(report), encoding="utf-8")
        return result


def _each(suite: Any) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _each(test)
        else:
            yield test
