"""What became of a message."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from taskbridge import ErrorInfo, Message
from taskbridge.contract.failure import ContractFailure
from taskbridge.contract.stores.place import TIMEOUT_S, Place, a_message, expect, soon
from taskbridge.contract.stores.table import check, tables
from taskbridge.durations import moment
from taskbridge.stores.backend import BackendWithTables
from taskbridge.stores.base import Store
from taskbridge.stores.records import MOST_ATTEMPTS, Ending, State, Status

_ERROR = ErrorInfo(type="shop.Refused", message="no \x00 'ünïcode' \U0001f4a5")


def record_of(store: Store, message: Message) -> Status:
    """Return a message's record, which must be there."""
    record = store.records.get(message.id, timeout_s=TIMEOUT_S)
    if record is None:
        raise ContractFailure(f"there is no record of {message.id}")
    return record


def create(store: Store, *messages: Message, delay_s: float = 0.0) -> None:
    """Make records."""
    store.records.create([(message, delay_s) for message in messages], timeout_s=TIMEOUT_S)


def start(store: Store, message: Message, *, at: float | None = None) -> None:
    """Record a start, and return when everybody sees it."""
    at = time.time() if at is None else at
    store.records.started(message, worker="host:1", at=at)
    soon(lambda: _state(store, message), lambda state: state == "running", "after its start")


def _state(store: Store, message: Message) -> State | None:
    record = store.records.get(message.id, timeout_s=TIMEOUT_S)
    return None if record is None else record.state


def end(store: Store, message: Message, state: State, **fields: Any) -> State | None:
    """Record an end, and return the state that it left."""
    given: dict[str, Any] = {"at": time.time(), **fields}
    ending = Ending(state=state, **given)
    return store.records.ended(message, ending, timeout_s=TIMEOUT_S)


def settled(store: Store) -> None:
    """Return when starts that were written before this have arrived, though nobody waits for them."""
    for _ in range(2):  # those that are written together may become visible in any order
        create(store, probe := a_message())
        start(store, probe)


@check()
def a_record_says_what_was_sent(p: Place) -> None:
    """A record is there as soon as it was made, and says what was sent, and when it is due."""
    store, other = p.store(), p.store()
    now, later = a_message(task="shop.tâsk"), a_message(queue="slow", enqueued_at=1_700_000_000.123456)
    create(store, now)
    create(store, later, delay_s=60)
    wanted = Status(id=now.id, task="shop.tâsk", queue="mail", state="queued", enqueued_at=moment(now.enqueued_at))
    expect(record_of(other, now), wanted, "of a message sent now")
    seen = record_of(other, later)
    expect(
        (seen.state, seen.queue, seen.enqueued_at),
        ("scheduled", "slow", moment(later.enqueued_at)),
        "of one sent for later",
    )
    expect(seen.due_at, moment(later.enqueued_at + 60), "when it is due")
    expect(store.records.get("nobody", timeout_s=TIMEOUT_S), None, "of a message that was never sent")


@check()
def many_records_are_made_at_once(p: Place) -> None:
    """Any number of records is made by one call."""
    store, messages = p.store(), [a_message() for _ in range(1201)]
    create(store, *messages)
    for message in (messages[0], messages[600], messages[1200]):
        expect(record_of(store, message).state, "queued", "of one of many")


@check()
def making_a_record_overwrites_none(p: Place) -> None:
    """A record that is there stays as it is: a worker may have been faster than its sender."""
    store, message = p.store(), a_message()
    start(store, message)
    create(store, message, delay_s=60)
    expect(record_of(store, message).state, "running", "made after its start")
    end(store, message, "done", result_json="7")
    create(store, message)
    expect(record_of(store, message).result_json, "7", "made after its end")


@check()
def a_record_tells_of_each_attempt(p: Place) -> None:
    """A record tells who ran each attempt, when, and why it failed."""
    store, other, message = p.store(), p.store(), a_message()
    create(store, message)
    store.records.started(message, worker="one:1", at=1000.5)
    soon(lambda: record_of(other, message).state, lambda state: state == "running", "after the start")
    end(store, message, "retrying", at=1001.5, due_at=1010.25, error=_ERROR)
    seen = record_of(other, message)
    expect((seen.state, seen.due_at, seen.ended_at), ("retrying", moment(1010.25), None), "between two attempts")
    second = a_message(id=message.id, attempt=2, enqueued_at=message.enqueued_at)
    other.records.started(second, worker="two:2", at=1011.5)
    soon(lambda: record_of(store, message).state, lambda state: state == "running", "after the second start")
    expect(record_of(store, message).due_at, None, "when it is due, as it runs")
    end(other, second, "dead", at=1012.5, reason="exhausted", error=_ERROR, traceback="line one\nlïne two")
    seen = record_of(store, message)
    expect([each.number for each in seen.attempts], [1, 2], "its attempts")
    expect([each.worker for each in seen.attempts], ["one:1", "two:2"], "who ran them")
    runs = [(moment(1000.5), moment(1001.5)), (moment(1011.5), moment(1012.5))]
    expect([(each.started_at, each.ended_at) for each in seen.attempts], runs, "when")
    expect([each.error for each in seen.attempts], [_ERROR, _ERROR], "why they failed")
    expect((seen.state, seen.ended_at, seen.reason), ("dead", moment(1012.5), "exhausted"), "its end")
    expect((seen.error, seen.traceback), (_ERROR, "line one\nlïne two"), "its error")


@check()
def a_result_is_kept_as_it_was(p: Place) -> None:
    """A result comes back as it was written, however long; the start of a run that was never heard of is told too."""
    store, other = p.store(), p.store()
    for result in ("null", '"\\u0000 text"', '"' + "x" * 1_000_000 + '"'):
        message = a_message()
        store.records.started(message, worker="host:1", at=5.0)
        end(store, message, "done", at=6.0, result_json=result)
        seen = record_of(other, message)
        expect(seen.state, "done", "after its end")
        expect(seen.result_json == result, True, f"a result of {len(result)} characters is the same")
        expect(
            [(each.worker, each.started_at, each.ended_at) for each in seen.attempts],
            [("host:1", moment(5.0), moment(6.0))],
            "runs",
        )


@check()
def a_message_may_end_without_a_start(p: Place) -> None:
    """A message that is discarded before it starts has no attempts."""
    store, message = p.store(), a_message()
    create(store, message)
    end(store, message, "discarded", at=9.5, reason="expired")
    seen = record_of(store, message)
    expect(
        (seen.state, seen.ended_at, seen.reason, seen.attempts), ("discarded", moment(9.5), "expired", ()), "its record"
    )


@check()
def a_text_may_hold_what_is_no_character(p: Place) -> None:
    """A reason or a traceback with half a character, or with none, doesn't keep an end from being recorded."""
    store, message = p.store(), a_message()
    create(store, message)
    end(store, message, "dead", reason="no \udc80 file \x00", error=_ERROR, traceback="line \udcff\x00")
    seen = record_of(store, message)
    expect((seen.state, seen.reason[:3], seen.traceback[:5]), ("dead", "no ", "line "), "its record")


@check()
def a_late_start_changes_nothing(p: Place) -> None:
    """A start that arrives after the next attempt's, or after the end, changes nothing."""
    store, message = p.store(), a_message()
    second = a_message(id=message.id, attempt=2)
    create(store, message)
    start(store, second)
    store.records.started(message, worker="late:1", at=time.time())
    settled(store)
    expect(
        [each.number for each in record_of(store, message).attempts], [2], "attempts, after a late start of the first"
    )
    end(store, second, "done", result_json="1")
    before = record_of(store, message)
    for late in (message, second, a_message(id=message.id, attempt=3)):
        store.records.started(late, worker="late:1", at=time.time() + 5)
    settled(store)
    expect(record_of(store, message), before, "after starts that came after its end")


@check()
def a_late_end_changes_nothing(p: Place) -> None:
    """An end of an earlier attempt, and any after the final one, changes nothing."""
    store, message = p.store(), a_message()
    second = a_message(id=message.id, attempt=2)
    create(store, message)
    start(store, message)
    end(store, message, "retrying", due_at=5.0)
    start(store, second)
    end(store, message, "dead", reason="exhausted")
    expect(record_of(store, message).state, "running", "after a late end of the first attempt")
    end(store, second, "done", result_json="1")
    before = record_of(store, message)
    for late in (message, second, a_message(id=message.id, attempt=3)):
        end(store, late, "dead", reason="exhausted")
        end(store, late, "retrying", due_at=5.0)
    expect(record_of(store, message), before, "after ends that came after the final one")


@check()
def an_attempt_ends_once(p: Place) -> None:
    """The first end of an attempt stands."""
    store, other, message = p.store(), p.store(), a_message()
    start(store, message)
    end(other, message, "retrying", due_at=5.0, error=_ERROR)
    end(store, message, "done", result_json="1")
    expect(record_of(store, message).state, "retrying", "after a second end")
    store.records.started(message, worker="again:1", at=time.time())
    settled(store)
    expect(record_of(store, message).state, "retrying", "after a second start")


@check()
def a_run_that_was_given_back_is_no_attempt(p: Place) -> None:
    """A run that was given back is no attempt, and the same attempt may start again, anywhere."""
    store, other, message = p.store(), p.store(), a_message()
    create(store, message)
    start(store, message)
    end(store, message, "queued")
    seen = record_of(store, message)
    expect((seen.state, seen.attempts), ("queued", ()), "given back")
    other.records.started(message, worker="two:2", at=time.time())
    soon(lambda: record_of(store, message).state, lambda state: state == "running", "after it started again")
    expect([each.worker for each in record_of(store, message).attempts], ["two:2"], "who runs it")
    if not p.in_process:
        end(store, message, "queued")
        expect(record_of(store, message).state, "running", "put off by one process while another runs it")


@check()
def a_start_that_its_run_overtook_changes_nothing(p: Place) -> None:
    """A start that arrives after the news that its run was given back changes nothing."""
    store, message, started_at = p.store(), a_message(), time.time()
    store.records.started(message, worker="one:1", at=started_at)
    end(store, message, "queued", at=started_at + 1)
    store.records.started(message, worker="one:1", at=started_at)
    settled(store)
    expect(record_of(store, message).state, "queued", "after a start of before")


@check()
def a_replay_begins_anew(p: Place) -> None:
    """A replay begins the record anew, and what is late of the life before changes nothing."""
    store, message = p.store(), a_message()
    start(store, message)
    end(store, message, "dead", reason="exhausted", error=_ERROR, traceback="lines")
    again = a_message(id=message.id, replays=1)
    create(store, again)
    seen = record_of(store, message)
    expect((seen.state, seen.replays, seen.attempts, seen.error), ("queued", 1, (), None), "replayed")
    expect((seen.reason, seen.traceback, seen.ended_at), ("", "", None), "what was known of its death")
    end(store, message, "dead", reason="late")
    store.records.started(a_message(id=message.id, attempt=9), worker="late:1", at=time.time())
    create(store, message, delay_s=60)
    settled(store)
    expect(record_of(store, message), seen, "after what was late of its first life")
    third = a_message(id=message.id, replays=2)
    start(store, third)
    expect(record_of(store, message).replays, 2, "replayed, and heard of by its start")


@check()
def a_record_of_what_was_not_sent_is_forgotten(p: Place) -> None:
    """A record is forgotten on demand, unless anything was heard of its message."""
    store = p.store()
    unsent, delayed, started, ended, cancelled = (a_message() for _ in range(5))
    create(store, unsent, started, ended, cancelled)
    create(store, delayed, delay_s=60)
    start(store, started)
    end(store, ended, "discarded")
    store.records.cancel(cancelled.id, at=time.time(), timeout_s=TIMEOUT_S)
    ids = [message.id for message in (unsent, delayed, started, ended, cancelled)]
    store.records.forget([*ids, "nobody"], timeout_s=TIMEOUT_S)
    seen = [store.records.get(each, timeout_s=TIMEOUT_S) is not None for each in ids]
    expect(seen, [False, False, True, True, True], "whether they are still there")


@check()
def a_record_tells_of_the_latest_attempts(p: Place) -> None:
    """Of very many attempts a record tells of the latest."""
    store, message = p.store(), a_message()
    for attempt in range(1, MOST_ATTEMPTS + 4):
        this = a_message(id=message.id, attempt=attempt)
        store.records.started(this, worker="host:1", at=time.time())
        end(store, this, "retrying", due_at=5.0)
    start(store, a_message(id=message.id, attempt=MOST_ATTEMPTS + 4))
    numbers = [each.number for each in record_of(store, message).attempts]
    expect(numbers, list(range(5, MOST_ATTEMPTS + 5)), "which it tells of")


@check()
def a_record_is_kept_for_result_ttl(p: Place) -> None:
    """A final record is kept for `result_ttl`, one that isn't final for longer, and all of them if it is None."""
    ttl_s = 1.5
    brief, lasting = p.store(result_ttl=ttl_s), p.store(result_ttl=None)
    final, waiting, kept = a_message(), a_message(), a_message()
    create(brief, final, waiting)
    create(lasting, kept)
    end(lasting, kept, "done", result_json="1")
    ended_at = time.monotonic()
    end(brief, final, "done", result_json="1")
    seen = _state(brief, final)
    if time.monotonic() - ended_at < ttl_s - 0.1:  # else it may be gone
        expect(seen, "done", "at its end")
    gone = lambda: brief.records.get(final.id, timeout_s=TIMEOUT_S)  # noqa: E731
    soon(gone, lambda record: record is None, "after result_ttl")
    expect(record_of(brief, waiting).state, "queued", "of a message that still waits")
    expect(record_of(lasting, kept).state, "done", "with result_ttl=None")


@check(tables)
def tables_are_made_by_many_at_once(p: Place) -> None:
    """Making tables may be done again, and by several at once; what is there stays."""
    stores, message = [p.store() for _ in range(4)], a_message()
    create(stores[0], message)

    def make(store: Store) -> tuple[int, int]:
        assert isinstance(store.backend, BackendWithTables)
        return store.backend.init(timeout_s=TIMEOUT_S)

    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(make, stores))
    expect([before == after for before, after in made], [True], "versions before and after, where there were tables")
    for store in stores:
        store.ping(timeout_s=TIMEOUT_S)
        expect(record_of(store, message).state, "queued", "what was there before")


@check()
def a_record_tells_how_far_a_run_has_come(p: Place) -> None:
    """A record tells how far its latest run has come, as it told last, and nothing of one before."""
    store, other, message = p.store(), p.store(), a_message()
    create(store, message)
    start(store, message)
    for number in range(50):
        store.records.report(message, number, 100, "töld")
    soon(lambda: _progress(other, message), lambda seen: seen == (49, 100, "töld"), "while it runs")
    store.records.report(message, 50, None, "")
    end(store, message, "retrying", due_at=time.time() + 60, error=_ERROR)
    expect(_progress(other, message), (50, None, ""), "between two attempts")
    second = a_message(id=message.id, attempt=2, enqueued_at=message.enqueued_at)
    start(store, second)
    expect(_progress(other, message), None, "in the second attempt")
    store.records.report(second, 1, 1, "")
    end(store, second, "done", result_json="1")
    store.records.report(second, 0, 1, "too late")
    settled(store)
    seen = record_of(other, message)
    expect((_progress(other, message), seen.error), ((1, 1, ""), None), "at its end, and its error")


def _progress(store: Store, message: Message) -> tuple[float, float | None, str] | None:
    progress = record_of(store, message).progress
    return None if progress is None else (progress.done, progress.total, progress.note)
