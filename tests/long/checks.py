"""Promises in a size too long for continuous integration: each check runs in an environment and returns its figures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, inf
from pathlib import Path
from random import Random
from typing import Any, Final

from taskbridge import Task
from taskbridge.contract.environment import EnvironmentSpec
from taskbridge.contract.harness import FINAL, Harness, Sent
from taskbridge.contract.probe import START
from taskbridge.contract.program import RETURN, Plan, Step
from taskbridge.contract.registry import STORED
from taskbridge.contract.scenarios.crashes import kill_by_every_attempt
from taskbridge.contract.scenarios.periodic import planned_at, tick_by_three_workers
from taskbridge.contract.scenarios.shutdown import restart_under_load

_SIGTERMS: Final = 50
_TICKS: Final = 30
_WORKERS: Final = 3
_SCHEDULES: Final = 500
_FOLLOWERS: Final = 5
_SEEN_S: Final = 5.0
"""How soon workers follow what is put at run time (rule CR8)."""
_PUT_S: Final = 2.0
"""How long putting one may take."""
_LONG_S: Final = 30.0
_POLICY: Final = "standard"
"""That of the message which always kills its worker: five attempts."""

_DELAYED: Final = 100_000
_HOUR_S: Final = 3600.0
_GROWTH_MB: Final = 10.0
_SENDERS: Final = 8
_FIRST: Final = 200
"""How many messages a worker has run before its memory is looked at: what it needs for that is no growth."""
_WATCHED_S: Final = 20.0
_EVERY_S: Final = 1.0

_ROUNDS: Final = 20
_FORKS: Final = 25
_FORKING: Final = f"""
import os, signal, threading

over = threading.Event()

def go_on():
    while not over.wait(0.005):
        tasks.unrecorded.send([{{}}])

good = 0
for _ in range({_ROUNDS}):
    over.clear()
    senders = [threading.Thread(target=go_on) for _ in range(3)]
    for sender in senders:
        sender.start()
    for _ in range({_FORKS}):
        child = os.fork()
        if not child:
            signal.alarm(20)
            tasks.default.send([{{}}])
            tasks.unrecorded.send([{{}}])
            os._exit(0)
        good += os.waitpid(child, 0)[1] == 0
    over.set()
    for sender in senders:
        sender.join()
    bridge.close()  # so that the next round begins with a first send
print(good, "children sent")
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A check.

    Attributes:
        title: The promise, as a sentence.
        run: Does it, and returns its figures; it raises `ContractFailure` if the promise is broken.
        environment: Where it runs.
    """

    title: str
    run: Callable[[Harness], str]
    environment: EnvironmentSpec = STORED


def _sigterms(h: Harness) -> str:
    sent = restart_under_load(h, _SIGTERMS)
    return f"{_SIGTERMS} restarts, {sent:,} messages: none lost, none run again without need"


def _long_task(h: Harness) -> str:
    for _ in range(_WORKERS):
        h.start_worker(threads=2)
    sent = h.send(Plan(steps=(Step(sleep_s=_LONG_S),)))
    h.final(sent.id, within_s=_LONG_S + h.patience_s)
    _succeeded_the_first_time(h, sent)
    h.idle()
    _succeeded_the_first_time(h, sent)
    lasted_s = h.ends(sent.id)[0].at - h.starts(sent.id)[0].at
    return f"{lasted_s:.1f} s with a lease of {h.spec.lease_s:g} s and {_WORKERS} workers: 1 start"


def _succeeded_the_first_time(h: Harness, sent: Sent) -> None:
    h.equal("how it ended", h.final(sent.id)[0].kind, "succeeded")
    h.equal("its attempts", [start.attempt for start in h.starts(sent.id)], [1])


def _ticks(h: Harness) -> str:
    instants = tick_by_three_workers(h, _TICKS)
    return f"{instants} instants, {_WORKERS} workers, one of them killed: each instant was run once"


def _schedules(h: Harness) -> str:
    """Put, change and delete schedules while workers run and one is killed; compare what was run with the plan."""
    workers = [h.start_worker(threads=4) for _ in range(_FOLLOWERS)]
    call, schedules, random = h.tasks.programs["once"].call([RETURN.plain()]), h.bridge.schedules, Random(7)
    lived: dict[str, list[tuple[float, float, int]]] = {f"s{number}": [] for number in range(_SCHEDULES)}

    def edit(name: str, every: int | None) -> None:
        """Put a schedule, or delete it, and note from when to when which plan counts."""
        before = h.bridge.now()
        if every is None:
            schedules.delete(name)
        else:
            schedules.put(name, call, every=every)
        now = h.bridge.now()
        lived[name][-1:] = [(begun, min(until, now), was) for begun, until, was in lived[name][-1:]]
        lived[name] += [] if every is None else [(before, inf, every)]

    for name in lived:
        edit(name, 20)
    h.pause(25)
    h.environment.kill(workers[0])
    for name in random.sample([*lived], _SCHEDULES * 3 // 4):
        edit(name, random.choice((None, 15, 25)))
    h.pause(35)
    missed, counted_at = {entry.name: entry.missed for entry in schedules.list()}, h.bridge.now()
    for name in lived:
        if lived[name][-1][1] == inf:
            edit(name, None)
    gone_at = h.bridge.now()
    h.pause(_SEEN_S)
    h.idle(within_s=h.spec.lease_s + 10 + h.patience_s)
    starts = [record for record in h.environment.records.all() if record.kind == START]
    seen = [each for each in starts if "taskbridge.schedule" in each.data["context"]["headers"]]
    ran = Counter((each.data["context"]["headers"]["taskbridge.schedule"], planned_at(each)) for each in seen)
    planned = {
        (name, float(tick)): (begun, until)
        for name, plans in lived.items()
        for begun, until, every in plans
        for tick in range(ceil(begun / every) * every, int(min(until, gone_at)) + 1, every)
    }
    late = [each.at - planned_at(each) for each in seen]
    print(f"the latest after {max(late):.1f} s, {sum(each > _SEEN_S for each in late)} of {len(late)} late", flush=True)
    h.equal("ticks that were run twice", [tick for tick, times in ran.items() if times > 1], [])
    h.equal("ticks that were run though nobody planned them", sorted(set(ran) - set(planned)), [])
    late_s = _SEEN_S + h.spec.lease_s + h.slack_s  # who was killed may have claimed some
    missing = [
        tick
        for tick, (begun, until) in planned.items()
        if tick not in ran and begun + _PUT_S < tick[1] < until - late_s  # while it is put, it may begin or not
    ]
    h.equal("ticks that were not run", missing, [])
    unsent = Counter(
        name
        for (name, tick), (begun, until) in planned.items()
        if (name, tick) not in ran and begun + _PUT_S < tick < min(until - _PUT_S, counted_at - late_s)
    )
    lost = {name: times for name, times in unsent.items() if name in missed and times > missed[name]}
    h.equal("how many ticks were neither run nor missed, of what was not deleted", lost, {})
    edits = sum(len(plans) for plans in lived.values()) + _SCHEDULES  # each is deleted in the end, or before
    ticks = f"{len(ran):,} of {len(planned):,} ticks, each once, the latest after {max(late):.1f} s"
    return f"{_SCHEDULES} schedules, {edits} edits: {ticks}"


def _forks(h: Harness) -> str:
    begun = time.monotonic()
    printed = h.in_python(_FORKING)
    h.check(f"{_ROUNDS * _FORKS} children sent" in printed, f"every child should send, but: {printed}")
    return f"{_ROUNDS} rounds of {_FORKS} forks beside 3 threads that send: none hung, {time.monotonic() - begun:.0f} s"


def _poison(h: Harness) -> str:
    starts = kill_by_every_attempt(h, processes=1, threads=2, policy=_POLICY)
    return f"dead after {starts} starts, in a process with others"


def _poison_processes(h: Harness) -> str:
    starts = kill_by_every_attempt(h, processes=2, threads=1, policy=_POLICY)
    return f"dead after {starts} starts, in a process of its own"


def _delayed(h: Harness) -> str:
    h.start_worker(threads=2)
    pids = [record.pid for record in h.environment.records.all() if record.kind == "worker_started"]
    _run_some(h)
    before = _resident_mb(pids)
    begun = time.monotonic()
    _schedule_many(h)
    took_s = time.monotonic() - begun
    h.resting(delayed=_DELAYED)
    most = max(_watched_mb(pids))
    _run_some(h)
    h.resting(delayed=_DELAYED)
    after = max(most, _resident_mb(pids))
    grown = after - before
    h.check(grown < _GROWTH_MB, f"the worker should grow by less than {_GROWTH_MB} MB, but grew by {grown:.1f} MB")
    return f"{_DELAYED:,} parked in {took_s:.0f} s; worker {before:.1f} MB before, {after:.1f} MB after ({grown:+.1f})"


def _run_some(h: Harness) -> None:
    h.final(*(h.send(Plan(steps=(RETURN,))).id for _ in range(_FIRST)))


def _schedule_many(h: Harness) -> None:
    """Schedule from several threads, on a bridge without hooks: there is no sending of many with a delay."""
    bridge = h.environment.make_bridge()
    try:
        task = bridge.task(name=h.tasks.default.name)(_never)
        with ThreadPoolExecutor(_SENDERS) as pool:
            for scheduled in [pool.submit(_schedule, task, _DELAYED // _SENDERS) for _ in range(_SENDERS)]:
                scheduled.result()
    finally:
        bridge.close()


def _never(steps: list[dict[str, Any]]) -> str:
    raise AssertionError(f"nothing is run here, but this would be: {steps}")


def _schedule(task: Task[[list[dict[str, Any]]], str], count: int) -> None:
    steps = [RETURN.plain()]
    for _ in range(count):
        task.schedule(_HOUR_S, steps)


def _watched_mb(pids: Iterable[int]) -> list[float]:
    """Return what processes need, again and again, while their worker looks for what is due."""
    seen: list[float] = []
    deadline = time.monotonic() + _WATCHED_S
    while time.monotonic() < deadline:
        seen.append(_resident_mb(pids))
        time.sleep(_EVERY_S)
    return seen


def _resident_mb(pids: Iterable[int]) -> float:
    """Return the resident memory of processes together."""
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    kilobytes = [int(line.split()[1]) for text in statuses for line in text.splitlines() if line.startswith("VmRSS:")]
    return sum(kilobytes) / 1000


_KEYS: Final = 1000
_PROCESSES: Final = 8
_UNIQUE_S: Final = 40.0
_SENDING: Final = """
import os, random, signal, threading, time

def send(seed, until):
    drawn = random.Random(seed)
    while time.time() < until:
        key = f"key {{drawn.randrange({keys})}}"
        handle = tasks.unique["skip"].send([{{"sleep_s": drawn.choice((0.0, 0.0, 0.1, 0.5))}}], key)
        if handle.is_new:
            os.write(1, f"{{key}};{{handle.id}};{{time.time()}}\\n".encode())

if {dies_after_s}:
    threading.Timer({dies_after_s}, os.kill, (os.getpid(), signal.SIGKILL)).start()
threads = [threading.Thread(target=send, args=({seed} * 100 + number, {until})) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


Life = tuple[float, float, str]
"""From when to when a message held its key for certain, and its id."""


def live_at_once(lives: Iterable[Life]) -> list[tuple[str, str, float]]:
    """Return pairs of messages of one key that were live at once, and for how many seconds.

    A message holds its key from a moment before its sender has its handle, and before it starts, whichever is first:
    a sender that is slow to return may see its message end before.
    """
    certain = sorted(life for life in lives if life[0] < life[1])
    return [
        (before, message, ended - begun)
        for (_, ended, before), (begun, _, message) in pairwise(certain)
        if ended > begun
    ]


def _unique(h: Harness) -> str:
    """Send few keys from many processes, of which some are killed, as are workers; no two of a key are live."""
    workers = [h.start_worker(threads=4) for _ in range(_WORKERS)]
    until = time.time() + _UNIQUE_S

    def sends(seed: int) -> list[str]:
        printed = ""
        while (left_s := until - time.time()) > 0:  # every second process is killed, and another one follows it
            dies_after_s = 0.0 if seed % 2 else 1.0 + (seed * 0.7 + left_s) % 4.0
            values = {"seed": seed * 1000 + int(left_s), "until": until, "keys": _KEYS, "dies_after_s": dies_after_s}
            printed += h.in_python(_SENDING.format(**values))
        return printed.splitlines()

    with ThreadPoolExecutor(_PROCESSES) as pool:
        senders = [pool.submit(sends, seed) for seed in range(_PROCESSES)]
        for _ in range(5):
            time.sleep(_UNIQUE_S / 7)
            h.environment.kill(workers.pop(0))
            workers.append(h.start_worker(threads=4, answers=False))
        lines = [line.split(";") for sender in senders for line in sender.result() if line.count(";") == 2]
    made = {message: (key, float(at)) for key, message, at in lines}
    # On Redis nobody sees what a killed worker held until its lease is over: it neither waits nor runs.
    h.final(*made, within_s=h.patience_s + h.spec.lease_s)
    h.idle(within_s=h.patience_s + h.spec.lease_s)
    records = h.environment.records.all()
    ends = {record.id: record.at for record in records if record.kind in FINAL}
    begun = {message: at for message, (_, at) in made.items()}
    keys = {message: key for message, (key, _) in made.items()}
    for start in (record for record in records if record.kind == START and "key" in record.data):  # of the killed, too
        begun[start.id] = min(start.at, begun.get(start.id, inf))
        keys[start.id] = start.data["key"]
    h.equal("messages that have begun and not ended", sorted(set(begun) - set(ends)), [])
    by_key: dict[str, list[Life]] = {}
    for message, at in begun.items():
        by_key.setdefault(keys[message], []).append((at, ends[message], message))
    for key, lives in by_key.items():
        h.equal(f"messages of {key} that were live at once", live_at_once(lives), [])
    task = h.tasks.unique["skip"]
    handles = task.send_many([task.call([RETURN.plain()], key) for key in by_key])
    h.equal("keys that are still taken", [handle.id for handle in handles if not handle.is_new], [])
    h.idle(within_s=h.patience_s + h.spec.lease_s)
    return (
        f"{len(made):,} messages of {len(by_key)} keys, {_PROCESSES * 4} senders, 5 workers killed: never two of a key"
    )


CHECKS: Final[Mapping[str, Check]] = {
    "sigterms": Check(
        title="Fifty SIGTERMs under load: nothing lost, nothing run again that had ended, workers end with code 0",
        run=_sigterms,
    ),
    "long-task": Check(title="A task of 30 s with a lease of 5 s and three workers is started once", run=_long_task),
    "delayed": Check(
        title="100,000 messages delayed by an hour: the worker's memory grows by less than 10 MB",
        run=_delayed,
        environment=replace(STORED, name="delayed", stored=False),
    ),
    "ticks": Check(
        title="Thirty ticks of a second, three workers and a kill -9: every instant is run once", run=_ticks
    ),
    "schedules": Check(
        title="500 schedules put, changed and deleted while five workers run and one is killed: each tick runs once",
        run=_schedules,
    ),
    "forks": Check(
        title="In 20 rounds of 25 forks beside 3 threads that send, from the first send on, every child sends",
        run=_forks,
    ),
    "unique": Check(
        title="32 senders of 1,000 keys, killed as workers are: no two live messages of a key, and no key stays taken",
        run=_unique,
    ),
    "poison": Check(
        title="A task that always kills its worker is dead after exactly as many starts as it has attempts", run=_poison
    ),
    "poison-processes": Check(title="The same, where each task has a process of its own", run=_poison_processes),
}
"""Every check by name."""
