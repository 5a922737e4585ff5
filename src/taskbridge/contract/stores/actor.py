"""A process in a check's story: `python -m taskbridge.contract.stores.actor SETTINGS VERB WORD...`.

It writes what it sees to its output, and takes each further step at a line of its input.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from taskbridge import Bridge, Message, Unique
from taskbridge.contract.stores.place import TIMEOUT_S, a_message
from taskbridge.stores.base import Store
from taskbridge.stores.claims import Intent
from taskbridge.stores.records import Ending

_THREADS: Final = 4


def _say(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def _wait() -> None:
    sys.stdin.readline()


def _message(message_id: str) -> Message:
    return a_message(id=message_id)


def claim_ticks(store: Store, schedule: str, number: str, claimant: str) -> None:
    """Claim the ticks 1 to `number` of a schedule in several threads, and write those that are ours."""

    def claim(instant: float) -> str:
        claim = store.ticks.claim(
            schedule, instant, claimant=claimant, now=time.time(), lease_s=600, timeout_s=TIMEOUT_S
        )
        return f"{claim.value}:{instant:g}"

    _say("ready")
    _wait()
    with ThreadPoolExecutor(_THREADS) as pool:
        for seen in pool.map(claim, [float(each) for each in range(1, int(number) + 1)]):
            _say(seen)


def claim_tick(store: Store, schedule: str, lease_s: str) -> None:
    """Claim the tick 1 of a schedule, and wait."""
    claim = store.ticks.claim(
        schedule, 1.0, claimant="actor", now=time.time(), lease_s=float(lease_s), timeout_s=TIMEOUT_S
    )
    _say(claim.value)
    _wait()


def start_run(store: Store, message_id: str) -> None:
    """Start a run, and wait; then say whether it is still this process's."""
    message = _message(message_id)
    store.marks.started(message)
    _say("started")
    _wait()
    _say(store.marks.still_ours(message, timeout_s=TIMEOUT_S))


def end_run(store: Store, *message_ids: str) -> None:
    """Record the ends of runs, one at each line of input."""
    _say("ready")
    for message_id in message_ids:
        _wait()
        store.records.ended(
            _message(message_id), Ending(state="done", at=time.time(), result_json="1"), timeout_s=TIMEOUT_S
        )
        _say("ended")


def send_unique(store: Store, number: str) -> None:
    """Send so many unique keys, and write of each its name, the id that holds it, and the one that was to do so."""
    _say("ready")
    _wait()
    for key in (f"{each:032x}" for each in range(int(number))):
        message = a_message(unique=f"e:{key}")
        intent = Intent(message=message, delay_s=0.0, unique=Unique("key"))
        outcomes, _ = store.claims.send([intent], timeout_s=TIMEOUT_S)
        holder = outcomes[0].holder
        _say(f"{key}:{message.id if holder is None else holder.id}:{message.id}")


_VERBS: Final[Mapping[str, Callable[..., None]]] = {
    verb.__name__: verb for verb in (claim_ticks, claim_tick, start_run, end_run, send_unique)
}


def main() -> None:
    """Do what the arguments say."""
    bridge = Bridge("inline://", **json.loads(sys.argv[1]))
    store = bridge.store
    assert store is not None
    _VERBS[sys.argv[2]](store, *sys.argv[3:])
    bridge.close()


if __name__ == "__main__":
    main()
