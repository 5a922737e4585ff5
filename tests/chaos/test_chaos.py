"""A short chaos run on each pair of engine and broker: nothing is lost, and every duplicate has its cause.

The long run is `python -m tests.chaos`. Each run has another seed, which is printed; `TASKBRIDGE_TEST_CHAOS_SEED`
sets it. On CI it is always the same: what a new one finds is no fault of the change that is tested there.
"""

from __future__ import annotations

import os
import random
from typing import Final

import pytest

from tests.chaos.plan import Options, acts, sendings
from tests.chaos.run import run
from tests.conftest import is_ci
from tests.servers import ServerNotInstalled

_SETTLE_S: Final = 300.0
_SEED_OF_CI: Final = 7


def the_seed() -> int:
    given = os.environ.get("TASKBRIDGE_TEST_CHAOS_SEED")
    if given is not None:
        return int(given)
    return _SEED_OF_CI if is_ci() else random.SystemRandom().randrange(1_000_000)


def short(seed: int) -> Options:
    return Options(messages=250, seconds=20, lease_s=4, seed=seed, short=True)


@pytest.mark.slow
def test_nothing_is_lost_and_every_duplicate_has_its_cause(target: str) -> None:
    seed = the_seed()
    print(f"TASKBRIDGE_TEST_CHAOS_SEED={seed}")
    try:
        # With attempt marks apart from RabbitMQ a poisonous message ends soon; without, after 10 deliveries.
        result = run(target, short(seed), store=target.endswith("amqp"), settle_s=_SETTLE_S, say=print)
    except ServerNotInstalled as exc:
        if is_ci():
            raise
        pytest.skip(str(exc))

    print("\n".join(result.lines()))
    assert result.is_good, f"seed {seed}, logs and records in {result.folder}"
    assert result.account.starts > 0


def test_a_seed_says_what_is_sent_and_what_is_broken() -> None:
    assert sendings(short(7)) == sendings(short(7)) != sendings(short(8))
    assert acts(short(7)) == acts(short(7)) != acts(short(8))


def test_a_short_run_has_every_kind_of_message_and_each_of_its_disorders() -> None:
    assert len({sending.kind for sending in sendings(short(7))}) == 12
    assert len({act.what for act in acts(short(7))}) == 7
