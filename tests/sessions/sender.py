"""`python -m tests.sessions.sender`: does what `tests.django.sender` does, in the transactions of sessions."""

from __future__ import annotations

import os
import signal
import sys
import time

from sqlalchemy import event, func, select

from taskbridge.integrations.sqlalchemy import after_commit
from tests.django.site.post.tasks import note, note_once, note_quietly
from tests.sessions.app import engine, outbox, sessions, table


def main(words: list[str]) -> None:
    match words:
        case ["migrate"]:
            table.metadata.create_all(engine)
        case ["left"]:
            with engine.connect() as connection:
                print(connection.scalar(select(func.count()).select_from(table)))
        case ["pace", "outbox", count, rate]:
            _send_at_pace(int(count), float(rate))
        case [mode, kills, twice, first]:
            for number in range(int(first), int(first) + int(kills)):
                _send_and_die(mode, number, is_doubled=number < int(twice))
        case _:
            raise SystemExit("unknown words")


def _send_and_die(mode: str, number: int, *, is_doubled: bool) -> None:
    """Have a child send in a transaction and be killed when that is committed, before anything is published."""
    child = os.fork()
    if not child:
        task = (note, note_once, note_quietly)[number % 3]
        with sessions.begin() as session:
            event.listen(session, "after_commit", lambda _: os.kill(os.getpid(), signal.SIGKILL))
            task.using(commit=outbox.of(session) if mode == "outbox" else after_commit(session)).send(number)
            if is_doubled:  # as if a relay was killed between publishing a row and removing it
                copied = select(table.c.namespace, table.c.text).order_by(table.c.id.desc()).limit(1)
                session.execute(table.insert().from_select(["namespace", "text"], copied))
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, f"the sender ended with {status}"


def _send_at_pace(count: int, rate: float) -> None:
    """Send so many a second, and print when each was committed."""
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        with sessions.begin() as session:
            note.using(commit=outbox.of(session)).send(number)
        print(number, repr(time.time()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
