"""What the page asks of a real Redis; `python -m benchmarks.pages` measures the same with a million records."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.testclient import TestClient

from benchmarks.pages import FEW, addresses, commands, fill, keeping_no_answers, look, place
from taskbridge.web import app
from tests.servers import PrivateRedis

MANY = 2_000


def test_each_page_takes_a_fixed_number_of_commands_whatever_is_stored(
    make_redis: Callable[..., PrivateRedis],
) -> None:
    with keeping_no_answers(), place(make_redis()) as (bridge, server), TestClient(app(bridge)) as client:

        def asked(letters: int) -> dict[str, int]:
            """Return by page how many commands it takes; what is imported and connected once comes before."""
            found: dict[str, int] = {}
            for name, page in addresses(bridge, letters).items():
                look(client, page)
                found[name] = commands(server, partial(look, client, page))
            return found

        fill(bridge, 0, FEW, FEW, server)
        few = asked(FEW)
        fill(bridge, FEW, MANY, MANY, server)
        many = asked(MANY)

    assert few == many
    assert 0 < max(few.values()) < 40, few
