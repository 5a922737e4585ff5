"""Celery's consumer, with taskbridge's rules for what can't run; it hangs on the app, whoever starts the worker."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from billiard.pool import MaybeEncodingError
from celery import __version__ as celery_version
from celery.app.trace import LOG_RECEIVED, trace_task
from celery.exceptions import Ignore, ImproperlyConfigured, Reject, Retry, TaskRevokedError
from celery.signals import task_received

from taskbridge.engines import settle
from taskbridge.engines.celery import reading
from taskbridge.engines.celery.carrier import CARRIED, NotCarried, PutOff, Slots
from taskbridge.engines.celery.life import copied
from taskbridge.engines.celery.stock import (
    CeleryConsumer,
    CeleryContext,
    CeleryRequest,
    ExceptionInfo,
    PreforkPool,
    SoloPool,
    ThreadsPool,
    stock,
    worker_state,
)
from taskbridge.engines.celery.surplus import Surplus
from taskbridge.engines.celery.wire import native_queue
from taskbridge.exceptions import BrokerUnavailable, CodecError, NewerFormError
from taskbridge.logs import logger, say
from taskbridge.message import Message
from taskbridge.retry import CancelledVerdict, GivenBack, Verdict

if TYPE_CHECKING:
    from taskbridge.dead import DeadLetters
    from taskbridge.engines.celery.app import CeleryEngine

_log = logger("taskbridge.celery")

_MOST_REMEMBERED: Final = 10_000

_GOODBYE_S: Final = 1.0

_ACCEPTED_S: Final = 1.0  # how long after a connection was lost a child may still say that it has begun with a request
_ACKNOWLEDGING: Final = ("ack_log_error", "reject_log_error")  # the methods of kombu's messages that acknowledge

_NOT_TRACED: Final = {"shadow"}.union(
    name for name in dir(CeleryContext) if name.startswith("_") or callable(getattr(CeleryContext, name))
)
"""Headers of these names would stand in the place of methods and flags of Celery's context of a task.

By `shadow`, a name to be shown, the tracer's log would not tell that the task is taskbridge's (`carrier.is_logged`).
"""

_KNOWN_ENDS: Final = (Ignore, Reject, Retry, Terminated, TimeLimitExceeded, WorkerLostError, MaybeEncodingError)
"""What a pool tells instead of what the tracer returned, and Celery knows how to deal with."""

_received_log: Final = logging.getLogger("celery.worker.strategy")  # noqa: TID251 - it is Celery's


class Request(CeleryRequest):
    """A request for a task of taskbridge's; the worker's consumer is told when it begins and ends."""

    def __init__(self, way: Way, message: Any, parts: reading.Parts) -> None:
        self._way = way
        self._consumer = consumer = way.consumer
        super().__init__(
            message,
            headers=parts.headers,
            body=(parts.args, parts.kwargs, parts.embed),
            on_reject=partial(consumer.call_soon, message.reject_log_error),
            **way.options,
        )
        for name in _NOT_TRACED.intersection(self.request_dict):
            del self.request_dict[name]
        self.is_put_off: bool = False  # whether the message was not run, but waits elsewhere
        self.is_orphan: bool = False  # whether the connection of its message was lost while the task ran
        # When that connection was lost before the task ran, by the monotonic clock; None if it was not.
        self.dropped_at: float | None = None
        self.time_limits: Any = None, None  # a plain client's are left out: they are never retried (rule T1)
        self.expires: Any = None  # the rule for it is taskbridge's own (X1)
        consumer.begins(self)

    def execute_using_pool(self, pool: Any, **options: Any) -> Any:
        """Have the pool run the task; whatever hinders it concerns this message and ends nothing else (rule I1).

        A slot that gets free may call this in the main loop, far from where the message was received.
        """
        if self._consumer.slots is not None:
            if self.revoked():
                raise TaskRevokedError(self.id)
            return self._consumer.slots.put(self.run)
        self.tell_tracer(self.message.taskbridge)
        try:
            return stock(super()).execute_using_pool(pool, **options)
        except (TaskRevokedError, OSError):  # not this message's fault
            raise
        except Exception as exc:
            if self.time_start is None:
                self._not_carried(exc)
            else:  # in the pool `solo`, which has run it here
                self.on_failure(ExceptionInfo())
            raise TaskRevokedError(self.id) from exc  # which tells Celery to free the slot

    def tell_tracer(self, carried: Message | Verdict) -> None:
        """Put into what Celery traces what the carrier is to be given; `inspect` shows nothing of it."""
        self.request_dict["delivery_info"] = {**self.delivery_info, CARRIED: carried}

    def run(self) -> None:
        """Run the task in this thread, and settle its message; not if its connection was lost, for it comes again."""
        if self.dropped_at is not None:
            return
        try:
            self.run_here()
        except BaseException:  # nobody else would look at it, and its slot would be taken for ever
            self._consumer.call_soon(self.on_failure, ExceptionInfo())

    def run_here(self) -> None:
        """Run the task as Celery's pools do."""
        self.on_accepted(self._way.pid, monotonic())
        self.trace(self.message.taskbridge)

    def trace(self, carried: Message | Verdict) -> None:
        """Have Celery's tracer call the task, which comes to the carrier."""
        self.tell_tracer(carried)
        request = self.request_dict
        request.update(self.body[2], is_eager=False)
        result, error, runtime, text = trace_task(self.task, self.id, self.args, self.kwargs, request, app=self.app)
        self.on_success((1, result, runtime) if error else (0, text, runtime))

    def _not_carried(self, error: Exception) -> None:
        """Deal with an error that came before the carrier: nothing has become of the message yet (rule I2)."""
        worker_state.task_ready(self)
        self._consumer.ends(self, has_ended=False)
        self._consumer.call_soon(self._consumer.failed, self.message, error)

    def on_success(self, failed__retval__runtime: Any, **options: Any) -> None:
        """Deal with what the tracer returned, or with what the pool `solo` tells of an error that ends a process."""
        if isinstance(failed__retval__runtime, ExceptionInfo):
            self.on_failure(failed__retval__runtime)
        elif failed__retval__runtime[:2] == (0, None):  # not even a text of what was returned: nothing was called
            self._not_carried(NotCarried("Celery could not make the context of the task"))
        else:
            stock(super()).on_success(failed__retval__runtime, **options)

    def on_failure(self, exc_info: Any, *args: Any, return_ok: bool = False, **options: Any) -> None:
        """Deal with what the task raised, or if that is not `return_ok`, with what hindered the tracer or the pool.

        The latter may have come before the run or after it. Then the message is requeued, and its mark decides.
        """
        error = exc_info.exception
        error = getattr(error, "exc", error)  # pools wrap what comes from a child
        if isinstance(error, NotCarried):
            self._not_carried(error)
            return
        is_lost = isinstance(error, WorkerLostError)
        if not return_ok and not isinstance(error, _KNOWN_ENDS):
            _log.error("task %s id %s: its run has an unknown end: %s", self.name, self.id, exc_info.traceback)
            exc_info.exception = Reject("it is not known what became of it", requeue=True)
            is_lost = True
        self.is_put_off = isinstance(error, PutOff)
        if is_lost and self.worker_pid:
            self.on_reject: Any = partial(self._consumer.return_lost, self)
        stock(super()).on_failure(exc_info, *args, return_ok=return_ok, **options)
        if isinstance(error, Ignore) and not self.is_put_off:  # discarded: Celery would leave it as started
            self.send_event("task-revoked", terminated=False, signum=None, expired=error.args == ("expired",))

    def send_event(self, type: str, **fields: Any) -> None:
        """Send an event about the task; what it returned is not shown."""
        stock(super()).send_event(type, **({**fields, "result": "None"} if "result" in fields else fields))

    def info(self, safe: bool = False) -> Any:
        """Return what `inspect` tells; no argument that is not to be shown."""
        return stock(super()).info(safe=safe or self._consumer.dead.redacts)

    def acknowledge(self) -> None:
        """Acknowledge the message: its verdict has been carried out, or another one of its attempt is on its way."""
        # Else the one that is on its way would be taken for a run that has ended.
        self._consumer.ends(self, has_ended=not self.is_put_off)
        if self.time_start is None:  # revoked by remote control
            self._consumer.cancel(self.message)
        elif not self.acknowledged:
            self.acknowledged: bool = True
            self._consumer.acknowledge_soon(self.message)

    def cancel(self, pool: Any, *args: Any, **options: Any) -> None:
        """Interrupt the run: the worker stops at once, or it has lost its connection and is to stop runs then."""
        self.app.engine.life.announce_signal(self.worker_pid)
        stock(super()).cancel(pool, *args, **options)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Let the run go on that remote control has revoked: Celery would acknowledge a message that has no end."""
        _log.warning("task %s id %s is revoked, but runs and goes on", self.name, self.id)

    def reject(self, requeue: bool = False) -> None:
        """Return the message: the attempt has not happened."""
        self._consumer.ends(self, has_ended=False)
        stock(super()).reject(requeue)


class Way:
    """How the messages of one task come to the pool: what Celery calls the task's strategy."""

    def __init__(self, task: Any, consumer: Any) -> None:
        self.task: Any = task
        self.consumer: Any = consumer
        self.pid: int = os.getpid()
        self.options: Final[dict[str, Any]] = {
            "app": consumer.app,
            "hostname": consumer.hostname,
            "eventer": consumer.event_dispatcher,
            "task": task,
            "connection_errors": consumer.connection_errors,
            "decoded": True,
        }

    def __call__(self, message: Any, parts: reading.Parts, *_: Any) -> None:
        """Hand on a message, which has been read; this does what Celery's default strategy does."""
        request = self.request_for(message, parts)
        shown = {"name": request.name, "args": request.argsrepr, "kwargs": request.kwargsrepr}
        if _received_log.isEnabledFor(logging.INFO):
            about = {"id": request.id, **shown, "eta": request.eta}
            _received_log.info(LOG_RECEIVED, about, extra={"data": about})
        if request.revoked():
            return
        task_received.send(sender=self.consumer, request=request)
        if self.sends_events():
            given = request.request_dict
            shown |= {name: given.get(name) for name in ("root_id", "parent_id", "eta")}
            request.send_event("task-received", **shown, retries=given.get("retries", 0), expires=None)
        bucket = self.bucket()
        if bucket is None:
            self._hand_on(request)
            return
        bucket.add(request)
        if len(bucket.contents) == 1:  # else the first one waits already
            self._hand_on_from(bucket)

    def sends_events(self) -> bool:
        """Return whether the worker sends events about tasks."""
        eventer = self.consumer.event_dispatcher
        return bool(eventer and eventer.enabled and (not eventer.groups or "task" in eventer.groups))

    def bucket(self) -> Any:
        """Return what holds the requests of a task with a rate limit; None if it has none."""
        return None if self.consumer.disable_rate_limits else self.consumer.task_buckets[self.task.name]

    def request_for(self, message: Any, parts: reading.Parts) -> Request:
        """Return the request that runs a message."""
        return Request(self, message, parts)

    def _hand_on(self, request: Request) -> None:
        worker_state.task_reserved(request)
        for callback in self.consumer.on_task_message:
            callback(request)
        self.consumer.on_task_request(request)

    def _hand_on_from(self, bucket: Any) -> None:
        """Hand on the requests whose turn has come by the task's rate limit, and look again at that of the next."""
        while bucket.contents:
            if not bucket.can_consume():
                self.consumer.timer.call_after(bucket.expected_time(), self._hand_on_from, (bucket,))
                return
            request = bucket.pop()
            try:
                self._hand_on(request)
            except Exception as exc:  # it ends this message and nothing else (rule I1)
                self.consumer.failed(request.message, exc)


class Consumer(CeleryConsumer):
    """Takes messages for the pool, and deals with those that can't run.

    It knows the attempts that run here, and those that ended here lately. Without a store, a message that may have been
    started elsewhere is sent once more before it is run, counted in `Message.redelivered`.
    """

    def __init__(
        self,
        *args: Any,
        app: Any,
        pool: Any = None,
        worker_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        engine: CeleryEngine = app.engine
        engine.consumer = self
        self._engine = engine
        self._host = engine.host
        self._life = engine.life
        self.dead: DeadLetters = self._host.dead
        self._thread = 0
        self._attempts: settle.Attempts = settle.Attempts()
        self._newer: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._soon: deque[Callable[[], object]] = deque()
        self._writer: Callable[[], None] | None = None
        self._surplus: Surplus | None = None
        self._pauses = engine.host.pauses
        self._left: dict[str, Any] = {}  # the queues that are paused, by native names
        if getattr(pool, "is_green", False):
            raise ImproperlyConfigured(
                "taskbridge can't interrupt tasks in greenlets (rules R8 and T1): use --pool prefork, threads or solo"
            )
        # Workers gossip and mingle to elect leaders and to share revoked ids; here it would only be noise.
        quiet = {**(worker_options or {}), "without_gossip": True, "without_mingle": True}
        super().__init__(*args, app=app, pool=pool, worker_options=quiet, **options)
        if isinstance(pool, SoloPool):
            self.amqheartbeat = 0  # none can be sent while a task runs, and RabbitMQ ends a connection without
        self._call_in_loop: Callable[..., Any] = stock(super()).call_soon
        self.lost: Final = (*self.connection_errors, *self.channel_errors)
        self._has_children = isinstance(pool, PreforkPool)
        self.slots: Slots | None = _slots_of(pool)
        if self.slots is not None:
            self.slots.tell = self._tell
            if getattr(engine.transport, "slots_write", False):
                self.slots.most_untold = max(1, pool.num_processes // 2)  # the broker sends more while the others run
        self._life.opens(self, has_children=self._has_children)

    # From start to end

    def start(self) -> None:
        self._thread = threading.get_ident()
        if self._pauses is not None:
            self._pauses.on_change = partial(self.call_soon, self._keep_to_pauses)
        self._life.start()
        stock(super()).start()

    def stop(self) -> None:
        """Take nothing new."""
        self._life.drain()
        self._stop_gathering()
        if self._surplus is not None and self.connection and self.connection.connected:
            with suppress(*self.lost):
                self.task_consumer.cancel()  # first, or what is given back would come again
                self._surplus.close()
        stock(super()).stop()

    def _stop_gathering(self) -> None:
        """Have each acknowledgement written at once: the main loop is at its end."""
        if self.connection and self.connection.connected:
            stop = getattr(self.connection.connection, "stop_gathering", bool)  # of `fast.reader`
            with suppress(*self.connection_errors):  # then all that was gathered is delivered again
                stop()

    def shutdown(self) -> None:
        """Close the connection, after the pool has ended; what is left goes back."""
        stock(super()).shutdown()
        self._life.ends()

    def on_close(self) -> None:
        """Drop what no slot has begun with, and note it: it is delivered again, on the next connection.

        What runs goes on, and its slots are taken. So no more is fetched on that connection than there are free slots
        (rule A6), until `ends` tells of them. Celery does so too, but in whichever thread ended a task: two threads
        then read from one connection to RabbitMQ, and the main loop waits for ever for a reply that the other one has.
        """
        waiting = [request for request in list(self._attempts.here.values()) if request.time_start is None]
        with self._running_jobs_kept():
            stock(super()).on_close()
        for key, request in list(self._attempts.here.items()):
            if request.dropped_at is not None and request.time_start is None:
                del self._attempts.here[key]  # dropped with an earlier connection, and run by another worker
        for request in waiting:
            request.dropped_at = monotonic()
        orphans = [request for request in self._life.active_requests() if message_of(request) is not None]
        for request in orphans:  # of the user's own Celery tasks nobody tells when they end
            request.is_orphan = True
        self.initial_prefetch_count: int = max(1, self.max_prefetch_count - len(orphans))
        if self._surplus is not None:
            self._surplus.forget()

    def connect(self) -> Any:
        """Return a connection, on which a surplus may come if the broker limits what each queue's consumer is sent."""
        made = stock(super()).connect()
        self._surplus = None
        if self._engine.settings.url.broker == "amqp" and made.qos_semantics_matches_spec:
            self._surplus = Surplus(self, may_return=self._host.store is not None)
            self.initial_prefetch_count = self.max_prefetch_count
        return made

    def _keep_to_pauses(self) -> None:
        """Consume no queue that is paused (rule Z2), and those again that were; in the main loop's thread."""
        consumer, pauses = self.task_consumer, self._pauses
        if consumer is None or pauses is None or self._life.draining:
            return
        paused = {native_queue(self._engine.settings.namespace, queue) for queue in pauses.queues}
        for queue in [each for each in consumer.queues if each.name in paused]:
            self._left[queue.name] = queue
            consumer.cancel_by_queue(queue)
        back = [self._left.pop(name) for name in self._left.keys() - paused]
        if back:
            consumer.queues = [*consumer.queues, *back]
            if self._surplus is None:
                consumer.consume()
            else:
                self._surplus.renew()

    def _fetch_one_more(self) -> None:
        if not self._life.draining and self.qos is not None and self.qos.value < self.max_prefetch_count:
            self.qos.increment_eventually()

    @contextmanager
    def _running_jobs_kept(self) -> Generator[None]:
        """Have the pool remember what its children run; Celery 5.5's forgets it, and then never says how that ended.

        Its message would count as running for ever (celery/concurrency/asynpool.py, AsynPool.flush).
        """
        forgets = self._has_children and celery_version.startswith("5.5.")
        jobs: dict[int, Any] = self.pool._pool._cache if forgets else {}
        running = {number: job for number, job in jobs.items() if job._accepted}
        yield
        jobs.update({number: job for number, job in running.items() if not job.ready()})

    def register_with_event_loop(self, hub: Any) -> None:
        """Watch what Celery watches, and wake-ups."""
        stock(super()).register_with_event_loop(hub)
        self._engine.waker.register(hub)

    def stop_consuming(self) -> None:
        """Take nothing new, soon: the process is about to end."""
        if self.task_consumer is not None:
            self.call_soon(self.task_consumer.cancel)
        if (surplus := self._surplus) is not None:
            self.call_soon(surplus.close)

    def connection_for_write(self, url: Any = None, heartbeat: Any = None) -> Any:
        """Return the connection on which events are sent.

        They are not confirmed: Celery sends them in its main loop, which would wait for a broker that takes nothing.
        """
        unconfirmed = {"confirm_publish": False} if self._engine.settings.url.broker == "amqp" else {}
        made = self.app.connection_for_write(url=url, heartbeat=heartbeat)
        made.transport_options = {**made.transport_options, **unconfirmed}
        return self.ensure_connected(made)

    def on_connection_error_after_connected(self, exc: Any) -> None:
        """Let go of the lost connection, and of that for events: it has probably died with it.

        Celery would say goodbye on that one, and wait for an answer.
        """
        if self._engine.settings.url.broker == "amqp":
            from taskbridge.brokers.rabbitmq.channel import remedy  # here, for its client is not everywhere

            if todo := remedy(exc):
                _log.error("%s%s", exc, todo)
            if self.event_dispatcher:
                with suppress(*self.lost):
                    self.event_dispatcher.connection.collect(socket_timeout=_GOODBYE_S)
        stock(super()).on_connection_error_after_connected(exc)

    def update_strategies(self) -> None:
        """Prepare for every task of the app; for Celery's own only if the user has declared some with its decorator.

        Else only taskbridge's tasks run (rule S9). Celery's are parts of those others: `map`, `chunks`, chords.
        """
        stock(super()).update_strategies()
        of_celery = {name for name, task in self.app.tasks.items() if type(task).__module__ == "celery.app.builtins"}
        if all(name in of_celery or self._host.knows(name) for name in self.app.tasks):
            for name in of_celery:
                del self.strategies[name]

    def free_slots(self) -> int:
        """Return how many more tasks the pool can run at once."""
        slots: int = self.pool.num_processes
        if self._life.is_embedded:  # the requests that Celery knows are those of all workers in this process
            return slots
        return slots - len(worker_state.reserved_requests)

    def has_free_slot(self) -> bool:
        """Return whether the worker is to take another message; tasks of a lost connection have slots, too."""
        if self._life.draining:
            return False
        known = worker_state.reserved_requests  # Celery 5.7 keeps those of a lost connection that run among them
        orphans = [each for each in self._life.active_requests() if getattr(each, "is_orphan", False)]
        return self.free_slots() > sum(each not in known for each in orphans)

    # What is done in the main loop's thread

    def call_soon(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Have something called in the main loop's thread, soon."""
        self._soon.append(partial(p, *args, **kwargs))
        return self.act_soon()

    call_soon_ack = call_soon  # Celery's name for acknowledging and rejecting since 5.6

    def act_soon(self) -> Any:
        """Have the main loop do what waits for it."""
        called = self._call_in_loop(self._act)
        self._engine.wake()
        return called

    def _act(self) -> None:
        """Do what waits; what a call raises goes to the main loop, and the rest is done in its next turn."""
        try:
            while self._soon:
                try:
                    call = self._soon.popleft()
                except IndexError:  # another thread has taken the last, as the worker ends
                    break
                call()
        finally:
            if self._soon:
                self.act_soon()

    def acknowledge_soon(self, message: Any) -> None:
        """Acknowledge a message whose task has ended, with others: in the main loop, or if that may be in its slot."""
        is_in_slot = self.slots is not None and threading.get_ident() != self._thread
        writer = getattr(message.channel, "writer", None) if is_in_slot else None
        if writer is not None:
            message.ack_log_error(_log, self.lost)
            self._writer = writer
            return
        self._soon.append(partial(message.ack_log_error, _log, self.lost))
        if not is_in_slot:  # else its slot will tell
            self.act_soon()

    def _tell(self) -> None:
        """Write the acknowledgements of slots, in one of them, or have the main loop carry them out."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer()
            except self.lost as exc:  # the main loop connects again, and what comes again is known to have ended
                _log.debug("acknowledgements could not be written: %s", exc)
        if self._soon:
            self.act_soon()

    def flush_acknowledgements(self) -> None:
        """Carry out at once the acknowledgements that wait for the main loop, for it does not run any more."""
        self._stop_gathering()
        with suppress(IndexError):
            while True:
                act = self._soon.popleft()
                if getattr(getattr(act, "func", None), "__name__", "") in _ACKNOWLEDGING:
                    act()

    # Attempts that run here, or have lately

    def begins(self, request: Request) -> None:
        """Note that an attempt is handed to the pool."""
        self._attempts.here[request.message.taskbridge.attempt_key] = request

    def ends(self, request: Request, *, has_ended: bool) -> None:
        """Note that a request needs its slot no more, in whichever thread; see `Attempts.ends`."""
        self._attempts.ends(request.message.taskbridge.attempt_key, has_ended=has_ended)
        if request.is_orphan:
            request.is_orphan = False
            self.call_soon(self._fetch_one_more)
        if self._surplus is not None and self._surplus.is_there:
            self.call_soon(self._surplus.go_on)

    def _state_of(self, message: Message) -> str | None:
        """Return what is known of an attempt, as `Attempts.state_of`."""
        key = message.attempt_key
        request = self._attempts.here.get(key)
        dropped_at = None if request is None or request.time_start is not None else request.dropped_at
        if dropped_at is not None and monotonic() - dropped_at >= _ACCEPTED_S:
            self._attempts.here.pop(key, None)
        return self._attempts.state_of(key)

    def _came_back(self, message: Any, read: Message) -> bool:
        """Deal with a message that was delivered to this worker before, if that is known here (rule A7)."""
        if not (read.redelivered or _is_redelivered(message)):
            return False
        known = self._state_of(read)
        if known is not None:
            say(_log, logging.WARNING, read, "was delivered again: %s", known)
        if known == settle.ENDED:
            self._acknowledge(message.ack_log_error)
        elif known == settle.RUNNING:
            self._in_background(message, lambda: settle.later(self._host, settle.suspect(read), settle.LOOK_AGAIN_S))
        return known is not None

    # Messages

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        hand_on: Callable[[Any], None] = stock(super()).create_task_handler(*args, **kwargs)
        self._left.clear()
        self._keep_to_pauses()  # a new connection's consumer has all queues, and is about to consume

        lost = self.lost

        def on_task_received(message: Any) -> None:
            try:
                self._admit(message, hand_on)
            except NewerFormError as exc:
                self._put_off_newer(message, exc)
            except CodecError as exc:
                self.bury(message, exc)
            except lost:
                raise  # the consumer connects again, and the broker delivers the message again
            except Exception as exc:  # whatever it is, it ends this message and nothing else (rule I1)
                self.failed(message, exc)

        return on_task_received

    def _admit(self, message: Any, hand_on: Callable[[Any], None]) -> None:
        parts = reading.taken_apart(message)
        name: str = parts.headers["task"]
        way: Any = self.strategies.get(name)
        if way is not None and not isinstance(way, Way):
            return hand_on(message)  # the user's own Celery task
        message.taskbridge = read = reading.read(parts, message.delivery_info, self._host)
        if self.dead.redacts:  # what events, `inspect` and logs show
            parts.headers["argsrepr"], parts.headers["kwargsrepr"] = self.dead.shown_arguments(read)
        due_at = reading.instant(parts.headers.get("eta"))
        wait_s = 0.0 if due_at is None else due_at - self._host.now()
        is_redelivered = _is_redelivered(message)
        if wait_s > 0:  # parked, for Celery would hold it in this process's memory (rules D3 and D4)
            due = settle.suspect(read) if is_redelivered else read
            return self._in_background(message, partial(settle.later, self._host, due, wait_s))
        if self._pauses is not None and self._pauses.holds(read):
            put_off = partial(settle.put_off_paused, self._host, read, redelivered=is_redelivered)
            return self._in_background(message, put_off)
        if way is None and name in self.app.tasks and not self._has_children:
            self.update_strategies()  # declared since the worker started; children would not know it
            way = self.strategies.get(name)
        if way is None:
            put_off = partial(settle.put_off_unknown, self._host, read, redelivered=is_redelivered)
            return self._in_background(message, put_off)
        if self._came_back(message, read):
            return None
        begin = partial(self._begin_again, way) if is_redelivered else way
        if self._surplus is not None and (self._surplus.is_there or not self.has_free_slot()):
            return self._surplus.keep(message, partial(begin, message, parts))
        begin(message, parts)
        return None

    def _begin_again(self, way: Way, message: Any, parts: reading.Parts) -> None:
        """Hand on a message that came back, which counts as taken only now: it did not while it waited for a slot."""
        read: Message = message.taskbridge
        told = None
        if self._host.marks is None:
            told = settle.counted(self._host, read, partial(message.headers.get, "x-delivery-count"))
        if told is not None:
            message.taskbridge = read = told
            message.delivery_info["redelivered"] = False  # else it would be counted once more
        if (act := settle.taken_again(self._host, read, is_counted=told is not None)) is not None:
            self._in_background(message, act)
        else:
            way(message, parts)

    def cancel(self, message: Any) -> None:
        """End a message that remote control has revoked, as one that was cancelled."""
        read: Message = message.taskbridge
        self._in_background(message, lambda: settle.finish(self._host.bound(read.task), read, CancelledVerdict()))

    def return_lost(self, request: Request, *_: object) -> None:
        """Requeue a message whose run ended with its child, once the store knows, if it can, that the child is gone."""
        message, marks = request.message, self._host.marks

        def work() -> None:
            with suppress(BrokerUnavailable):
                if marks is not None and self._has_children:
                    marks.gone(message.taskbridge, request.worker_pid, timeout_s=_GOODBYE_S)
            self._acknowledge(message.reject_log_error, requeue=True)

        self._life.background.put(work)

    def _in_background(self, message: Any, act: Callable[[], object]) -> None:
        """Do what has to wait for the broker in another thread, and then acknowledge.

        That thread has more to do, so the pause before a message goes back is left to the main loop's timer.
        """

        def work() -> None:
            pauses: list[float] = []
            try:
                act()
                is_done = True
            except settle.NotSettledError as exc:
                _log.warning("a message goes back: %s", exc)
                is_done = False
            except Exception as exc:
                is_done = settle.not_settled(self._host, message.taskbridge, exc, wait=pauses.append) != GivenBack()
            if is_done:
                self._acknowledge(message.ack_log_error)
            else:
                self.call_soon(self.timer.call_after, sum(pauses), self._return, (message,))

        self._life.background.put(work)

    def _acknowledge(self, method: Callable[..., None], **options: Any) -> None:
        self.call_soon(method, _log, self.lost, **options)

    def failed(self, message: Any, error: Exception) -> None:
        """Deal with an error that nobody foresaw: requeue the message if it could be read (rule I2), else bury it."""
        if getattr(message, "taskbridge", None) is None:
            self.bury(message, error, "internal_error")
            return

        def act() -> None:
            raise error

        self._let_go(message)
        self._in_background(message, act)

    def bury(self, message: Any, error: Exception, reason: str = "undecodable") -> None:
        """Bury a message that can't run, and free its slot if it has one."""
        self._let_go(message)
        message_id = message.headers.get("id") if isinstance(message.headers, dict) else None
        then = partial(self._acknowledge, message.ack_log_error)
        self._life.bury_raw(_raw_of(message), error, reason=reason, message_id=message_id, then=then)

    def _let_go(self, message: Any) -> None:
        for request in copied(worker_state.reserved_requests):
            if request.message is message:
                worker_state.task_ready(request)
                if self.controller.semaphore is not None:
                    self.controller.semaphore.release()
        read: Message | None = getattr(message, "taskbridge", None)
        if read is not None and getattr(self._attempts.here.get(read.attempt_key), "message", None) is message:
            del self._attempts.here[read.attempt_key]

    def _put_off_newer(self, message: Any, error: NewerFormError) -> None:
        """Keep a message that only a newer release can read, and return it later (rule S8), as for unknown tasks.

        It has to stay as it is, so it can't be parked; it is held here unacknowledged, and any worker may have it next.
        """
        now = self._host.now()
        message_id = str(message.headers.get("id"))
        waits, since = self._newer.pop(message_id, (0, now))
        left_s = self._engine.settings.unknown_task_grace_s - (now - since)
        if left_s <= 0:
            self.bury(message, error, "unknown_task")
            return
        self._newer[message_id] = waits + 1, since
        if len(self._newer) > _MOST_REMEMBERED:
            self._newer.popitem(last=False)
        wait_s = min(left_s, 30.0, 2.0 ** min(waits, 5))
        _log.warning("message %s waits %.1f s: %s", message_id, wait_s, error)
        self.qos.increment_eventually()
        if self._surplus is not None:
            self.call_soon(self._surplus.renew)
        self.timer.call_after(wait_s, self._return_newer, (message, self.qos))

    def _return_newer(self, message: Any, qos: Any) -> None:
        qos.decrement_eventually()  # of the message's own connection
        self._return(message)

    def _return(self, message: Any) -> None:
        self._acknowledge(message.reject_log_error, requeue=True)

    # What Celery would drop

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Bury what kombu can't decode (rule Q7); what comes on a control channel is no task's, and only logged."""
        if message.channel is self.task_consumer.channel:
            self.bury(message, exc)
        else:
            _log.error("a message on a control channel can't be read, ignored: %s", exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Bury what Celery can't make a request of (rule Q7)."""
        self.bury(message, exc)


def _slots_of(pool: Any) -> Slots | None:
    """Return the threads of a pool, put in the place of Celery's executor; None for processes, or a user's own pool."""
    if type(pool) is ThreadsPool:
        threads: Any = pool
        threads.executor.shutdown(wait=False)
        threads.executor = Slots(threads.limit)
    executor: object = getattr(pool, "executor", None)
    return executor if isinstance(executor, Slots) else None


def message_of(request: Any) -> Message | None:
    """Return the message of a request, as it was read; None for the user's own Celery task."""
    return getattr(request.message, "taskbridge", None)


def _is_redelivered(message: Any) -> bool:
    return bool((message.delivery_info or {}).get("redelivered"))


def _raw_of(message: Any) -> bytes:
    """Return a message's bytes as they came: of a list's item on Redis, of the body on RabbitMQ."""
    item = getattr(message, "item", None)
    if isinstance(item, bytes):
        return item
    body = message.body
    return body if isinstance(body, bytes) else str(body).encode()
