"""`python -m tests.flows.kills [--times N] [--only WORD] [PAIR...]`: kills processes at each instant of a flow's life.

At each instant N flows (20, if nothing else is said) have the process killed by SIGKILL that is there, on each pair of
engine and broker; on RabbitMQ with a Redis for the store. Then every flow has to end, and to have run what follows
once. No attempt runs twice, and a step runs again only where its run was killed. How long a flow took after the kill is
told, too; workers are killed for other flows meanwhile.

`--random N` kills workers at random instead, N times, while flows of all kinds run.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from taskbridge import FlowStatus
from tests import forking
from tests.flows.faults import Fault, flow_id
from tests.flows.site import Site
from tests.servers import PrivateRabbitMQ, PrivateRedis

PAIRS: Final = ("celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp")
TIMES: Final = 20
AT_ONCE: Final = 4
_KILLS_A_KIND: Final = 5


class Instant(NamedTuple):
    """An instant at which a process is killed.

    Attributes:
        name: Its number and what is about to be, or was done.
        kind: The flows' kind.
        fault: Where workers are killed; None if it is who sends, cancels or retries.
        act: What is done by a process that is killed, before or after each of its calls.
        is_apart: Whether it is there only where store and broker differ; else one act does both.
    """

    name: str
    kind: str
    fault: Fault | None = None
    act: str = ""
    is_apart: bool = False


INSTANTS: Final = (
    Instant("1 before a step's end is recorded", "steps", Fault("commit", "before", "0")),
    Instant("1 after it was, before what follows is looked for", "steps", Fault("commit", "after", "0")),
    Instant("1 before a member is counted", "group", Fault("tally", "before")),
    Instant("1 after the last one was counted", "group", Fault("tally", "last")),
    Instant("1 a run has become a flow, which is not published", "becomes", Fault("commit", "after", "0")),
    Instant("2 before what follows is published", "steps", Fault("publish", "before", "1"), is_apart=True),
    Instant("2 after it was, before that is noted", "steps", Fault("publish", "after", "1"), is_apart=True),
    Instant("2 after it was removed from the outbox", "group", Fault("remove_entries", "after")),
    Instant("2 all is recorded, and nothing acknowledged", "group", Fault("settled", "after", "0/2")),
    Instant("3 a sender, at each of its calls", "group", act="send"),
    Instant("3 a sender of a first step, at each of its calls", "steps", act="send"),
    Instant("4 two last members end at once", "meets", Fault("tally", "after")),
    Instant("5 before a dead member is buried", "dies", Fault("bury", "before", "0/1")),
    Instant("5 after it was, before it is counted", "dies", Fault("bury", "after", "0/1")),
    Instant("6 who cancels, at each of its calls", "slow", act="cancel"),
    Instant("7 who retries, at each of its calls", "dies", act="retry"),
    Instant("any call of a worker, steps", "steps", Fault("*")),
    Instant("any call of a worker, a group", "group", Fault("*")),
    Instant("any call of a worker, a run that becomes a flow", "becomes", Fault("*")),
)


@dataclass
class Account:
    """What became of flows whose processes were killed; `wrong` says what should not be."""

    kills: int
    ended: int
    again: int
    longest_s: float
    wrong: list[str]
    took_s: float = 0.0

    def __str__(self) -> str:
        figures = f"{self.kills} kills, {self.ended} flows ended, {self.again} steps run again"
        longest = f", at most {self.longest_s:.1f} s after a kill" if self.longest_s else ""
        return "\n    WRONG ".join((f"{figures}{longest} ({self.took_s:.0f} s)", *self.wrong))


EXPECTED: Final[dict[str, dict[str, int]]] = {
    "steps": {"first": 1, "second": 1, "ended-done": 1},
    "group": {"member0": 1, "member1": 1, "member2": 1, "count": 1, "ended-done": 1},
    "slow": {"member0": 1, "member1": 1, "member2": 1, "count": 1, "ended-done": 1},
    "meets": {"member0": 1, "member1": 1, "count": 1, "ended-done": 1},
    "dies": {"member0": 1, "member1": 1, "member2": 1, "failed": 1, "ended-failed": 1},
    "becomes": {"expand": 1, "member0": 1, "member1": 1, "member2": 1, "count": 1, "first": 1, "ended-done": 1},
}
"""How many messages of each task a flow of a kind has, in the end, if it is neither cancelled nor retried."""

RANDOM: Final = ("steps", "slow", "becomes", "meets", "dies", "group")


def account(
    site: Site, kind: str, statuses: dict[int, FlowStatus], *, kills: int = 0, sent_again: Sequence[int] = ()
) -> Account:
    """Return what became of flows.

    `kills` is how many processes were killed that no flow's marker tells of; what was sent again did not end because of
    what its first sender had done.
    """
    runs, killed, wrong = site.runs(), site.killed(), list[str]()
    again, longest_s = 0, 0.0
    for number, status in statuses.items():
        of_flow = runs[number]
        ids: dict[str, set[str]] = defaultdict(set)
        for each in of_flow:
            ids[each.key].add(each.id)
        attempts = [(each.id, each.life, each.attempt) for each in of_flow]
        wrong += [f"{number}: an attempt ran twice: {each}" for each in set(attempts) if attempts.count(each) > 1]
        more = len(attempts) - len({attempt[:2] for attempt in attempts})
        again += more
        if more and not killed and not kills:
            wrong.append(f"{number}: {more} runs again, and nobody was killed")
        wrong += _wrong_of(kind, number, status, {key: len(found) for key, found in ids.items()})
        if number in killed and number not in sent_again and status.ended_at is not None:
            longest_s = max(longest_s, status.ended_at.timestamp() - killed[number])
    if not killed and not kills:
        wrong.append("nobody was killed")
    return Account(len(killed), len(statuses), again, longest_s, wrong)


def _wrong_of(kind: str, number: int, status: FlowStatus, found: dict[str, int]) -> list[str]:
    expected = EXPECTED[kind]
    if status.state == "cancelled":
        ends = {key: count for key, count in found.items() if key.startswith("ended")}
        is_right = ends == {"ended-cancelled": 1} and "failed" not in found and found.get("count", 0) <= 1
    elif kind == "dies" and status.state == "done":  # it was retried
        is_right = found == {**expected, "count": 1, "ended-done": 1}
    else:
        is_right = found == expected and status.state == ("failed" if kind == "dies" else "done")
    return [] if is_right and not status.is_stalled else [f"{number}: {status.state}, messages {found}"]


def _are_done(site: Site, numbers: Sequence[int]) -> bool:
    return all((status := site.status(number)) is not None and status.state == "done" for number in numbers)


def at_instant(site: Site, instant: Instant, times: int) -> Account:
    """Kill processes at an instant, and return what became of the flows."""
    numbers = list(range(times))
    if instant.act == "send":
        site.worker()
        killed = site.act("send", instant.kind, numbers)
        known = [number for number in numbers if site.status(number) is not None]
        site.until_ended(known, instant.name)
        unknown = [number for number in numbers if number not in known]
        assert all(killed[number] for number in unknown), "a flow is not known whose sender ended well"
        assert not [number for number in unknown if site.runs().get(number)], "a step ran of a flow that is not known"
        if unknown:
            site.send(instant.kind, numbers)
        return account(site, instant.kind, site.until_ended(numbers, instant.name), sent_again=unknown)
    if instant.act:
        site.send(instant.kind, numbers)
        site.worker()
        if instant.act == "retry":
            site.until_ended(numbers, instant.name)
        site.act(instant.act, instant.kind, numbers)
        if instant.act == "retry":  # what was killed before it had told anybody is told again
            for number in numbers:
                site.bridge.flow(flow_id(number)).retry()
            site.until(lambda: _are_done(site, numbers), lambda: f"{instant.name}: what was retried to be done")
        return account(site, instant.kind, site.until_ended(numbers, instant.name))
    for _ in range(2):
        site.worker(instant.fault, numbers)
    site.send(instant.kind, numbers)
    return account(site, instant.kind, site.until_ended(numbers, instant.name))


def at_random(site: Site, kills: int) -> Account:
    """Kill workers at random while flows of all kinds come and run, and return what became of these."""
    chance, numbers = random.Random(17), dict[str, list[int]]()
    workers = [site.worker(), site.worker()]
    for number in range(kills):
        if number % _KILLS_A_KIND == 0:
            kind = RANDOM[number // _KILLS_A_KIND % len(RANDOM)]
            some = range(number, number + _KILLS_A_KIND)
            site.send(kind, some)
            numbers.setdefault(kind, []).extend(some)
        time.sleep(chance.uniform(0.2, 1.2))
        workers[number % 2].crash()
    parts = [account(site, kind, site.until_ended(some, kind), kills=kills) for kind, some in numbers.items()]
    wrong = [line for part in parts for line in part.wrong]
    return Account(kills, sum(part.ended for part in parts), sum(part.again for part in parts), 0.0, wrong)


MakeSite = Callable[[], AbstractContextManager[Site]]


@contextmanager
def sites(pair: str) -> Generator[MakeSite]:
    """Give what makes a site on a pair, each with a namespace of its own, on servers of their own."""
    forking.install()
    with ExitStack() as stack:
        redis = stack.enter_context(PrivateRedis())
        engine, _, broker = pair.partition("+")
        url = redis.url if broker == "redis" else stack.enter_context(PrivateRabbitMQ()).url

        @contextmanager
        def make() -> Generator[Site]:
            with (
                tempfile.TemporaryDirectory(prefix="taskbridge-flows-") as folder,
                Site(Path(folder), f"{engine}+{url}", redis.url) as site,
            ):
                yield site

        yield make


Act = Callable[[Site], Account]


def carried_out(make: MakeSite, acts: Mapping[str, Act], *, at_once: int) -> Iterator[tuple[str, Account]]:
    """Yield what became of each act, on a site of its own; most of the time is spent in waiting for leases."""

    def one(act: Act) -> Account:
        began = time.monotonic()
        try:
            with make() as site:
                found = act(site)
        except AssertionError as exc:
            found = Account(0, 0, 0, 0.0, [str(exc)])
        return replace(found, took_s=time.monotonic() - began)

    with ThreadPoolExecutor(at_once, "kills") as pool:
        yield from zip(acts, pool.map(one, acts.values()), strict=True)


def acts_at(instants: Iterable[Instant], times: int, pair: str) -> dict[str, Act]:
    """Return what kills at the instants that a pair has, by their names."""
    there = (each for each in instants if not (each.is_apart and pair.endswith("redis")))
    return {each.name: partial(at_instant, instant=each, times=times) for each in there}


def main(argv: Sequence[str]) -> int:
    """Print the account of some pairs, all if none is named, and return 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.flows.kills", description=__doc__)
    parser.add_argument("pairs", nargs="*", metavar="PAIR", help=", ".join(PAIRS))
    parser.add_argument("--times", type=int, default=TIMES, metavar="N", help="how often at each instant")
    parser.add_argument("--only", default="", metavar="WORD", help="the instants whose names have it")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="kill workers at random, so often")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, metavar="N", help="how many instants at a time")
    given = parser.parse_args(argv)
    instants = [each for each in INSTANTS if given.only in each.name]
    is_wrong = False
    for pair in given.pairs or PAIRS:
        acts = acts_at(instants, given.times, pair)
        if given.random:
            acts = {f"{given.random} kills at random": partial(at_random, kills=given.random)}
        with sites(pair) as make:
            for name, found in carried_out(make, acts, at_once=given.at_once):
                is_wrong |= bool(found.wrong)
                print(f"{pair}: {name}: {found}", flush=True)
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
