"""How both hosts deliver: a line in a file, which stands for a mail server."""

import os
from pathlib import Path


def append_to_outbox(address: str, text: str, *, host: str) -> None:
    with Path(os.environ["OUTBOX"]).open("a", encoding="utf-8") as outbox:
        outbox.write(f"{host} {address} {text}\n")
