"""E: whose a worker's process is: variables that the engine itself would obey, logging, streams and processes."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Final

from taskbridge.contract.harness import Harness
from taskbridge.contract.program import RETURN, Plan, Step
from taskbridge.contract.registry import ALONE, scenario, with_processes
from taskbridge.contract.tasks import Variant

_LONGER_THAN_ITS_LIMIT: Final = Step(sleep_s=3)

_VARIABLES: Final[Mapping[str, Mapping[str, str]]] = {
    "celery": {
        "CELERY_WORKER_PURGE": "1",
        "CELERY_WORKER_AUTOSCALE": "3,1",
        "CELERY_WORKER_SOFT_TIME_LIMIT": "2",
        "CELERY_WORKER_EXCLUDE_QUEUES": "contract",
        "CELERY_WORKER_DETACH": "1",
        "CELERY_RESULT_BACKEND": "nowhere://",
    },
    "dramatiq": {
        "dramatiq_queue_prefetch": "100",
        "dramatiq_dead_message_ttl": "1000",
        "dramatiq_restart_delay": "600000",
    },
}
_UNPREFIXED: Final[Mapping[str, str]] = {
    "LOADER": "nowhere",
    "CONFIG_MODULE": "nowhere",
    "RESULT_BACKEND": "nowhere://",
}
"""Celery's command line reads its global options from these."""


@scenario("E", on=(ALONE,), where=with_processes)
def the_environment_changes_nothing(h: Harness) -> None:
    """Variables that the engine would obey change nothing: what waits is run once."""
    h.stop(h.start_worker(threads=2))  # so that the queues are declared by one without these variables
    variables = _VARIABLES[h.target.address.engine]
    for processes, threads in ((1, 2), (2, 1)):
        sent = [h.send(Plan(steps=(RETURN,))) for _ in range(4)]
        sent.append(h.send(Plan(steps=(_LONGER_THAN_ITS_LIMIT,), policy="once")))
        worker = h.start_worker(
            processes=processes,
            threads=threads,
            variables={**variables, **_UNPREFIXED},
            answers=False,
            supervised=True,
        )
        h.compare(sent)
        h.stop(worker)
    h.idle()


@scenario("E", on=(ALONE,), where=with_processes)
def a_workers_process_is_the_applications(h: Harness) -> None:
    """A task finds the logging that the application has set up and the process's own streams, and starts processes."""
    for processes, threads in ((1, 2), (2, 1)):
        worker = h.start_worker(processes=processes, threads=threads, variant=Variant(logs=True))
        told = h.started(h.own(h.tasks.process.send()).id).data
        h.equal("handlers and level of its logging", told["logging"], [["FileHandler"], "ERROR"])
        h.equal("the descriptors of its streams", told["streams"], [1, 2])
        h.equal("what its processes answered, and how they ended", told["processes"], [1, -signal.SIGTERM])
        h.stop(worker)
    h.idle()
