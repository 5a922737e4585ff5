"""What each process has for itself."""

from __future__ import annotations

import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

from taskbridge.locks import PerProcess


def test_threads_that_ask_at_once_share_what_is_made() -> None:
    barrier = threading.Barrier(8)

    def make() -> object:
        time.sleep(0.02)
        return object()

    shared = PerProcess(make)

    def ask(_: int) -> object:
        barrier.wait()
        return shared.get()

    with ThreadPoolExecutor(8) as pool:
        assert len({id(made) for made in pool.map(ask, range(8))}) == 1


def test_what_is_taken_is_made_anew() -> None:
    shared = PerProcess(object)
    assert shared.made is None
    assert shared.take() is None
    first = shared.get()
    assert shared.made is first
    assert shared.take() is first
    assert shared.made is None
    assert shared.get() is not first


def test_a_forked_child_makes_its_own_and_never_ends_its_parents() -> None:
    class Connection:
        def __del__(self) -> None:
            os.write(writing, b"ended")

    reading, writing = os.pipe()
    shared = PerProcess(Connection)
    parents = id(shared.get())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, that there are threads
        child = os.fork()
    if child == 0:
        os._exit(0 if shared.made is None and id(shared.get()) != parents else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.set_blocking(reading, False)
    try:
        ended = os.read(reading, 10)
    except BlockingIOError:
        ended = b""
    assert ended == b""
    shared.take()
    assert os.read(reading, 10) == b"ended"
    os.close(reading)
