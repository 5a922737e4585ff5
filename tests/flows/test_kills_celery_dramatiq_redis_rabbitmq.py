"""Processes are killed at each instant of a flow's life; often, and on all pairs, by `python -m tests.flows.kills`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.kills import INSTANTS, Instant, at_instant
from tests.flows.site import Site
from tests.servers import PrivateRedis

TIMES = 2


@pytest.mark.slow
@pytest.mark.parametrize("instant", INSTANTS, ids=lambda instant: instant.name.replace(" ", "_"))
@pytest.mark.parametrize("pair", ["celery+redis", "dramatiq+amqp"])
def test_every_flow_ends_and_is_followed_once_whoever_is_killed(
    pair: str, instant: Instant, tmp_path: Path, url_of: Callable[[str], str], redis_server: PrivateRedis
) -> None:
    with Site(tmp_path, url_of(pair), redis_server.url) as site:
        found = at_instant(site, instant, TIMES)

    assert found.wrong == []
    assert found.ended == TIMES
