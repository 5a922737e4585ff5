"""What came of the contract on each broker is kept, and shown with versions and dates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import taskbridge.contract.scenarios  # fills the table
from taskbridge.contract.registry import SCENARIOS
from taskbridge.contract.target import Target
from tests import deployments
from tests.brokers import page
from tests.brokers.runs import RUNS, Outcome
from tests.programs import SYSTEM, Origin

assert taskbridge.contract.scenarios.NAMES

VERSIONS = {Origin(name="redis"): "7.0.15", Origin(name="valkey", release="sid"): "9.1.0"}


@pytest.mark.parametrize("name", RUNS)
def test_each_run_can_be_deployed(name: str) -> None:
    run = RUNS[name]
    assert deployments.exists(run.deployment, run.broker)
    assert run.origin.release in {SYSTEM, *run.releases}


@pytest.mark.parametrize("name", ["queues_are_declared_with_their_type", "quorum_queues_do_what_classic_ones_do"])
def test_what_clients_declare_is_read_only_where_it_is_not_encrypted(name: str) -> None:
    refusal = SCENARIOS[name].refusal
    assert refusal(Target.of("dramatiq+amqp://localhost")) == ""
    assert refusal(Target.of("dramatiq+amqps://localhost")) == "what clients declare is encrypted"


def test_a_run_says_which_server_it_is_on() -> None:
    assert RUNS["redis"].title(VERSIONS) == "Redis 7.0.15"
    assert RUNS["valkey-sid"].title(VERSIONS) == "Valkey 9.1.0"
    assert RUNS["sentinel"].title(VERSIONS) == "Redis 7.0.15, Sentinel, core"
    assert RUNS["rabbitmq-sid"].title(VERSIONS) == "RabbitMQ (not installed)"


def test_a_run_of_nothing_is_not_good() -> None:
    assert not Outcome(engine="celery 5.7.0").is_good
    assert not Outcome(engine="celery 5.7.0", passed=3, failed={"a_scenario": "it was early"}).is_good
    assert Outcome(engine="celery 5.7.0", passed=3).is_good


def test_the_page_shows_what_was_run_and_what_was_not() -> None:
    rows: page.Rows = {}
    page.enter(rows, RUNS["redis"], Outcome(engine="celery 5.7.0", passed=144), VERSIONS)
    failed = {"delays_are_kept": "early | 3 s"}
    page.enter(rows, RUNS["valkey-sid"], Outcome(engine="dramatiq 2.2.1", passed=143, failed=failed), VERSIONS)

    text = page.rendered(rows)

    date, later = (rows[name]["outcomes"][0]["date"] for name in ("redis", "valkey-sid"))  # midnight may come between
    assert f"| Redis 7.0.15 | Celery 5.7.0 | all 144 | {date} |" in text
    assert f"| Valkey 9.1.0 | Dramatiq 2.2.1 | 143 of 144 | {later} |" in text
    assert "- Valkey 9.1.0, Dramatiq 2.2.1: `delays_are_kept`: early \\| 3 s" in text
    assert "Not run for this page: `rabbitmq`, " in text


def test_a_new_result_takes_the_place_of_the_same_engine_s_and_a_new_server_s_of_all() -> None:
    rows: page.Rows = {}
    for engine in ("celery 5.7.0", "dramatiq 2.2.1", "celery 5.7.0"):
        page.enter(rows, RUNS["redis"], Outcome(engine=engine, passed=1), VERSIONS)
    assert [each["engine"] for each in rows["redis"]["outcomes"]] == ["celery 5.7.0", "dramatiq 2.2.1"]

    page.enter(rows, RUNS["redis"], Outcome(engine="celery 5.7.0", passed=2), {Origin(name="redis"): "7.0.16"})
    assert [each["passed"] for each in rows["redis"]["outcomes"]] == [2]


def test_the_results_go_between_the_lines_that_are_there_for_them(tmp_path: Path) -> None:
    begin, end = page._BEGIN, page._END
    place, file = tmp_path / "brokers.md", tmp_path / "brokers.json"
    place.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    rows: page.Rows = {}
    page.enter(rows, RUNS["redis"], Outcome(engine="celery 5.7.0", passed=144), VERSIONS)

    page.write(rows, place, file)

    assert place.read_text() == f"before\n{begin}\n\n{page.rendered(rows)}\n{end}\nafter\n"
    assert page.kept(file) == rows == json.loads(file.read_text())
