"""Rule S4 across engines: pydantic's models and others that are sent on one engine and run on the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.servers import PrivateRedis

SHOP = """
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from pydantic import BaseModel, Field
from taskbridge import task

class Size(Enum):
    SMALL = "s"

@dataclass(frozen=True)
class Line:
    article: str
    size: Size | None = None

class Customer(BaseModel):
    name: str = Field(alias="fullName")
    since: date
    photo: Path | None = None
    sizes: dict[str, list[Size]] = {}

Value = Customer | Line | Size | Path | None

@task
def keep(values: dict[str, list[Value]]) -> list[Value]:
    return values["all"]
"""

SEND = """
import sys
from datetime import date
from pathlib import Path
from shop import Customer, Line, Size, keep

customer = Customer(fullName="n", since=date(2024, 2, 29), photo=Path("/x"), sizes={"a": [Size.SMALL]})
sent = [customer, Line("socks", Size.SMALL), Size.SMALL, Path("a"), None]
handle = keep.schedule(0.5, {"all": sent})
print("sent", flush=True)
came = handle.result(float(sys.argv[1]))
assert came == sent and list(map(type, came)) == list(map(type, sent)), came
"""


@pytest.mark.parametrize("engines", [("celery", "dramatiq"), ("dramatiq", "celery")], ids="-".join)
def test_what_one_engine_sends_the_other_makes(
    engines: tuple[str, str], redis_server: PrivateRedis, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    name = f"models-{uuid4().hex[:8]}"
    here, there = (
        {**os.environ, "TASKBRIDGE_URL": f"{engine}+{redis_server.url}", "TASKBRIDGE_NAMESPACE": name}
        for engine in engines
    )
    sender = subprocess.Popen(
        [sys.executable, "-c", SEND, "150"],
        cwd=tmp_path,
        env=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    worker = subprocess.Popen(
        [sys.executable, "-m", "taskbridge", "worker", "shop", "--processes", "1"],
        cwd=tmp_path,
        env=there,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        told, errors = sender.communicate(timeout=200)
    finally:
        for process in (sender, worker):
            process.terminate()
            process.wait(90)

    assert (told, sender.returncode) == ("sent\n", 0), errors
