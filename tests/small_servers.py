"""Servers that allow little: the permissions that the page on security names, client certificates, and low limits."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.certificates import Certificates
from tests.servers import PrivateRabbitMQ, PrivateRedis

_PAGE: Final = Path(__file__).parents[1] / "docs" / "security.md"


def permitting(program: str, namespaces: str = "taskbridge") -> list[str]:
    """Return the words after a program's name where the page calls it, for namespaces of other names."""
    _, _, rest = _PAGE.read_text(encoding="utf-8").partition(f"\n{program} ")
    words = shlex.split(rest.partition("\n```")[0].replace("\\\n", " "))
    return [word.replace("taskbridge", namespaces) for word in words]


class SmallRedis(PrivateRedis):
    """A Redis whose user may do what the page says, in the contract's namespaces, and listen to any channel.

    Idle connections are closed soon.
    """

    def __init__(self, tls: Certificates) -> None:
        super().__init__(tls=tls, extra_args=("--timeout", "3"))

    @property
    def url(self) -> str:
        return super().url.replace("//", "//shop:secret@", 1)

    def _launch(self, command: Sequence[str]) -> None:
        super()._launch(command)
        self.command(*permitting("redis-cli", "contract-*"))
        # Redis takes a subscriber's pattern only if a permission is the same text: none with a star can stand for it.
        self.command("ACL", "SETUSER", "shop", "allchannels")


class SmallRabbitMQ(PrivateRabbitMQ):
    """A RabbitMQ whose user may do what the page says, in the contract's namespaces, on few channels."""

    def __init__(self, tls: Certificates) -> None:
        super().__init__(tls=tls, extra_config=("channel_max = 8",))

    @property
    def url(self) -> str:
        return super().url.replace("guest:guest@", "shop:secret@", 1)

    def _launch(self, command: Sequence[str]) -> None:
        super()._launch(command)
        if "shop" not in self.ctl("list_users").split():
            self.ctl("add_user", "shop", "secret")
            self.ctl(*permitting("rabbitmqctl", "contract-[0-9a-f]+"))
