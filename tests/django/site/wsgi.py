"""A web application that sends a task for each request, and answers with the id of its process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from django.core.wsgi import get_wsgi_application

get_wsgi_application()  # which sets Django up

from tests.django.site.ledger.tasks import add  # noqa: E402 - the apps are loaded now


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    add.send(int(environ["PATH_INFO"].strip("/")))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
