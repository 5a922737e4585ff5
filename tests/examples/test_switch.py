"""The compose file's own commands, run without Docker on private servers."""

from __future__ import annotations

import json
import re
import shlex
import socket
import urllib.request
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from taskbridge.contract.ports import free_port
from tests.examples.conftest import ROOT, START_TIMEOUT_S, Process, Start, wait_until
from tests.servers import PrivateRabbitMQ, PrivateRedis

FOLDER = ROOT / "examples" / "switch"


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def interpolated(text: str, **variables: str) -> str:
    """Replace `${NAME:-default}`, as Docker does."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1], found[2]), text)


class Shop:
    """The web and worker services, with one value of ENGINE and BROKER."""

    def __init__(self, start: Start, database: Path, *, engine: str, broker: str, remind_after_s: int = 6) -> None:
        service = compose()["services"]
        port = free_port()
        self._base = f"http://127.0.0.1:{port}"
        variables = {
            "TASKBRIDGE_URL": interpolated(
                service["web"]["environment"]["TASKBRIDGE_URL"], ENGINE=engine, BROKER=broker
            ),
            "TASKBRIDGE_NAMESPACE": database.stem,
            "SHOP_DB": str(database),
            "REMIND_AFTER": str(remind_after_s),
        }
        web_command = service["web"]["command"].replace("0.0.0.0", "127.0.0.1").replace("8000", str(port))
        self.web: Process = start(*shlex.split(web_command), env=variables)
        self.worker: Process = start(*shlex.split(service["worker"]["command"]), env=variables)
        wait_until(lambda: self._is_up(port), what="the web service", timeout_s=START_TIMEOUT_S, processes=[self.web])

    @staticmethod
    def _is_up(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def order(self) -> tuple[str, str]:
        """Order something and return the order's id and the target that the shop runs on."""
        request = urllib.request.Request(f"{self._base}/orders", method="POST")
        with urllib.request.urlopen(request, timeout=20) as response:
            answer = json.load(response)
        return answer["order"], answer["target"]

    def history(self, order: str) -> list[str]:
        with urllib.request.urlopen(f"{self._base}/orders/{order}", timeout=20) as response:
            events: list[str] = json.load(response)["history"]
        return events

    def wait_for(self, order: str, event: str) -> None:
        wait_until(
            lambda: event in self.history(order),
            what=f"{event!r} of the order",
            timeout_s=START_TIMEOUT_S,
            processes=[self.web, self.worker],
        )

    def stop(self) -> None:
        self.web.stop()
        assert self.worker.stop() == 0


def test_the_compose_file_defines_the_four_services_and_one_variable_for_the_engine() -> None:
    services = compose()["services"]

    assert set(services) == {"web", "worker", "redis", "rabbitmq"}
    for name in ("web", "worker"):
        assert (ROOT / services[name]["build"]["context"].replace("../..", ".")).is_dir()
        assert (ROOT / services[name]["build"]["dockerfile"]).is_file()
        template = services[name]["environment"]["TASKBRIDGE_URL"]
        assert interpolated(template) == "celery+redis://redis:6379/0"
        assert interpolated(template, ENGINE="dramatiq") == "dramatiq+redis://redis:6379/0"


@pytest.mark.slow
@pytest.mark.parametrize("server", ["redis_server", "rabbitmq_server"])
@pytest.mark.parametrize(("before", "after"), [("celery", "dramatiq"), ("dramatiq", "celery")])
def test_a_delay_that_began_on_one_engine_ends_on_the_other(
    before: str, after: str, server: str, start: Start, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    broker: PrivateRedis | PrivateRabbitMQ = request.getfixturevalue(server)
    broker_kind = broker.url.partition("://")[0]
    database = tmp_path / f"from-{before}-{uuid4().hex[:8]}.sqlite"  # its name is the namespace, too
    # The worker is to be gone when the reminder is due.
    shop = Shop(start, database, engine=before, broker=broker.url, remind_after_s=20)
    order, target = shop.order()
    shop.wait_for(order, "paid on attempt 2")
    assert shop.worker.stop() == 0
    assert shop.history(order) == ["ordered", "paid on attempt 2"]
    shop.stop()
    assert target == f"{before}+{broker_kind}"

    switched = Shop(start, database, engine=after, broker=broker.url)
    second, target = switched.order()
    switched.wait_for(second, "paid on attempt 2")
    switched.wait_for(order, "reminded")

    assert target == f"{after}+{broker_kind}"
    assert switched.history(order) == ["ordered", "paid on attempt 2", "reminded"]
    switched.stop()


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_the_same_shop_runs_on_rabbitmq(
    engine: str, rabbitmq_server: PrivateRabbitMQ, start: Start, tmp_path: Path
) -> None:
    shop = Shop(start, tmp_path / f"on-{engine}-{uuid4().hex[:8]}.sqlite", engine=engine, broker=rabbitmq_server.url)

    order, target = shop.order()
    shop.wait_for(order, "reminded")

    assert target == f"{engine}+amqp"
    assert shop.history(order) == ["ordered", "paid on attempt 2", "reminded"]
    shop.stop()
