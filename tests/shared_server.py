"""One RabbitMQ for all processes of a run of pytest: its first process starts it when one of them first needs it."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from multiprocessing.connection import Client, Listener
from typing import Any, Final

from taskbridge import TaskBridgeError
from tests.servers import PrivateRabbitMQ, ServerFailed, ServerNotInstalled

VARIABLE: Final = "TASKBRIDGE_TEST_RABBITMQ"
"""Says where the first process listens."""


class Keeper:
    """In the first process: starts the node when it is asked for, and tells what others need to know of it."""

    def __init__(self) -> None:
        self._server = PrivateRabbitMQ()
        self._listener = Listener(family="AF_UNIX", backlog=16)
        os.environ[VARIABLE] = str(self._listener.address)
        threading.Thread(target=self._serve, name="tests-shared-server", daemon=True).start()

    def _serve(self) -> None:
        while True:
            with suppress(OSError), self._listener.accept() as connection:  # who asked may be gone
                connection.send(self._answer())

    def _answer(self) -> dict[str, Any] | tuple[type[TaskBridgeError], dict[str, Any]]:
        """Return what the node knows of itself, or what is wrong and what its error is made of."""
        try:
            self._server.start()
        except (ServerNotInstalled, ServerFailed) as exc:
            return type(exc), vars(exc)
        return {name: value for name, value in vars(self._server).items() if name not in _PROCESSES}

    def close(self) -> None:
        """End the node."""
        del os.environ[VARIABLE]
        self._server.stop()


_PROCESSES: Final = ("_server", "_epmd")


class SharedRabbitMQ(PrivateRabbitMQ):
    """The node, in any process of the run; nobody stops or restarts it."""

    def __init__(self) -> None:
        """Wait until it answers.

        Raises:
            ServerNotInstalled: Its program is not there.
            ServerFailed: It did not start.
        """
        with Client(os.environ[VARIABLE]) as connection:
            told: Any = connection.recv()
        if isinstance(told, tuple):
            kind, given = told
            raise kind(**given)
        vars(self).update(told, **dict.fromkeys(_PROCESSES))

    @property
    def is_running(self) -> bool:
        """True: it runs as long as the tests do."""
        return True

    def start(self) -> SharedRabbitMQ:
        """Return at once."""
        return self

    def stop(self) -> None:
        """Leave it to the first process."""

    def _end_server(self, signal_number: int) -> None:
        raise AssertionError("a test that breaks its server takes make_rabbitmq")

    _signal = _end_server
