"""Who is measured, and with which settings: for each, the best that keep what it is compared for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from benchmarks.goals import C, D

SLOTS: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One of those that take turns in a row.

    Attributes:
        name: What it is called in the row.
        app: Its module in `benchmarks.apps`.
        option: In which way that is used.
        confirms: Whether RabbitMQ confirms what is sent.
        worker: The command line of its worker after `python -m`, with eight slots in one process.
        variables: What its processes find in the environment, beside what all of them do.
        results: Whether it keeps what tasks return.
        store: The server on which taskbridge keeps it, if not the broker.
        settings: What of its settings is not the default, for the reader.
        home: The environment in which its packages are, if not the project's own: `peers`, or another.
        is_peer: Whether it is neither taskbridge nor an engine.
    """

    name: str
    app: str
    option: str = ""
    confirms: bool = True
    worker: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    settings: str = "defaults"
    results: bool = False
    store: str = ""
    home: str = ""
    is_peer: bool = False

    def like(self, name: str, **changes: object) -> Contender:
        """Return it by another name, with changes."""
        return replace(self, name=name, **changes)  # type: ignore[arg-type]


def _bridged(name: str, engine: str) -> Contender:
    return Contender(
        name=name,
        app="bridged",
        option=engine,
        worker=(
            *("taskbridge", "worker", "benchmarks.apps.bridged:bridge"),
            *("--processes", "1", "--threads", str(SLOTS), "--log-level", "WARNING"),
        ),
        settings=(
            "`results=False` on the tasks, for the others keep none either; otherwise defaults; `--log-level WARNING`, "
            "which is Celery's own default"
        ),
    )


CELERY_BRIDGE: Final = _bridged(C, "celery")
DRAMATIQ_BRIDGE: Final = _bridged(D, "dramatiq")
BRIDGES: Final = (CELERY_BRIDGE, DRAMATIQ_BRIDGE)

PLAIN_BRIDGES: Final = tuple(
    bridge.like(f"{bridge.name}, plain", variables=(("BENCH_FAST", "0"),), settings="`fast=False`, and as above")
    for bridge in BRIDGES
)

CELERY: Final = Contender(
    name="Celery",
    app="raw_celery",
    worker=(
        *("celery", "-A", "benchmarks.apps.raw_celery", "worker", "--pool", "threads", "--concurrency", str(SLOTS)),
        *("--hostname", "bench{number}@%h"),  # two of one name can't be on one RabbitMQ
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ),
    settings=(
        "`task_acks_late`, `worker_prefetch_multiplier=1`, `task_ignore_result`; on RabbitMQ `confirm_publish`; "
        "workers without gossip, mingle and heartbeat"
    ),
)
CELERY_SOLO: Final = CELERY.like(
    "Celery, 1 slot",
    worker=("celery", "-A", "benchmarks.apps.raw_celery", "worker", "--pool", "solo", *CELERY.worker[-5:]),
    settings="`--pool solo`: no threads to switch between, and so its fastest; it runs one task at a time",
)
CELERY_EARLY: Final = CELERY.like(
    "Celery, early ack",
    variables=(("BENCH_EARLY", "1"),),
    settings="its defaults: acknowledged before the task runs, four messages prefetched for a slot",
)

DRAMATIQ: Final = Contender(
    name="Dramatiq",
    app="raw_dramatiq",
    worker=("dramatiq", "benchmarks.apps.raw_dramatiq", "--processes", "1", "--threads", str(SLOTS)),
    settings="defaults; on RabbitMQ `confirm_delivery`",
)
DRAMATIQ_FULL: Final = DRAMATIQ.like(
    "Dramatiq, prefetch 128",
    variables=(("dramatiq_queue_prefetch", "128"),),
    settings="`dramatiq_queue_prefetch=128`, sixteen messages a thread: its fastest; other workers wait for them",
)
ENGINES: Final = (CELERY, DRAMATIQ)

RECORDED: Final = tuple(
    bridge.like(f"{bridge.name}, results", results=True, settings="defaults: with a record of each message")
    for bridge in BRIDGES
)
UNIQUE: Final = tuple(
    bridge.like(f"{bridge.name}, unique", app="keyed", results=True, settings='`unique="payload"` on the task')
    for bridge in BRIDGES
)
IN_POSTGRESQL: Final = tuple(
    bridge.like(
        bridge.name.replace(", results", ", in PostgreSQL"), store="postgresql", settings="`store=postgresql://...`"
    )
    for bridge in RECORDED
)
CELERY_RESULTS: Final = CELERY.like(
    "Celery, results", results=True, settings="`result_backend` on the broker's Redis, and as above"
)
DRAMATIQ_RESULTS: Final = DRAMATIQ.like(
    "Dramatiq, results", results=True, settings="`Results(backend=RedisBackend(...), store_results=True)`"
)
_TRACED: Final = (("BENCH_TRACED", "1"),)
TRACED: Final = tuple(
    each.like(f"{each.name}, traced", variables=_TRACED, home="observed", settings=f"{told}{each.settings}")
    for each, told in ((CELERY_BRIDGE, "which takes the plain way then; "), (CELERY, ""))
)
_SEEN: Final = (
    ("metrics", ("TASKBRIDGE_METRICS_PORT", "0"), "`--metrics-port`"),
    ("spans", ("BENCH_SPANS", "1"), "spans of taskbridge's own, in batches, of every run"),
)
SEEN: Final = tuple(
    each
    for bridge in BRIDGES
    for each in (
        bridge,
        *(
            bridge.like(f"{bridge.name}, {what}", variables=(variable,), settings=f"{told}, and as above")
            for what, variable, told in _SEEN
        ),
    )
)
_DJANGO: Final = (("DJANGO_SETTINGS_MODULE", "benchmarks.apps.django_settings"),)
WITH_DJANGO: Final = tuple(
    each.like(f"{each.name}, Django", variables=_DJANGO, home="observed") for each in (*BRIDGES, CELERY)
)
NO_CONFIRMS: Final = (
    CELERY.like("Celery, no confirms", confirms=False, settings="its default: no confirms"),
    DRAMATIQ.like("Dramatiq, no confirms", confirms=False, settings="its default: no confirms"),
)


def _with_taskferry(engine: Contender, option: str) -> Contender:
    app = "with_taskferry"
    return engine.like(
        f"taskferry on {engine.name}",
        app=app,
        option=option,
        worker=tuple(word.replace(engine.app, app) for word in engine.worker),
        home="taskferry",
        is_peer=True,
        settings=f"{engine.name} as above; on Python 3.12 or newer, which it needs",
    )


PEERS: Final = (
    Contender(
        name="RQ",
        app="with_rq",
        worker=("rq.cli", "worker", "--url", "{url}", "-w", "rq.worker.SimpleWorker", "--quiet", "bench"),
        settings="`SimpleWorker`, which runs one task at a time and doesn't fork; `result_ttl=0`",
        home="peers",
        is_peer=True,
    ),
    Contender(
        name="Huey",
        app="with_huey",
        worker=(
            *("huey.bin.huey_consumer", "benchmarks.apps.with_huey.huey"),
            *("--workers", str(SLOTS), "--worker-type", "thread", "--quiet"),
        ),
        settings="8 threads, no results; it has no acknowledgement",
        home="peers",
        is_peer=True,
    ),
    Contender(
        name="arq",
        app="with_arq",
        worker=("arq", "benchmarks.apps.with_arq.WorkerSettings"),
        settings="`max_jobs=8`, `poll_delay=0.01` (its default is 0.5), `keep_result=0`",
        home="peers",
        is_peer=True,
    ),
    Contender(
        name="taskiq",
        app="with_taskiq",
        worker=(
            *("taskiq", "worker", "benchmarks.apps.with_taskiq:broker"),
            *("--workers", "1", "--max-async-tasks", str(SLOTS), "--log-level", "WARNING"),
        ),
        settings="`RedisStreamBroker`, `--max-async-tasks 8`",
        home="peers",
        is_peer=True,
    ),
    Contender(
        name="SAQ",
        app="with_saq",
        worker=("saq", "benchmarks.apps.with_saq.settings", "--quiet"),
        settings="`concurrency=8`, `ttl=-1`",
        home="peers",
        is_peer=True,
    ),
    Contender(
        name="threadmill",
        app="with_threadmill",
        option="threadmill",
        worker=("django", "threadmill", "worker", "--workers", "1", "--threads", str(SLOTS)),
        variables=_DJANGO,
        settings="one process with 8 threads; it keeps a result of each task, always; on Python 3.12 or newer",
        home="threadmill",
        is_peer=True,
    ),
    _with_taskferry(CELERY, "celery"),
    _with_taskferry(DRAMATIQ, "dramatiq"),
)

SOCKET: Final = Contender(name="bare socket", app="bare", option="socket", settings="LPUSH of 900 bytes")
BRPOP: Final = SOCKET.like(
    "bare BRPOP", worker=("benchmarks.apps.bare",), settings="LPUSH of 900 bytes, and BRPOP in a loop; nothing is kept"
)
REDIS_PY: Final = Contender(name="redis-py", app="bare", option="redis-py", settings="`lpush` of 900 bytes")
AMQP_SOCKET: Final = SOCKET.like(
    "bare socket", option="amqp-socket", settings="frames of a persistent message of 900 bytes, confirmed"
)
CELERYS_SOCKET: Final = SOCKET.like(
    "bare socket, Celery's form",
    option="amqp-socket-celery",
    settings="the same, with the properties and the size of a message in Celery's form, in a queue with priorities",
)
PIKA: Final = Contender(name="pika", app="bare", option="pika", settings="`basic_publish` of 900 bytes, confirmed")
