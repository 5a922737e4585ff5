"""Rules S4 and Q7 across engines: pydantic's models and others that are sent on one engine and run on the other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.servers import PrivateRedis

SHOP = """
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Generic, TypeVar
from pydantic import BaseModel, Field
from taskbridge import task

T = TypeVar("T")

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

class Page(BaseModel, Generic[T]):
    items: list[T]

@dataclass
class Box(Generic[T]):
    holds: T
    inner: "Box[T] | None" = None

Value = Customer | Line | Size | Path | Page[Line] | Box[Size] | None

@task
def keep(values: dict[str, list[Value]]) -> list[Value]:
    return values["all"]
"""

SEND = """
import sys
from datetime import date
from pathlib import Path
from shop import Box, Customer, Line, Page, Size, keep

customer = Customer(fullName="n", since=date(2024, 2, 29), photo=Path("/x"), sizes={"a": [Size.SMALL]})
page, box = Page[Line](items=[Line("socks"), Line("hat", Size.SMALL)]), Box(Size.SMALL, Box(Size.SMALL))
sent = [customer, Line("socks", Size.SMALL), Size.SMALL, Path("a"), page, box, None]
handle = keep.schedule(0.5, {"all": sent})
print("sent", flush=True)
came = handle.result(float(sys.argv[1]))
assert came == sent and list(map(type, came)) == list(map(type, sent)), came
"""


SEND_TO_ANOTHER_RELEASE = """
import sys
from datetime import date
from shop import Customer, keep
from taskbridge import TaskFailed, default_bridge

handle = keep.schedule(0.5, {"all": [Customer(fullName="n", since=date(2024, 2, 29))]})
print("sent", flush=True)
try:
    handle.result(float(sys.argv[1]))
except TaskFailed:
    [letter] = default_bridge().dead_letters()
    print(letter.reason, letter.message.attempt, letter.error.message)
"""

ENGINES = pytest.mark.parametrize("engines", [("celery", "dramatiq"), ("dramatiq", "celery")], ids="-".join)


@contextmanager
def sending(
    program: str, engines: tuple[str, str], url: str, here: Path, there: Path
) -> Generator[subprocess.Popen[str]]:
    """Run a program that sends on the first engine, from one folder, and a worker of the second one, from another."""
    name = f"models-{uuid4().hex[:8]}"
    sends, runs = (
        {**os.environ, "TASKBRIDGE_URL": f"{engine}+{url}", "TASKBRIDGE_NAMESPACE": name} for engine in engines
    )
    sender = subprocess.Popen(
        [sys.executable, "-c", program, "150"],
        cwd=here,
        env=sends,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    worker = subprocess.Popen(
        [sys.executable, "-m", "taskbridge", "worker", "shop", "--processes", "1"],
        cwd=there,
        env=runs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield sender
    finally:
        for process in (sender, worker):
            process.terminate()
            process.wait(90)


@ENGINES
def test_what_one_engine_sends_the_other_makes(
    engines: tuple[str, str], redis_server: PrivateRedis, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)

    with sending(SEND, engines, redis_server.url, tmp_path, tmp_path) as sender:
        told, errors = sender.communicate(timeout=200)

    assert (told, sender.returncode) == ("sent\n", 0), errors


@ENGINES
def test_a_model_that_another_release_has_changed_is_dead_at_once_and_says_why(
    engines: tuple[str, str], redis_server: PrivateRedis, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, text in ((here, SHOP), (there, SHOP.replace("since: date", "born: date"))):
        folder.mkdir()
        (folder / "shop.py").write_text(text)

    with sending(SEND_TO_ANOTHER_RELEASE, engines, redis_server.url, here, there) as sender:
        told, errors = sender.communicate(timeout=200)

    assert told.startswith("sent\nbad_arguments 1 "), told + errors
    for word in ('args[0]["all"][0]', "Customer", "born"):
        assert word in told, told
