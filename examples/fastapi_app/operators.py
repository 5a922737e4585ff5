"""The page of what goes on in queues and workers, behind a password: a browser asks for it."""

import base64
import binascii
import hmac
import os

from fastapi import Response
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection

from taskbridge import default_bridge, web


class Password(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser]:
        kind, _, encoded = conn.headers.get("Authorization", "").partition(" ")
        try:
            name, _, password = base64.b64decode(encoded).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as exc:
            raise AuthenticationError from exc
        wanted = os.environ.get("OPERATORS_PASSWORD", "")
        if kind != "Basic" or not wanted or not hmac.compare_digest(password.encode(), wanted.encode()):
            raise AuthenticationError
        return AuthCredentials(), SimpleUser(name)  # each act is logged with this name


def ask(conn: HTTPConnection, exc: Exception) -> Response:
    return Response("log in", 401, {"WWW-Authenticate": 'Basic realm="operators"'})


page = web.app(default_bridge(), allow=web.everything)
page.add_middleware(AuthenticationMiddleware, backend=Password(), on_error=ask)
