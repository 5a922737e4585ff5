"""What the three brokers of this engine have in common, on top of Dramatiq's own: slots, consumers, middleware.

Dramatiq lets each queue's consumer prefetch for itself, so that a process holds messages of one queue while all its
threads run those of another. Here a consumer takes a message only for a thread that is free (rule A6), and each message
holds a slot from then until it is done with.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from dramatiq import Broker, Consumer, MessageProxy
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware, MiddlewareError

from taskbridge import locks
from taskbridge.engines.dramatiq.deliveries import Delivery, Reception
from taskbridge.engines.settle import NotSettledError
from taskbridge.exceptions import BrokerUnavailable
from taskbridge.logs import logger

if TYPE_CHECKING:
    from taskbridge.engines.dramatiq.fast.work import WorkQueue

_log = logger("taskbridge.dramatiq")

_BOOT_LOOK_S = 0.2


class Slots:
    """As many slots as threads. Each is free, or held for a message from before it is taken until it is done with."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._changed_at = monotonic()
        self._line: deque[threading.Event] = deque()
        self._lock = locks.Lock()

    def stand_in_line(self, granted: threading.Event) -> None:
        """Wait for one slot: `granted` is set when the caller has it, at once if one is free."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
                self._changed_at = monotonic()
                granted.set()
            else:
                self._line.append(granted)

    def take(self, most: int) -> int:
        """Take up to so many free slots at once, and return how many."""
        with self._lock:
            taken = max(0, min(most, self._free))
            self._free -= taken
            self._changed_at = monotonic()
            return taken

    def keep(self, own: threading.Event) -> bool:
        """Return whether a slot may go on to the next message of its queue: no other queue's consumer waits for one.

        `own` is what the queue's own consumer stands in line with.
        """
        with self._lock:
            self._changed_at = monotonic()
            return all(granted is own for granted in self._line)

    def full_for_s(self) -> float:
        """Return for how long all slots have been held, and always for the same messages; 0 if one is free."""
        with self._lock:
            return 0.0 if self._free > 0 else monotonic() - self._changed_at

    def are_free(self) -> bool:
        """Return whether no message holds a slot."""
        with self._lock:
            return self._free == self.total

    def give_up(self, granted: threading.Event) -> None:
        """Wait no longer for a slot; if it is there, free it."""
        with self._lock:
            if not granted.is_set():
                self._line.remove(granted)
                return
        self.release()

    def release(self, count: int = 1) -> None:
        """Free slots; who waits longest gets them."""
        with self._lock:
            self._changed_at = monotonic()
            while self._line and count > 0:
                self._line.popleft().set()
                count -= 1
            self._free += count


class Arrival(NamedTuple):
    """A message that was taken, and that nobody has looked at yet."""

    consumer: EngineConsumer  # the consumer that took it
    place: Any  # where the broker holds it; what that is, its consumer knows
    body: bytes  # the message's bytes
    redelivered: bool = False  # whether it may have been started before
    times: Callable[[], object] | None = None  # returns how often it was delivered before; None where nobody counts

    def opened(self) -> Delivery | None:
        """Return the message, for the thread that is to run it; None if there is nothing to run."""
        return self.consumer.opened(self)


class EngineBroker(Broker):
    """A Dramatiq broker whose consumers take a message only for a thread that is free, and look at it first."""

    slots: Slots | None = None  # the worker's free threads; None while no worker runs on this broker
    draining: bool = False  # whether nothing is to be taken any more; a signal handler sets it
    booted: threading.Event  # set once the worker may take messages
    stopping: threading.Event  # set once the worker's grace is over: nothing waits for a server any longer
    reception: Reception  # looks at each message
    work: WorkQueue | None = None  # on the fast way, where the worker's threads take their messages from; else None
    _known_listeners: tuple[list[Middleware], dict[tuple[str, tuple[type, ...]], Sequence[Middleware]]] = ([], {})

    # What it tells its middleware

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call what the middleware has for before something, in order; as Dramatiq does, but without what does nothing.

        Raises `MiddlewareError` if one of them wants it to end here.
        """
        name = f"before_{signal}"
        self._tell(name, self._listeners(name, args), args, kwargs, lets_through=MiddlewareError)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call what the middleware has for after something, the last first; as Dramatiq does."""
        if "result" in kwargs and isinstance(args[0], Delivery) and args[0].task_message is not None:
            kwargs["result"] = args[0].result
        name = f"after_{signal}"
        self._tell(name, self._listeners(name, args), args, kwargs)

    def _tell(self, name: str, listeners: Sequence[Middleware], args: Any, kwargs: Any, lets_through: Any = ()) -> None:
        for each in listeners:
            try:
                getattr(each, name)(self, *args, **kwargs)
            except lets_through:
                raise
            except Exception:
                self.logger.critical("%s of %r failed", name, each, exc_info=True)

    def _listeners(self, name: str, args: Sequence[Any]) -> Sequence[Middleware]:
        """Return who is told of a signal: ten are told of each message four times, and most don't listen."""
        of, known = self._known_listeners
        if of != self.middleware:
            of, known = self._known_listeners = list(self.middleware), {}
        unheard = args[0].unheard if args and isinstance(args[0], Delivery) else ()
        found = known.get((name, unheard))
        if found is None:
            listening = [each for each in of if _listens(each, name) and not isinstance(each, unheard)]
            found = known[name, unheard] = listening if name.startswith("before_") else listening[::-1]
        return found

    # The worker's life

    def opens(self, threads: int) -> None:
        """Get ready to consume for so many threads."""
        self.draining = False
        self.booted = locks.Event()
        self.slots = Slots(threads)

    def closed(self) -> None:
        """Give back all that is still in hand: consumers and threads have ended, or been given up."""


def _listens(middleware: Middleware, name: str) -> bool:
    """Return whether a middleware does anything for a signal: it has a method of its own for it."""
    method = getattr(middleware, name, None)
    return method is not None and getattr(method, "__func__", None) is not getattr(Middleware, name, None)


class EngineConsumer(Consumer):
    """Takes messages of one queue, as many as there are free threads, and looks at each before it is run.

    Of our own queues, on the fast way, the thread that runs a message looks at it, and it goes past Dramatiq's consumer
    thread. A subclass says how messages are taken, ended, given back and failed.

    `prefetch` is how many messages it may hold if it has no part in the worker's slots: of a queue of delayed messages,
    which Dramatiq's consumer thread holds until they are due. `__next__` waits for `timeout_ms`.
    """

    def __init__(self, broker: EngineBroker, queue_name: str, prefetch: int, timeout_ms: int) -> None:
        self._engine_broker = broker
        self._queue_name = queue_name
        self._timeout_s = timeout_ms / 1000
        self._is_delayed = queue_name.endswith(".DQ")
        self._slots = Slots(prefetch) if self._is_delayed or broker.slots is None else broker.slots
        self._own_queue = broker.reception.own_queue(queue_name)
        self._work = broker.work if self._slots is broker.slots and self._own_queue is not None else None
        self._ready: deque[Arrival] = deque()
        self._delayed: set[Any] = set()
        self._granted = locks.Event()
        self._is_in_line = False

    # What a broker's own consumer says

    def take(self, most: int, *, soon: bool) -> Sequence[Arrival]:
        """Take up to so many messages, of those that wait now; `soon` if a thread with a message in hand waits for it.

        Raises `BrokerUnavailable` if the broker doesn't give any, or nobody knows; whatever was taken goes back by
        itself.
        """
        raise NotImplementedError

    def wait(self) -> None:
        """Return when there may be something to take, or after a while; raises `BrokerUnavailable`."""
        raise NotImplementedError

    def end(self, place: Any) -> None:
        """Remove a message that is done with, at the latest with the next `take` or `flush`."""
        raise NotImplementedError

    def flush(self) -> None:
        """Remove what is done with."""

    def give_back(self, places: Sequence[Any], *, suspect: bool = False) -> None:
        """Return messages to the front of their queue, in this order; `suspect`: they may have been started."""
        raise NotImplementedError

    def fail(self, message: Delivery) -> None:
        """Move a message to Dramatiq's own dead ones. On a server, not a task's: its dead letter is taskbridge's."""
        raise NotImplementedError

    @property
    def is_closed(self) -> bool:
        """Whether nothing is to be taken now: the worker stops, or the queue is paused (rule Z2)."""
        pauses = self._engine_broker.reception.pauses
        return self._engine_broker.draining or (pauses is not None and self._own_queue in pauses.queues)

    # For Dramatiq's consumer thread

    def __next__(self) -> MessageProxy | None:
        """Return the next message; None if there is none for a while, or no thread for it.

        Raises `ConnectionClosed` if the broker doesn't do its part, whatever the reason; Dramatiq then makes another
        consumer.
        """
        broker = self._engine_broker
        if broker.slots is not None and not broker.booted.wait(_BOOT_LOOK_S):
            return None
        try:
            if self.is_closed:
                self._give_up_slot()
                self._give_back_ready()
                sleep(self._timeout_s)
                return None
            if not self._ready:
                self._fetch()
            return self._next_ready()
        except (BrokerUnavailable, NotSettledError) as exc:
            raise ConnectionClosed(exc) from None

    def _fetch(self) -> None:
        """Take what there are free threads for; wait a little if there is nothing."""
        slots = self._take_slots()
        if slots == 0:
            return
        taken = self._taken(slots)
        if self._work is None:
            self._ready.extend(taken)
        else:
            for arrival in taken:
                self._work.put(arrival)
        if not taken:
            self.wait()

    def _take_slots(self) -> int:
        """Take the free slots; if there are none, wait in line for one, and return 0 if that takes too long."""
        if not self._is_in_line:
            self._is_in_line = True
            self._slots.stand_in_line(self._granted)
        if not self._granted.wait(self._timeout_s):
            return 0
        self._is_in_line = False
        self._granted.clear()
        return 1 + self._slots.take(self._slots.total - 1)

    def _taken(self, slots: int, *, soon: bool = False) -> Sequence[Arrival]:
        """Take messages for slots, and free the slots for which there are none."""
        taken: Sequence[Arrival] = ()
        try:
            taken = self.take(slots, soon=soon)
        finally:
            self._slots.release(slots - len(taken))
        return taken

    def _next_ready(self) -> Delivery | None:
        while self._ready:
            delivery = self._admitted(self._ready.popleft())
            if delivery is not None:
                if self._is_delayed:
                    self._delayed.add(delivery.place)
                return delivery
        return None

    def _give_back_ready(self) -> None:
        places = [arrival.place for arrival in self._ready]
        self._ready.clear()
        self._return(places)

    def _return(self, places: Sequence[Any], *, suspect: bool = False) -> None:
        if places:
            self.give_back(places, suspect=suspect)
            self._delayed.difference_update(places)
            self._slots.release(len(places))

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Return messages to their queue that no thread has begun with."""
        self._return([_delivery(message).place for message in messages])

    def close(self) -> None:
        """Return what no thread was given yet, nor Dramatiq's consumer thread held until it is due.

        Dramatiq forgets what its thread held when the connection breaks (dramatiq/worker.py, ConsumerThread.run).
        """
        self._give_up_slot()
        self._give_back_ready()
        self._return(list(self._delayed))

    def _give_up_slot(self) -> None:
        is_in_line, self._is_in_line = self._is_in_line, False  # the consumer's thread may be at it too
        if is_in_line:
            self._slots.give_up(self._granted)
            self._granted.clear()

    # For any thread

    def opened(self, arrival: Arrival) -> Delivery | None:
        """Look at a message for the thread that is to run it, and return it; None if it is not to be run now.

        Nothing is raised, for a thread of Dramatiq's ends with what is raised where it takes its messages
        (dramatiq/worker.py, WorkerThread.run).
        """
        try:
            if not self.is_closed:
                return self._admitted(arrival)
            self._return([arrival.place])
        except NotSettledError as exc:
            _log.warning("a message of %s goes back to it unread: %s", self._queue_name, exc)
        except Exception:
            _log.exception("a message of %s can't be looked at, and goes back to it", self._queue_name)
        return None

    def _admitted(self, arrival: Arrival) -> Delivery | None:
        """Look at a message, and return it; None if it is done with, and its slot free.

        Raises `NotSettledError` if it goes back to the queue; its slot is free then, too.
        """
        _, place, body, redelivered, times = arrival
        about: dict[str, Any] = {"place": place, "redelivered": redelivered, "times": times}
        try:
            delivery = self._engine_broker.reception.admit(self._queue_name, body, **about)
        except BaseException:
            self._return([place])
            raise
        if delivery is None:
            self._ended(place)
        return delivery

    def ack(self, message: MessageProxy) -> None:
        """Remove a message that is done with, or return one to its queue that goes back; its slot is free then."""
        delivery = _delivery(message)
        if delivery.abandoned:
            self._slots.release()
        elif delivery.returns:
            self._return([delivery.place], suspect=delivery.suspect)
        else:
            self._delayed.discard(delivery.place)
            self.done(delivery.place)

    def done(self, place: Any) -> None:
        """Remove a message, and on the fast way take the next one of its queue in its slot, in one round trip.

        The consumer's own thread would have to be woken for it, and then wake this one: that takes longer than a short
        task. While messages wait for a thread, the round trip waits too: whichever thread takes the last of them makes
        it for all that is done with by then.
        """
        if self._work is None:
            self._ended(place)
        else:
            self.end(place)
            self._work.later(self._exchange)

    def _ended(self, place: Any) -> None:
        self.end(place)
        self.flush()
        self._slots.release()

    def _exchange(self, slots: int) -> Sequence[Arrival]:
        """Remove what is done with, and take messages in its slots, unless another queue's consumer waits for one."""
        try:
            if not self.is_closed and self._slots.keep(self._granted):
                return self._taken(slots, soon=True)
            self._slots.release(slots)
            self.flush()
        except BrokerUnavailable as exc:
            _log.info("no further message could be taken from %s: %s", self._queue_name, exc)
        except Exception:  # see `opened`
            _log.exception("no further message could be taken from %s", self._queue_name)
        return ()

    def nack(self, message: MessageProxy) -> None:
        """Move a message to Dramatiq's own dead ones; its slot is free then."""
        delivery = _delivery(message)
        self._delayed.discard(delivery.place)
        self.fail(delivery)
        self._slots.release()


def _delivery(message: MessageProxy) -> Delivery:
    assert isinstance(message, Delivery)
    return message
