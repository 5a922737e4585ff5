"""`taskbridge web`: serves the page."""

from __future__ import annotations

import logging
import signal
import socket
from argparse import Namespace
from ipaddress import ip_address
from socket import AF_INET, AF_INET6

from taskbridge import Bridge
from taskbridge.cli import command as cli
from taskbridge.cli.output import say
from taskbridge.exceptions import needs


@cli.command(
    "serve a page that shows what goes on",
    cli.MODULE_OR_NONE,
    cli.URL,
    cli.argument("--host", "HOST", "default: 127.0.0.1, for this machine alone", default="127.0.0.1"),
    cli.argument("--port", "PORT", "0: any that is free; default: 8765", type=cli.port, default=8765),
    cli.flag("--allow-acts", "let everybody who reaches the page change things"),
    opens=cli.server_bridge,
)
def web(bridge: Bridge, arguments: Namespace) -> cli.Output:
    """Serve a page that shows queues, runs, failures, messages, dead letters, schedules and workers.

      taskbridge web shop.tasks
      taskbridge web shop.tasks --port 9000 --allow-acts

    It has no login: on another host than 127.0.0.1, put a proxy with one before it, or mount `taskbridge.web.app` in
    your own application. Without --allow-acts, nothing can be changed.

    SIGTERM and Ctrl-C stop it, with exit code 0.
    """
    from taskbridge.web import app, everything, reading_only  # here, for it is an extra

    with needs("uvicorn, which serves the page,", "web"):
        import uvicorn
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    host: str = arguments.host
    shown = f"[{host}]" if ":" in host else host
    served = app(bridge, allow=everything if arguments.allow_acts else reading_only)
    if _is_loopback(host):  # else a name of a foreign site, pointed to this machine, would open the page to that site
        served.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", shown])
    else:
        acts = ", and can replay, purge, cancel and pause" if arguments.allow_acts else ""
        say(f"everybody who reaches {host} reads all arguments{acts}: put a login before it", logging.WARNING)
    server = uvicorn.Server(uvicorn.Config(served, log_level="warning", timeout_keep_alive=30))

    def stop(*_: object) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):  # until uvicorn has its own handlers; it raises the signal again
        signal.signal(number, stop)
    try:
        listening = socket.create_server((host, arguments.port), family=AF_INET6 if ":" in host else AF_INET)
    except OSError as exc:
        raise cli.UsageError(f"web: can't listen on {host}, port {arguments.port}: {exc.strerror or exc}") from exc
    say(f"serving {bridge.settings.url.safe_url} on http://{shown}:{listening.getsockname()[1]}/")
    server.run(sockets=[listening])
    return cli.Output()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
