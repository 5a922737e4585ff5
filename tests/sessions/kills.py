"""`python -m tests.sessions.kills`: what `python -m tests.django.kills` shows, with SQLAlchemy's sessions."""

from __future__ import annotations

import sys
from typing import Any

from tests.django import kills


class Post(kills.Post):
    """The application with SQLAlchemy in processes of its own."""

    sender = "tests.sessions.sender"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        del self.env["DJANGO_SETTINGS_MODULE"], self.env["TASKBRIDGE_COMMIT"]  # each send says it

    def prepare(self) -> None:
        self.send("migrate")

    def worker(self, *options: str, **how: Any) -> None:
        super().worker("tests.sessions.app", *options, **how)


if __name__ == "__main__":
    sys.exit(kills.main("python -m tests.sessions.kills", __doc__, kind=Post))
