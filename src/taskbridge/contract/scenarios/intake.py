"""I: what arrives on a queue, whoever wrote it."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from taskbridge.contract import deaths
from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.odd import ODD, changing
from taskbridge.contract.odd_errors import COMMANDS, FORGED
from taskbridge.contract.program import RETURN, Plan, Step, hold
from taskbridge.contract.registry import ALONE, BRIEF_PAUSES, scenario, with_processes
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import Variant

_REQUEUES: Final = 5
"""How often a message is requeued that meets unexpected errors."""


def _with_odd_ones(target: Target) -> str:
    return "" if target.address.engine in ODD else "its messages have no form that another sender could write"


@scenario("I1", on=(ALONE,), where=_with_odd_ones)
def odd_messages_are_buried(h: Harness) -> None:
    """An odd message is dead, and the message behind it runs at once, in a process and in threads."""
    odd = ODD[h.target.address.engine]
    behind: list[Sent] = []
    for threads in (1, 2):
        worker = h.start_worker(threads=threads)
        for name, change in odd.items():
            with changing(h.bridge, change):
                h.send(Plan(steps=(RETURN,), policy="once"))
            behind.append(h.send(Plan(steps=(RETURN,))))
            h.final(behind[-1].id)
            buried = len(behind)
            h.until(lambda: len(h.environment.letters()) >= buried, f"a dead letter of the message with {name}")  # noqa: B023
        h.stop(worker)
    letters = h.environment.letters()
    h.equal("the number of dead letters", len(letters), len(behind))
    h.equal("their reasons", {letter.reason for letter in letters} - {"undecodable", "internal_error"}, set[str]())
    h.equal("what waits", {queue: count for queue, count in h.bridge.counts().waiting.items() if count}, {})
    h.equal("the healthy ones' attempts", {start.attempt for item in behind for start in h.starts(item.id)}, {1})


def _with_remote_control(target: Target) -> str:
    engine = target.address.engine
    return with_processes(target) or ("" if engine == "celery" else f"{engine} has no remote control")


@scenario("I5", on=(ALONE,), where=_with_remote_control)
def remote_control_changes_nothing(h: Harness) -> None:
    """Commands that read are answered, those that change something are refused, and what they name runs."""
    worker = h.start_worker(threads=1)
    (running,) = h.begin(Plan(steps=(hold("running"),), policy="once"))
    waiting = h.send(Plan(steps=(RETURN,), policy="once"))
    control = h.bridge.native.control

    def answer(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the worker's answer; a worker that connects anew meanwhile hears nothing of a command."""
        ask = partial(control.broadcast, name, arguments, reply=True, timeout=h.scaled(2), limit=1)
        return dict(h.until(ask, f"an answer to {name}")[0])

    h.equal("the answer to a ping", list(answer("ping", {}).values()), [{"ok": "pong"}])
    commands: dict[str, dict[str, Any]] = {
        "revoke": {"task_id": [waiting.id, running.id], "terminate": True},
        "hello": {"from_node": "another", "revoked": {waiting.id: 0}},
        "rate_limit": {"task_name": h.tasks.programs["once"].name, "rate_limit": "1/h"},
        "time_limit": {"task_name": h.tasks.programs["once"].name, "hard": 0.1, "soft": 0.1},
        "cancel_consumer": {"queue": h.bridge.native.conf.task_default_queue},
        "pool_shrink": {"n": 1},
        "shutdown": {},
    }
    for name, arguments in commands.items():
        reply = answer(name, arguments)
        h.check("refused" in str(reply), f"{name} should be refused, but the answer is {reply}")
    h.tasks.open("running")
    h.equal("how both ended", [final.kind for final in h.finished(running.id, waiting.id)], ["succeeded"] * 2)
    h.equal("their starts", [len(h.starts(item.id)) for item in (running, waiting)], [1, 1])
    h.stop(worker)


@scenario("I2", on=(BRIEF_PAUSES,), where=with_processes)
def an_unexpected_error_requeues(h: Harness) -> None:
    """A message that meets an unexpected error each time waits longer each time, and is dead the sixth time.

    One meets it after its run, and one before it is handed to a slot.
    """
    for queue, place in (("left", deaths.UNEXPECTED), ("right", deaths.ADMITTED)):
        variant = Variant(dies=deaths.named(place, h.target))
        h.start_worker(threads=2, queues=(queue,), variant=variant, answers=False)
    after, before = (
        h.send(Plan(steps=(RETURN,), headers={deaths.UNEXPECTED: "always"}, queue=queue)) for queue in ("left", "right")
    )
    healthy = [h.send(Plan(steps=(RETURN,), queue=queue)) for queue in ("left", "right")]
    kinds = {final.kind for final in h.final(*(item.id for item in healthy))}
    h.equal("what became of the messages behind them", kinds, {"succeeded"})
    pauses_s = [h.spec.requeue_pause_s * 2**number for number in range(_REQUEUES)]
    last = h.started(after.id)
    for number, pause_s in enumerate(pauses_s, start=2):
        again = h.started(after.id, times=number, within_s=pause_s + h.patience_s)
        waited_s = again.at - last.at
        h.check(
            waited_s >= pause_s, f"start {number} should come {pause_s:g} s after the one before, not {waited_s:.2f} s"
        )
        last = again
    for item, starts in ((after, _REQUEUES + 1), (before, 0)):
        final = h.final(item.id)[0]
        h.equal("how it ended", (final.kind, final.data["reason"]), ("dead", "internal_error"))
        h.check(final.at - item.before >= sum(pauses_s), "it should not be dead before all pauses are over")
        h.equal("the attempts that were started", [start.attempt for start in h.starts(item.id)], [1] * starts)
        h.equal("its dead letters", [letter.reason for letter in h.letters(item.id)], ["internal_error"])
        h.check("nobody expected" in h.letters(item.id)[0].traceback, "its letter should have the error's traceback")
    h.idle()


@scenario("I4", on=(ALONE,), where=with_processes)
def what_came_with_a_message_is_escaped(h: Harness) -> None:
    """Text that came with a message forges no line of a log and commands no terminal: ids, headers, errors."""
    worker = h.start_worker(threads=2)
    with changing(h.bridge, ODD[h.target.address.engine]["an id that commands"]):
        h.send(Plan(steps=(RETURN,), policy="once"))
    failing = Step(outcome="raise", error="Commands")
    sent = h.send(Plan(steps=(failing,), policy="once", headers={"from": COMMANDS}))
    h.final(sent.id)
    h.until(lambda: {letter.reason for letter in h.environment.letters()} >= {"undecodable"}, "the odd one's burial")
    shown = h.in_python(
        f"from taskbridge.cli import main\nfor words in ['list'], ['show', {sent.id!r}]:\n    main(['dead', *words])"
    )
    for where, text in (("the worker's log", worker.log()), ("what the command line shows", shown)):
        h.check("Commands" in text, f"{where} should name the error, but is {text!r}")
        found = [char for char in "\x1b\x07\x9b\u202e" if char in text]
        h.equal(f"the control characters in {where}", found, [])
        h.equal(f"the forged lines in {where}", [line for line in text.splitlines() if line.startswith(FORGED)], [])
