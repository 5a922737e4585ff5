"""The reference model: what the specification says must become of a plan, and how that is compared with what did.

Nothing here asks the product for a verdict: rule R2 is written down a second time. Only the jitter of a delay, which
the specification leaves to a hash, is the policy's own word; rule R3's bounds are checked against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from taskbridge import DeadLetter, Priority, RetryPolicy
from taskbridge.contract.probe import END, START, Record
from taskbridge.contract.program import ERRORS, POLICIES, Plan, Step

DEFAULT_QUEUE: Final = "contract"
_LONGEST_TRACE: Final = 1000

Ending = Literal["succeeded", "dead", "discarded"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What must happen to a message.

    Attributes:
        attempts: How many times it starts.
        delays_s: The delay after each attempt but the last, in seconds.
        final: How it ends.
        reason: Why it is dead or discarded.
        errors: The name of what each attempt raises; empty for one that returns.
        queue: Where it waits, always.
        priority: What it has, always.
        delay_s: How long after sending it is due.
        run_s: How long its runs take, in all.
    """

    attempts: int
    delays_s: tuple[float, ...]
    final: Ending
    reason: str
    errors: tuple[str, ...]
    queue: str
    priority: Priority
    delay_s: float
    run_s: float

    def longest_s(self, latest_s: Callable[[float], float]) -> float:
        """Return the seconds after which it is at its end at the latest, on an idle worker."""
        delays = (self.delay_s, *self.delays_s)
        return self.run_s + sum(latest_s(delay_s) for delay_s in delays if delay_s > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What happened to a message.

    Attributes:
        sent_at: When sending began, in seconds since the epoch.
        records: What was written down, in order.
        letters: Its dead letters.
    """

    sent_at: float
    records: tuple[Record, ...]
    letters: tuple[DeadLetter, ...]


def expected(plan: Plan, message_id: str) -> Trace:
    """Return what must happen to a plan that was sent as this message.

    Raises:
        ValueError: It never ends.
    """
    policy = POLICIES[plan.policy]
    due_s, run_s = plan.delay_s, 0.0
    delays: list[float] = []
    errors: list[str] = []
    for attempt in range(1, _LONGEST_TRACE):
        if plan.expires_s is not None and due_s > plan.expires_s:
            return _trace(plan, attempt - 1, delays, ("discarded", "expired"), errors, run_s)
        step = plan.step(attempt)
        errors.append(_error(step))
        run_s += step.sleep_s + step.spin_s
        ending = _ending(policy, attempt, step)
        if ending is not None:
            return _trace(plan, attempt, delays, ending, errors, run_s)
        delays.append(policy.wait_s(attempt, message_id=message_id) if step.after_s is None else step.after_s)
        due_s += delays[-1]
    raise ValueError(f"this plan never ends: {plan}")


def _trace(
    plan: Plan, attempts: int, delays: list[float], ending: tuple[Ending, str], errors: list[str], run_s: float
) -> Trace:
    final, reason = ending
    return Trace(
        attempts=attempts,
        delays_s=tuple(delays),
        final=final,
        reason=reason,
        errors=tuple(errors),
        queue=DEFAULT_QUEUE if plan.queue is None else plan.queue,
        priority="normal" if plan.priority is None else plan.priority,
        delay_s=plan.delay_s,
        run_s=run_s,
    )


def _error(step: Step) -> str:
    return {"return": "", "raise": step.error, "retry": "Retry", "discard": "Discard"}[step.outcome]


def _ending(policy: RetryPolicy, attempt: int, step: Step) -> tuple[Ending, str] | None:
    """Return how a message ends with this attempt; None if it is tried again (rule R2)."""
    if step.outcome == "return":
        return "succeeded", ""
    if step.outcome == "discard":
        return "discarded", "the program says so"
    if step.outcome == "raise":
        error = ERRORS[step.error]
        if any(issubclass(error, kind) for kind in policy.give_up_on):
            return "dead", "gave_up"
        if not any(issubclass(error, kind) for kind in policy.retry_on):
            return "dead", "gave_up"
    if policy.max_attempts is not None and attempt == policy.max_attempts:
        return "dead", "exhausted"
    return None


def bounds_s(policy: RetryPolicy, attempt: int) -> tuple[float, float]:
    """Return the shortest and the longest delay that a policy allows after an attempt (rule R3)."""
    if policy.delays is not None:
        longest_s = policy.delays[min(attempt, len(policy.delays)) - 1].total_seconds()
    else:
        grown_s = policy.min_delay.total_seconds() * policy.factor ** (attempt - 1)
        longest_s = min(policy.max_delay.total_seconds(), grown_s)
    return longest_s * (1 - policy.jitter), longest_s


def differences(plan: Plan, trace: Trace, seen: Seen, *, latest_s: Callable[[float], float] | None) -> list[str]:
    """Return in what ways a message went another way than it must, as sentences.

    Args:
        plan: What was sent.
        trace: What must happen.
        seen: What did.
        latest_s: How long after it was asked for a delayed start may come; None if lateness does not matter.
    """
    return [
        *_attempts_differ(trace, seen),
        *_contexts_differ(trace, seen),
        *_waits_differ(plan, trace, seen),
        *_times_differ(trace, seen, latest_s),
        *_hooks_differ(trace, seen),
        *_letters_differ(trace, seen),
    ]


def _of(seen: Seen, *kinds: str) -> list[Record]:
    return [record for record in seen.records if record.kind in kinds]


def _attempts_differ(trace: Trace, seen: Seen) -> Iterable[str]:
    attempts = [record.attempt for record in _of(seen, START)]
    if attempts != list(range(1, trace.attempts + 1)):
        yield f"it should start {trace.attempts} times, as attempts 1 to {trace.attempts}, but started as {attempts}"
    endings = [record.data["ending"] for record in _of(seen, END)]
    wanted = [error or "returned" for error in trace.errors]
    if endings != wanted:
        yield f"its runs should end with {wanted}, but ended with {endings}"


def _contexts_differ(trace: Trace, seen: Seen) -> Iterable[str]:
    for record in _of(seen, START):
        context = record.data["context"]
        if (context["queue"], context["priority"]) != (trace.queue, trace.priority):
            yield (
                f"attempt {record.attempt} should be on queue {trace.queue} with priority {trace.priority}, "
                f"but was on {context['queue']} with {context['priority']}"
            )
        previous = context["previous_error"]
        before = "" if record.attempt == 1 else trace.errors[min(record.attempt, len(trace.errors)) - 2]
        told = "" if previous is None else previous[0].rpartition(".")[2]
        if told != before:
            yield f"attempt {record.attempt} should know of the error {before!r}, but knows of {told!r}"


def _waits_differ(plan: Plan, trace: Trace, seen: Seen) -> Iterable[str]:
    # By attempt: the next one may be told of first, for a hook is called after its attempt has been parked.
    retries = sorted(_of(seen, "retrying"), key=lambda record: record.attempt)
    waits = [record.data["delay_s"] for record in retries]
    if waits != list(trace.delays_s):
        yield f"its retries should wait {list(trace.delays_s)} s, but were told to wait {waits} s"
    policy = POLICIES[plan.policy]
    for record in _of(seen, "retrying"):
        shortest_s, longest_s = bounds_s(policy, record.attempt)
        wait_s = record.data["delay_s"]
        if plan.step(record.attempt).after_s is None and not shortest_s <= wait_s <= longest_s:
            yield f"after attempt {record.attempt} it should wait {shortest_s} to {longest_s} s, not {wait_s} s"


def _times_differ(trace: Trace, seen: Seen, latest_s: Callable[[float], float] | None) -> Iterable[str]:
    starts = {record.attempt: record.at for record in _of(seen, START)}
    asked = {1: seen.sent_at} | {record.attempt + 1: record.at for record in _of(seen, END)}
    delays = {1: trace.delay_s} | {attempt + 2: delay_s for attempt, delay_s in enumerate(trace.delays_s)}
    for attempt, delay_s in delays.items():
        if attempt not in starts or attempt not in asked:
            continue  # told as a difference of attempts
        waited_s = starts[attempt] - asked[attempt]
        if waited_s < delay_s:
            yield f"attempt {attempt} should start after {delay_s} s, but started after {waited_s:.6f} s: too early"
        if latest_s is not None and waited_s > latest_s(delay_s):
            yield f"attempt {attempt} should start within {latest_s(delay_s)} s, but started after {waited_s:.3f} s"


def _hooks_differ(trace: Trace, seen: Seen) -> Iterable[str]:
    sending = [record.kind for record in _of(seen, "before_send", "after_send")]
    if sending != ["before_send", "after_send"]:
        yield f"the hooks of sending should be before_send and after_send, but were {sending}"
    for attempt in range(1, trace.attempts + 1):
        last = attempt == trace.attempts and (trace.final, trace.reason) != ("discarded", "expired")
        wanted = ["before_run", START, END, trace.final if last else "retrying"]
        kinds = [record.kind for record in seen.records if record.attempt == attempt and record.kind in _RUNNING]
        if kinds != wanted:
            yield f"attempt {attempt} should go through {wanted}, but went through {kinds}"
    ends = [(record.kind, record.data["reason"]) for record in _of(seen, "succeeded", "dead", "discarded")]
    if ends != [(trace.final, trace.reason)]:
        yield f"it should end once as {(trace.final, trace.reason)}, but ended as {ends}"


_RUNNING: Final = ("before_run", START, END, "retrying", "succeeded", "dead", "discarded")


def _letters_differ(trace: Trace, seen: Seen) -> Iterable[str]:
    wanted = 1 if trace.final == "dead" else 0
    if len(seen.letters) != wanted:
        yield f"it should leave {wanted} dead letters, but left {len(seen.letters)}"
    for letter in seen.letters:
        error = "" if letter.error is None else letter.error.type.rpartition(".")[2]
        attempt = 0 if letter.message is None else letter.message.attempt
        told = (letter.reason, error, attempt)
        if wanted and told != (trace.reason, trace.errors[-1], trace.attempts):
            yield f"its letter should tell {(trace.reason, trace.errors[-1], trace.attempts)}, but tells {told}"
