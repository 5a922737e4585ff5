"""How to test an app with tasks: no server, no worker, no waiting.

From the repository's root:

    TASKBRIDGE_URL='inline://?threads=0' pytest examples/flask_app
"""

from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient

from examples.flask_app import tasks
from examples.flask_app.web import app


@pytest.fixture
def client() -> Iterator[FlaskClient]:
    tasks.stock.update(book=2)
    tasks.receipts.clear()
    with app.test_client() as client:
        yield client


def test_an_order_is_carried_out_with_its_request_id(client: FlaskClient) -> None:
    response = client.post("/orders", json={"article": "book", "quantity": 1}, headers={"X-Request-ID": "r1"})
    runs = tasks.bridge.run_until_idle()

    assert response.status_code == 202
    assert response.get_json()["queue"] == "shop"
    assert runs == 2
    assert tasks.stock == {"book": 1}
    assert tasks.receipts == [("r1", "book")]


def test_the_page_shows_the_orders_that_wait_to_those_who_know_the_password(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/orders", json={"article": "book", "quantity": 1})
    assert client.get("/ops/tasks/", auth=("ann", "")).status_code == 401
    monkeypatch.setenv("OPERATORS_PASSWORD", "s3cret")
    assert client.get("/ops/tasks/").status_code == 401

    text = client.get("/ops/tasks/", auth=("ann", "s3cret")).text

    assert "<b>1</b> waiting" in text
    assert 'href="/ops/tasks/dead"' in text
    assert tasks.bridge.run_until_idle() == 2


def test_an_order_of_too_much_is_discarded(client: FlaskClient) -> None:
    client.post("/orders", json={"article": "book", "quantity": 3})

    assert tasks.bridge.run_until_idle() == 1
    assert tasks.stock == {"book": 2}
    assert tasks.bridge.dead_letters() == []


def test_an_order_of_something_unknown_is_a_dead_letter_at_once(client: FlaskClient) -> None:
    client.post("/orders", json={"article": "pen", "quantity": 1})

    assert tasks.bridge.run_until_idle() == 1
    assert [letter.reason for letter in tasks.bridge.dead_letters()] == ["gave_up"]
