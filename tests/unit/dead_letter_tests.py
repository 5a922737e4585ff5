"""What the tests of dead letters on Redis and on RabbitMQ share: an account of who is dead and who waits, and kills."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from taskbridge import Bridge
from taskbridge.engines.settle import letter_of
from taskbridge.message import DeadLetter, Message, new_id

LETTERS = 1000
KILLS = 6
LONGEST_STEPS = 40
LONGEST_S = 20.0

# A few letters a step, so that a kill meets the replayer in any of hundreds of places; it is told when they begin.
REPLAYER = """
import sys
from taskbridge import Bridge

def telling(step):
    def told(*given):
        print("begins", flush=True)
        return step(*given)
    return told

if sys.argv[1].startswith("celery+redis"):
    from taskbridge.brokers.redis import broker
    broker._TOGETHER = 2
    broker.RedisBroker._take = telling(broker.RedisBroker._take)
else:
    from taskbridge.brokers.rabbitmq import letters
    letters.TOGETHER = 5
    letters._commit = telling(letters._commit)
Bridge(sys.argv[1], namespace=sys.argv[2]).dead.replay_all()
"""


@dataclass
class Seen:
    """What was seen after each kill: how many letters were still dead."""

    dead: list[int] = field(default_factory=list[int])

    @property
    def interrupted(self) -> int:
        """How many replayers were killed after they had replayed something and before they had replayed all."""
        before = [LETTERS, *self.dead]
        return sum(1 for was, now in zip(before, self.dead, strict=False) if 0 < now < was)


def bury(bridge: Bridge, number: int = LETTERS) -> list[str]:
    """Bury letters of messages that were never sent, and return their ids."""
    ids = [new_id() for _ in range(number)]
    for each in ids:
        bridge.broker.bury(letter(each), timeout_s=5)
    return ids


def letter(id: str, *, task: str = "shop.mail", reason: str = "exhausted") -> DeadLetter:
    message = Message(id=id, task=task, queue="email", args_json="[1]", kwargs_json="{}", enqueued_at=1.0, attempt=5)
    return letter_of(message, reason=reason, error=ValueError("x"), now=time.time())


def killed_replays(
    url: str, namespace: str, ids: Collection[str], dead: Callable[[], list[str]], queued: Callable[[], list[str]]
) -> Seen:
    """Replay all in processes that are killed at random moments, but for the last; check the account after each."""
    seen = Seen()
    for number in range(KILLS + 1):
        _replay(url, namespace, kill=number < KILLS)
        left, waiting = dead(), queued()
        assert sorted([*left, *waiting]) == sorted(ids), "each is dead or queued, once"
        seen.dead.append(len(left))
        if not left:
            break
    return seen


def _replay(url: str, namespace: str, *, kill: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", REPLAYER, url, namespace], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            if not kill:
                assert process.wait(LONGEST_S) == 0
                return
            for _ in range(random.randint(1, LONGEST_STEPS)):
                assert process.stdout.readline() in (b"begins\n", b"")
            time.sleep(random.uniform(0, 0.003))
        finally:
            process.kill()
