from __future__ import annotations

import ast
import sys
from pathlib import Path
from uuid import uuid4

from tests.examples.conftest import ROOT, START_TIMEOUT_S, Start, run, wait_until
from tests.servers import PrivateRedis

EXAMPLE = "examples.reusable_library"


def test_two_hosts_run_one_librarys_tasks_on_two_engines_over_one_redis(
    redis_server: PrivateRedis, start: Start, tmp_path: Path
) -> None:
    outbox = tmp_path / "outbox"
    outbox.touch()
    namespace = f"newsletter-{uuid4().hex[:8]}"
    variables = {"REDIS_URL": redis_server.url, "OUTBOX": str(outbox), "TASKBRIDGE_NAMESPACE": namespace}
    workers = [
        start("taskbridge", "worker", f"{EXAMPLE}.host_celery", env=variables),
        start("taskbridge", "worker", f"{EXAMPLE}.host_dramatiq", "--queues", "bulk", env=variables),
    ]

    run(sys.executable, "-m", f"{EXAMPLE}.host_celery", "June", env=variables)
    run(sys.executable, "-m", f"{EXAMPLE}.host_dramatiq", "July", env=variables)
    wait_until(
        lambda: len(outbox.read_text(encoding="utf-8").splitlines()) >= 4,
        what="four letters",
        timeout_s=START_TIMEOUT_S,
        processes=workers,
    )

    assert sorted(outbox.read_text(encoding="utf-8").splitlines()) == [
        "celery ann@example.org June",
        "celery bob@example.org June",
        "dramatiq cat@example.org July",
        "dramatiq dan@example.org July",
    ]
    assert [worker.stop() for worker in workers] == [0, 0]


def test_the_library_names_no_engine_and_no_broker() -> None:
    source = (ROOT / "examples" / "reusable_library" / "newsletter" / "__init__.py").read_text(encoding="utf-8")

    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }

    assert imported == {"__future__", "collections", "datetime", "taskbridge"}
    assert not {word for word in ("celery", "dramatiq", "redis", "amqp") if word in source.lower()}
