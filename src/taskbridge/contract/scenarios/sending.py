"""S: sending."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any, Final

from taskbridge import (
    Bridge,
    BrokerUnavailable,
    DeclarationError,
    EncodeError,
    MessageTooLarge,
    RetryPolicy,
    SendError,
)
from taskbridge.contract.clients import send_by_own_client, with_own_client
from taskbridge.contract.harness import Harness
from taskbridge.contract.odd import nested
from taskbridge.contract.ports import free_port
from taskbridge.contract.program import RETURN, Plan, fail
from taskbridge.contract.registry import (
    ALONE,
    BRIEFLY_UNKNOWN,
    ORDINARY,
    PROCESSES,
    scenario,
    with_a_server,
    with_processes,
)
from taskbridge.contract.rewriting import newer_form, pickled
from taskbridge.contract.scenarios.outages import taken
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import PRIORITIES, QUEUES, Variant, describe
from taskbridge.contract.values import VALUES

_HOUR_S: Final = 3600.0
_IDLE_S: Final = 10.0
"""When a send on a connection that was idle has failed: a dead one must not cost it its whole timeout."""


@scenario("S10", on=(BRIEFLY_UNKNOWN,))
def a_task_is_sent_by_its_name(h: Harness) -> None:
    """A task is sent by its name, at once, later and with options, by a process that does not declare it."""
    name = "contract.stranger.by_name"
    sender = h.bridge if h.target.in_process else h.own_bridge()
    h.equal("what the process declares", sender.declaration_of(name), None)
    handles = [
        sender.send(name, [RETURN.plain()]),
        sender.named(name).using(queue=PRIORITIES, priority="high").send(steps=[RETURN.plain()]),
        sender.named(name).schedule(0.5, [fail().plain(), RETURN.plain()]),
        *sender.send_many([sender.named(name).call(left=1)]),
    ]
    for handle in handles:
        h.own(handle)
    if h.target.in_process:
        h.tasks.declare_stranger(name)
    h.start_worker(variant=Variant(strangers=(name,)), answers=False)
    ends = h.finished(*(handle.id for handle in handles), within_s=h.patience_s + 5)
    told = [(end.kind, end.data["reason"], end.data["queue"], end.attempt) for end in ends]
    queue = QUEUES[0]
    expected = [("succeeded", "", queue, 1), ("succeeded", "", PRIORITIES, 1), ("succeeded", "", queue, 2)]
    h.equal("how they ended", told, [*expected, ("dead", "bad_arguments", queue, 1)])
    error = h.refused(DeclarationError, sender.send, "a\nname")
    h.says(error, "a task's name must be")


@scenario("S11")
def headers_keep_their_types(h: Harness) -> None:
    """Headers that are text, whole numbers, booleans and None arrive so, over a delay and a retry."""
    headers: dict[str, Any] = {"text": "1", "number": -(2**63), "yes": True, "none": None}
    (item,) = h.run([Plan(steps=(fail(), RETURN), delay_s=0.2, headers=headers)])
    seen = [describe(start.data["context"]["headers"]) for start in h.starts(item.id)]
    h.equal("the headers of both runs", seen, [describe(headers)] * 2)
    task = h.tasks.programs["once"]
    odd: tuple[Any, ...] = (1.5, b"x", [1])
    for value in odd:
        h.refused(TypeError, task.using, headers={"odd": value})
    h.refused(EncodeError, task.using(headers={"large": 2**63}).send, [RETURN.plain()])


@scenario("S1", on=(ALONE,))
def the_broker_has_what_was_sent(h: Harness) -> None:
    """The broker has a message when send returns."""
    for count in (1, 2, 3):
        h.send(Plan(steps=(RETURN,)))
        h.equal("what waits after send", h.bridge.counts().waiting["contract"], count)
    h.send(Plan(steps=(RETURN,), delay_s=_HOUR_S))
    h.equal("what is delayed after schedule", h.bridge.counts().delayed, 1)


@scenario("S1", on=(ALONE,), where=with_processes)
def a_sender_may_die(h: Harness) -> None:
    """A sender that dies after send has sent."""
    h.in_python("import os\ntasks.default.send([{}])\nos.kill(os.getpid(), 9)")
    h.equal("what waits when the sender is dead", h.bridge.counts().waiting["contract"], 1)
    h.in_python("import os\ntasks.default.schedule(3600, [{}])\nos.kill(os.getpid(), 9)")
    h.equal("what is delayed when the sender is dead", h.bridge.counts().delayed, 1)


@scenario("S2", on=(ALONE,), where=with_a_server)
def nobody_listens(h: Harness) -> None:
    """A broker that refuses connections is an error in time."""
    tasks = h.tasks_by(h.target.at_port(free_port()), send_timeout_s=2)
    for act in (lambda: tasks.default.send([{}]), lambda: tasks.default.schedule(60, [{}])):
        error = _unavailable_within(h, 2.2, act)
        h.check(not error.maybe_taken, f"nothing can have been taken, but the error says: {error}")


@scenario("S2", "S7", on=(ALONE,), where=with_a_server)
def nobody_answers(h: Harness) -> None:
    """A broker that stops answering is an error in time, and no reason to restart the sender."""
    first = h.tasks.default.send([{}])  # with which Python imports what sending needs; that is no time of the broker's
    with h.proxy() as proxy:
        tasks = h.tasks_by(h.target.at_port(proxy.port), send_timeout_s=2)
        proxy.stall()
        _unavailable_within(h, 2.2, lambda: tasks.default.send([{}]))
        proxy.restore()
        handle = taken(h, lambda: tasks.default.send([{}]), h.patience_s, refusals=0)
        proxy.stall()
        error = _unavailable_within(h, 2.2, lambda: tasks.default.send([{}]))
        h.check(error.maybe_taken, f"it was handed over and may have been taken, but the error says: {error}")
        proxy.restore()
        again = taken(h, lambda: tasks.default.send([{}]), h.patience_s, refusals=0)
        h.start_worker()
        h.final(h.own(first).id, h.own(handle).id, h.own(again).id)


def _unavailable_within(h: Harness, limit_s: float, act: Callable[[], object]) -> BrokerUnavailable:
    with Stopwatch() as watch:
        error = h.refused(BrokerUnavailable, act)
    h.in_time("the error", watch.took_s, limit_s)
    return error


@scenario("S3", on=(ALONE,))
def arguments_must_fit(h: Harness) -> None:
    """Arguments that do not fit are refused where they are sent."""
    task: Any = h.tasks.awkward
    wrong: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
        ((), {}),
        (("q", "t", 1), {"retry": True}),
        (("q", "t", 1, 2), {"retry": True, "expires": 1.0}),
        (("q", "t", 1), {"retry": True, "expires": 1.0, "nmae": "x"}),
        (("q", "t", 1), {"retry": True, "expires": 1.0, "id": 2}),
    )
    for args, kwargs in wrong:
        h.refused(TypeError, task.send, *args, **kwargs)
        h.refused(TypeError, task.schedule, 60, *args, **kwargs)
        h.refused(TypeError, task.call, *args, **kwargs)
    _nothing_was_sent(h)


@scenario("S3", on=(ALONE,))
def parameters_are_not_options(h: Harness) -> None:
    """A parameter may have the name of an option."""
    h.start_worker()
    handle = h.own(h.tasks.awkward.send("vip", "other", id=7, retry=False, expires=0.5))
    h.equal("the queue", h.records(handle.id, "after_send")[0].data["queue"], "contract")
    h.final(handle.id)
    h.equal("what arrived", h.starts(handle.id)[0].data["values"], ["vip", "other", 7, False, 0.5, "x"])


def _nothing_was_sent(h: Harness) -> None:
    counts = h.bridge.counts()
    h.check(not counts.delayed and not any(counts.waiting.values()), f"nothing should be sent, but there is {counts}")
    h.equal("what was sent", [record.kind for record in h.environment.records.all() if record.kind == "after_send"], [])


@scenario("S4", on=(PROCESSES,))
def arguments_arrive_as_they_were(h: Harness) -> None:
    """What goes in comes out, equal and of the same type."""
    sent = [(value, h.own(h.tasks.echo.send(value, named=value))) for value in (*VALUES, math.nan)]
    h.final(*(item.id for _, item in sent))
    for value, item in sent:
        data = h.starts(item.id)[0].data
        h.equal("a positional argument", data["values"], [describe(value)])
        h.equal("a keyword argument", data["named"], describe({"named": value}))
    names = {"self": 1, "task": 2, "request": 3, "message": 4}
    last = h.own(h.tasks.echo.send(**names))
    h.final(last.id)
    h.equal("arguments of any name", h.starts(last.id)[0].data["named"], describe(names))


class _Colour(Enum):
    RED = 1


@dataclass
class _Point:
    x: int


@scenario("S4", on=(ALONE,))
def what_cannot_travel_is_refused(h: Harness) -> None:
    """What cannot travel is refused with its path."""
    for value in (object(), _Colour.RED, _Point(1), 1j, range(3), len, datetime):
        h.equal("the path", h.refused(EncodeError, h.tasks.echo.send, value).path, "args[0]")
        h.equal("the path", h.refused(EncodeError, h.tasks.echo.schedule, 60, 1, value).path, "args[1]")
    error = h.refused(EncodeError, h.tasks.echo.send, {"when": object()})
    h.equal("the path", error.path, 'args[0]["when"]')
    error = h.refused(EncodeError, h.tasks.echo.send, 1, named=[{"a": (1, object())}])
    h.equal("the path", error.path, 'kwargs["named"][0]["a"][1]')
    h.refused(EncodeError, h.bridge.send_many, [h.tasks.echo.call(1), h.tasks.echo.call(object())])
    _nothing_was_sent(h)


_DEPTH: Final = 100
"""How deep a value may be nested, in an argument or a result."""

_JSON_DEPTH: Final = 320
"""How deep none of ours is as JSON; more than the interpreter takes would not come out of an engine's own client."""


_WRAPS: Final[tuple[Callable[[Any], Any], ...]] = (
    lambda item: [item],
    lambda item: {"k": item},
    lambda item: (item,),
    lambda item: {1: item},
    lambda item: frozenset((item,)),
)


@scenario("I3", "S4", on=(ORDINARY, PROCESSES))
def nesting_has_one_limit(h: Harness) -> None:
    """A value of 100 levels arrives as it was; one of 101, or that contains itself, is refused with its path."""
    deepest = [nested(_DEPTH, wrap) for wrap in _WRAPS]
    sent = [h.own(h.tasks.echo.send(value, named=value)) for value in deepest]
    for wrap in _WRAPS:
        error = h.refused(EncodeError, h.tasks.echo.send, 1, nested(_DEPTH + 1, wrap))
        h.equal("the path", error.path, "args[1]")
    endless: list[Any] = []
    endless.append(endless)
    error = h.refused(EncodeError, h.tasks.echo.schedule, 60, named=endless)
    h.equal("the path", error.path, 'kwargs["named"]')
    h.finished(*(item.id for item in sent))
    for value, item in zip(deepest, sent, strict=True):
        h.equal("what arrived", h.starts(item.id)[0].data["values"], [describe(value)])


@scenario("I3", on=(ALONE,), where=with_own_client)
def what_is_nested_too_deeply_is_dead(h: Harness) -> None:
    """A message of another's that is nested more deeply than any of ours is dead at once, and the rest goes on."""
    deep: Any = nested(_JSON_DEPTH)
    send_by_own_client(h.bridge, h.tasks.programs["once"].name, deep, queue=QUEUES[0])
    after = h.send(Plan(steps=(RETURN,)))
    h.start_worker(threads=2)
    h.final(after.id)
    letters = h.until(h.environment.letters, "a dead letter")
    h.idle()
    h.equal("the reasons", [letter.reason for letter in letters], ["undecodable"])


@scenario("I3", on=(ALONE,))
def what_a_worker_would_refuse_is_refused_at_once(h: Harness) -> None:
    """An expiry that no worker could read, a header that is no text and a set of equal hashes are refused at once."""
    half = "\ud800"
    for expires in (datetime.max.replace(tzinfo=timezone.utc), 1e12):
        error = h.refused(EncodeError, h.tasks.echo.using(expires=expires).send, 1)
        h.equal("the path", error.path, "expires")
    h.refused(EncodeError, h.tasks.echo.using(headers={"a": half}).send, 1)
    alike = {number * (2**61 - 1) for number in range(1, 200)}
    for value in (alike, frozenset(alike), dict.fromkeys(alike)):
        h.equal("the path", h.refused(EncodeError, h.tasks.echo.send, value).path, "args[0]")
    _nothing_was_sent(h)
    far = datetime(9000, 1, 1, tzinfo=timezone.utc)
    handle = h.own(h.tasks.echo.using(expires=far).send(5))
    h.start_worker()
    h.final(handle.id)


@scenario("S5")
def many_are_sent(h: Harness) -> None:
    """Many calls are sent at once, and each is run once."""
    handles = h.bridge.send_many([h.tasks.echo.call(number) for number in range(300)])
    h.equal("the number of handles", len({handle.id for handle in handles}), 300)
    for handle in handles:
        h.own(handle)
    h.finished(*(handle.id for handle in handles))
    seen = [[start.data["values"] for start in h.starts(handle.id)] for handle in handles]
    h.equal("what was run for each handle", seen, [[[f"int:{number}"]] for number in range(300)])


@scenario("S5", on=(ALONE,), where=with_a_server)
def a_failure_says_what_was_not_sent(h: Harness) -> None:
    """When many can't be sent, the error says which."""
    tasks = h.tasks_by(h.target.at_port(free_port()), send_timeout_s=1)
    calls = [tasks.echo.call(number) for number in range(3)]
    error = h.refused(SendError, tasks.echo.send_many, calls)
    wanted = [record.id for record in h.environment.records.all() if record.kind == "before_send"]
    h.equal("the ids that were sent", list(error.sent), [])
    h.equal("the ids that were not sent", list(error.unsent), wanted)


_MOST_HEADER_BYTES: Final = 65_536


@scenario("S6", on=(ALONE,))
def size_is_limited(h: Harness) -> None:
    """A message over the limit is refused, one below it arrives."""
    limit = h.spec.max_message_bytes
    h.says(h.refused(MessageTooLarge, h.tasks.echo.send, "x" * limit), str(limit))
    h.refused(MessageTooLarge, h.tasks.echo.schedule, 60, "x" * limit)
    h.refused(MessageTooLarge, h.tasks.echo.using(headers={"h": "x" * limit}).send, 1)
    headers = {"h": "x" * _MOST_HEADER_BYTES}
    h.says(h.refused(MessageTooLarge, h.tasks.echo.using(headers=headers).send, 1), "headers")
    h.says(h.refused(MessageTooLarge, h.tasks.echo.using(headers=headers).schedule, 60, 1), "headers")
    _nothing_was_sent(h)
    handle = h.own(h.tasks.echo.send("x" * (limit - 100)))
    h.start_worker()
    h.final(handle.id)


@scenario("S7")
def threads_send(h: Harness) -> None:
    """Many threads send at once, and each message is run once."""
    handles: list[Any] = []

    def send() -> None:
        handles.extend(h.tasks.echo.send(number) for number in range(5))

    threads = [threading.Thread(target=send) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    h.equal("the number of messages", len({handle.id for handle in handles}), 160)
    for handle in handles:
        h.own(handle)
    h.finished(*(handle.id for handle in handles))
    h.equal("the starts of each message", {len(h.starts(handle.id)) for handle in handles}, {1})


@scenario("S7", where=with_a_server)
def a_forked_process_sends(h: Harness) -> None:
    """A forked process sends, and so does its parent."""
    printed = h.in_python(
        "import os\n"
        "def send():\n"
        "    os.write(1, tasks.default.send([{}]).id.encode() + b'\\n')\n"
        "send()\n"
        "child = os.fork()\n"
        "for _ in range(5):\n"
        "    send()\n"
        "if child:\n"
        "    raise SystemExit(os.waitpid(child, 0)[1] != 0)\n"
        "else:\n"
        "    os._exit(0)\n"
    )
    ids = printed.split()
    h.equal("the number of messages", len(set(ids)), 11)
    h.finished(*ids)
    h.equal("the starts of each message", {len(h.starts(each)) for each in ids}, {1})


@scenario("S7", where=with_a_server)
def a_dropped_connection_loses_nothing(h: Harness) -> None:
    """A connection that was dropped unnoticed loses nothing."""
    with h.proxy() as proxy:
        tasks = h.tasks_by(h.target.at_port(proxy.port), send_timeout_s=_IDLE_S)
        ids: list[str] = []
        for _ in range(4):
            ids.append(h.own(tasks.default.send([{}])).id)
            proxy.drop()
            h.pause(0.1)
            ids.append(h.own(tasks.default.schedule(0.5, [{}])).id)
            proxy.drop()
            h.pause(0.1)
        h.final(*ids)
    h.idle()
    # A confirmation that was cut off makes the message be sent again; nothing here is cut off while it is awaited.
    h.equal("the starts of each message", {len(h.starts(each)) for each in ids}, {1})


@scenario("S7", on=(ALONE,), where=with_a_server)
def a_connection_that_died_idle_is_made_again(h: Harness) -> None:
    """A connection that died while nobody used it, three heartbeats ago, loses nothing."""
    with h.proxy() as proxy:
        tasks = h.tasks_by(h.target.beating(h.target.at_port(proxy.port), 1), send_timeout_s=_IDLE_S)
        ids = [h.own(tasks.default.send([{}])).id]
        proxy.stall()
        h.pause(3.5)
        proxy.drop()
        proxy.restore()
        ids += [h.own(tasks.default.send([{}])).id, h.own(tasks.default.schedule(0.2, [{}])).id]
    h.start_worker()
    h.finished(*ids)
    h.equal("the starts of each message", {len(h.starts(each)) for each in ids}, {1})


def _across_releases(target: Target) -> str:
    return "its sender and its worker are always of one release" if target.address.engine == "inline" else ""


@scenario("S8", on=(BRIEFLY_UNKNOWN,), where=_across_releases)
def a_newer_form_waits(h: Harness) -> None:
    """A message of a newer form waits for a newer worker, as an unknown task does, and is not run by this one."""
    h.start_worker()
    newer = h.send_rewritten(newer_form)
    older = h.send(Plan(steps=(RETURN,)))
    h.final(older.id)
    letter = h.until(h.environment.letters, "its dead letter", within_s=h.patience_s + 5)[0]
    h.idle()
    waited_s = letter.died_at - newer.before
    grace_s = h.spec.unknown_task_grace_s
    h.check(waited_s >= grace_s, f"it should wait {grace_s} s for a newer worker, but waited {waited_s:.3f} s")
    h.equal("the reason why it is dead", letter.reason, "unknown_task")
    h.equal("its runs", h.starts(newer.id), [])


@scenario("S9", on=(ALONE,), where=_across_releases)
def a_pickle_is_dead(h: Harness) -> None:
    """A pickle is never loaded, and is dead."""
    h.start_worker()
    folder = h.environment.folder / "made-by-a-pickle"
    sent = h.send_rewritten(pickled(str(folder)))
    h.until(h.environment.letters, "a dead letter")
    h.idle()
    h.equal("the reasons of the dead letters", [letter.reason for letter in h.environment.letters()], ["undecodable"])
    h.check(not folder.exists(), "the pickle was loaded")
    h.equal("its runs", h.starts(sent.id), [])


@scenario("S9", on=(BRIEFLY_UNKNOWN,))
def only_declared_tasks_run(h: Harness) -> None:
    """What is no declared task is not run, though it can be imported."""
    stranger = Bridge("inline://?threads=0")
    h.start_worker()
    folders = [h.environment.folder / f"made-{number}" for number in range(3)]
    names = ("os.mkdir", "os:mkdir", "contract.Echo")
    tasks = [stranger.task(name=name)(os.mkdir) for name in names]
    calls = [task.call(str(folder)) for task, folder in zip(tasks, folders, strict=True)]
    handles = [h.own(handle) for handle in h.bridge.send_many(calls)]
    h.finished(*(handle.id for handle in handles))
    h.equal("what was made", [folder for folder in folders if folder.exists()], [])
    h.equal(
        "the reasons", [[letter.reason for letter in h.letters(sent.id)] for sent in handles], [["unknown_task"]] * 3
    )


@scenario("S9", where=with_own_client)
def a_plain_client_sends(h: Harness) -> None:
    """A message of the engine's own client runs under the default options."""
    sent_id = send_by_own_client(h.bridge, h.tasks.default.name, [fail().plain(), RETURN.plain()], queue="vip")
    h.finished(sent_id)
    starts = h.starts(sent_id)
    h.equal("its attempts", [start.attempt for start in starts], [1, 2])
    contexts = [start.data["context"] for start in starts]
    h.equal("its queue", {context["queue"] for context in contexts}, {"vip"})
    h.equal("its priority", {context["priority"] for context in contexts}, {"normal"})
    h.equal("its most attempts", {context["max_attempts"] for context in contexts}, {RetryPolicy().max_attempts})
