"""Workers of one pair of engine and broker, what is put before them, and whether they go on."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import tempfile
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from typing_extensions import Self

from taskbridge import Bridge, RetryPolicy, Task
from taskbridge.contract.pace import Pace
from taskbridge.contract.preloading import passed_on, without_settings
from taskbridge.contract.probe import START
from taskbridge.contract.workers import ProcessWorker
from taskbridge.engines.base import WorkerOptions
from taskbridge.message import can_be_kept
from tests.hostile.forms import Case, Form, Payload, Place, forms_of
from tests.hostile.names import ACCEPT, APP, CANARY_FILE, FAILING, FOLDER_VARIABLE, PROBE_FILE, QUEUES
from tests.hostile.odd import VALUES
from tests.hostile.outlets import outlet_of

WITHIN_S: Final[Mapping[Place, float]] = {
    "queue": 2.0,
    "delayed": 4.0,  # Dramatiq's queue of delayed messages is looked at twice a second, and then they are parked
    "parked": 4.0,
    "strangers": 15.0,  # another engine's pumps count as gone when they were not seen for a few seconds
    "control": 2.0,
    "letters": 2.0,
    "record": 4.0,  # its message and that of a mark may wait for their marks, 0.1 s each
    "mark": 8.0,
    "held": 12.0,  # until the lease of who held it is over, and a worker looks
}
"""Within how many seconds a healthy message runs that is behind odd ones in each place, on an idle machine."""

EACH_S: Final = 0.03
"""How much longer it may take for each odd one before it: a worker has to read, log and bury that."""

TOGETHER: Final[Mapping[Place, int]] = {"strangers": 10_000, "letters": 10_000, "held": 10_000, "mark": 20}
"""How many messages are put in one place at once, 40 where nothing else is said."""
FEW_TOGETHER: Final = 40
_FORGET_AFTER: Final = 20
"""After how many chunks the dead letters are forgotten: together they are large."""

LEASE_S: Final = 4.0
_GRACE_S: Final = 3.0
_UNKNOWN_S: Final = 2.0
_START_S: Final = 60.0
_SETTLE_S: Final = 60.0
_POLL_S: Final = 0.01
_LOOK_S: Final = 0.2
_PING_S: Final = 2.0

MOST_BYTES: Final = 200_000_000
"""How much memory a worker's process may have had at any time; about a third of it is what it begins with."""

MOST_LINE: Final = 5_000
"""How long a line of a worker's log may be."""

MOST_LINES: Final = 60
"""How many lines a worker may log for a message, on average: few messages have a traceback."""

UNCOUNTED: Final[Collection[Place]] = ("control", "letters", "strangers", "held")
"""Places from which it is not known how many messages come: some are left there for others to read."""

_LONGEST_QUEUE: Final = 200
"""How long a queue's name may be on RabbitMQ, in bytes: at most 255 with what stands before it."""

_BASE64: Final = re.compile("[A-Za-z0-9+/]{40,}")

REASONS: Final = {"undecodable", "internal_error", "unknown_task", "bad_arguments", "exhausted", "too_large"}


class Stopped(Exception):
    """Something did not go on.

    Attributes:
        log: The last lines of the log of the worker that it is about.
        is_late: Whether it only took too long, as it may where the machine stands still.
    """

    def __init__(self, problem: str, log: str = "", *, is_late: bool = False) -> None:
        super().__init__(problem)
        self.log = log
        self.is_late = is_late


class Stage:
    """The workers of a pair, in a namespace of its own.

    Args:
        url: Of the pair, such as `celery+redis://127.0.0.1:6379/0`.
        store: Of a store beside the broker; None for none.
        pace: How fast this machine is.
    """

    def __init__(self, url: str, *, store: str | None = None, pace: Pace | None = None) -> None:
        self.pace: Pace = Pace() if pace is None else pace
        self.folder: Path = Path(tempfile.mkdtemp(prefix="taskbridge-hostile-"))
        self.settings: dict[str, Any] = {
            "url": url,
            "namespace": f"hostile-{secrets.token_hex(4)}",
            "default_queue": QUEUES[0],
            "lease": LEASE_S,
            "grace": _GRACE_S,
            "unknown_task_grace": _UNKNOWN_S,
            "requeue_pause": 0.05,
            "send_timeout": 10.0,
            "max_message_bytes": 1_000_000,
            **({} if store is None else {"store": store}),
        }
        self.bridge: Bridge = Bridge(**self.settings, queues=QUEUES)
        self.forms: Sequence[Form] = forms_of(self.bridge)
        self._engine = self.bridge.settings.url.engine
        self._accept: Task[..., None] = self.bridge.task(name=ACCEPT, retry=RetryPolicy.never())(_nothing)
        self._failing: Task[..., None] = self.bridge.task(name=FAILING)(_nothing)
        self._outlet = outlet_of(self.bridge)
        self._workers: dict[str, ProcessWorker] = {}
        self._processes: dict[str, Collection[int]] = {}
        self._read = 0
        self._tokens: Counter[str] = Counter()
        self._own_tokens: set[str] = set()
        self._ids: set[str] = set()
        self._ended: Counter[str] = Counter()  # of odd messages, beside those in letters, by their tokens
        self._buried = 0
        self._cases: dict[str, Case] = {}  # of all messages, by their tokens
        self._open: set[str] = set()  # the tokens of those that may not have ended yet
        self.sent: int = 0
        self._elsewhere: Sequence[str] = _odd_queues(self.bridge.settings.url.broker)

    # From start to end

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start(self) -> None:
        """Start a worker for each queue: of Celery's one with children and one with threads, which differ most."""
        shapes = {QUEUES[0]: 1, QUEUES[1]: 2} if self._engine == "celery" else dict.fromkeys(QUEUES[:1], 2)
        env = {
            **without_settings(),
            **passed_on(),
            **{f"TASKBRIDGE_{name.upper()}": str(value) for name, value in self.settings.items()},
            "TASKBRIDGE_QUEUES": ",".join(QUEUES),
            FOLDER_VARIABLE: str(self.folder),
        }
        for queue, threads in shapes.items():
            options = WorkerOptions(app=APP, queues=(queue,), threads=threads)
            self._workers[queue] = ProcessWorker.start(self.bridge, options, env, self.folder / f"{queue}.log")
        for queue in shapes:
            self._accept.using(queue=queue).send(self._new_token())
        self._wait(self._own_tokens, _START_S, "the first message")
        self._processes = {queue: _processes_of(worker) for queue, worker in self._workers.items()}

    @property
    def queues(self) -> Sequence[str]:
        """The queues that are consumed."""
        return tuple(self._workers)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers.values():
            worker.kill()
        self._outlet.close()
        self.bridge.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Trying

    def attempt(self, cases: Sequence[Case], queue: str) -> None:
        """Put odd messages somewhere, all in the same kind of place, and healthy ones behind them; wait for these.

        Raises:
            Stopped: A healthy one has not run in time, or a process has ended.
        """
        forms = {form.name: form for form in self.forms}  # of this namespace, which theirs may not be
        cases = [replace(case, form=forms[case.form.name]) for case in cases]
        place = cases[0].form.place
        cases = [case for case in cases if not self._is_copy(case)]
        for case in cases:
            token = self._new_token(is_own=False)
            self._outlet.put(place, case.payload(token, queue), token, queue)
            self._cases[token] = case
            self._open.add(token)
        self.sent += 0 if place in UNCOUNTED else len(cases)
        behind = {self._new_token()}
        self._accept.using(queue=queue).send(*behind)
        if place in ("queue", "delayed", "parked", "strangers", "record", "mark"):
            for form in {case.form.name: case.form for case in cases}.values():
                behind.add(token := self._new_token())
                self._outlet.put(place, form.healthy(token, queue), token, queue)
        try:
            self._wait(behind, WITHIN_S[place] + EACH_S * len(cases), "a healthy message")
            self._check_place(place)
        except Stopped as exc:
            exc.log = exc.log or self.log(queue)
            raise

    def _is_copy(self, case: Case) -> bool:
        """Return whether a message has the same odd id as another one: a unique one is then the same, and runs once."""
        has_id = bool(case.path) and case.path[-1] in ("id", "correlation_id")
        is_copy = has_id and case.odd in self._ids
        if has_id:
            self._ids.add(case.odd)
        return is_copy

    def attempt_all(self, makers: Sequence[Callable[[str, str], Payload]], queue: str) -> None:
        """Put messages on a queue, each made of its token and the queue's name, and a healthy one behind; wait for it.

        Raises:
            Stopped: It has not run in time.
        """
        for make in makers:
            token = self._new_token(is_own=False)
            self._outlet.put("queue", make(token, queue), token, queue)
        self.sent += len(makers)
        self._accept.using(queue=queue).send(token := self._new_token())
        try:
            self._wait({token}, WITHIN_S["queue"] + EACH_S * len(makers), "a healthy message")
        except Stopped as exc:
            exc.log = exc.log or self.log(queue)
            raise

    def _check_place(self, place: Place) -> None:
        if place == "control":
            timeout_s, workers = _PING_S * self.pace.factor, len(self._workers)
            answers: Any = self.bridge.native.control.ping(timeout=timeout_s, limit=workers)
            if len(answers) != workers:
                raise Stopped(f"{len(answers)} of {workers} workers answer a ping", is_late=True)
        elif place == "letters":
            self._look_at_letters()
        elif place == "strangers":
            self._outlet.forget_strangers()

    def _look_at_letters(self) -> None:
        """List the dead letters, replay all and forget the rest, as a person would."""
        try:
            page = self.bridge.dead.list(limit=None)
            for entry in page.entries:
                repr(entry.arguments)
            self.bridge.dead.replay_all()
            self.bridge.dead.purge_all()
        except Exception as exc:
            raise Stopped(f"the dead letters can't be shown, replayed or purged: {exc!r:.300}") from exc

    def settle(self, *, counts: bool) -> None:
        """Wait until all odd messages have ended, and check what became of them, what is logged and how large all is.

        Args:
            counts: Whether none was put in a place that is not counted.

        Raises:
            Stopped: They have not, or something is out of bounds.
        """
        for queue in self.queues:  # parking goes on, too
            self._failing.using(queue=queue).send(token := self._new_token())
            self._wait({token}, _SETTLE_S, "a message that fails once")
        deadline = time.monotonic() + _SETTLE_S * self.pace.factor
        while (problem := self._unended(counts=counts)) is not None:
            if time.monotonic() > deadline:
                raise Stopped(problem, log="\n".join(map(self.log, self.queues)))
            time.sleep(_LOOK_S)
        reasons = {letter.reason for letter in self.bridge.dead_letters()}
        if not reasons <= REASONS:
            raise Stopped(f"dead letters have the reasons {sorted(reasons)}")
        self.forget_letters()
        self._check_bounds()

    def forget_letters(self) -> None:
        """Forget the dead letters so far."""
        self._buried += self._outlet.forget_letters()
        self._open.clear()

    def _unended(self, *, counts: bool) -> str | None:
        """Return how many messages have not ended; None if all have.

        Those that are parked for a time that is far away have ended, too, as far as this is concerned, and those that
        wait in a queue whose name is an odd value, for nobody consumes it.
        """
        self._refresh()
        now = self.bridge.broker.counts([*QUEUES, *self._elsewhere])
        waiting = {queue: count for queue, count in now.waiting.items() if count and queue in QUEUES}
        elsewhere = sum(now.waiting[queue] for queue in self._elsewhere)
        ran = self._ended.total()
        ended = ran + self._buried + now.dead + now.delayed + elsewhere
        if not waiting and (ended == self.sent or not counts):
            return None
        often = [
            f"{self._cases.get(token, token)} ({count} times)" for token, count in self._ended.items() if count > 1
        ]
        return (
            f"of {self.sent} odd messages {ran} ran or were discarded, {self._buried + now.dead} are dead, "
            f"{now.delayed} are parked, {elsewhere} are in other queues and {waiting or 'none'} wait, "
            f"more than once ran {often or 'none'}, missing may be {self._missing()}"
        )

    def _missing(self) -> list[str]:
        """Return the cases of whose messages nothing can be found, the first ten."""
        texts = [f"{letter.id} {letter.message} {_decoded(letter.raw)}" for letter in self.bridge.dead_letters()]
        found = {*self._ended, *(token for token in self._open if any(token in text for text in texts))}
        return [str(self._cases[token]) for token in self._open - found][:10]

    def _check_bounds(self) -> None:
        for queue, worker in self._workers.items():
            for pid in _processes_of(worker):
                if (peak := _peak_bytes(pid)) > MOST_BYTES:
                    raise Stopped(f"a process had {peak / 1e6:.0f} MB at its peak")
            lines = (self.folder / f"{queue}.log").read_bytes().splitlines()
            longest = max(lines, key=len, default=b"")
            if len(longest) > MOST_LINE:
                raise Stopped(f"a line of the log has {len(longest)} bytes: {longest[:300]!r}")
            if len(lines) > MOST_LINES * max(100, self.sent):
                raise Stopped(f"the log has {len(lines)} lines for {self.sent} messages")
        if (self.folder / CANARY_FILE).exists():
            raise Stopped("what a message names was imported")

    # Watching

    def _new_token(self, *, is_own: bool = True) -> str:
        token = f"{'healthy' if is_own else 'odd'}-{secrets.token_hex(8)}"
        if is_own:
            self._own_tokens.add(token)
        return token

    def _wait(self, tokens: Collection[str], within_s: float, what: str) -> None:
        limit_s = within_s * self.pace.factor + self.pace.slack_s
        deadline = time.monotonic() + limit_s
        while True:
            self._refresh()
            missing = [token for token in tokens if not self._tokens[token]]
            if not missing:
                return
            for queue, worker in self._workers.items():
                if (code := worker.wait(0)) is not None:
                    raise Stopped(f"a worker ended with code {code}", log=self.log(queue))
            if time.monotonic() > deadline:
                raise Stopped(f"{what} did not run within {limit_s:.1f} s", is_late=True)
            time.sleep(_POLL_S)

    def check_processes(self) -> None:
        """Raise `Stopped` if a process has ended or was started anew."""
        for queue, worker in self._workers.items():
            if self._processes[queue] != (now := _processes_of(worker)):
                raise Stopped(f"processes {self._processes[queue]} became {now}", log=self.log(queue))

    def _refresh(self) -> None:
        """Read what the workers have written down since."""
        path = self.folder / PROBE_FILE
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._note(json.loads(line))

    def _note(self, record: Mapping[str, Any]) -> None:
        token = record["data"].get("token", "")
        if token in self._own_tokens and record["kind"] == START:
            self._tokens[token] += 1
        elif not str(record["id"]).startswith("healthy"):
            self._ended[token or record["id"]] += 1

    def log(self, queue: str) -> str:
        """Return the last lines of a worker's log."""
        return self._workers[queue].log()


def _nothing(*values: Any, **named: Any) -> None:
    """Stand for a task that only workers run."""


def _odd_queues(broker: str) -> list[str]:
    """Return the odd values that are names of queues, as long as this broker takes them."""
    found: list[str] = []
    for value in VALUES.values():
        with suppress(ValueError):
            name = json.loads(value) if value is not None and value.startswith(b'"') else "\0"
            if can_be_kept(name) and (broker == "redis" or len(name.encode()) <= _LONGEST_QUEUE):
                found.append(name)
    return found


def _processes_of(worker: ProcessWorker) -> frozenset[int]:
    return frozenset(int(path.name) for path in Path("/proc").glob("[0-9]*") if worker.owns(int(path.name)))


def _decoded(raw: bytes | None) -> str:
    """Return bytes as text, and what is in base64 in them too."""
    text = "" if raw is None else raw.decode("latin-1")
    inner = [b64decode(found[: len(found) // 4 * 4]) for found in _BASE64.findall(text)]
    return " ".join([text, *(each.decode("latin-1") for each in inner)])


def _peak_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


Report = Callable[[str], object]


def run(make: Callable[[], Stage], chunks: Sequence[Sequence[Case]], say: Report = print) -> list[str]:
    """Put chunks of odd messages before workers, and return what is wrong; find out which message it was.

    Args:
        make: Makes a stage, with workers of its own.
        chunks: What is put in one place together, as `chunked` returns them.
        say: Is told of what is wrong, as it is found.
    """
    faults: list[str] = []
    counted = [chunk for chunk in chunks if chunk[0].form.place not in UNCOUNTED]
    others = [chunk for chunk in chunks if chunk[0].form.place in UNCOUNTED]
    stage = make().__enter__()
    try:
        for part in (counted, others):
            for number, cases in enumerate(part):
                try:
                    stage.attempt(cases, stage.queues[number % len(stage.queues)])
                    stage.check_processes()
                    if number % _FORGET_AFTER == 0:
                        stage.forget_letters()
                except Stopped as exc:
                    say(f"{cases[0].form.place}: {exc}, after one of {len(cases)}\n{exc.log}")
                    stage.close()
                    found = _narrowed([cases], make, number, say)
                    # What passes now and was late was stopped by the machine; a process that ended was not.
                    faults += found or ([] if exc.is_late else [f"once, after one of {len(cases)}: {exc}"])
                    stage = make().__enter__()
            try:
                stage.settle(counts=part is counted)
            except Stopped as exc:
                faults.append(str(exc))
                say(f"{exc}\n{exc.log}")
    finally:
        stage.close()
    return faults


def _narrowed(parts: Sequence[Sequence[Case]], make: Callable[[], Stage], number: int, say: Report) -> list[str]:
    """Try parts of a chunk once more, and halves of those that stop something, until one message is left of each."""
    faults: list[str] = []
    for part in parts:
        with make() as stage:
            try:
                stage.attempt(part, stage.queues[number % len(stage.queues)])
                stage.check_processes()
                continue
            except Stopped as exc:
                problem, log = str(exc), exc.log
        half = len(part) // 2
        found = _narrowed([part[:half], part[half:]], make, number, say) if half else []
        if not found:
            say(f"{part[0]}, or {len(part) - 1} others: {problem}\n{log}")
            found = [f"{part[0]}, or {len(part) - 1} others: {problem}"]
        faults += found
    return faults


def chunked(cases: Sequence[Case]) -> list[Sequence[Case]]:
    """Return cases in the chunks in which they are put somewhere."""
    by_place: dict[Place, list[Case]] = {}
    for case in cases:
        by_place.setdefault(case.form.place, []).append(case)
    return [
        found[start : start + size]
        for place, found in by_place.items()
        for size in (TOGETHER.get(place, FEW_TOGETHER),)
        for start in range(0, len(found), size)
    ]
