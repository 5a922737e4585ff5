"""How to test an app with tasks: no server, no worker, no waiting.

From the repository's root:

    TASKBRIDGE_URL='inline://?threads=0' pytest examples/fastapi_app
"""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from examples.fastapi_app import tasks
from examples.fastapi_app.web import app
from taskbridge import BrokerUnavailable, configure, default_bridge


@pytest.fixture
def client() -> Iterator[TestClient]:
    configure("inline://?threads=0")  # nothing runs until the test says so
    tasks.sent.clear()
    client = TestClient(app)
    with client:
        yield client


def test_a_signup_is_answered_before_anything_runs(client: TestClient) -> None:
    response = client.post("/signups", json={"address": "ann@example.org"})

    assert response.status_code == 202
    assert tasks.sent == []
    assert default_bridge().counts().delayed == 1


def test_a_signup_sends_a_welcome_and_three_days_later_a_reminder(client: TestClient) -> None:
    client.post("/signups", json={"address": "ann@example.org"})

    runs = default_bridge().run_until_idle()  # the clock jumps three days

    assert runs == 2
    assert tasks.sent == ["ann@example.org", "reminder: ann@example.org"]


def test_a_report_is_followed_to_its_end(client: TestClient) -> None:
    response = client.post("/reports", params={"year": 2026})

    assert response.status_code == 202
    started = response.json()
    assert (started["state"], response.headers["Location"]) == ("queued", f"/reports/{started['id']}")
    events = client.get(f"/reports/{started['id']}/events").text  # waiting runs it: there are no threads to do so
    assert [line for line in events.splitlines() if line.startswith("event:")] == ["event: queued", "event: done"]
    found = client.get(response.headers["Location"]).json()
    assert (found["state"], found["attempts"], found["months"]["2026-02"]) == ("done", 1, 4052)


def test_a_report_that_nobody_wants_any_longer_is_not_made(client: TestClient) -> None:
    started = client.post("/reports", params={"year": 2026}).json()

    assert client.delete(f"/reports/{started['id']}").json()["state"] == "cancelled"
    assert client.get(f"/reports/{started['id']}/events").text.count("event: cancelled") == 2
    assert default_bridge().run_until_idle() == 1  # it is taken from the queue, and dropped
    assert client.get(f"/reports/{started['id']}").json()["attempts"] == 0


def test_a_report_that_never_was_is_not_found(client: TestClient) -> None:
    for path in ("/reports/some-id", "/reports/some-id/events"):
        assert client.get(path).status_code == 404


def test_operators_see_the_page_with_their_password(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.get("/ops/tasks/", auth=("ann", "")).status_code == 401
    monkeypatch.setenv("OPERATORS_PASSWORD", "s3cret")

    for wrong in (None, ("ann", ""), ("ann", "secret")):
        answer = client.get("/ops/tasks/", auth=wrong)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="operators"')
    assert "Queues" in client.get("/ops/tasks/", auth=("ann", "s3cret")).text


def test_a_client_is_told_to_come_back_when_the_broker_is_away(client: TestClient) -> None:
    configure("celery+redis://127.0.0.1:1/0", send_timeout=0.5)

    response = client.post("/signups", json={"address": "ann@example.org"})

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    with pytest.raises(BrokerUnavailable):
        tasks.send_reminder.send("ann@example.org")
