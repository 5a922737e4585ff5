"""What a scenario is given: an environment, and words for sending plans and looking at what becomes of them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn, TypeVar

from typing_extensions import Unpack

from taskbridge import Bridge, DeadLetter, Handle, Message, Task
from taskbridge.contract import model
from taskbridge.contract.environment import SEND_TIMEOUT_S, Environment, EnvironmentSpec, WorkerChoices
from taskbridge.contract.failure import ContractFailure
from taskbridge.contract.preloading import without_settings
from taskbridge.contract.probe import END, START, Record
from taskbridge.contract.program import RETURN, Plan
from taskbridge.contract.proxy import Proxy
from taskbridge.contract.rewriting import Rewrite, rewriting
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import QUEUES, Tasks
from taskbridge.contract.workers import Worker

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

FINAL: Final = ("succeeded", "dead", "discarded")
"""The hooks one of which ends every message."""

STOP_S: Final = 5.0
"""How long after its grace a worker may take to end (rule A4)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """A message that a scenario sent.

    Attributes:
        id: Its id.
        plan: What was to happen.
        before: When sending began, in seconds since the epoch.
        after: When sending was over.
    """

    id: str
    plan: Plan
    before: float
    after: float


class Harness:
    """One scenario on one environment; it tells its own messages from those of others by their ids.

    Attributes:
        environment: The environment; the next four are its own.
        target: The target.
        spec: What the environment is like.
        bridge: Its bridge.
        tasks: The contract's tasks on it.
        patience_s: How long something may take that should happen at once.
        slack_s: By how much this machine may exceed a limit of time.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.target: Target = environment.target
        self.spec: EnvironmentSpec = environment.spec
        self.bridge: Bridge = environment.bridge
        self.tasks: Tasks = environment.tasks
        self.patience_s: float = environment.patience_s
        self.slack_s: float = environment.pace.slack_s
        self._ids: list[str] = []
        self._bridges: list[Bridge] = []

    def scaled(self, seconds: float) -> float:
        """Return how long this machine may take for what an idle one does in this time."""
        return seconds * self.environment.pace.factor

    def keeps_priorities(self, queue: str | None = None) -> bool:
        """Return whether a queue keeps priorities: on RabbitMQ before 4.3, quorum queues don't (rule RQ2)."""
        keeps = getattr(self.bridge.broker, "keeps_priorities", None)
        return keeps is None or bool(keeps(queue or QUEUES[0], timeout_s=self.patience_s))

    # Sending

    def send(self, plan: Plan) -> Sent:
        """Send a plan."""
        return self.send_to(self.tasks.programs[plan.policy], plan)

    def begin(self, *plans: Plan) -> list[Sent]:
        """Send plans, and return when the first attempt of each has started."""
        sent = [self.send(plan) for plan in plans]
        for item in sent:
            self.started(item.id)
        return sent

    def send_to(self, task: Task[[list[dict[str, Any]]], str], plan: Plan) -> Sent:
        """Send a plan's steps to another task than that of its policy; without its priority where none is kept."""
        if plan.priority != "normal" and not self.keeps_priorities(plan.queue):
            plan = replace(plan, priority="normal")
        using = task.using(
            queue=plan.queue, priority=plan.priority, expires=plan.expires_s, headers=plan.headers or None
        )
        before = self.bridge.now()
        if plan.delay_s > 0:
            handle = using.schedule(plan.delay_s, plan.plain_steps())
        else:
            handle = using.send(plan.plain_steps())
        return self.own(handle, plan, before)

    def own(self, handle: Handle[Any], plan: Plan | None = None, before: float | None = None) -> Sent:
        """Take a message that was sent otherwise for one's own."""
        self._ids.append(handle.id)
        after = self.bridge.now()
        return Sent(
            id=handle.id,
            plan=Plan(steps=()) if plan is None else plan,
            before=after if before is None else before,
            after=after,
        )

    # Looking

    def records(self, id: str, kind: str | None = None) -> list[Record]:
        """Return what happened to a message so far, all or of one kind."""
        return [record for record in self.environment.records.of(id) if kind is None or record.kind == kind]

    def starts(self, id: str) -> list[Record]:
        """Return the starts of a message so far."""
        return self.records(id, START)

    def ends(self, id: str) -> list[Record]:
        """Return the ends of a message's runs so far."""
        return self.records(id, END)

    def letters(self, id: str) -> list[DeadLetter]:
        """Return the dead letters of a message."""
        return [letter for letter in self.environment.letters() if letter.id == id]

    # Waiting

    def until(self, condition: Callable[[], T], what: str, *, within_s: float | None = None) -> T:
        """Wait until a condition is true, and return its value; see `Environment.until`."""
        try:
            return self.environment.until(condition, what, within_s=within_s)
        except ContractFailure as exc:
            raise type(exc)(f"{exc}\n{self.story()}") from None

    def started(self, id: str, *, times: int = 1, within_s: float | None = None) -> Record:
        """Wait for a start of a message, and return it."""
        return self.until(lambda: self.starts(id)[times - 1 : times], f"start {times} of {id}", within_s=within_s)[0]

    def final(self, *ids: str, within_s: float | None = None) -> list[Record]:
        """Wait until messages have succeeded, died or been discarded, and return the hooks' records."""

        def ended() -> list[Record] | None:
            found = [[record for record in self.records(each) if record.kind in FINAL] for each in ids]
            return [records[-1] for records in found] if all(found) else None

        return self.until(ended, f"the end of {len(ids)} messages", within_s=within_s) or []

    def idle(self, *, within_s: float | None = None) -> None:
        """Wait until nothing waits, runs or is parked; see `Environment.wait_idle`."""
        limit_s = self.patience_s if within_s is None else within_s
        self.environment.wait_idle(limit_s, lambda: frozenset(self._ids))

    def finished(self, *ids: str, within_s: float | None = None) -> list[Record]:
        """Wait until messages are at their end and all is idle, and return the hooks' records, as `final` does."""
        records = self.final(*ids, within_s=within_s)
        self.idle(within_s=within_s)
        return records

    def resting(self, *, delayed: int) -> None:
        """Wait until nothing waits or runs and so many are parked, in two looks between which nothing happened."""
        self.environment.wait_rest(self.patience_s, delayed=delayed)

    # Judging

    def check(self, promise: bool, broken: str) -> None:
        """Fail unless a promise was kept.

        Args:
            promise: Whether it was.
            broken: What was seen instead.
        """
        if not promise:
            self.fail(broken)

    def in_time(self, what: str, took_s: float, limit_s: float) -> None:
        """Fail if something took longer than its rule allows, and longer than this machine accounts for."""
        if took_s > limit_s + self.slack_s:
            self.fail(f"{what} should come within {limit_s:g} s (+ {self.slack_s:.2f} s), but took {took_s:.3f} s")

    def equal(self, what: str, seen: object, expected: object) -> None:
        """Fail unless two values are equal."""
        if seen != expected:
            self.fail(f"{what} should be {expected!r}, but is {seen!r}")

    def fail(self, broken: str) -> NoReturn:
        """Fail, and tell what happened to the scenario's messages."""
        raise ContractFailure(f"{broken}\n{self.story()}")

    def refused(self, error: type[E], act: Callable[..., object], /, *args: Any, **kwargs: Any) -> E:
        """Check that a call raises an error, and return the error."""
        try:
            result = act(*args, **kwargs)
        except error as exc:
            return exc
        except Exception as exc:
            self.fail(f"{error.__name__} should be raised, but {exc!r} was")
        return self.fail(f"{error.__name__} should be raised, but {result!r} was returned")

    def says(self, error: Exception, text: str) -> None:
        """Check that an error says something."""
        self.check(text in str(error), f"{type(error).__name__} should say {text!r}, but says {str(error)!r}")

    def run(self, plans: Sequence[Plan], *, on_time: bool = False) -> list[Sent]:
        """Send plans, wait until all is over and idle, and compare what happened with the model."""
        sent = [self.send(plan) for plan in plans]
        self.compare(sent, on_time=on_time)
        return sent

    def compare(self, sent: Sequence[Sent], *, on_time: bool = False) -> None:
        """Wait until these messages are at their end and all is idle, and compare them with the model.

        Args:
            sent: The messages.
            on_time: Whether delays must not only be kept, but also not be exceeded; only for an idle worker.
        """
        expected = [model.expected(item.plan, item.id) for item in sent]
        longest_s = max(trace.longest_s(self.latest_s) for trace in expected)
        self.final(*(item.id for item in sent), within_s=longest_s + self.patience_s)
        self.idle(within_s=longest_s + self.patience_s)
        letters = self.environment.letters()
        for item, trace in zip(sent, expected, strict=True):
            seen = model.Seen(
                sent_at=item.before,
                records=tuple(self.records(item.id)),
                letters=tuple(letter for letter in letters if letter.id == item.id),
            )
            if broken := model.differences(item.plan, trace, seen, latest_s=self.latest_s if on_time else None):
                self.fail(f"{item.plan}\n" + "\n".join(broken))

    def latest_s(self, delay_s: float) -> float:
        """Return how long after it was asked for a delayed message may start on an idle worker (rule D2)."""
        return self.target.latest_s(delay_s) + self.slack_s

    def story(self) -> str:
        """Return what happened to the scenario's messages, in seconds since the first record."""
        lines: list[str] = []
        for each in self._ids[:_SHOWN_MESSAGES]:
            records = self.records(each)
            lines.append(f"message {each}: {len(records)} records")
            first = records[0].at if records else 0.0
            lines += [_told(record, first) for record in records[:_SHOWN_RECORDS]]
        if len(self._ids) > _SHOWN_MESSAGES:
            lines.append(f"and {len(self._ids) - _SHOWN_MESSAGES} more messages")
        return "\n".join(lines)

    # Means

    def start_worker(self, *, answers: bool = True, **choices: Unpack[WorkerChoices]) -> Worker:
        """Start a worker in the environment; see `Environment.start_worker`."""
        return self.environment.start_worker(answers=answers, **choices)

    def stop(self, worker: Worker) -> None:
        """Tell a worker to stop, and wait until it has."""
        worker.terminate()
        self.ends_in_time(worker, self.spec.grace_s + STOP_S)

    def ends_in_time(self, worker: Worker, limit_s: float) -> None:
        """Wait until a worker has ended that was told to stop, and check that it did so with code 0, and in time."""
        with Stopwatch() as watch:
            code = worker.wait(limit_s + self.patience_s)
        self.check(code == 0, f"a worker should end with code 0, but ended with {code}\n{worker.log()}")
        self.in_time("the end of a worker that was told to stop", watch.took_s, limit_s)

    def own_bridge(self) -> Bridge:
        """Return another bridge, which declares no tasks, to the same namespace."""
        bridge = self.environment.make_bridge()
        self._bridges.append(bridge)
        return bridge

    def tasks_by(self, url: str, *, send_timeout_s: float = SEND_TIMEOUT_S, **settings: Any) -> Tasks:
        """Return the contract's tasks on another bridge, which goes another way to the same broker."""
        bridge = self.environment.make_bridge(url, send_timeout_s=send_timeout_s, **settings)
        self._bridges.append(bridge)
        # For the time, that bridge may ask the store by its own way, and so find a dead connection before a send does.
        return Tasks(bridge, self.environment.folder, now=self.bridge.now)

    def send_rewritten(self, rewrite: Rewrite) -> Sent:
        """Send a message whose text is rewritten on its way out."""
        with rewriting(self.bridge, rewrite):
            return self.send(Plan(steps=(RETURN,), policy="once"))

    def deliver_again(self, sent: Sent) -> None:
        """Put another delivery of a message's attempt on its queue, which says that it was delivered before."""
        with self.saying(id=sent.id, redelivered=1):
            self.tasks.programs[sent.plan.policy].using(queue=sent.plan.queue).send(sent.plan.plain_steps())

    def send_saying(self, plan: Plan, **fields: Any) -> Sent:
        """Send a plan by a message that has other fields than a new one."""
        with self.saying(**fields):
            return self.send(plan)

    @contextmanager
    def saying(self, **fields: Any) -> Generator[None]:
        """Have the messages that this thread sends say something else of themselves while the block runs."""
        wire: Any = self.bridge.wire
        encode, thread = wire.encode, threading.get_ident()

        def changed(message: Message) -> Any:
            if threading.get_ident() != thread:  # a worker in this process parks or publishes something meanwhile
                return encode(message)
            return encode(replace(message, **fields))

        wire.encode = changed
        try:
            yield
        finally:
            wire.encode = encode

    def close(self) -> None:
        """Let go of what the scenario opened."""
        for bridge in self._bridges:
            bridge.close()

    def proxy(self) -> AbstractContextManager[Proxy]:
        """Return a proxy in front of the target's broker."""
        place = self.target.place
        if place is None:
            raise ContractFailure(f"{self.target.shown} has no host and port to put a proxy in front of")
        return Proxy(place)

    def in_python(self, program: str, *, url: str | None = None) -> str:
        """Run a program in a process of its own, with the same bridge, and return what it printed.

        Args:
            program: What follows `from taskbridge.contract.app import bridge, tasks`.
            url: The way to the broker, if not the target's own.
        """
        env = {**without_settings(), **self.environment.variables(url)}
        done = subprocess.run(
            [sys.executable, "-c", f"from taskbridge.contract.app import bridge, tasks\n{program}"],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=self.scaled(60),
            check=False,
        )
        if done.returncode not in (0, -9):
            self.fail(f"a sending process ended with code {done.returncode}\n{done.stderr}")
        return done.stdout

    def pause(self, seconds: float) -> None:
        """Let time pass, where the scenario is about time itself."""
        time.sleep(seconds)

    def leave_alone(self, seconds: float) -> None:
        """Let workers have this time for what they do by themselves, beside what the machine stands still meanwhile."""
        left_s = seconds
        while left_s > 0.0:
            with Stopwatch() as watch:
                time.sleep(left_s)
            left_s = watch.stalled_s()


_SHOWN_MESSAGES: Final = 8
_SHOWN_RECORDS: Final = 60
_SHOWN_DATA: Final = ("ending", "error", "delay_s", "reason")


def _told(record: Record, first: float) -> str:
    data = {key: record.data[key] for key in _SHOWN_DATA if record.data.get(key)}
    shown = f" {data}" if data else ""
    return f"  {record.at - first:8.3f} attempt {record.attempt} {record.kind} (process {record.pid}){shown}"
