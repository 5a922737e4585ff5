"""`taskbridge worker`: starts the engine's stock workers and keeps them running."""

from __future__ import annotations

import logging
import os
import signal
import sys
from argparse import Namespace
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from taskbridge import Bridge, observing
from taskbridge.brokers.base import Broker
from taskbridge.cli import command as cli
from taskbridge.cli.applications import others
from taskbridge.cli.output import many, say
from taskbridge.engines.base import WorkerOptions
from taskbridge.exceptions import BrokerUnavailable, NotInstalledError, StoreNotReady
from taskbridge.loading import DJANGO_APP, URL_VARIABLE
from taskbridge.stores.base import Store

_PING_S = 2.0


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # what this process may use, where the system says so
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _opened(arguments: Namespace) -> Bridge:
    """Return the application's bridge; SIGTERM ends even a container's first process while that is loaded."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    return cli.logging_bridge(arguments)


@cli.command(
    "start workers for an application",
    cli.MODULE,
    cli.URL,
    cli.argument("--queues", "A,B", "consume these only; default: all", type=cli.words, default=[]),
    cli.argument(
        "--processes", "N", "default: the processors, %(default)s here", type=cli.count, default=_processors()
    ),
    cli.argument("--threads", "N", "in each process; default: 1", type=cli.count, default=1),
    cli.flag(
        "--no-scheduler", "send nothing by schedules, whatever the setting `scheduler` says; see `taskbridge scheduler`"
    ),
    cli.flag("--watch", "start the workers anew when the code changes; for development"),
    cli.argument(
        "--max-tasks-per-child",
        "N",
        "end a process after N tasks, and start another in its place; default: never",
        type=cli.count,
    ),
    cli.argument(
        "--max-memory-per-child",
        "MB",
        "the same for a process that has had MB megabytes of memory after a task; default: never",
        type=cli.count,
    ),
    cli.argument(
        "--metrics-port",
        "PORT",
        "serve metrics for Prometheus there; 0: any that is free; default: TASKBRIDGE_METRICS_PORT, else none",
        type=cli.port,
        default=os.environ.get("TASKBRIDGE_METRICS_PORT") or None,
    ),
    cli.argument(
        "--metrics-host",
        "HOST",
        "the address to listen on; default: TASKBRIDGE_METRICS_HOST, else 127.0.0.1",
        default=os.environ.get("TASKBRIDGE_METRICS_HOST", "127.0.0.1"),
    ),
    *cli.LOG_ARGUMENTS,
    opens=_opened,
)
def worker(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Start workers for the tasks of MODULE, with the command line of the engine itself, and keep them running.

      taskbridge worker shop.tasks
      taskbridge worker shop.tasks --queues email,vip --processes 2 --threads 8
      taskbridge worker shop.tasks --url dramatiq+amqp://guest:guest@localhost//

    It runs PROCESSES x THREADS tasks at a time, on either engine. More processes use more processors, and a task that
    crashes its process disturbs fewer others; threads cost less memory and suit tasks that wait for the network. Tasks
    that are not safe in threads need --threads 1 (what comes from Celery's default pool, for example).

    SIGTERM and Ctrl-C stop it: nothing new is taken, what runs may finish for the setting `grace` (25 s by default),
    the rest goes back to its queue, and the exit code is 0. A second Ctrl-C ends it at once. SIGHUP starts the workers
    anew, with the code as it is then. A worker that dies is started again, after 1 s at first and 30 s at last.

    --watch does the same as SIGHUP after each change of a Python file in the current folder, or where MODULE is.

    A process that --max-tasks-per-child or --max-memory-per-child ends takes nothing new, and its tasks end first,
    however long that takes; another one runs tasks meanwhile. That is for tasks that use more and more memory.

    It also sends what the module's schedules say, unless --no-scheduler is given or the setting `scheduler` is off.

    --metrics-port 9100 serves what all its processes count, and what broker and store tell, for Prometheus.

    Then: `taskbridge queues MODULE` shows what waits, `taskbridge dead list` what failed for good.
    """
    from taskbridge.cli.supervisor import Supervisor  # here, for the other commands start no process

    cli.check_has_tasks(bridge, arguments.app)
    cli.checked_server(bridge, "a worker")
    options = WorkerOptions(
        app=arguments.app,
        queues=tuple(arguments.queues),
        processes=arguments.processes,
        threads=arguments.threads,
        log_level=arguments.log_level,
        scheduler=not arguments.no_scheduler,
        max_tasks_per_child=arguments.max_tasks_per_child,
        max_memory_per_child=arguments.max_memory_per_child,
    )
    commands = bridge.worker_commands(options)
    env = {} if arguments.url is None else {URL_VARIABLE: arguments.url, "TASKBRIDGE_URL": arguments.url}
    supervisor = Supervisor(
        commands=commands,
        env=env,
        processes=options.processes,
        grace_s=bridge.settings.grace_s,
        say=say,
        watched=_watched(arguments.app) if arguments.watch else (),
    )
    say(_banner(bridge, options))
    if dropped := sorted({name for each in commands for name in each.dropped(os.environ)}):
        text = f"the workers do not inherit {', '.join(dropped)}: {bridge.settings.url.engine} would obey them"
        say(text, logging.WARNING)
    for text in sys.modules[arguments.app].problems() if arguments.app == DJANGO_APP else ():
        say(text, logging.WARNING)
    _warn_if_away("the broker", bridge.broker)
    with suppress(BrokerUnavailable):
        bridge.check_priorities()
    if bridge.settings.store is not None and bridge.store is not None:
        _warn_if_away("the store", bridge.store)
    with suppress(BrokerUnavailable):  # which was said
        queues = options.queues or bridge.queues()
        for text in others(bridge, options.app, queues, is_started=True, timeout_s=_PING_S):
            say(text, logging.WARNING)
    bridge.close()  # nothing of it is for the workers, which are not forked but started
    observing.tell(bridge.observers, "supervising")
    with ExitStack() as stack:
        if arguments.metrics_port is not None:
            env |= _serve_metrics(bridge, arguments, stack)
        return cli.Output(code=supervisor.run())


def _serve_metrics(bridge: Bridge, arguments: Namespace, stack: ExitStack) -> dict[str, str]:
    """Serve metrics until the stack ends; return the variables by which workers know where to send what they count."""
    from taskbridge.metrics.tree import served  # here, for few workers are asked for metrics

    host, port = arguments.metrics_host, arguments.metrics_port
    try:
        url, env = stack.enter_context(served(bridge, host=host, port=port))
    except OSError as exc:
        raise cli.UsageError(f"--metrics-port: can't listen on {host}, port {port}: {exc.strerror or exc}") from exc
    say(f"metrics on {url}")
    return env


def _watched(app: str) -> list[Path]:
    """Return the current folder, and those of the application that are elsewhere: of its package, or of Django's apps.

    Raises `NotInstalledError` if watchfiles is missing.
    """
    if find_spec("watchfiles") is None:
        raise NotInstalledError("watchfiles, which --watch needs,", "watch")
    here = Path.cwd()
    if app == DJANGO_APP:
        found: list[Path] = sys.modules[app].watched()
    else:
        package: Any = sys.modules[app.partition(":")[0].partition(".")[0]]
        found = [Path(each).resolve() for each in getattr(package, "__path__", [os.path.dirname(package.__file__)])]
    return [here, *(each for each in found if not each.is_relative_to(here))]


def _warn_if_away(name: str, place: Broker | Store) -> None:
    """Say it in one line if something is away: it may come later, so that it is no reason not to start.

    Raises `StoreNotReady` if it is there, and won't become ready by itself.
    """
    try:
        place.ping(timeout_s=_PING_S)
    except StoreNotReady:
        raise
    except BrokerUnavailable as exc:
        say(f"{name} does not answer yet, the workers keep trying: {exc.problem}", logging.WARNING)


def _banner(bridge: Bridge, options: WorkerOptions) -> str:
    return (
        f"{many(len(bridge.declarations()), 'task')} of {options.app} on {bridge.settings.url.safe_url}, "
        f"queues {', '.join(options.queues or bridge.queues())}, {options.processes * options.threads} at a time "
        f"({many(options.processes, 'process', 'processes')} x {many(options.threads, 'thread')})"
    )
