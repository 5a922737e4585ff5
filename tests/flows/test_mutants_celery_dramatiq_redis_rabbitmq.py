"""Killing processes has teeth: what keeps a flow whole then is undone, and the account says what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.kills import INSTANTS, Account, at_instant
from tests.flows.site import Site
from tests.mutants.of_kills import MUTANTS
from tests.servers import PrivateRedis

PAIR = "dramatiq+amqp"


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_broken_is_found_out_where_a_process_is_killed(
    name: str, tmp_path: Path, url_of: Callable[[str], str], redis_server: PrivateRedis
) -> None:
    mutant, url = MUTANTS[name], url_of(PAIR)
    [instant] = [each for each in INSTANTS if each.name == mutant.instant]

    def found(folder: str, mutant_name: str) -> Account:
        (tmp_path / folder).mkdir()
        with Site(tmp_path / folder, url, redis_server.url, mutant=mutant_name) as site:
            try:
                return at_instant(site, instant, mutant.flows)
            except AssertionError as exc:
                return Account(0, 0, 0, 0.0, [str(exc)])

    assert found("whole", "").wrong == []
    assert mutant.says in "\n".join(found("broken", name).wrong), mutant.title
