"""`python -m tests.flows.switch [MEMBERS]`: flips a flow from Celery on Redis to Dramatiq on RabbitMQ, half way.

The store is one Redis. The flow is a group of so many members (1,000, if nothing else is said) and a callback.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests import forking
from tests.flows.faults import flow_id
from tests.flows.site import PATIENCE_S, Site
from tests.servers import PrivateRabbitMQ, PrivateRedis


def half_way(folder: Path, redis: str, rabbitmq: str, members: int) -> dict[str, int]:
    """Begin a flow on one pair, end it on the other, check it, and return how many runs each engine had."""
    with (
        Site(folder, f"celery+{redis}", redis) as before,
        Site(folder, f"dramatiq+{rabbitmq}", redis, before.namespace) as after,
    ):
        before.send("quick", [0], members=members)
        old = before.worker()
        before.until(lambda: len(before.runs()[0]) >= members // 2, lambda: "half of the members")
        old.terminate()
        assert old.wait(PATIENCE_S) is not None, old.log()
        after.worker()
        flow = after.bridge.flow(flow_id(0))
        after.until(lambda: flow.status().is_stalled, lambda: f"the flow to be stalled: {flow.status()}")
        flow.retry()  # what waits on the old broker is published on the new one
        status = after.until_ended([0], "the flow")[0]

        runs = after.runs()[0]
        assert (status.state, status.done, status.total) == ("done", members + 1, members + 1)
        counts = Counter(run.key for run in runs)
        keys = [*(f"member{index}" for index in range(members)), "count", "ended-done"]
        assert [key for key in keys if not counts[key]] == []
        again = {key: [run for run in runs if run.key == key] for key, count in counts.items() if count > 1}
        assert again == {}, again
        assert [run.engine for run in runs if run.key in ("count", "ended-done")] == ["dramatiq", "dramatiq"]
        assert flow.result() == members
        return Counter(run.engine for run in runs)


def main(members: int) -> None:
    forking.install()
    with PrivateRedis() as redis, PrivateRabbitMQ() as rabbitmq, tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        engines = half_way(Path(folder), redis.url, rabbitmq.url, members)
        print(f"{members} members and their callbacks: {dict(engines)}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.flows.switch", description=__doc__)
    parser.add_argument("members", nargs="?", type=int, default=1000, metavar="MEMBERS", help="default: 1000")
    main(parser.parse_args().members)
