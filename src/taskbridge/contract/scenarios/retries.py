"""R: retries."""

from __future__ import annotations

from typing import Final

from taskbridge import RetryPolicy
from taskbridge.contract.harness import Harness
from taskbridge.contract.odd_errors import ODD_ERRORS
from taskbridge.contract.probe import END, Record
from taskbridge.contract.program import ASK, DISCARD, POLICIES, RETURN, Plan, Step, ask, fail
from taskbridge.contract.registry import ALONE, ORDINARY, PROCESSES, SHORT_LEASE, scenario, with_a_server
from taskbridge.contract.tasks import Variant


@scenario("R1", "R3", "R6", on=(ORDINARY, PROCESSES))
def it_always_fails(h: Harness) -> None:
    """A task that always fails starts exactly max_attempts times, never early, and is dead once."""
    sent = h.run([Plan(steps=(fail(),))])[0]
    h.equal("its starts", [start.attempt for start in h.starts(sent.id)], [1, 2, 3, 4, 5])
    h.equal("its dead hooks", len(h.records(sent.id, "dead")), 1)
    h.equal("its dead letters", [letter.reason for letter in h.letters(sent.id)], ["exhausted"])
    letter = h.letters(sent.id)[0]
    h.check("ValueError" in letter.traceback, f"its letter should have a traceback, but has {letter.traceback!r}")
    ends = [end.at for end in h.ends(sent.id)]
    starts = [start.at for start in h.starts(sent.id)]
    for attempt in range(1, 5):
        gap_s = starts[attempt] - ends[attempt - 1]
        least_s = 0.5 * 0.2 * 2 ** (attempt - 1)
        h.check(gap_s >= least_s, f"after attempt {attempt} it should wait at least {least_s} s, not {gap_s:.6f} s")


@scenario("R1")
def it_is_never_retried(h: Harness) -> None:
    """A task that may be run once is run once."""
    sent = h.run([Plan(steps=(fail(),), policy="once")])[0]
    h.equal("its starts", len(h.starts(sent.id)), 1)
    h.equal("its most attempts", h.starts(sent.id)[0].data["context"]["max_attempts"], 1)


@scenario("R1")
def it_is_retried_without_limit(h: Harness) -> None:
    """Without a limit on attempts, it goes on until it succeeds."""
    sent = h.run([Plan(steps=(*[fail()] * 7, RETURN), policy="unlimited")])[0]
    h.equal("its starts", len(h.starts(sent.id)), 8)
    h.equal("its most attempts", h.starts(sent.id)[0].data["context"]["max_attempts"], None)


_TABLE: Final[tuple[tuple[str, tuple[Step, ...], int, str, str], ...]] = (
    # policy, steps, starts, how it ends, why
    ("standard", (RETURN,), 1, "succeeded", ""),
    ("standard", (fail(), RETURN), 2, "succeeded", ""),
    ("standard", (DISCARD,), 1, "discarded", "the program says so"),
    ("standard", (fail(), DISCARD), 2, "discarded", "the program says so"),
    ("standard", (fail("SystemExit"),), 1, "dead", "gave_up"),
    ("standard", (fail("KeyboardInterrupt"),), 1, "dead", "gave_up"),
    ("standard", (fail("Abort"),), 1, "dead", "gave_up"),
    ("once", (ASK,), 1, "dead", "exhausted"),
    ("once", (ask(0),), 1, "dead", "exhausted"),
    ("selective", (fail("TransientError"),), 3, "dead", "exhausted"),
    ("selective", (fail("KeyError"), fail("IndexError"), RETURN), 3, "succeeded", ""),
    ("selective", (fail("ValueError"),), 1, "dead", "gave_up"),
    ("selective", (fail("TransientError"), fail("ValueError")), 2, "dead", "gave_up"),
    ("selective", (ASK, RETURN), 2, "succeeded", ""),
    ("giving_up", (fail("PermanentError"),), 1, "dead", "gave_up"),
    ("giving_up", (fail("IndexError"), fail("KeyError")), 2, "dead", "gave_up"),
    ("giving_up", (fail("IndexError"),), 3, "dead", "exhausted"),
    ("anything", (fail("SystemExit"), fail("Abort"), RETURN), 3, "succeeded", ""),
    ("anything", (fail("KeyboardInterrupt"),), 3, "dead", "exhausted"),
    ("instant", (fail(),), 4, "dead", "exhausted"),
    ("instant", (ask(0), RETURN), 2, "succeeded", ""),
    ("listed", (fail(),), 4, "dead", "exhausted"),
    ("capped", (fail(), fail(), fail(), RETURN), 4, "succeeded", ""),
)


_SPENT: Final = (2, "dead", "exhausted")


@scenario("R2", on=(ORDINARY, PROCESSES))
def the_table_decides(h: Harness) -> None:
    """Policy, attempt and exception decide, by one table."""
    sent = [h.send(Plan(steps=steps, policy=policy)) for policy, steps, _, _, _ in _TABLE]
    h.compare(sent)
    for (policy, steps, starts, final, reason), item in zip(_TABLE, sent, strict=True):
        last = h.final(item.id)[0]
        seen = (len(h.starts(item.id)), last.kind, last.data["reason"])
        h.equal(f"starts, end and reason of {steps} under {policy}", seen, (starts, final, reason))


@scenario("R2", on=(ORDINARY, PROCESSES))
def odd_errors_are_judged_like_others(h: Harness) -> None:
    """An error that can't be formatted, or is huge, is retried, and then dead, with a bounded description."""
    sent = {name: h.send(Plan(steps=(Step(outcome="raise", error=name),), policy="twice")) for name in ODD_ERRORS}
    for name, item in sent.items():
        last = h.final(item.id)[0]
        h.equal(f"starts and end of {name}", (len(h.starts(item.id)), last.kind, last.data["reason"]), _SPENT)
        letter = h.letters(item.id)[0]
        h.check(0 < len(letter.traceback) <= 32_000, f"{name}: its traceback has {len(letter.traceback)} characters")
        error = letter.error
        h.check(error is not None and len(error.message) <= 2_000, f"{name}: its text should be bounded")
    h.idle()


@scenario("R2", on=(ALONE,))
def a_changed_policy_decides(h: Harness) -> None:
    """After a change of the policy, the new one decides."""
    first = h.start_worker(variant=Variant(changing=5))
    sent = h.send_to(h.tasks.changing, Plan(steps=(fail(), ask(3), fail())))
    h.until(lambda: len(h.records(sent.id, "retrying")) == 2, "the second retry")
    h.stop(first)
    if h.target.in_process:
        h.tasks.declare_changing(3)
    h.start_worker(variant=Variant(changing=3))
    final = h.finished(sent.id, within_s=h.patience_s + 5)[0]
    h.equal("how it ended", (final.kind, final.data["reason"], final.attempt), ("dead", "exhausted", 3))
    most = [start.data["context"]["max_attempts"] for start in h.starts(sent.id)]
    h.equal("the most attempts that each run was told", most, [5, 5, 3])


@scenario("R3")
def delays_grow(h: Harness) -> None:
    """Delays grow as the policy says, within its jitter and its bound."""
    plans = [Plan(steps=(fail(),), policy=policy) for policy in ("standard", "exact", "listed", "capped")]
    plans += [Plan(steps=(fail(),))] * 3
    sent = h.run(plans)
    h.equal("delays without jitter", _waits(h, sent[1].id), [0.3, 0.3 * 1.5, 0.3 * 1.5**2])
    h.equal("delays of a list", _waits(h, sent[2].id), [0.1, 0.6, 0.6])
    h.check(max(_waits(h, sent[3].id)) <= 0.5, f"no delay may be over max_delay, but see {_waits(h, sent[3].id)}")
    shares = {round(wait_s / (0.2 * 2**n), 12) for item in sent[4:] for n, wait_s in enumerate(_waits(h, item.id))}
    h.check(len(shares) == 12, f"jitter should differ by message and attempt, but see {sorted(shares)}")


@scenario("R3")
def delays_are_the_same_everywhere(h: Harness) -> None:
    """The delays of a message are the same wherever it runs."""
    some_id = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
    seen = [POLICIES["standard"].wait_s(attempt, message_id=some_id) for attempt in range(1, 5)]
    h.equal("the delays of a message of this id", [round(wait_s, 9) for wait_s in seen], _DELAYS_OF_THAT_ID)
    for sent in h.run([Plan(steps=(fail(),))] * 2):
        wanted = [POLICIES["standard"].wait_s(attempt, message_id=sent.id) for attempt in range(1, 5)]
        h.equal("the delays that the hooks were told", _waits(h, sent.id), wanted)


_DELAYS_OF_THAT_ID: Final = [0.108867943, 0.207134501, 0.449857953, 0.847471705]


def _waits(h: Harness, id: str) -> list[float]:
    return [record.data["delay_s"] for record in _by_attempt(h.records(id, "retrying"))]


def _by_attempt(records: list[Record]) -> list[Record]:
    """Return records in the order of their attempts: a hook may be called when the next one has begun."""
    return sorted(records, key=lambda record: record.attempt)


@scenario("R4", on=(ORDINARY, PROCESSES))
def a_retry_is_the_same_message(h: Harness) -> None:
    """A retry keeps all but the attempt and the last error."""
    headers = {"trace": "abc-\u00fc", "empty": ""}
    steps = (fail("TransientError"), fail("KeyError"), ask(0.2), RETURN)
    sent = h.run([Plan(steps=steps, queue="vip", priority="critical", expires_s=60, headers=headers)])[0]
    contexts = [start.data["context"] for start in h.starts(sent.id)]
    for context in contexts:
        kept = {key: context[key] for key in ("id", "task", "queue", "priority", "headers", "max_attempts")}
        wanted = {
            "id": sent.id,
            "task": "contract.program.standard",
            "queue": "vip",
            "priority": sent.plan.priority,
            "headers": headers,
            "max_attempts": 5,
        }
        h.equal("what a run was told of itself", kept, wanted)
        h.equal("its time of sending", context["enqueued_at"], contexts[0]["enqueued_at"])
    h.check(
        sent.before - 0.001 <= contexts[0]["enqueued_at"] <= sent.after + 0.001,
        f"it was sent between {sent.before} and {sent.after}, but was told {contexts[0]['enqueued_at']}",
    )
    h.equal("the zone of its time", contexts[0]["zone"], "UTC")
    errors = [context["previous_error"] for context in contexts]
    h.equal("the first error", errors[0], None)
    h.equal("the second error", errors[1], ["taskbridge.contract.program.TransientError", "as the program says"])
    h.equal("the third error", errors[2], ["KeyError", "'as the program says'"])
    h.equal("the fourth error", errors[3], ["taskbridge.retry.Retry", "the program asks for it"])


@scenario("R5", on=(SHORT_LEASE,), where=with_a_server)
def an_outage_loses_nothing(h: Harness) -> None:
    """While the broker is away, a retry and a dead letter wait for it, and nothing is lost."""
    with h.proxy() as proxy:
        h.start_worker(threads=4, url=h.target.at_port(proxy.port))
        plans = (
            Plan(steps=(Step(gate="away", outcome="raise"), RETURN)),
            Plan(steps=(Step(gate="away", outcome="raise"),), policy="once"),
            Plan(steps=(Step(gate="away", outcome="retry", after_s=0), RETURN)),
        )
        sent = h.begin(*plans)
        proxy.cut()
        h.tasks.open("away")
        h.until(lambda: all(h.records(item.id, END) for item in sent), "the end of the first runs")
        h.pause(3)
        proxy.restore()
        h.final(*(item.id for item in sent), within_s=h.patience_s + h.spec.lease_s + 10)
        h.idle(within_s=h.patience_s + h.spec.lease_s + 10)
    kinds = [h.final(item.id)[0].kind for item in sent]
    h.equal("how they ended", kinds, ["succeeded", "dead", "succeeded"])
    # A run whose acknowledgement was cut off is repeated, and so is its dead letter, where ids don't make it one.
    reasons = {letter.reason for letter in h.letters(sent[1].id)}
    h.equal("the reasons of the second one's dead letters", reasons, {"exhausted"})


@scenario("R7")
def an_asked_delay_is_kept(h: Harness) -> None:
    """A delay that the task asks for is kept, uncapped, and costs an attempt."""
    sent = h.run(
        [
            Plan(steps=(ask(1.2), RETURN), policy="capped"),
            Plan(steps=(ask(0.1),), policy="capped"),
            Plan(steps=(ASK, RETURN), policy="exact"),
        ]
    )
    h.equal("a delay over max_delay", _waits(h, sent[0].id), [1.2])
    h.equal("the starts of a task that only asks", len(h.starts(sent[1].id)), 4)
    h.equal("the delay of a retry that asks for none", _waits(h, sent[2].id), [0.3])
    h.equal("the default policy's attempts", RetryPolicy().max_attempts, 5)


@scenario("R7", on=(ORDINARY, PROCESSES))
def a_retry_keeps_what_it_was_raised_from(h: Harness) -> None:
    """A retry that is asked for because of an error names that error: to the next run, to hooks, in a dead letter."""
    sent = h.send(Plan(steps=(ask(0.1, cause="KeyError"), ask(0.1, cause="Abort")), policy="twice"))
    h.finished(sent.id)
    told = [start.data["context"]["previous_error"] for start in h.starts(sent.id)]
    h.equal("what the runs were told", told, [None, ["KeyError", "'as the program says'"]])
    errors = [record for record in h.records(sent.id) if record.data.get("error")]
    hooks = [(record.kind, record.data["error"]) for record in _by_attempt(errors)]
    h.equal("what the hooks were told", hooks, [("retrying", "KeyError"), ("dead", "Abort")])
    letter = h.letters(sent.id)[0]
    h.check("Abort: as the program says" in letter.traceback, f"its letter should tell, but has {letter.traceback!r}")
