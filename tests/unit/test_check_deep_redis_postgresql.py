"""`taskbridge check --deep` with a store in PostgreSQL beside the broker."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.servers import PrivateRedis
from tests.unit.command_line import Run, runner


@pytest.fixture
def run(tmp_path: Path, redis_server: PrivateRedis) -> Run:
    settings = {
        "TASKBRIDGE_URL": f"dramatiq+{redis_server.url}",
        "TASKBRIDGE_NAMESPACE": f"deep-{uuid.uuid4().hex[:8]}",
        "TASKBRIDGE_SEND_TIMEOUT": "20",
    }
    return runner(tmp_path, **settings)


@pytest.fixture
def role(postgresql_store: str) -> Iterator[str]:
    """A role that may what the page on security says."""
    name = f"deep_{uuid.uuid4().hex[:8]}"
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    with psycopg.connect(postgresql_store, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN".encode())
        for statement in page.partition("```sql\n")[2].partition("\n```")[0].splitlines():
            connection.execute(statement.replace("TO shop", f"TO {name}").encode())
        yield name
        connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("SELECT 1", ""),
        ("ALTER ROLE {} SET default_transaction_read_only = on", "read-only transaction"),
        ("REVOKE INSERT ON taskbridge_text FROM {}", "permission denied for table taskbridge_text"),
        ("REVOKE UPDATE ON taskbridge_text FROM {}", "permission denied for table taskbridge_text"),
        ("REVOKE DELETE ON taskbridge_text FROM {}", "permission denied for table taskbridge_text"),
        ("REVOKE SELECT ON taskbridge_cancelled FROM {}", "permission denied for table taskbridge_cancelled"),
    ],
)
def test_a_store_that_refuses_is_told(run: Run, postgresql_store: str, role: str, statement: str, says: str) -> None:
    with psycopg.connect(postgresql_store, autocommit=True) as connection:
        connection.execute(statement.format(role).encode())
    done = run("check", "--deep", "--json", TASKBRIDGE_STORE=postgresql_store.replace("taskbridge@", f"{role}@"))
    findings: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    found = [(each["subject"], each["text"]) for each in findings if each["outcome"] in ("failed", "error", "warning")]
    assert [subject for subject, _ in found] == (["results"] if says else []), found
    assert all(says in text for _, text in found)
    assert done.returncode == (1 if says else 0)
