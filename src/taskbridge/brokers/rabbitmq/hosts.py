"""The hosts of one RabbitMQ, and connections to whichever answers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import pika

from taskbridge.brokers.rabbitmq.connection import ClientError, Connection, Deadline
from taskbridge.exceptions import SettingsError
from taskbridge.settings import Address, each_host

_FILES: Final = re.compile(r"""(?:ca_certs|certfile|keyfile)['"]\s*:\s*['"][^'"]*""")


class Hosts:
    """The hosts of one server or cluster, given by pika's parameters of each. Threads share it."""

    def __init__(self, parameters: Sequence[Any]) -> None:
        self._parameters = parameters
        self._first = 0  # the one that answered last
        self.version: tuple[int, ...] | None = None  # of the one that was connected to last

    @classmethod
    def of(cls, address: Address) -> Hosts:
        """Return the hosts of a bridge's URL; raises `SettingsError` if an option is wrong, or a file can't be read."""
        try:
            return cls([pika.URLParameters(url) for url in each_host(address.broker_url)])
        except (ValueError, TypeError, SyntaxError, OSError) as exc:
            named = dict(parse_qsl(urlsplit(address.broker_url).query)).get("ssl_options", "")
            files = ", ".join(_FILES.findall(named))  # no more of it is shown: there may be a password
            problem = f"a file of TLS can't be read, of {files}: {exc}" if isinstance(exc, OSError) else str(exc)
            raise SettingsError("url", problem) from exc

    @property
    def last(self) -> Any:
        """What pika knows of the host that answered last."""
        return self._parameters[self._first]

    def changed(self, change: Callable[[Any], Any]) -> Hosts:
        """Return the same hosts with other parameters."""
        return Hosts([change(each) for each in self._parameters])

    def connect(self, deadline: Deadline) -> Connection:
        """Return an open connection to the first host that accepts one, beginning with the one that did last.

        Each has its share of the time that is left; all are tried `connection_attempts` times. If none accepts one,
        `ClientError` says why.
        """
        count, first = len(self._parameters), self._first
        attempts, pause_s = self._parameters[0].connection_attempts, self._parameters[0].retry_delay
        while True:
            attempts -= 1
            failures: list[ClientError] = []
            for number in range(count):
                index = (first + number) % count
                try:
                    made = Connection(self._parameters[index], deadline.within(deadline.left_s / (count - number)))
                except ClientError as exc:
                    failures.append(exc)
                else:
                    self._first, self.version = index, made.version
                    return made
            if attempts <= 0 or deadline.left_s <= pause_s:
                if count == 1:
                    raise failures[0]
                problem, again = "; ".join(map(str, failures)), any(each.again for each in failures)
                raise type(failures[-1])(problem, again=again)
            pause = deadline.within(pause_s)
            while not pause.passed:
                time.sleep(pause.slice_s)
