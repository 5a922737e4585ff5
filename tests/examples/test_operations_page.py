"""What the page of operations shows works: its Compose commands run, its manifests and files have the right form."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
import yaml

from tests.docs.pages import blocks_of
from tests.examples.conftest import RUN_TIMEOUT_S, START_TIMEOUT_S, Process, Start, run, wait_until
from tests.servers import PrivateRedis

PAGE = "docs/operations.md"
SHOP = """
from taskbridge import task

@task
def pack(order: int) -> None:
    print(f"packed {order}", flush=True)
"""


def texts(info: str) -> list[str]:
    return [block.text for block in blocks_of(PAGE) if block.info == info]


def compose() -> dict[str, Any]:
    (text,) = [text for text in texts("yaml") if "services:" in text]
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    return services


def manifests() -> list[dict[str, Any]]:
    return [each for text in texts("yaml") if "apiVersion" in text for each in yaml.safe_load_all(text)]


def is_ready(process: Process) -> bool:
    return '"ready"' in process.output


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_each_compose_command_runs(
    engine: str, start: Start, tmp_path: Path, make_redis: Callable[..., PrivateRedis]
) -> None:
    services = compose()
    assert sorted(services) == ["check", "redis", "scheduler", "worker"]
    program, *options = shlex.split(services["redis"]["command"])
    assert program == "redis-server"
    redis = make_redis(extra_args=options)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "tasks.py").write_text(SHOP)
    own = services["worker"]["environment"]
    address = own["TASKBRIDGE_URL"].replace("${ENGINE:-celery}", engine)
    assert address.endswith("+redis://redis:6379/0")
    url = address.replace("redis://redis:6379/0", redis.url)
    env = {**own, "TASKBRIDGE_URL": url, "TASKBRIDGE_NAMESPACE": f"page-{uuid4().hex[:8]}"}

    def begin(service: str) -> Process:
        return start(*shlex.split(services[service]["command"]), cwd=tmp_path, env=env)

    run(*shlex.split(services["check"]["command"]), cwd=tmp_path, env=env)
    worker, scheduler = begin("worker"), begin("scheduler")
    for each in (worker, scheduler):
        wait_until(partial(is_ready, each), what="ready", timeout_s=START_TIMEOUT_S, processes=[each])
    test = services["worker"]["healthcheck"]["test"]
    assert test[0] == "CMD"
    health = [*test[1:-1], f"{RUN_TIMEOUT_S / 2:g}"]  # a machine that is busy may take longer than the page's 5 s
    run(*health, cwd=tmp_path, env=env)
    run("python", "-c", "from shop.tasks import pack; pack.send(7)", cwd=tmp_path, env=env)
    wait_until(lambda: "packed 7" in worker.output, what="the task", timeout_s=START_TIMEOUT_S, processes=[worker])
    assert (worker.stop(), scheduler.stop()) == (0, 0)
    for line in (worker.output + scheduler.output).splitlines():
        assert line == "packed 7" or json.loads(line)["worker"]


@pytest.mark.parametrize("version", ["1.30", "1.34"])
def test_the_manifests_of_kubernetes_keep_to_its_schemas(version: str) -> None:
    known = [each for each in manifests() if "keda" not in each["apiVersion"]]
    assert [each["kind"] for each in known] == ["Deployment", "Job"]
    for each in known:
        kubernetes_validate.validate(each, version, strict=True)
    broken = {**known[0], "spec": {**known[0]["spec"], "replicas": "two"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


def test_the_scaled_object_scales_the_deployment() -> None:
    deployment, scaled = (
        next(each for each in manifests() if each["kind"] == kind) for kind in ("Deployment", "ScaledObject")
    )
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    words = container["command"]
    given = {name: words[words.index(name) + 1] for name in ("--metrics-port", "--metrics-host")}
    assert given == {"--metrics-port": str(container["ports"][0]["containerPort"]), "--metrics-host": "0.0.0.0"}
    assert scaled["spec"]["triggers"][0]["metadata"]["query"].startswith("max(")
    (rabbitmq,) = yaml.safe_load(next(text for text in texts("yaml") if "queueName" in text))
    for trigger in (*scaled["spec"]["triggers"], rabbitmq):
        assert set(trigger) == {"type", "metadata"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_every_stop_time_is_the_default_grace_and_ten_seconds() -> None:
    (pod,) = [each["spec"]["template"]["spec"] for each in manifests() if each["kind"] == "Deployment"]
    (unit,) = texts("ini")
    parsed = configparser.RawConfigParser(strict=False)
    parsed.read_string(unit)
    services = compose()
    assert {services[name]["stop_grace_period"] for name in ("worker", "scheduler")} == {"35s"}
    assert pod["terminationGracePeriodSeconds"] == 35
    assert parsed["Service"]["TimeoutStopSec"] == "35"


def test_the_file_that_sets_up_a_log_can_be_used(tmp_path: Path) -> None:
    pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    (tmp_path / "log.toml").write_text(texts("toml")[0])
    code = """
import logging.config
from taskbridge.log_output import read_config
logging.config.dictConfig(read_config("log.toml"))
logging.getLogger("celery.app.trace").info("succeeded")
logging.getLogger("shop").info("packed")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=True
    )
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["packed"]


def test_the_line_of_a_log_that_the_page_shows_is_one() -> None:
    (line,) = [text for text in texts("text") if "runs again" in text]
    form = r"\S+Z WARNING \d+ taskbridge\.worker: task \S+ id \S+ attempt 1 failed: \w+: .+ \(\S+:\d+ in \w+\), runs .*"
    assert re.fullmatch(form, line.strip())
