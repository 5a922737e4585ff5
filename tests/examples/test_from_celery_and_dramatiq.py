"""The shop on Celery alone, on Dramatiq alone, and on taskbridge: the same happens."""

from __future__ import annotations

import re
import shlex
import sys
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

import taskbridge
from tests.examples.conftest import ROOT, START_TIMEOUT_S, Process, Start, run, wait_until
from tests.servers import PrivateRedis

NAME = "examples.from_celery_and_dramatiq"
FOLDER = ROOT / "examples" / "from_celery_and_dramatiq"

HAPPENED = Counter({"mail 1": 2, "mail 2": 1, "charge 3": 1, "charge 4": 1, "charge 7": 2, "charge 9": 5, "report": 1})
HAPPENED.update(["parcel: order 12, 1200 g", "sorry for 13", "stock 60"])
"""What comes of `SENT`: what is temporary is tried again, 5 times at most, and what is permanent is not."""

SENT = """
from examples.from_celery_and_dramatiq.{module} import *
for user_id in (1, 2):
    send_welcome_email.{send}(user_id)
for order_id in (3, 4, 7, 9):
    charge.{send}(order_id)
nightly_report.{send}()
ship(12)
ship(13)
take_stock(range(1, 4))
"""
TRACKED = {
    "tracked CardDeclined in shop.payments.charge",
    "tracked BankUnavailable in shop.payments.charge",
    "tracked SoldOut in shop.parcels.pick",
}


def happened(log: Path, *, tracked: bool = False) -> Counter[str]:
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return Counter(line for line in lines if line.startswith("tracked") is tracked)


def send(module: str, how: str, env: Mapping[str, str]) -> None:
    run(sys.executable, "-c", SENT.format(module=module, send=how), env=env)


def wait_for_all(log: Path, *workers: Process) -> None:
    wait_until(
        lambda: happened(log) == HAPPENED and happened(log, tracked=True).keys() >= TRACKED,
        what=f"{HAPPENED} and {TRACKED} in {log}",
        timeout_s=START_TIMEOUT_S + 40,
        processes=workers,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "how", "command"),
    [
        ("celery_before", "delay", f"celery --app {NAME}.celery_before worker --queues email,default --pool threads"),
        ("dramatiq_before", "send", f"dramatiq {NAME}.dramatiq_before --queues email default --processes 1"),
    ],
)
def test_the_shop_on_one_engine_alone(
    module: str, how: str, command: str, start: Start, tmp_path: Path, make_redis: Any
) -> None:
    server: PrivateRedis = make_redis()  # its queues have plain names
    log = tmp_path / "shop.log"
    env = {"BROKER_URL": server.url, "SHOP_LOG": str(log), "SHOP_PAUSE": "1"}
    worker = start(*shlex.split(command), env=env)
    send(module, how, env)

    wait_for_all(log, worker)
    if module == "celery_before":  # Dramatiq's middleware is told of each attempt that fails
        assert happened(log, tracked=True) == Counter(TRACKED)
    worker.kill()  # Dramatiq logs in its handler of SIGTERM, and hangs if the signal came while it was logging


def services() -> Mapping[str, Any]:
    loaded: Mapping[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    return loaded["services"]  # type: ignore[no-any-return]


def looked_up(process: Process, path: str) -> str:
    """Return what a process answers at the address that it has written as its own."""
    address = re.search(r"http://127\.0\.0\.1:\d+", process.output)
    if address is None:
        return ""
    with urllib.request.urlopen(address[0] + path, timeout=START_TIMEOUT_S) as answer:
        text: str = answer.read().decode()
    return text


def test_the_shop_on_taskbridge_with_the_services_of_the_compose_file(
    target: str, target_url: str, start: Start, tmp_path: Path, make_redis: Any
) -> None:
    if target.endswith("memory") or target == "inline":
        pytest.skip("has no workers")
    log = tmp_path / "shop.log"
    env = {
        "TASKBRIDGE_URL": target_url,
        "TASKBRIDGE_NAMESPACE": f"t{uuid4().hex[:10]}",
        "TASKBRIDGE_SCHEDULER": "off",
        "TASKBRIDGE_METRICS_PORT": "0",
        "TASKBRIDGE_METRICS_HOST": "127.0.0.1",
        "SHOP_LOG": str(log),
        "SHOP_PAUSE": "0.5",
    }
    if target.endswith("amqp"):
        env["TASKBRIDGE_STORE"] = make_redis().url
    commands = {name: services()[name]["command"] for name in ("email", "payments", "page")}
    commands["page"] = commands["page"].replace("0.0.0.0", "127.0.0.1 --port 0")
    started = {name: start(*shlex.split(command), env=env) for name, command in commands.items()}
    send("tasks", "send", env)

    wait_for_all(log, *started.values())
    assert happened(log, tracked=True) == Counter(TRACKED)
    for name, path, shown in [
        ("email", "/metrics", 'taskbridge_messages_total{queue="email",state="done",task="shop.email.welcome"} 2.0'),
        ("email", "/metrics", 'taskbridge_attempts_total{outcome="retried",task="shop.email.welcome"} 1.0'),
        ("page", "/failures", "shop.payments.charge"),
    ]:
        wait_until(
            lambda name=name, path=path, shown=shown: shown in looked_up(started[name], path),  # type: ignore[misc]
            what=f"{shown} at {path} of {name}",
            timeout_s=START_TIMEOUT_S,
            processes=[started[name]],
        )
    assert [process.stop() for process in started.values()] == [0, 0, 0]


def test_the_engine_is_one_variable_of_the_compose_file() -> None:
    assert set(services()) == {"email", "payments", "page", "redis"}
    for name in ("email", "payments", "page"):
        assert services()[name]["environment"]["TASKBRIDGE_URL"] == "${ENGINE:-celery}+redis://redis:6379/0"
        assert (FOLDER / services()[name]["build"]["context"] / services()[name]["build"]["dockerfile"]).is_file()


def test_the_report_is_written_once_a_night(tmp_path: Path) -> None:
    log = tmp_path / "shop.log"
    program = f"from {NAME}.tasks import *; bridge.run_schedules(7 * 86400)"
    run(sys.executable, "-c", program, env={"TASKBRIDGE_URL": "inline://?threads=0", "SHOP_LOG": str(log)})

    assert 6 <= happened(log)["report"] <= 8  # on the days when clocks change, a week may have one more or less


def test_the_snippets_are_from_the_programs() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    programs = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py"))
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)

    assert len(snippets) >= 12
    assert [snippet for snippet in snippets if snippet not in programs] == []


# convert_settings.py

CELERYCONFIG = """
from celery.schedules import crontab
from kombu import Queue

broker_url = "redis://:secret@redis:6379/1"
result_backend = "redis://:secret@redis:6379/2"
result_expires = 3600
task_default_queue = "default"
task_queues = [Queue("default"), Queue("email"), Queue("slow")]
task_routes = ({"shop.email.*": {"queue": "email"}}, [("shop.reports.*", "slow"), ("shop.odd", {"routing_key": "x"})])
task_serializer = "json"
task_acks_late = True
worker_prefetch_multiplier = 1
worker_max_tasks_per_child = 100
worker_unheard_of = 5
timezone = "Europe/Rome"
beat_schedule = {
    "nightly": {
        "task": "shop.report",
        "schedule": crontab(hour=3, minute=0, day_of_week="monday,wed-fri"),
        "args": ("eu",),
    },
    "poll": {"task": "shop.poll", "schedule": 30.0, "options": {"queue": "slow", "expires": 10}},
}
"""
DJANGO = """
from datetime import timedelta
from celery.schedules import crontab

SECRET_KEY = "secret"
INSTALLED_APPS = ["shop"]
CELERY_BROKER_URL = "amqp://guest:guest@rabbit:5672//"
CELERY_RESULT_BACKEND = "django-db"
CELERY_RESULT_EXPIRES = timedelta(days=2)
CELERY_TASK_TRACK_STARTED = True
CELERY_TASK_TIME_LIMIT = 30 * 60
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_SCHEDULE = {"poll": {"task": "shop.poll", "schedule": timedelta(minutes=5), "kwargs": {"region": "eu"}}}
"""
APP = """
from celery import Celery

app = Celery("shop", broker="pyamqp://guest@rabbit//")
app.conf.update(CELERY_DEFAULT_QUEUE="jobs", CELERY_ALWAYS_EAGER=False, CELERYD_CONCURRENCY=4)
"""
EAGER = """
BROKER_URL = "redis://redis/0"
CELERY_ALWAYS_EAGER = True
CELERYD_TASK_SOFT_TIME_LIMIT = 60
"""


def convert(tmp_path: Path, text: str, *options: str) -> tuple[taskbridge.Bridge, str]:
    """Convert settings, and return a bridge that was made with them, and what was printed."""
    (tmp_path / "celeryshop.py").write_text(text)
    source = "celeryshop:app" if "app =" in text else "celeryshop.py"
    printed = run(sys.executable, str(FOLDER / "convert_settings.py"), source, *options, cwd=tmp_path, env={})
    made: dict[str, Any] = {}
    exec(printed.replace("from taskbridge import configure", "from taskbridge import Bridge as configure"), made)
    program = printed.partition("configure(\n")[2].partition("\n)")[0]
    bridge: taskbridge.Bridge = eval(f"configure({program})", made)
    return bridge, printed


def test_a_module_of_settings_is_converted(tmp_path: Path) -> None:
    bridge, printed = convert(tmp_path, CELERYCONFIG)
    settings = bridge.settings

    assert settings.url.broker_url == "redis://:secret@redis:6379/1"
    assert (settings.url.engine, settings.store, settings.result_ttl_s) == (
        *("celery", "redis://:secret@redis:6379/2"),
        3600,
    )
    assert list(bridge.queues()) == ["default", "email", "slow"]
    assert [(route.pattern, route.queue) for route in settings.routes] == [
        ("shop.email.*", "email"),
        ("shop.reports.*", "slow"),
    ]
    assert [(each.name, each.timing.spec, str(each.timing.zone), each.args) for each in settings.schedules] == [
        ("nightly", "0 3 * * mon,wed-fri", "Europe/Rome", ("eu",)),
        ("poll", "every 30 s", "UTC", ()),
    ]
    for said in (
        *(
            "task_acks_late = True: always late",
            "worker_max_tasks_per_child = 100: taskbridge worker --max-tasks-per-child",
        ),
        *("worker_unheard_of = 5: no equivalent is known", "shop.odd: {'routing_key': 'x'} names no queue"),
        *("poll: expires = 10 is an option of @task",),
    ):
        assert f"# - {said}" in printed.replace("task_routes: ", "").replace("beat_schedule: ", "")


def test_djangos_settings_are_converted(tmp_path: Path) -> None:
    bridge, printed = convert(tmp_path, DJANGO, "--namespace", "CELERY")
    settings = bridge.settings

    assert settings.url.target == "celery+amqp"
    assert (settings.store, settings.result_ttl_s) == (None, 2 * 86400)
    [poll] = settings.schedules
    assert (poll.timing.spec, poll.kwargs) == ("every 300 s", {"region": "eu"})
    for said in (
        "result_backend: 'django-db': no such store; one of redis://, postgresql://, sqlite:///",
        "task_time_limit = 1800: @task(time_limit=seconds)",
        "beat_scheduler = 'django_celery_beat.schedulers:DatabaseScheduler': workers send by schedules",
    ):
        assert f"# - {said}" in printed
    assert "SECRET" not in printed


def test_an_apps_settings_are_converted(tmp_path: Path) -> None:
    bridge, printed = convert(tmp_path, APP)

    assert bridge.settings.url.broker_url == "amqp://guest@rabbit/%2F"
    assert bridge.settings.default_queue == "jobs"
    assert "# - worker_concurrency = 4: on the command line" in printed


def test_eager_tasks_run_at_send(tmp_path: Path) -> None:
    bridge, printed = convert(tmp_path, EAGER)

    assert bridge.settings.url.at_send == "1"
    assert "# - task_soft_time_limit = 60: @task(time_limit=seconds)" in printed
