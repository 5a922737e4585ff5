"""Processes are killed at each instant of a flow's life; often, and on all pairs, by `python -m tests.flows.kills`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.flows.kills import INSTANTS, acts_at, carried_out
from tests.flows.site import Site
from tests.servers import PrivateRedis

TIMES = 2
AT_ONCE = 6


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["celery+redis", "dramatiq+amqp"])
def test_every_flow_ends_and_is_followed_once_whoever_is_killed(
    pair: str,
    tmp_path: Path,
    url_of: Callable[[str], str],
    redis_server: PrivateRedis,
) -> None:
    url = url_of(pair)

    @contextmanager
    def make() -> Generator[Site]:
        with Site(Path(mkdtemp(dir=tmp_path)), url, redis_server.url) as site:
            yield site

    for name, found in carried_out(make, acts_at(INSTANTS, TIMES, pair), at_once=AT_ONCE):
        print(f"{name}: {found}")
        assert found.wrong == [], name
        assert found.ended == TIMES
