"""One chaos run: servers, workers, a producer and disorder, and the account of it.

Redis runs with `appendfsync always`, so that what it has answered outlives its `kill -9`. RabbitMQ's queues are
durable, its messages persistent and confirmed, as taskbridge always has them.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from uuid import uuid4

from taskbridge import Bridge, BrokerUnavailable
from taskbridge.contract.pace import Pace
from taskbridge.contract.probe import Records
from taskbridge.contract.proxy import Proxy
from tests.chaos.account import Account, outcome_of
from tests.chaos.causes import Conditions, Marks
from tests.chaos.disorder import Disorder
from tests.chaos.evidence import Evidence
from tests.chaos.fleet import Place, wait_until
from tests.chaos.happenings import PRODUCER, Run, letters_of, runs_of
from tests.chaos.plan import PLACES, Options, acts, sendings
from tests.chaos.producer import Producer
from tests.chaos.tasks import FOLDER_VARIABLE, PROBE_FILE, QUEUES, RUN_VARIABLE, Tasks
from tests.servers import PrivateRabbitMQ, PrivateRedis, PrivateServer

GRACE_S: Final = 3.0
SEND_TIMEOUT_S: Final = 2.0

# Children and threads, one process and many: each stock worker has another shape.
_WORKERS: Final = (("--processes", "3"), ("--processes", "1", "--threads", "4"), ("--processes", "2", "--threads", "2"))

# A node that starts tries a delayed message again after this, if the next queue on its way was not there yet; its own
# default is 3 minutes (see taskbridge/brokers/rabbitmq/topology.py).
_RABBITMQ: Final = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}]}]."

_START_S: Final = 300.0
_CALM_S: Final = 0.5
_LONGEST_PACE: Final = 2.0  # of a longer one, causes would be found for anything


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a chaos run came to.

    Attributes:
        account: Of its messages.
        problems: What else must not be.
        took_s: The whole run.
        folder: Where its logs and records are, if they were kept.
    """

    account: Account
    problems: tuple[str, ...]
    took_s: float
    folder: Path | None = None

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, and nothing is unexplained."""
        return self.account.is_good and not self.problems

    def lines(self) -> list[str]:
        """Return it as text."""
        return [*self.account.lines(), *(f"FAULT {problem}" for problem in self.problems), f"took {self.took_s:.0f} s"]


def run(
    target: str,
    options: Options,
    *,
    store: bool = False,
    settings: Mapping[str, str] = MappingProxyType({}),
    settle_s: float,
    say: Callable[[str], None],
    keep: bool = False,
) -> Result:
    """Run chaos on one target.

    Args:
        target: Such as `celery+redis`.
        options: What it is to be.
        store: Whether attempt marks are kept in a Redis apart, which is left alone; else they are in the broker if
            that is Redis.
        settings: Of all bridges and workers, such as `queue_type`.
        settle_s: How long everything may take to come to rest after the last disorder.
        say: Told what is done, a line at a time.
        keep: Whether to keep logs and records even if all is good.
    """
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="taskbridge-chaos-"))
    with _Stage(target, options, folder, store=store, settings=settings, say=say) as stage:
        result = stage.play(settle_s)
    result = replace(result, took_s=time.monotonic() - begun)
    if result.is_good and not keep:
        shutil.rmtree(folder)
        return result
    return replace(result, folder=folder)


class _Stage:
    """The servers, proxies, workers and bridges of one run."""

    def __init__(
        self,
        target: str,
        options: Options,
        folder: Path,
        *,
        store: bool,
        settings: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._engine, _, self._broker = target.partition("+")
        self._options = options
        self._folder = folder
        self._has_store = store
        self._settings = settings
        self._pace = Pace.of_this_run()
        self._begun = time.monotonic()
        self._tell = say
        self._stack = ExitStack()
        self._records = Records(folder / PROBE_FILE)

    def _say(self, text: str) -> None:
        self._tell(f"{time.monotonic() - self._begun:7.1f} {text}")

    def __enter__(self) -> _Stage:
        try:
            self._set_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _set_up(self) -> None:
        options = self._options
        self._server = self._stack.enter_context(_server(self._broker))
        store = self._stack.enter_context(PrivateRedis()) if self._has_store else None
        proxies = {
            name: self._stack.enter_context(Proxy(("127.0.0.1", self._server.port))) for name in (*PLACES, PRODUCER)
        }
        env = {
            "TASKBRIDGE_NAMESPACE": "chaos",
            "TASKBRIDGE_QUEUES": ",".join(QUEUES),
            "TASKBRIDGE_LEASE": str(options.lease_s),
            "TASKBRIDGE_GRACE": str(GRACE_S),
            "TASKBRIDGE_SEND_TIMEOUT": str(SEND_TIMEOUT_S),
            FOLDER_VARIABLE: str(self._folder),
            RUN_VARIABLE: str(uuid4()),
            **({} if store is None else {"TASKBRIDGE_STORE": store.url}),
            **{f"TASKBRIDGE_{key.upper()}": value for key, value in self._settings.items()},
        }
        places = {
            name: Place(name, shape, {**env, "TASKBRIDGE_URL": self._url(proxies[name].port)}, self._folder)
            for name, shape in zip(PLACES, _WORKERS, strict=True)
        }
        for place in places.values():
            self._stack.callback(place.end)
            place.start()
        self._places: Mapping[str, Place] = places
        self._bridge = self._stack.enter_context(self._made_bridge(proxies[PRODUCER].port))
        self._looker = self._stack.enter_context(self._made_bridge(self._server.port))
        tasks = Tasks(self._bridge, self._folder, knows_late=True)
        self._producer = Producer(self._bridge, tasks, sendings(options))
        self._disorder = Disorder(places, proxies, self._server, self._folder, grace_s=GRACE_S, say=self._say)

    def _url(self, port: int) -> str:
        path = "/0" if self._broker == "redis" else "/%2F"
        credentials = "" if self._broker == "redis" else "guest:guest@"
        return f"{self._engine}+{self._broker}://{credentials}127.0.0.1:{port}{path}"

    @contextmanager
    def _made_bridge(self, port: int) -> Generator[Bridge]:
        settings: dict[str, Any] = {"lease": self._options.lease_s, "send_timeout": SEND_TIMEOUT_S, **self._settings}
        bridge = Bridge(self._url(port), namespace="chaos", queues=QUEUES, **settings)
        try:
            yield bridge
        finally:
            bridge.close()

    def play(self, settle_s: float) -> Result:
        """Do all of it, and return the account."""
        problems: list[str] = []
        if not wait_until(self._all_work, _START_S):
            return Result(account=Account(), problems=("the workers did not start", *self._logs()), took_s=0)
        self._say("the workers work")
        begin = time.monotonic()
        self._producer.start(begin)
        self._disorder.run(acts(self._options), begin)
        self._producer.join()
        self._disorder.mend()
        self._say(f"all is mended, {len(self._producer.sends)} messages were sent or tried")
        if not self._come_to_rest(settle_s):
            problems.append(f"not at rest {settle_s:g} s after the last disorder: {self._counts()}")
        account = self._account()
        late = SEND_TIMEOUT_S * 1.1 + 1.0 + self._pace.slack_s
        if self._producer.longest_s > late:
            problems.append(f"a send took {self._producer.longest_s:.1f} s (rule S2)")
        problems += self._producer.faults + self._disorder.faults
        return Result(account=account, problems=tuple(problems), took_s=0)

    def _all_work(self) -> bool:
        started = {record.data["worker"] for record in self._records.all() if record.kind == "worker_started"}
        return {f"{name}.1" for name in PLACES} <= started

    def _account(self) -> Account:
        marks: Marks | None = "apart" if self._has_store else "broker" if self._broker == "redis" else None
        evidence = Evidence(
            sends=self._producer.sends,
            letters=letters_of(self._looker.dead_letters()),
            incidents=self._disorder.incidents,
            conditions=Conditions(
                lease_s=self._options.lease_s,
                broker="redis" if self._broker == "redis" else "amqp",
                marks=marks,
                pace=min(_LONGEST_PACE, self._pace.factor),
            ),
        )
        evidence.save(self._folder)
        return evidence.account(self._folder)

    # The end

    def _come_to_rest(self, timeout_s: float) -> bool:
        """Wait until each message that was sent has an outcome, and nothing waits, runs or is parked, for longer than a
        lease, so that what a worker held which is gone would have come back."""
        deadline = time.monotonic() + timeout_s
        quiet_s = self._options.lease_s + 4.0
        quiet_since, size = time.monotonic(), -1
        while time.monotonic() < deadline:
            is_empty = self._is_empty()
            if self._records.size != size or not is_empty:
                quiet_since, size = time.monotonic(), self._records.size
            if time.monotonic() - quiet_since > quiet_s and not self._without_outcome():
                return True
            time.sleep(_CALM_S)
        return False

    def _is_empty(self) -> bool:
        with suppress(BrokerUnavailable):
            counts = self._looker.counts()
            return not counts.delayed and not any(counts.waiting.values())
        return False

    def _without_outcome(self) -> set[str]:
        by_key: dict[str, list[Run]] = {}
        for each in runs_of(self._records.all()):
            by_key.setdefault(each.key, []).append(each)
        dead = {letter.key for letter in letters_of(self._looker.dead_letters())}
        sent = {send.key for send in self._producer.sends if send.fate == "sent"} - dead
        return {key for key in sent if outcome_of(by_key.get(key, []), ()) is None}

    def _counts(self) -> str:
        with suppress(BrokerUnavailable):
            missing = self._without_outcome()
            return f"{self._looker.counts()}; without an outcome: {len(missing)} {sorted(missing)[:10]}"
        return "the broker does not answer"

    def _logs(self) -> list[str]:
        return [f"{place.name}:\n{place.last_lines()}" for place in self._places.values()]


def _server(broker: str) -> PrivateServer:
    if broker == "redis":
        return PrivateRedis(extra_args=("--appendfsync", "always"))
    return PrivateRabbitMQ(advanced_config=_RABBITMQ)
