"""`python -m tests.django.kills`: what is lost, and run twice, when senders are killed between commit and publish.

200 senders are killed by SIGKILL as soon as their transaction is committed, on each pair of engine and broker, with the
outbox and with plain callbacks after commit; and meanwhile workers that do nothing but relay are killed, too. Then it
measures how long messages of an outbox take from the commit to the start of their run, at 200 a second. It exits with 1
if the outbox lost a message, had one run twice, or was too slow.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final

from tests.django.project import Project
from tests.private_postgresql import PrivatePostgreSQL
from tests.servers import PrivateRabbitMQ, PrivateRedis

KILLS: Final = 200
PORTION: Final = 50  # of which the end is that of a worker that relays
RATE: Final = 200
LAG_S: Final = 1.0  # what 99 of 100 messages of an outbox are to be under
PAIRS: Final = ("celery+redis", "dramatiq+redis", "celery+amqp", "dramatiq+amqp")


class Post(Project):
    """The project with tasks that note their runs in a file."""

    sender: ClassVar[str] = "tests.django.sender"
    notes: Path

    def prepare(self) -> None:
        """Make the tables."""
        self.manage("migrate", "--run-syncdb", "--verbosity", "0")

    def is_idle(self) -> bool:
        """Return whether nothing is in the outbox, waits or is parked."""
        if self.send("left") != "0":
            return False
        counts = self.bridge.counts()
        return not counts.delayed and not sum(counts.waiting.values())

    def relaying(self) -> int:
        """Start a worker that relays and runs nothing, and return its process group."""
        self.worker("--processes", "1", "--queues", "idle")
        return self._processes[-1].pid

    def send(self, *words: str, kills: int = 0, twice: int = 0, first: int = 0) -> str:
        """Run the sender, and return what it prints."""
        more = (str(kills), str(twice), str(first)) if kills else ()
        done = self.run(sys.executable, "-m", self.sender, *words, *more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()


@contextmanager
def project_on(folder: Path, url: str, database: str, store: str, kind: type[Post] = Post) -> Generator[Post]:
    """Have the project on a broker, a database and a store, with its tables."""
    notes = folder / "notes"
    notes.touch()
    settings = {"TASKBRIDGE_STORE": store, "TASKBRIDGE_QUEUES": "idle", "TASKBRIDGE_COMMIT": "outbox"}
    site = kind(folder, url, database=database, SITE_NOTES=str(notes), **settings)
    site.notes = notes
    try:
        site.prepare()
        yield site
    finally:
        site.close()


def count(notes: Path) -> Counter[int]:
    """Return how often each number was run."""
    return Counter(int(line.split()[0]) for line in notes.read_text().splitlines())


def starts(notes: Path) -> dict[int, float]:
    """Return when each number was run."""
    return {int(number): float(at) for number, at in (line.split() for line in notes.read_text().splitlines())}


def _account(pair: str, url: str, database: str, store: str, kind: type[Post], kills: int) -> bool:
    """Print what was lost and run twice, and return whether the outbox had all run once."""
    ran = dict[str, Counter[int]]()
    for mode in ("outbox", "default"):
        with tempfile.TemporaryDirectory() as folder, project_on(Path(folder), url, database, store, kind) as site:
            site.worker("--processes", "2", "--threads", "2")
            for first in range(0, kills, PORTION):
                portion, twice = min(PORTION, kills - first), kills // 4 if mode == "outbox" else 0
                relaying = site.relaying()
                site.send(mode, kills=portion, twice=twice, first=first)
                os.killpg(relaying, signal.SIGKILL)  # which has claimed some rows, and published some
            site.until(site.is_idle, "nothing to be left")
            site.close()  # which lets all end that runs
            ran[mode] = count(site.notes)
        lost, doubled = kills - len(ran[mode]), sum(times > 1 for times in ran[mode].values())
        print(f"{pair}: commit={mode!r}: {kills} kills, lost {lost}, run twice {doubled}", flush=True)
    return ran["outbox"] == dict.fromkeys(range(kills), 1)


def _lag(pair: str, url: str, database: str, store: str, kind: type[Post], count: int) -> bool:
    """Print how long messages took from the commit to their run, and return whether that is soon enough."""
    with tempfile.TemporaryDirectory() as folder, project_on(Path(folder), url, database, store, kind) as site:
        site.worker("--processes", "2", "--threads", "4")
        committed = dict(line.split() for line in site.send("pace", "outbox", str(count), str(RATE)).splitlines())
        site.until(lambda: len(starts(site.notes)) == count, "the runs")
        lags = sorted(at - float(committed[str(number)]) for number, at in starts(site.notes).items())
        p50, p99 = (lags[len(lags) * part // 100] for part in (50, 99))
        shown = f"p50: {p50:.3f} s, p99: {p99:.3f} s, at most {lags[-1]:.3f} s"
        print(f"{pair}: {count} messages at {RATE} a second: {shown}", flush=True)
        return p99 < LAG_S


def main(program: str, about: str | None, kind: type[Post] = Post) -> int:
    """Print the account of the pairs that the command line names, of all if it names none; return 1 if one is bad."""
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.add_argument("pairs", nargs="*", metavar="PAIR", help=", ".join(PAIRS))
    parser.add_argument("--kills", type=int, default=KILLS, metavar="N", help=f"senders to kill; default: {KILLS}")
    options = parser.parse_args()
    if wrong := sorted({*options.pairs} - {*PAIRS}):
        parser.error(f"there is no pair {wrong[0]!r} among {', '.join(PAIRS)}")
    is_kept = True
    with PrivatePostgreSQL() as postgresql, PrivateRedis() as redis, PrivateRabbitMQ() as rabbitmq:
        for pair in options.pairs or PAIRS:
            engine, _, broker = pair.partition("+")
            url = f"{engine}+{redis.url if broker == 'redis' else rabbitmq.url}"
            is_kept &= _account(pair, url, postgresql.url, redis.url, kind, options.kills)
            is_kept &= _lag(pair, url, postgresql.url, redis.url, kind, 10 * RATE)
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main("python -m tests.django.kills", __doc__))
