"""Tasks that tell of their runs: each is a line with its number and when it started."""

from __future__ import annotations

import os
import time

from taskbridge import task


@task
def note(number: int) -> None:
    line = f"{number} {time.time()!r}\n".encode()
    file = os.open(os.environ["SITE_NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line)  # one write of few bytes at the end: whole, whoever else writes
    finally:
        os.close(file)


@task(unique=True)
def note_once(number: int) -> None:
    note(number)


@task(results=False)
def note_quietly(number: int) -> None:
    note(number)
