"""A Flask app whose requests leave work to tasks, and whose request ids travel along.

From the repository's root:

    export TASKBRIDGE_URL=dramatiq+redis://localhost:6379/0    # or celery+..., or inline:// while developing
    flask --app examples.flask_app.web run
    taskbridge worker examples.flask_app.tasks:bridge          # in another terminal
"""

import uuid

from flask import Flask, Response, g, has_request_context, jsonify, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from examples.flask_app.operators import behind_a_password
from examples.flask_app.tasks import bridge, place_order
from taskbridge import BrokerUnavailable, Event
from taskbridge.web import everything, wsgi

app = Flask(__name__)
page = wsgi(bridge, allow=everything)  # what goes on in queues and workers, and what can be done about it
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/ops/tasks": behind_a_password(page)})  # type: ignore[method-assign]


@app.before_request
def name_request() -> None:
    g.request_id = request.headers.get("X-Request-ID", str(uuid.uuid4()))


@bridge.on("before_send")
def add_request_id(event: Event) -> None:
    if has_request_context() and event.message is not None:
        event.message.headers["request_id"] = g.request_id


@app.post("/orders")
def order() -> tuple[Response, int]:
    wanted = request.get_json()
    handle = place_order.using(priority="high").send(wanted["article"], quantity=wanted["quantity"])
    return jsonify(id=handle.id, queue=handle.queue), 202


@app.errorhandler(BrokerUnavailable)
def queue_is_away(exc: BrokerUnavailable) -> tuple[Response, int]:
    return jsonify(detail="try again in a moment"), 503
