"""HA: a broker of several servers, one of which goes away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from taskbridge import BrokerUnavailable, Handle, SendError, UnsupportedError
from taskbridge.contract.harness import Harness, Sent
from taskbridge.contract.program import RETURN, Plan, hold
from taskbridge.contract.proxy import Proxy
from taskbridge.contract.registry import ALONE, STORED, scenario, with_a_server
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.contract.tasks import Tasks

_GO_ON_S: Final = 10.0
"""How long workers may take to go on with another host."""

_SEND_TIMEOUT_S: Final = 10.0
"""RabbitMQ may take seconds to confirm a message."""

_WAIT_S: Final = 3.0
_MANY: Final = 50
"""More replicas than any server has."""


@scenario("HA1", on=(STORED,), where=with_a_server)
def another_host_takes_over(h: Harness) -> None:
    """Where one of two hosts is away, or goes away, senders and workers go on with the other, and nothing is lost."""
    with h.proxy() as first, h.proxy() as second:
        first.cut()
        url = h.target.at_port(first.port, second.port)
        h.start_worker(threads=4, url=url)
        h.finished(h.send(Plan(steps=(RETURN,), delay_s=0.5)).id)  # the first one that is delayed has queues declared
        sender = h.tasks_by(url, send_timeout_s=_SEND_TIMEOUT_S)
        for number, (lost, found) in enumerate([(second, first), (first, second)]):
            _go_over(h, sender, f"held-{number}", lost, found)
        h.idle(within_s=h.patience_s)


def _go_over(h: Harness, sender: Tasks, gate: str, lost: Proxy, found: Proxy) -> None:
    """Let the host in use go away while messages run, wait and are delayed."""
    before = [h.own(sender.default.send([hold(gate).plain()])) for _ in range(2)]
    for sent in before:
        h.started(sent.id)
    before += [h.own(sender.default.send([RETURN.plain()])) for _ in range(4)]
    before += [h.own(sender.default.schedule(1.0, [RETURN.plain()])) for _ in range(2)]
    found.restore()
    lost.cut()
    after = [_sent(h, lambda: sender.default.send([RETURN.plain()])) for _ in range(3)]
    h.final(*(sent.id for sent in after), within_s=h.scaled(_GO_ON_S))
    h.tasks.open(gate)
    h.finished(*(sent.id for sent in before), within_s=h.spec.lease_s + h.patience_s)
    for sent in (*before, *after):
        h.equal("the attempts that were started", [start.attempt for start in h.starts(sent.id)], [1])


def _sent(h: Harness, send: Callable[[], Handle[str]]) -> Sent:
    """Send in time; only what was under way as its connection was lost may fail, and then it may have been taken."""
    with Stopwatch() as watch:
        try:
            handle = send()
        except BrokerUnavailable as exc:
            h.check(exc.maybe_taken, f"what was not taken should have gone to the other host: {exc}")
            handle = send()
    limit_s = 2 * _SEND_TIMEOUT_S if h.target.address.broker == "amqp" else 2 * _WAIT_S
    h.in_time("sending", watch.took_s, limit_s)
    return h.own(handle)


@scenario("HA2", on=(ALONE,))
def so_many_replicas_have_a_message(h: Harness) -> None:
    """With wait_replicas, too few replicas are an error that says so, in time; other brokers than Redis refuse it."""
    if h.target.address.broker != "redis":
        h.says(h.refused(UnsupportedError, h.environment.make_bridge, wait_replicas=1), "wait_replicas")
        return
    tasks = h.tasks_by(h.target.url, send_timeout_s=_WAIT_S, wait_replicas=_MANY)
    plain = Plan(steps=(RETURN,)).plain_steps()
    ways: list[tuple[type[BrokerUnavailable | SendError], Callable[[], object]]] = [
        (BrokerUnavailable, lambda: tasks.default.send(plain)),
        (BrokerUnavailable, lambda: tasks.default.schedule(0.5, plain)),
        (SendError, lambda: tasks.default.send_many([tasks.default.call(plain) for _ in range(3)])),
    ]
    for kind, way in ways:
        with Stopwatch() as watch:
            error = h.refused(kind, way)
        h.in_time(f"the error {error}", watch.took_s, _WAIT_S * 1.1)
        h.says(error, f"of {_MANY} replicas")
        h.check(error.maybe_taken, "a message that Redis has may be run, and the error should say so")
    h.start_worker(threads=2)
    asked = [record.id for record in h.environment.records.all() if record.kind == "before_send"]
    h.finished(*asked)
