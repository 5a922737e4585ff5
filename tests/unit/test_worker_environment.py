"""What the process of an engine's worker inherits of the environment that it is started in."""

from __future__ import annotations

from contextlib import closing

import pytest

from taskbridge import Bridge
from taskbridge.engines.base import Command, WorkerOptions

OPTIONS = WorkerOptions(app="shop")


def test_a_command_drops_what_it_names_but_for_what_it_keeps_and_sets() -> None:
    command = Command(argv=("x",), env={"E_SET": "1", "NEW": "1"}, drops="E_", keeps=("E_K*",))
    inherited = {"E_KEPT": "1", "E_DROPPED": "1", "E_SET": "0", "e_other": "1", "OTHER": "1"}
    assert command.dropped(inherited) == ["E_DROPPED", "E_SET"]
    assert command.environment(inherited) == {"E_KEPT": "1", "E_SET": "1", "e_other": "1", "OTHER": "1", "NEW": "1"}


def test_a_command_that_names_none_inherits_all() -> None:
    command = Command(argv=("x",), env={"A": "2"})
    assert command.dropped({"A": "1", "": "1"}) == []
    assert command.environment({"A": "1", "B": "1"}) == {"A": "2", "B": "1"}


def test_celerys_worker_inherits_no_option_of_its_command_line() -> None:
    pytest.importorskip("celery")
    with closing(Bridge("celery+redis://localhost:1/0")) as bridge:
        commands = bridge.worker_commands(OPTIONS)
    inherited = ["CELERY_BROKER_URL", "CELERY_WORKER_PURGE", "CELERY_WORKDIR", "CELERY_LOADER", "CELERY_SKIP_CHECKS"]
    for command in commands:
        dropped = command.dropped(dict.fromkeys(inherited, "1"))
        assert dropped == ["CELERY_LOADER", "CELERY_WORKDIR", "CELERY_WORKER_PURGE"]


def test_dramatiqs_worker_inherits_only_what_concerns_an_applications_own_actors() -> None:
    pytest.importorskip("dramatiq")
    with closing(Bridge("dramatiq+redis://localhost:1/0")) as bridge:
        (command,) = bridge.worker_commands(OPTIONS)
    inherited = ["dramatiq_queue_prefetch", "dramatiq_prom_port", "dramatiq_group_callback_barrier_ttl"]
    assert command.dropped(dict.fromkeys(inherited, "1")) == ["dramatiq_queue_prefetch"]


@pytest.mark.parametrize(
    ("url", "threads", "argv", "env"),
    [
        ("celery+redis", 1, ["--max-tasks-per-child", "7", "--max-memory-per-child", "51200"], {}),
        ("celery+redis", 2, [], {"TASKBRIDGE_APP_MAX_TASKS": "7", "TASKBRIDGE_APP_MAX_MEMORY": "50"}),
        ("dramatiq+redis", 1, [], {"TASKBRIDGE_APP_MAX_TASKS": "7", "TASKBRIDGE_APP_MAX_MEMORY": "50"}),
    ],
)
def test_who_ends_a_process_is_told_after_how_many_tasks_and_with_how_much_memory(
    url: str, threads: int, argv: list[str], env: dict[str, str]
) -> None:
    pytest.importorskip(url.partition("+")[0])
    options = WorkerOptions(app="shop", threads=threads, max_tasks_per_child=7, max_memory_per_child=50)
    with closing(Bridge(f"{url}://localhost:1/0")) as bridge:
        for command in bridge.worker_commands(options):
            assert [word for word in command.argv if "per-child" in word or word in argv] == argv
            assert {name: value for name, value in command.env.items() if "_MAX_" in name} == env
