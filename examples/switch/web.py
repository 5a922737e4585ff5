"""The shop's web half. Flask's own server is for trying things out; put gunicorn or the like before real customers.

From the repository's root:

    flask --app examples.switch.web run
"""

import uuid

from flask import Flask, Response, jsonify

from examples.switch import orders
from examples.switch.tasks import charge
from taskbridge import default_bridge

app = Flask(__name__)


@app.post("/orders")
def new_order() -> tuple[Response, int]:
    order_id = uuid.uuid4().hex
    orders.record(order_id, "ordered")
    charge.send(order_id)
    return jsonify(order=order_id, target=default_bridge().settings.url.target), 202


@app.get("/orders/<order_id>")
def order(order_id: str) -> Response:
    return jsonify(history=orders.history(order_id))
