from __future__ import annotations

import re
import sys
from collections import Counter
from uuid import uuid4

import pytest

from tests.examples.conftest import ROOT, START_TIMEOUT_S, Start, run, wait_until
from tests.servers import PrivateRedis

EXPECTED = Counter(
    {
        "examples.quickstart.send_welcome_email, attempt 1: succeeded (welcome, user 1)": 1,
        "examples.quickstart.send_welcome_email, attempt 1: retrying (the mail server is busy)": 1,
        "examples.quickstart.send_welcome_email, attempt 2: retrying (the mail server is busy)": 1,
        "examples.quickstart.send_welcome_email, attempt 3: succeeded (welcome, user 42)": 1,
        "examples.quickstart.send_welcome_email, attempt 1: succeeded (welcome, user 2)": 1,
        "examples.quickstart.send_welcome_email, attempt 1: succeeded (welcome, user 3)": 1,
        "examples.quickstart.charge, attempt 1: dead (cannot charge -5 cents)": 1,
    }
)


def events(output: str) -> Counter[str]:
    # Celery's worker makes log lines of what is printed, with a time in front.
    return Counter(re.findall(r"examples\.quickstart\.\w+, attempt \d+: .*", output))


@pytest.mark.parametrize("url", ["inline://?threads=0", "inline://", "celery+memory://", "dramatiq+memory://"])
def test_it_shows_the_same_in_one_process_whatever_the_engine(url: str) -> None:
    output = run(sys.executable, "-m", "examples.quickstart", env={"TASKBRIDGE_URL": url})

    assert f"sent 5 messages to {url.partition(':')[0]}" in output
    assert events(output) == EXPECTED


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_a_worker_runs_what_it_sends_to_a_server(engine: str, redis_server: PrivateRedis, start: Start) -> None:
    namespace = f"quickstart-{uuid4().hex[:8]}"
    variables = {"TASKBRIDGE_URL": f"{engine}+{redis_server.url}", "TASKBRIDGE_NAMESPACE": namespace}
    worker = start("taskbridge", "worker", "examples.quickstart", env=variables)

    sender = run(sys.executable, "-m", "examples.quickstart", env=variables)
    wait_until(
        lambda: events(worker.output).total() >= EXPECTED.total(),
        what="every event of the quickstart",
        timeout_s=START_TIMEOUT_S,
        processes=[worker],
    )

    assert events(sender) == Counter()
    assert events(worker.output) == EXPECTED
    assert worker.stop() == 0


def test_it_fits_on_a_screen() -> None:
    lines = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8").splitlines()

    assert len(lines) <= 60
