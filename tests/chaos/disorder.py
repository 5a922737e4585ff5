"""Breaks things as planned, mends them, and writes down what was done when, to whom."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from taskbridge.contract.proxy import Proxy
from tests.chaos.fleet import Place, wait_until
from tests.chaos.happenings import Incident
from tests.chaos.plan import PLACES, Act
from tests.chaos.tasks import DEPLOYED_FILE
from tests.servers import PrivateServer

_STOP_S: Final = 10.0
"""How much longer than its grace a worker may take to end, on a busy machine."""

_ACT_S: Final = 600.0
"""When acts count as hanging: longer than a broker may take to start, and what waits for that."""


class Disorder:
    """Does the acts of a plan, each in a thread of its own; no two at once to one worker, or to the broker.

    Args:
        places: Where the workers are, by name.
        proxies: Between the broker and each participant, by name.
        server: The broker.
        folder: Of the run.
        grace_s: The setting `grace`.
        say: Told what is done.
    """

    def __init__(
        self,
        places: Mapping[str, Place],
        proxies: Mapping[str, Proxy],
        server: PrivateServer,
        folder: Path,
        *,
        grace_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._places = places
        self._proxies = proxies
        self._server = server
        self._folder = folder
        self._grace_s = grace_s
        self._say = say
        self._lock = threading.Lock()
        self._broker = threading.Lock()
        self._links = {name: threading.Lock() for name in proxies}
        self._incidents: list[Incident] = []
        self.faults: list[str] = []
        self._threads: list[threading.Thread] = []

    @property
    def incidents(self) -> list[Incident]:
        """What was done so far."""
        with self._lock:
            return list(self._incidents)

    def run(self, acts: Sequence[Act], begin: float) -> None:
        """Do all acts at their times, and return when all is mended.

        Args:
            acts: In the order of time.
            begin: By the monotonic clock.
        """
        for act in acts:
            time.sleep(max(0.0, begin + act.at_s - time.monotonic()))
            thread = threading.Thread(target=self._do, args=(act,), name="chaos-act", daemon=True)
            thread.start()
            self._threads.append(thread)
        until = time.monotonic() + _ACT_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                self.faults.append("an act did not come to its end")

    def _do(self, act: Act) -> None:
        try:
            self._choose(act)()
        except Exception as exc:
            self.faults.append(f"{act.what} {act.place}: {exc!r}")

    def _choose(self, act: Act) -> Callable[[], None]:
        match act.what:
            case "cut" | "drop" | "black hole":
                return lambda: self._disturb(act)
            case "restart the broker":
                return lambda: self._restart_broker(act)
            case "deploy":
                return self._deploy
            case _:
                return lambda: self._hurt(act)

    def _note(self, text: str, incident: Incident | None = None) -> None:
        self._say(text)
        if incident is not None:
            with self._lock:
                self._incidents.append(incident)

    # The network and the broker

    def _disturb(self, act: Act) -> None:
        proxy, at = self._proxies[act.place], time.time()
        with self._links[act.place]:
            if act.what == "cut":
                proxy.cut()
            elif act.what == "drop":
                proxy.drop()
            else:
                proxy.stall()
            time.sleep(act.lasts_s)
            if act.what == "black hole" and act.luck < 0.5:
                proxy.drop()  # what was on its way is gone; else it arrives late
            proxy.restore()
        who = act.place if act.place not in PLACES else f"{act.place}."
        self._note(
            f"{act.what} of {act.place} for {act.lasts_s:.1f} s",
            Incident(kind="outage", at=at, until=time.time(), who=who),
        )

    def _restart_broker(self, act: Act) -> None:
        with self._broker:
            at = time.time()
            if act.luck < 0.5:
                self._server.kill()
            else:
                self._server.shut_down()
            time.sleep(act.lasts_s)
            self._server.start()
            how = "killed" if act.luck < 0.5 else "shut down"
            self._note(
                f"the broker was {how}, and away for {time.time() - at:.1f} s",
                Incident(kind="outage", at=at, until=time.time()),
            )

    # The workers

    def _hurt(self, act: Act) -> None:
        place = self._places[act.place]
        with place.busy:
            match act.what:
                case "kill a process":
                    self._kill_process(place, act)
                case "kill a worker":
                    self._kill(place, place.processes(), "the whole worker")
                    time.sleep(act.lasts_s)
                    place.start()
                case "kill a supervisor":
                    self._kill_supervisor(place)
                case "stop a worker":
                    self._stop(place)
                case "start anew":
                    self._start_anew(place)
                case _:
                    self._freeze(place, act.lasts_s)

    def _kill(self, place: Place, pids: Iterable[int], what: str) -> None:
        victims = frozenset(pids)
        at = time.time()
        place.signal(victims, signal.SIGKILL)
        self._note(
            f"kill -9 of {place.worker}: {what}, {sorted(victims)}",
            Incident(kind="kill", at=at, until=time.time(), who=f"{place.name}.", pids=victims),
        )

    def _kill_process(self, place: Place, act: Act) -> None:
        processes = place.engine_processes()
        if not processes:
            return self._note(f"no process of {place.name} to be killed")
        victim = sorted(processes)[int(act.luck * len(processes))]
        if processes[victim] == victim:  # what its session holds ends with it, or is ended by the supervisor
            self._kill(place, [victim], "its main process")
            others = frozenset(pid for pid, session in processes.items() if session == victim)
            now = time.time()
            self._note(
                "... and so of its others",
                Incident(kind="kill", at=now, until=now, who=f"{place.name}.", pids=others),
            )
        else:
            self._kill(place, [victim], "one of its processes")
        return None

    def _kill_supervisor(self, place: Place) -> None:
        if place.supervisor is None:
            return self._note(f"no supervisor of {place.name} to be killed")
        self._note("its workers end by themselves", self._stop_of(place))
        orphans = place.engine_processes()
        self._kill(place, [place.supervisor], "the supervisor")
        place.wait(5)
        place.start()
        if not wait_until(lambda: not orphans.keys() & place.processes().keys(), self._grace_s + _STOP_S):
            self.faults.append(f"{place.name}: workers outlived their supervisor by {self._grace_s + _STOP_S} s")
        return None

    def _stop(self, place: Place) -> None:
        at = time.time()
        self._note(f"SIGTERM to {place.worker}", self._stop_of(place))
        place.ask_to_end()
        code = place.wait(self._grace_s + _STOP_S)
        self._note(f"{place.worker} ended with code {code} after {time.time() - at:.1f} s")
        if code is None:
            self.faults.append(f"{place.worker} did not end within {self._grace_s + _STOP_S} s (rule A4)")
            self._kill(place, place.processes(), "as it did not end")
        place.start()

    def _stop_of(self, place: Place) -> Incident:
        at = time.time()
        return Incident(kind="stop", at=at, until=at + self._grace_s + _STOP_S, who=f"{place.name}.")

    def _start_anew(self, place: Place) -> None:
        self._note(f"SIGHUP to {place.worker}", self._stop_of(place))
        place.signal([] if place.supervisor is None else [place.supervisor], signal.SIGHUP)

    def _freeze(self, place: Place, lasts_s: float) -> None:
        at = time.time()
        frozen = place.processes()
        place.signal(frozen, signal.SIGSTOP)
        time.sleep(lasts_s)
        place.signal(frozen, signal.SIGCONT)
        self._note(
            f"{place.worker} was frozen for {lasts_s:.1f} s",
            Incident(kind="freeze", at=at, until=time.time(), who=f"{place.name}."),
        )

    def _deploy(self) -> None:
        """Let the workers know the task that they did not, one after the other."""
        (self._folder / DEPLOYED_FILE).touch()
        self._note("deploy: the workers are started anew with one more task")
        with ExitStack() as stack:
            for place in self._places.values():
                stack.enter_context(place.busy)
                self._start_anew(place)
                time.sleep(1.0)

    def mend(self) -> None:
        """Start what is not there, let go on what is frozen, and connect everybody."""
        if not self._server.is_running:
            self._server.start()
        for proxy in self._proxies.values():
            proxy.restore()
        for place in self._places.values():
            place.signal(place.processes(), signal.SIGCONT)
            if place.supervisor is None:
                place.start()


def closed(incidents: Iterable[Incident], now: float) -> list[Incident]:
    """Return incidents all of which are over."""
    return [replace(each, until=min(each.until, now)) for each in incidents]
