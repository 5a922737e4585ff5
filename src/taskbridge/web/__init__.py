"""The page: what goes on in a bridge's queues and workers, and what can be done about it (rules V).

It reads from the broker and the store alone, so it may run anywhere, in any number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

from taskbridge.bridge import Bridge
from taskbridge.exceptions import NotInstalledError, needs
from taskbridge.locks import PerProcess

try:
    from starlette.applications import Starlette

    from taskbridge.web.guard import Allow, Guard, everything, reading_only
    from taskbridge.web.pages import routes
except ModuleNotFoundError as _missing:
    if (_missing.name or "").partition(".")[0] not in ("starlette", "jinja2"):
        raise
    raise NotInstalledError(f"{_missing.name}, which the page needs,", "web") from _missing

WSGIApp: TypeAlias = "Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]"

__all__ = ["Allow", "app", "everything", "reading_only", "wsgi"]


def app(bridge: Bridge, *, allow: Allow = reading_only, secret: str | None = None) -> Starlette:
    """Return the page as an ASGI app, to be served by itself or mounted under any prefix.

    Args:
        bridge: Whose queues, messages and workers it shows.
        allow: Is called in a thread with the request, an action and its target, and returns whether that may be done.
            The action `read` has a page as its target, such as `dead`; the others are `cancel`, `replay`, `purge` (a
            message's id), `replay_all`, `purge_all` (filters of dead letters), `pause`, `resume` (a queue),
            `pause_task`, `resume_task` (a glob), `pause_schedule`, `resume_schedule`, `run_schedule` (its name),
            `cancel_flow` and `retry_flow` (a flow's id).
        secret: Signs the tokens of forms; all processes that serve the page need the same. None derives it from the
            URLs of broker and store: give one where strangers reach the page, for from a token they could guess a weak
            password in these URLs.
    """

    def derive() -> str:
        settings = bridge.settings
        known = f"{settings.url.broker_url}\0{settings.store}\0{settings.namespace}"
        return hashlib.scrypt(known.encode(), salt=b"taskbridge forms", n=2**14, r=8, p=1).hex()  # slow to guess

    own = PerProcess(derive)  # when it is needed, for an app may be made before its bridge has settings
    return Starlette(routes=routes(bridge, Guard(allow, lambda: secret or own.get())))


def wsgi(bridge: Bridge, *, allow: Allow = reading_only, secret: str | None = None) -> WSGIApp:
    """Return the page as a WSGI app; the arguments are those of `app`. Raises `NotInstalledError` without a2wsgi."""
    with needs("a2wsgi, which serves the page by WSGI,", "web"):
        from a2wsgi import ASGIMiddleware
    asgi: Any = app(bridge, allow=allow, secret=secret)
    served = PerProcess(partial(ASGIMiddleware, asgi))  # it has a thread, which a forked child would miss

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        made: Any = served.get()
        answered: Iterable[bytes] = made(environ, start_response)
        return answered

    return serve
