"""A password before the page of what goes on in queues and workers: a browser asks for it."""

import hmac
import os
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug import Request, Response

WSGIApp = Callable[[dict[str, Any], Any], Iterable[bytes]]


def behind_a_password(page: WSGIApp) -> WSGIApp:
    def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        given, wanted = Request(environ).authorization, os.environ.get("OPERATORS_PASSWORD", "")
        password = "" if given is None else given.password or ""
        if given is None or not wanted or not hmac.compare_digest(password.encode(), wanted.encode()):
            ask = Response("log in", 401, {"WWW-Authenticate": 'Basic realm="operators"'})
            return ask(environ, start_response)
        return page({**environ, "REMOTE_USER": given.username}, start_response)  # each act is logged with this name

    return serve
