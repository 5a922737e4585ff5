"""R5 and S2 together: the broker is away, or refuses, while workers are in every phase and others send."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from taskbridge import BrokerUnavailable, SendError
from taskbridge.contract.failure import ContractFailure
from taskbridge.contract.harness import STOP_S, Harness, Sent
from taskbridge.contract.program import RETURN, Plan, fail, hold
from taskbridge.contract.registry import ALONE, SHORT_GRACE_AND_LEASE, STORED, scenario, with_a_server
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.contract.target import Target
from taskbridge.contract.tasks import Tasks

T = TypeVar("T")

_log = logging.getLogger("taskbridge.contract")

_SLACK_S: Final = 4.0
_SILENT_S: Final = 25.0
"""How long workers may take to consume again that are told of nothing: until a connection counts as dead."""

Refusal = BrokerUnavailable | SendError

_SEND_TIMEOUT_S: Final = 2.0
"""A tenth of it, by which an error may be late, has to be more than a busy machine keeps a thread waiting."""

_MOST_REFUSALS: Final = 2
"""How often a send may fail after a trouble: on a connection that is dead, and while all connect again."""

_UNCONFIRMED: Final = 2
"""How often more, as long as RabbitMQ, which all others use too, confirms nothing."""

_LASTS_S: Final = 2.0

_HELD_S: Final = 0.5
"""A worker has fetched by then what it fetches ahead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    """Something that keeps a broker from its work.

    Attributes:
        name: What it is.
        begin: Lets it begin.
        end: Lets it be over; returns when the broker works again.
        is_silent: Whether only the connections of before are in trouble, and nobody is told: then sending may fail, and
            workers need the time after which a connection counts as dead.
    """

    name: str
    begin: Callable[[], object]
    end: Callable[[], object]
    is_silent: bool = False


@scenario("R5", "S2", on=(ALONE,), where=with_a_server)
def workers_outlive_lost_connections(h: Harness) -> None:
    """Connections that are cut, or on which nothing is answered, cost workers and senders nothing but time."""
    with h.proxy() as proxy:

        def answer_on_new_ones() -> None:
            proxy.drop()
            proxy.restore()

        outlive(
            h,
            h.target.beating(h.target.at_port(proxy.port), 4),
            [
                Trouble(name="refused", begin=proxy.cut, end=proxy.restore),
                Trouble(name="silent", begin=proxy.stall, end=proxy.restore),
                Trouble(name="silent and then lost", begin=proxy.stall, end=answer_on_new_ones),
                Trouble(name="silent for ever", begin=proxy.freeze, end=lambda: None, is_silent=True),
            ],
        )


@scenario("A7", "R5", on=(STORED,), where=with_a_server)
def what_was_held_on_a_lost_connection_runs_once(h: Harness) -> None:
    """What a worker runs or holds ready as its connection is lost runs once, and what it held does not wait long."""
    _lose_a_connection(h, threads=2)


def _without_marks(target: Target) -> str:
    return with_a_server(target) if target.address.broker == "amqp" else "there are attempt marks on it, always"


@scenario("A7", "R5", on=(ALONE,), where=_without_marks)
def what_is_held_runs_once_without_a_store(h: Harness) -> None:
    """Without a store, too, what a worker runs as its connection is lost runs once, as long as the worker lives."""
    _lose_a_connection(h, threads=3)


def _lose_a_connection(h: Harness, *, threads: int) -> None:
    """Cut the connection of a worker that runs two tasks, and see what becomes of them and of others."""
    with h.proxy() as proxy:
        url = h.target.at_port(proxy.port)
        h.start_worker(threads=threads, url=url, answers=False)
        running = h.begin(*[Plan(steps=(hold("held"),)) for _ in range(2)])
        held = [h.send(Plan(steps=(RETURN,))) for _ in range(4)]
        h.pause(h.scaled(_HELD_S))
        proxy.drop()
        h.pause(_SLACK_S)
        h.tasks.open("held")
        h.finished(*(item.id for item in (*running, *held)), within_s=h.patience_s)
        for item in (*running, *held):
            h.equal("the attempts that were started", [start.attempt for start in h.starts(item.id)], [1])


def outlive(h: Harness, url: str, troubles: Sequence[Trouble]) -> None:
    """Let workers that go this way to the broker live through one trouble after another."""
    h.start_worker(queues=["contract"], threads=5, url=url)
    h.start_worker(queues=["left", "right"], processes=2, url=url)
    h.finished(h.send(Plan(steps=(RETURN,), delay_s=0.5)).id)  # the first one that is delayed has queues declared
    sender = h.tasks_by(url, send_timeout_s=_SEND_TIMEOUT_S)
    taken(h, lambda: sender.default.send([{}]), h.patience_s)
    taken(h, lambda: sender.default.schedule(0.5, [{}]), h.patience_s)
    h.idle()
    for trouble in troubles:
        try:
            _one_trouble(h, sender, trouble)
        except ContractFailure as exc:
            exc.args = (f"while the broker was {trouble.name}: {exc}",)
            raise


def _one_trouble(h: Harness, sender: Tasks, trouble: Trouble) -> None:
    during, after = f"during-{secrets.token_hex(3)}", f"after-{secrets.token_hex(3)}"
    running = [
        h.send(Plan(steps=(hold(during),))),
        h.send_to(h.tasks.unrecorded, Plan(steps=(hold(during),))),  # its slot is free again in the trouble
        h.send(Plan(steps=(replace(fail(), gate=during), RETURN))),
        buried := h.send(Plan(steps=(replace(fail(), gate=during),), policy="once")),
        h.send(Plan(steps=(hold(after),))),
        h.send(Plan(steps=(replace(fail(), gate=during), RETURN), queue="left")),
    ]
    waiting = [h.send(Plan(steps=(RETURN,))) for _ in range(6)]
    delayed = h.send(Plan(steps=(RETURN,), delay_s=1))
    for sent in running:
        h.started(sent.id)
    if trouble.is_silent:
        taken(h, lambda: sender.default.send([{}]), h.patience_s)  # else its connection may be idle for too long
    trouble.begin()
    try:
        h.tasks.open(during)
        began = time.monotonic()
        untaken = set[str]() if trouble.is_silent else _all_refused(h, sender)
        h.pause(max(0.0, _LASTS_S - (time.monotonic() - began)))
    finally:
        trouble.end()
    if trouble.is_silent:
        # Without a record: for one, the bridge may first ask the store for the time (it does so every 30 s), and where
        # the store shares the broker's connections, it finds the dead one by that and sends on a new one.
        _refused(h, BrokerUnavailable, lambda: sender.unrecorded.send([{}]))  # from here on the sender knows
    back_s = h.scaled(_SILENT_S) if trouble.is_silent else h.patience_s + _SLACK_S
    _all_is_well(h, sender, [*running, *waiting, delayed], lambda: h.tasks.open(after), back_s)
    h.check(bool(h.letters(buried.id)), "the message that was about to be buried has no dead letter")
    h.equal(
        "what was run of that which senders were told was not taken", [each for each in untaken if h.starts(each)], []
    )


def _all_refused(h: Harness, tasks: Tasks) -> set[str]:
    """Check that each way to send fails in time, all at once, and return the ids of what was certainly not taken."""
    calls = [tasks.default.call([{}]) for _ in range(3)]
    ways: list[tuple[type[Refusal], Callable[[], object]]] = [
        (BrokerUnavailable, lambda: tasks.default.send([{}])),
        (BrokerUnavailable, lambda: tasks.default.schedule(0.2, [{}])),
        (SendError, lambda: tasks.default.send_many(calls)),
    ]
    with ThreadPoolExecutor(len(ways), "contract-sender") as pool:
        refused = [pool.submit(_refused, h, kind, act) for kind, act in ways]
    return {each for future in refused for each in future.result()}


def _refused(h: Harness, kind: type[Refusal], act: Callable[[], object]) -> list[str]:
    """Check that sending fails in time, and return the ids of what was certainly not taken."""
    before = len(_asked(h))
    with Stopwatch() as watch:
        error = h.refused(kind, act)
    h.in_time(f"the error {error}", watch.took_s, _SEND_TIMEOUT_S * 1.1)
    return [] if error.maybe_taken else _asked(h)[before:]


def _asked(h: Harness) -> list[str]:
    """Return the ids of what this thread was to send so far."""
    here = (os.getpid(), threading.get_ident())
    records = [record for record in h.environment.records.all() if record.kind == "before_send"]
    return [record.id for record in records if (record.pid, record.thread) == here]


def taken(h: Harness, send: Callable[[], T], within_s: float, *, refusals: int = _MOST_REFUSALS) -> T:
    """Send until it is taken, and return what sending returned.

    While all connect again, sending may still fail within its timeout, so often. What may have been taken then runs
    too, and is waited for with all else.
    """
    most = refusals + (_UNCONFIRMED if h.target.address.broker == "amqp" else 0)
    refused: list[BrokerUnavailable] = []

    def sent() -> list[T]:
        try:
            return [send()]
        except BrokerUnavailable as exc:
            refused.append(exc)
            h.check(len(refused) <= most, f"sending failed time and again: {exc}")
            return []

    return h.until(sent, "a message to be taken", within_s=within_s)[0]


def _all_is_well(h: Harness, sender: Tasks, before: Sequence[Sent], finish: Callable[[], None], back_s: float) -> None:
    """Check that each worker consumes each queue again, that the sender sends, and that nothing was lost."""
    began = time.monotonic()
    handle = h.own(taken(h, lambda: sender.default.send([{}]), back_s))
    fresh = [h.send(Plan(steps=(RETURN,), queue=queue)) for queue in ("contract", "left", "right")]
    h.final(handle.id, *(sent.id for sent in fresh), within_s=back_s)
    _log.info("consumed again after %.1f s", time.monotonic() - began)
    finish()
    h.final(*(sent.id for sent in before), within_s=back_s)
    h.idle(within_s=back_s)


@scenario("A4", on=(SHORT_GRACE_AND_LEASE,), where=with_a_server)
def workers_stop_without_their_broker(h: Harness) -> None:
    """A worker that is told to stop does so in time, though its broker is away; what it held is not lost."""
    with h.proxy() as refusing, h.proxy() as silent:
        workers = [
            h.start_worker(queues=[queue], processes=processes, threads=threads, url=h.target.at_port(proxy.port))
            for queue, proxy in (("left", refusing), ("right", silent))
            for processes, threads in ((1, 2), (2, 1))
        ]
        held = h.begin(*[Plan(steps=(hold("held"), RETURN), queue=queue) for queue in ("left", "right") for _ in "123"])
        refusing.cut()
        silent.stall()
        h.pause(h.scaled(_LASTS_S))  # by now they know, and are trying to connect
        for worker in workers:  # one after the other: else they hold up each other
            h.environment.note_end(worker)
            worker.terminate()
            h.ends_in_time(worker, h.spec.grace_s + STOP_S)
    h.tasks.open("held")
    h.start_worker(threads=2)
    h.finished(*(sent.id for sent in held), within_s=h.spec.lease_s + h.patience_s)
