"""What the tests of dead letters on Redis and on RabbitMQ share: an account of who is dead and who waits, and kills."""

from __future__ import annotations

import random
import signal
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
LONGEST_S = 240.0
PATIENCE_S = 60.0

# A few letters a step, so that a kill meets the replayer in any of hundreds of places. It sets its own alarm, which
# nobody handles, at one of the steps: another process may be so late on a loaded machine that all is done.
REPLAYER = """
import signal, sys
from taskbridge import Bridge

steps = 0
signal.signal(signal.SIGALRM, signal.SIG_DFL)

def deadly(step):
    def begin(*given):
        global steps
        steps += 1
        if steps == int(sys.argv[3]):
            signal.setitimer(signal.ITIMER_REAL, float(sys.argv[4]))
        return step(*given)
    return begin

if sys.argv[1].startswith("celery+redis"):
    from taskbridge.brokers.redis import broker
    broker._LETTERS_TOGETHER = 2
    broker.RedisBroker._take = deadly(broker.RedisBroker._take)
else:
    from taskbridge.brokers.rabbitmq import dead_letter_queue
    dead_letter_queue.TOGETHER = 5
    dead_letter_queue._commit = deadly(dead_letter_queue._commit)
Bridge(sys.argv[1], namespace=sys.argv[2], send_timeout=60).dead.replay_all()
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
        bridge.broker.bury(letter(each), timeout_s=PATIENCE_S)
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
    step, after_s = (random.randint(1, LONGEST_STEPS), random.uniform(0.00001, 0.003)) if kill else (0, 0.0)
    command = [sys.executable, "-c", REPLAYER, url, namespace, str(step), f"{after_s:f}"]
    code = subprocess.run(command, check=False, timeout=LONGEST_S).returncode
    assert code == 0 or (kill and code == -signal.SIGALRM)
