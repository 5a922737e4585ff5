"""L: dead letters, and what is done with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from taskbridge import DeadEntry, NoSuchDeadLetter
from taskbridge.contract import cleaning
from taskbridge.contract.harness import Harness
from taskbridge.contract.program import Plan, fail
from taskbridge.contract.registry import BURIAL, scenario

# The scenarios share an environment: each that filters has a task or a queue for itself.

_EXPIRES_S: Final = 15.0
"""A message starts within this, though all scenarios begin at once."""


@scenario("L1", on=(BURIAL,))
def a_dead_letter_tells_all(h: Harness) -> None:
    """A dead letter tells what was to be done, what went wrong, how often, where and when."""
    plan = Plan(
        steps=(fail("IndexError"), fail("PermanentError")),
        policy="giving_up",
        queue="vip",
        priority="high",
        headers={"trace": "abc-\u00fc"},
    )
    sent = h.run([plan])[0]
    entry = h.bridge.dead.get(sent.id)
    seen = (entry.reason, entry.task, entry.queue, entry.priority, entry.attempts, entry.replays)
    h.equal("what it tells", seen, ("gave_up", "contract.program.giving_up", "vip", sent.plan.priority, 2, 0))
    h.equal("its arguments", entry.arguments, repr(plan.plain_steps()))
    h.equal("its headers", entry.headers, plan.headers)
    error = None if entry.error is None else (entry.error.type, entry.error.message)
    h.equal("its error", error, ("taskbridge.contract.program.PermanentError", "as the program says"))
    h.check("in _program" in entry.traceback, f"it should tell where, but has {entry.traceback!r}")
    h.check(entry.worker is not None, "it should tell which worker buried it")
    died_at = None if entry.died_at is None else entry.died_at.timestamp()
    enqueued_at = None if entry.enqueued_at is None else entry.enqueued_at.timestamp()
    if died_at is None or enqueued_at is None:
        h.fail(f"it should tell when, but tells {entry}")
    h.check(
        sent.before - 0.001 <= enqueued_at <= sent.after + 0.001, f"it was sent at {sent.before}, not {enqueued_at}"
    )
    h.check(enqueued_at <= died_at <= h.bridge.now() + 0.001, f"it died after {enqueued_at}, not at {died_at}")
    h.refused(NoSuchDeadLetter, h.bridge.dead.get, "there-is-no-such-id")


@scenario("L1", on=(BURIAL,))
def dead_letters_are_found(h: Harness) -> None:
    """Dead letters are found by task, reason and queue, the oldest first, page by page."""
    once = [h.run([Plan(steps=(fail(),), policy="once", queue="routed")])[0].id for _ in range(3)]
    gave_up = h.run([Plan(steps=(fail("SystemExit"),), policy="instant", queue="routed")])[0].id
    mine = [*once, gave_up]

    def ids(**filters: str) -> list[str]:
        entries = h.bridge.dead.list(limit=None, **filters).entries
        return [entry.id for entry in entries if entry.id in mine]

    h.equal("all of them", ids(), mine)
    h.equal("those of a task", ids(task="*.once"), once)
    h.equal("those with a reason", ids(reason="gave_up"), [gave_up])
    h.equal("those of a queue", ids(queue="routed"), mine)
    h.equal("those of another queue", ids(queue="urgent"), [])
    h.equal("those of a task with a reason", ids(task="*.once", reason="gave_up"), [])
    first = h.bridge.dead.list(queue="routed", limit=3)
    second = h.bridge.dead.list(queue="routed", limit=3, after=first.next)
    h.equal("two pages", [[entry.id for entry in page.entries] for page in (first, second)], [once, [gave_up]])
    h.equal("what follows the last page", second.next, None)


@scenario("L1", on=(BURIAL,))
def secrets_are_not_shown(h: Harness) -> None:
    """What the application's own function takes out is not shown, and is still there for a replay."""
    sent = h.run([Plan(steps=(fail(),), policy="once", headers={"secret": "yes"})])[0]
    dead = h.bridge.dead

    @dead.redact
    def hide(entry: DeadEntry) -> DeadEntry:
        return replace(entry, args=("***",)) if entry.id == sent.id else entry

    h.equal("the arguments that are shown", dead.get(sent.id).arguments, "'***'")
    listed = [entry.arguments for entry in dead.list(limit=None).entries if entry.id == sent.id]
    h.equal("those that are listed", listed, ["'***'"])

    @dead.redact
    def fail_to_hide(entry: DeadEntry) -> DeadEntry:
        if entry.id == sent.id:
            raise RuntimeError("a function that fails")
        return hide(entry)

    hidden = dead.get(sent.id)
    shown = (hidden.args, dict(hidden.headers), hidden.traceback, "hidden" in hidden.arguments)
    h.equal("what is shown where the function fails", shown, ((), dict[str, str](), "", True))
    dead.replay(sent.id)
    h.until(lambda: len(h.records(sent.id, "dead")) == 2, "the second death")
    h.idle()
    h.equal("the starts", len(h.starts(sent.id)), 2)


@scenario("L2", on=(BURIAL,))
def a_replay_starts_again(h: Harness) -> None:
    """A replay is the same message at attempt 1, in its own queue and priority, and dies again if it fails again."""
    plan = Plan(steps=(fail("KeyError"),), policy="selective", queue="vip", priority="critical", headers={"a": "b"})
    sent = h.run([plan])[0]
    replayed = h.bridge.dead.replay([sent.id, "not-there"])
    h.equal("what is replayed, and what is not", (replayed.ids, replayed.missing), ((sent.id,), ("not-there",)))
    h.until(lambda: len(h.records(sent.id, "dead")) == 2, "the second death")
    h.idle()
    contexts = [start.data["context"] for start in h.starts(sent.id)]
    h.equal("its attempts", [context["attempt"] for context in contexts], [1, 2, 3, 1, 2, 3])
    h.equal("the error before the replay's first attempt", contexts[3]["previous_error"], None)
    for key in ("id", "task", "queue", "priority", "headers", "enqueued_at", "max_attempts"):
        h.equal(f"its {key}", contexts[3][key], contexts[0][key])
    h.equal("its letters", [letter.id for letter in h.letters(sent.id)], [sent.id])
    entry = h.bridge.dead.get(sent.id)
    h.equal("its attempts and replays", (entry.attempts, entry.replays), (3, 1))


@scenario("L2", on=(BURIAL,))
def a_replay_of_many_starts_those(h: Harness) -> None:
    """A replay of all of a task with a reason starts these again, each once, and no other."""
    plans = [Plan(steps=(fail(),), policy="listed")] * 12 + [Plan(steps=(fail("SystemExit"),), policy="listed")] * 2
    sent = h.run(plans)
    ids = [item.id for item in sent]
    replayed = h.bridge.dead.replay_all(task="contract.program.lis*", reason="exhausted")
    h.equal("what is replayed", sorted(replayed.ids), sorted(ids[:12]))
    h.until(lambda: all(len(h.records(each, "dead")) == 2 for each in ids[:12]), "the second deaths")
    h.idle()
    h.equal("their starts", [len(h.starts(each)) for each in ids], [8] * 12 + [1] * 2)
    h.equal("the deaths", [len(h.records(each, "dead")) for each in ids], [2] * 12 + [1] * 2)
    letters = sorted(letter.id for letter in h.environment.letters() if letter.id in ids)
    h.equal("the letters", letters, sorted(ids))


@scenario("L2", on=(BURIAL,))
def a_staggered_replay_starts_by_and_by(h: Harness) -> None:
    """Of a replay that is staggered, each message starts once, when its turn comes and not before."""
    sent = h.run([Plan(steps=(fail(),), policy="twice")] * 4)
    asked_at = h.bridge.now()
    replayed = h.bridge.dead.replay([item.id for item in sent], per_second=1.0)
    h.equal("what is replayed", sorted(replayed.ids), sorted(item.id for item in sent))
    h.until(lambda: all(len(h.records(item.id, "dead")) == 2 for item in sent), "the second deaths")
    h.idle()
    h.equal("their starts", [len(h.starts(item.id)) for item in sent], [4] * 4)
    waited = sorted(h.starts(item.id)[2].at - asked_at for item in sent)
    early = [(turn, waited_s) for turn, waited_s in enumerate(waited) if waited_s < turn]
    h.equal("the turns, of a second each, that came early", early, [])


@scenario("L2", on=(BURIAL,))
def a_replay_forgets_a_past_expiry(h: Harness) -> None:
    """A replay runs though the message has expired since."""
    sent = h.run([Plan(steps=(fail(),), policy="once", expires_s=_EXPIRES_S)])[0]
    h.pause(max(0.0, sent.after + _EXPIRES_S + 0.1 - h.bridge.now()))
    h.bridge.dead.replay(sent.id)
    h.until(lambda: len(h.records(sent.id, "dead")) == 2, "the second death")
    h.idle()
    h.equal("its starts", len(h.starts(sent.id)), 2)


@scenario("L3", on=(BURIAL,))
def what_is_purged_is_gone(h: Harness) -> None:
    """What is purged, by ids or by filters, is gone for good, and nothing else is."""
    mark = {"mark": f"of {h.environment.namespace}, to be purged"}
    plans = [
        Plan(steps=(fail("PermanentError"),), policy="anything", queue=queue, headers=mark)
        for queue in ("left", "right") * 2
    ]
    ids = [item.id for item in h.run(plans)]
    h.equal("what is purged by ids", h.bridge.dead.purge([ids[0], "not-there"]), (ids[0],))
    h.equal("what is purged again", h.bridge.dead.purge(ids[0]), ())
    gone = h.bridge.dead.purge_all(task="contract.program.anything", queue="right")
    h.equal("what is purged by filters", sorted(gone), sorted([ids[1], ids[3]]))
    h.equal("what is left", [letter.id for letter in h.environment.letters() if letter.id in ids], [ids[2]])
    h.equal("what a replay still finds", h.bridge.dead.replay(ids[:2]).missing, tuple(ids[:2]))
    h.idle()
    h.bridge.dead.purge(ids[2])
    h.until(lambda: not cleaning.copies(h.target, h.environment.namespace, mark["mark"]), "the end of the last copy")
    h.equal("the starts", [len(h.starts(each)) for each in ids], [3] * 4)
