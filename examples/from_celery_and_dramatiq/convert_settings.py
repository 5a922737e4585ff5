"""Print Celery's settings as taskbridge's, and what has no equivalent with the reason.

    python convert_settings.py shop/celeryconfig.py
    python convert_settings.py shop/settings.py --namespace CELERY    # Django's, with CELERY_ in front
    python convert_settings.py shop.celery:app                        # the app itself, with all that it was given

The file is run, or the module imported, as Celery does it. Nothing is written, and no server is asked. Old names of
settings (BROKER_URL, CELERYBEAT_SCHEDULE) are known.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from importlib import import_module
from pprint import pformat
from typing import Any, Final

from taskbridge.schedules.from_celery import time_of

OLD: Final = {
    "celerybeat_schedule": "beat_schedule",
    "celeryd_concurrency": "worker_concurrency",
    "celeryd_max_tasks_per_child": "worker_max_tasks_per_child",
    "celeryd_prefetch_multiplier": "worker_prefetch_multiplier",
    "celery_acks_late": "task_acks_late",
    "celery_always_eager": "task_always_eager",
    "celery_default_queue": "task_default_queue",
    "celery_ignore_result": "task_ignore_result",
    "celery_imports": "imports",
    "celery_queues": "task_queues",
    "celery_routes": "task_routes",
    "celery_task_result_expires": "result_expires",
    "celeryd_task_soft_time_limit": "task_soft_time_limit",
    "celeryd_task_time_limit": "task_time_limit",
}
"""Names of settings before Celery 4, where more than the prefix has changed."""

NEEDLESS: Final = {
    "accept_content": "one codec, and nothing is unpickled",
    "beat_scheduler": "workers send by schedules, each tick once; those edited at run time: bridge.schedules.put",
    "broker_connection_retry": "workers wait for the broker, always",
    "broker_connection_retry_on_startup": "workers wait for the broker, always",
    "broker_heartbeat": "set for you",
    "broker_pool_limit": "set for you",
    "broker_transport_options": "visibility_timeout: the setting lease, which a worker renews; the rest is set for you",
    "enable_utc": "every instant is aware",
    "imports": "name the module on the command line: taskbridge worker shop.tasks",
    "include": "name the module on the command line: taskbridge worker shop.tasks",
    "result_extended": "a record has all attempts",
    "result_serializer": "one codec, and nothing is unpickled",
    "task_acks_late": "always late",
    "task_acks_on_failure_or_timeout": "always late, and a failure is settled by the retry policy",
    "task_compression": "messages are not compressed",
    "task_create_missing_queues": "a queue that nobody declares is an error",
    "task_default_delivery_mode": "always durable",
    "task_ignore_result": "for a task: @task(results=False)",
    "task_publish_retry": "send raises BrokerUnavailable within send_timeout",
    "task_queue_max_priority": "four levels, on every broker: @task(priority='high')",
    "task_reject_on_worker_lost": "always",
    "task_remote_tracebacks": "the traceback is in the dead letter and in the record, as text",
    "task_send_sent_event": "Celery's own: bridge.native.conf",
    "task_serializer": "one codec, and nothing is unpickled",
    "task_store_errors_even_if_ignored": "errors are in the dead letters",
    "task_track_started": "always, where there is a store",
    "worker_cancel_long_running_tasks_on_connection_loss": "a run goes on; its message is acknowledged, or runs again",
    "worker_concurrency": "on the command line: taskbridge worker --processes N --threads M",
    "worker_disable_rate_limits": "there are none",
    "worker_hijack_root_logger": "never",
    "worker_log_format": "your own logging counts",
    "worker_pool": "--threads 1 is a pool of processes, more are threads; gevent and eventlet are not tested",
    "worker_prefetch_multiplier": "always 1",
    "worker_send_task_events": "Celery's own: bridge.native.conf",
}
"""Settings that need no equivalent, and why."""

BY_HAND: Final = {
    "task_annotations": "options of @task on each task",
    "task_default_priority": "@task(priority='high') on each task, or using(priority=)",
    "task_default_rate_limit": "missing; give the task a queue and a worker with as many slots",
    "task_soft_time_limit": "@task(time_limit=seconds): the limit that is raised in the task",
    "task_time_limit": "@task(time_limit=seconds)",
    "worker_max_memory_per_child": "taskbridge worker --max-memory-per-child MB",
    "worker_max_tasks_per_child": "taskbridge worker --max-tasks-per-child N",
    "worker_soft_shutdown_timeout": "the setting grace, in seconds",
}
"""Settings whose equivalent is to be written by hand."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", metavar="FILE.py | MODULE[:APP]")
    parser.add_argument("--namespace", default="", help="what the names begin with, such as CELERY")
    arguments = parser.parse_args(argv)
    print(converted(settings_in(arguments.source, arguments.namespace)), end="")
    return 0


def settings_in(source: str, namespace: str = "") -> dict[str, Any]:
    """Return Celery's settings by their names of today."""
    sys.path.insert(0, os.getcwd())
    module, _, name = source.partition(":")
    found = runpy.run_path(module) if module.endswith(".py") else dict(vars(import_module(module)))
    if name:
        found = dict(found[name].conf.table(with_defaults=False, censored=False))
    elif not namespace and (apps := [each for each in found.values() if type(each).__name__ == "Celery"]):
        found = dict(apps[0].conf.table(with_defaults=False, censored=False))
    prefix = f"{namespace.lower()}_" if namespace else ""
    settings: dict[str, Any] = {}
    for key, value in found.items():
        new = key.lower()
        if new.startswith(prefix) and not new.startswith("__") and not callable(value):
            settings[_name_of_today(new, prefix)] = value
    return settings


def _name_of_today(name: str, prefix: str) -> str:
    short = name.removeprefix(prefix)
    for each in (name, short):
        if each in OLD:
            return OLD[each]
    return short.removeprefix("celery_") if short not in (*NEEDLESS, *BY_HAND) else short


def converted(celery: Mapping[str, Any]) -> str:
    """Return Python that configures taskbridge, with a comment for each setting that is not in it."""
    left = dict(celery)
    url = _url(left)
    settings: dict[str, Any] = {}
    comments: list[str] = []
    for name, (key, convert) in CONVERTED.items():
        if name in left:
            value, problems = convert(left.pop(name), left, url)
            comments += [f"{name}: {problem}" for problem in problems]
            if value not in (None, [], {}) or name == "result_expires":  # of which None is for ever
                settings[key] = value
    left.pop("timezone", None)  # it is each schedule's own now
    for name, value in sorted(left.items()):
        if name in NEEDLESS or name in BY_HAND:
            comments.append(f"{name} = {value!r}: {NEEDLESS.get(name) or BY_HAND[name]}")
        elif name.partition("_")[0] in ("task", "worker", "broker", "result", "beat", "event", "control", "database"):
            comments.append(f"{name} = {value!r}: no equivalent is known")
    lines = ["from taskbridge import configure", "", "configure(", f"    {url!r},"]
    for key, value in settings.items():
        lines.append(
            f"    {key}={pformat(value, width=100, sort_dicts=False)},".replace("\n", f"\n    {'':{len(key) + 1}}")
        )
    lines += [")", *(["", "# Not in there:"] if comments else []), *(f"# - {comment}" for comment in comments)]
    return "\n".join(lines) + "\n"


def _url(left: dict[str, Any]) -> str:
    if left.pop("task_always_eager", False):
        left.pop("broker_url", None)
        return f"inline://?at_send={'raise' if left.pop('task_eager_propagates', False) else 1}"
    left.pop("task_eager_propagates", None)
    url = str(left.pop("broker_url", None) or "amqp://guest:guest@localhost//")
    scheme, _, rest = url.partition("://")
    return f"celery+{'amqp' if scheme in ('pyamqp', 'librabbitmq') else scheme}://{rest}"


# Each is given the value, the settings that are left, and the url, and returns a value and what is not in it.

Outcome = tuple[Any, list[str]]


def _same(value: Any, left: dict[str, Any], url: str) -> Outcome:
    return value, []


def _store(value: Any, left: dict[str, Any], url: str) -> Outcome:
    store = str(value or "").removeprefix("db+")
    if not store or store == url.removeprefix("celery+"):
        return None, []
    scheme = store.partition("://")[0].partition("+")[0]
    if scheme in ("redis", "rediss", "sqlite", "postgresql"):
        return store.replace(store.partition("://")[0], scheme, 1), []
    return None, [f"{value!r}: no such store; one of redis://, postgresql://, sqlite:///"]


def _seconds(value: Any, left: dict[str, Any], url: str) -> Outcome:
    return (value.total_seconds() if isinstance(value, timedelta) else value), []


def _queues(value: Any, left: dict[str, Any], url: str) -> Outcome:
    names = value if isinstance(value, Mapping) else [getattr(each, "name", each) for each in value]
    return [name for name in names if name != left.get("task_default_queue")], []


def _routes(value: Any, left: dict[str, Any], url: str) -> Outcome:
    routes: list[tuple[str, str]] = []
    problems: list[str] = []
    for each in value if isinstance(value, (list, tuple)) else [value]:
        pairs: Iterable[Any] = each.items() if isinstance(each, Mapping) else each if isinstance(each, list) else [each]
        for pair in pairs:
            if not isinstance(pair, tuple) or not isinstance(pair[0], str):
                problems.append(f"{pair!r}: a function; write globs, or using(queue=) where you send")
                continue
            glob, where = pair
            queue = where if isinstance(where, str) else where.get("queue")
            if queue is None:
                problems.append(f"{glob}: {where!r} names no queue")
            else:
                routes.append((glob, queue))
    return routes, problems


def _schedules(value: Any, left: dict[str, Any], url: str) -> Outcome:
    zone = left.get("timezone")
    schedules: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for name, entry in value.items():
        try:
            time = time_of(entry["schedule"], zone)
        except ValueError as exc:
            problems.append(f"{name}: {entry['schedule']!r}: {exc}")
            continue
        options = dict(entry.get("options") or {})
        schedules[name] = {"task": entry["task"], **time}
        for key in ("args", "kwargs"):
            if entry.get(key):
                schedules[name][key] = entry[key]
        if "queue" in options:
            schedules[name]["queue"] = options.pop("queue")
        problems += [f"{name}: {option} = {each!r} is an option of @task" for option, each in options.items()]
    return schedules, problems


CONVERTED: Final[Mapping[str, tuple[str, Callable[[Any, dict[str, Any], str], Outcome]]]] = {
    "result_backend": ("store", _store),
    "result_expires": ("result_ttl", _seconds),
    "task_queues": ("queues", _queues),
    "task_default_queue": ("default_queue", _same),
    "task_routes": ("routes", _routes),
    "worker_enable_remote_control": ("remote_control", _same),
    "beat_schedule": ("schedules", _schedules),
}
"""The settings that are converted: taskbridge's name, and how."""

if __name__ == "__main__":
    sys.exit(main())
