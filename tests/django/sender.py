"""`python -m tests.django.sender`: sends in transactions, in processes that are killed as these are committed."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Final

import django

_USAGE: Final = "sender MODE KILLS TWICE FIRST | sender left | sender flow | sender pace MODE COUNT RATE"


def main(words: list[str]) -> None:
    """Do what the words say."""
    django.setup()
    match words:
        case ["left"]:
            from taskbridge.django.models import OutboxEntry

            print(OutboxEntry.objects.count())
        case ["flow"]:
            _send_flow_and_die()
        case ["pace", mode, count, rate]:
            _send_at_pace(mode, int(count), float(rate))
        case [mode, kills, twice, first]:
            for number in range(int(first), int(first) + int(kills)):
                _send_and_die(mode, number, is_doubled=number < int(twice))
        case _:
            raise SystemExit(_USAGE)


def _send_and_die(mode: str, number: int, *, is_doubled: bool) -> None:
    """Have a child send in a transaction and be killed when that is committed, before anything is published."""
    child = os.fork()
    if not child:
        from django.db import transaction

        from taskbridge.django.models import OutboxEntry
        from tests.django.site.post.tasks import note, note_once, note_quietly

        task = (note, note_once, note_quietly)[number % 3]
        with transaction.atomic():
            transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL))
            task.using(commit=mode).send(number)
            if is_doubled:  # as if a relay was killed between publishing a row and removing it
                last = OutboxEntry.objects.latest("id")
                OutboxEntry.objects.create(namespace=last.namespace, text=last.text)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, f"the sender ended with {status}"


def _send_flow_and_die() -> None:
    """Have a child send a flow in a transaction, three tasks and one after them, and be killed as that is committed."""
    child = os.fork()
    if not child:
        from django.db import transaction

        from taskbridge import default_bridge, group
        from tests.django.site.post.tasks import note

        with default_bridge().temporarily(commit="outbox"), transaction.atomic():
            transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL))
            group(note.call(number) for number in range(1000, 1003)).then_call(note.call(1003)).send()
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, f"the sender ended with {status}"


def _send_at_pace(mode: str, count: int, rate: float) -> None:
    """Send so many a second, and print when each was committed."""
    from django.db import transaction

    from tests.django.site.post.tasks import note

    began, task = time.monotonic(), note.using(commit=mode)
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        with transaction.atomic():
            task.send(number)
        print(number, repr(time.time()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
