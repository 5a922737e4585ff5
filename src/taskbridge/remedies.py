"""What to write instead: for values that can't be sent, and for the words of Celery, Dramatiq and others.

Only errors need it, so it is imported where they are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from taskbridge.exceptions import nearest


def _table(text: str) -> dict[str, str]:
    """Return what to write instead of each word; a line has words, a colon, and that."""
    lines = (line.split(": ", 1) for line in text.strip().splitlines())
    return {word: what for words, what in lines for word in words.split()}


OPTIONS: Final[Mapping[str, str]] = _table("""
bind: leave it and the first parameter out; current() tells what runs, and raise Retry(...) asks for another attempt
base: what is around runs goes into @bridge.around, and what comes after them into hooks, such as @bridge.on('dead')
max_retries retries: write retry=RetryPolicy(max_attempts=...), which counts the first run too
autoretry_for: write retry=RetryPolicy(retry_on=...)
dont_autoretry_for throws retry_when: write retry=RetryPolicy(give_up_on=...)
default_retry_delay retry_backoff retry_kwargs min_backoff backoff: write retry=RetryPolicy(min_delay=...), in seconds
retry_backoff_max max_backoff: write retry=RetryPolicy(max_delay=...), in seconds
retry_jitter: write retry=RetryPolicy(jitter=...), from 0 to 1
rate_limit: there is none; give the task a queue of its own, and that a worker with as few slots as tasks may run
acks_late reject_on_worker_lost acks_on_failure_or_timeout track_started serializer typing: leave it out; it is settled
ignore_result: write results=False
store_results: results are kept where there is a store; results=False keeps none
soft_time_limit timeout: write time_limit, in seconds; it raises TimeLimitExceeded in the task (hard_time_limit ends it)
queue_name routing_key: write queue
on_success on_failure on_retry on_retry_exhausted: add a hook, such as @bridge.on('dead')
link link_error: write task.call(...).then(...) or .on_failure(...), which makes a flow
actor_name: write name
max_age: write expires, in seconds
""")
"""Options of other decorators: what to write here."""

METHODS: Final[Mapping[str, str]] = _table("""
delay enqueue kiq: write send(...)
apply_async: write send(...), schedule(when, ...) for countdown and eta, using(queue=...) for other options
send_with_options: write using(queue=...).send(...), or schedule(when, ...) for a delay
s si signature subtask message message_with_options: write call(...)
then then_call on_failure on_end link link_error pipe: write call(...), which has then, then_call, on_failure and on_end
map starmap chunks: write send_many([task.call(...), ...]), or group(...) if something is to follow
apply run fn: call the task itself, task(...)
retry: in the task, raise Retry(after=..., reason=...)
request: in the task, current() tells what runs
AsyncResult: write bridge.handle(id)
app broker backend: the engine itself is bridge.native
""")
"""Methods of other tasks: what to write here."""

HOOKS: Final[Mapping[str, str]] = _table("""
before_task_publish before_enqueue: write 'before_send'
after_task_publish after_enqueue: write 'after_send'
task_prerun before_process_message: write 'before_run', or @bridge.around for what is around a run
task_success: write 'succeeded'
task_retry: write 'retrying'
task_failure: write 'dead', which comes when nothing is tried any more; 'retrying' comes after the attempts before
task_postrun after_process_message: one of 'succeeded', 'retrying', 'dead' and 'discarded' comes; or see @bridge.around
task_revoked after_skip_message: write 'discarded'
worker_init worker_ready worker_process_init: write 'worker_started'
after_process_boot before_worker_boot after_worker_boot: write 'worker_started'
worker_process_shutdown worker_shutdown before_worker_shutdown after_worker_shutdown: write 'worker_stopping'
""")
"""Celery's signals, and methods of Dramatiq's middleware: which hook to write here."""

COMMANDS: Final[Mapping[str, str]] = _table("""
beat: workers send by schedules themselves; `taskbridge scheduler` does only that
inspect: see `taskbridge running`, `taskbridge queues`, `taskbridge health` and `taskbridge status ID`
control revoke: see `taskbridge cancel ID`, `taskbridge pause QUEUE` and `taskbridge schedules pause NAME`
purge: see `taskbridge dead purge`; what waits in a queue is not deleted by a command
retry requeue: see `taskbridge dead replay ID`
result: see `taskbridge status ID`
multi start run: see `taskbridge worker MODULE --processes N`
call send: tasks are sent from Python, by task.send(...)
tasks: see `taskbridge check MODULE`, which lists them
list: see `taskbridge messages`, `taskbridge queues`, `taskbridge schedules` and `taskbridge dead list`
flower dashboard: see `taskbridge web`, a page that shows what goes on
events monitor: see `taskbridge top`, and `taskbridge failures` for what failed
""")
"""Commands of other command lines: what to write here."""

_BY_ATTRIBUTES: Final[Mapping[str, str]] = {
    "__mapper__": "pass its primary key, and load it in the task",
    "_meta pk": "pass its primary key, and load it in the task",
    **dict.fromkeys(
        ("__dataclass_fields__", "__attrs_attrs__", "model_dump", "_member_map_", "_fields _make", "joinpath"),
        "annotate the parameter, or what the task returns, with {name}, and it arrives as one",
    ),
    "dtype tolist": "pass value.tolist()",
    "cr_await": "await it, and pass what that returns",
    "tobytes release": "pass bytes(value)",
    "extend hex": "pass bytes(value)",
    "isoformat": "pass a date or time of the standard library's own class",
    "read close": "pass its name, or what it holds",
    "_proxy____args": "pass str(value)",
    "__iter__": "pass list(value)",
    "__code__": "pass its name",
    "__subclasses__": "pass its name",
}
"""By attributes that a class has all of: what to do about its values."""


def instead(word: str, foreign: Mapping[str, str], own: Iterable[str] = ()) -> str:
    """Return what to write instead of a foreign word, or the nearest of one's own; an empty string if nobody knows."""
    return f": {foreign[word]}" if word in foreign else nearest(word, own)


def for_value(value: Any) -> str:
    """Return what to do about a value that can't be put in a message."""
    kind = cast("Any", type(value))
    attributes: set[str] = {name for base in kind.__mro__ for name in base.__dict__}
    found = (what for names, what in _BY_ATTRIBUTES.items() if attributes.issuperset(names.split()))
    remedy = next(found, "pass what it is made of, such as text, numbers, lists and dicts")
    return remedy.format(name=kind.__name__.removeprefix("Posix"))
