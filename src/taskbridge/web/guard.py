"""Who may do what on the page, and what keeps other sites from doing it (rules V4 and V5)."""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.responses import Response

from taskbridge.logs import logger

Allow = Callable[[Request, str, str], bool]
"""Returns whether a request may do an action to a target."""

_FORMS: Final = "taskbridge_forms"  # the names of the cookies
_SAID: Final = "taskbridge_said"

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "same-origin",  # an act is answered with the page that it came from
    "X-Content-Type-Options": "nosniff",
}

_log = logger("taskbridge.web")


def reading_only(request: Request, action: str, target: str) -> bool:
    """Allow everybody to read, and nobody to do anything."""
    return action == "read"


def everything(request: Request, action: str, target: str) -> bool:
    """Allow everybody everything."""
    return True


def who(request: Request) -> str:
    """Return the name of the user that a server or a middleware has made sure of; `-` if there is none."""
    user: Any = request.scope.get("user")
    name = user.get_username() if hasattr(user, "get_username") else getattr(user, "display_name", "")
    environ: Mapping[str, Any] = request.scope.get("wsgi_environ", {})
    return str(name or environ.get("REMOTE_USER") or "-")


class Guard:
    """Decides what a request may do, and signs what a browser keeps.

    Forms carry the token of a cookie, which other sites can neither read nor make.
    """

    def __init__(self, allow: Allow, secret: Callable[[], str]) -> None:
        self._allow = allow
        self._secret = secret

    def may(self, request: Request, action: str, target: str) -> bool:
        """Return whether a request may do this."""
        return bool(self._allow(request, action, target))

    def refuses(self, request: Request, action: str, target: str) -> bool:
        """Return whether a request may not do this, and log it then."""
        if self.may(request, action, target):
            return False
        _log.warning("%s may not do %s: %s", who(request), action, target)
        return True

    def token(self, request: Request) -> str:
        """Return the token of a request's cookie, or a new one."""
        token = request.cookies.get(_FORMS, "")
        return token if self._read(_FORMS, token) else self._signed(_FORMS, secrets.token_urlsafe(16))

    def is_forged(self, request: Request, token: str) -> bool:
        """Return whether a form was not made by this page for this browser, and log it then."""
        kept = request.cookies.get(_FORMS, "")
        site = request.headers.get("sec-fetch-site", "same-origin")
        is_own = bool(self._read(_FORMS, kept)) and hmac.compare_digest(kept.encode(), token.encode())
        if is_own and site in ("same-origin", "none"):
            return False
        _log.warning("%s sent a form without the token of this page: %s", who(request), request.url.path)
        return True

    def said(self, request: Request) -> str:
        """Return what the page before had said by `finished`; empty if it was nothing."""
        return unquote(self._read(_SAID, request.cookies.get(_SAID, "")))

    def finished(self, request: Request, response: Response, token: str, text: str = "") -> Response:
        """Return a page with what has to be with it; the next page says the text."""
        response.headers.update(_HEADERS)
        if request.cookies.get(_FORMS) != token:
            self._keep(request, response, _FORMS, token)
        if text:
            self._keep(request, response, _SAID, self._signed(_SAID, quote(text[:500])))
        elif _SAID in request.cookies:
            response.delete_cookie(_SAID, path=_path(request))
        return response

    def _keep(self, request: Request, response: Response, name: str, value: str) -> None:
        is_secure = request.url.scheme == "https"
        response.set_cookie(name, value, path=_path(request), secure=is_secure, httponly=True, samesite="strict")

    def _signed(self, name: str, text: str) -> str:
        """Return a text that is signed as the value of one cookie."""
        digest = hmac.digest(self._secret().encode(), f"{name}={text}".encode(), sha256)
        return f"{text}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"

    def _read(self, name: str, signed: str) -> str:
        """Return the text that was signed; empty if it wasn't here."""
        text = signed.rpartition(".")[0]
        return text if text and hmac.compare_digest(self._signed(name, text).encode(), signed.encode()) else ""


def _path(request: Request) -> str:
    return request.scope.get("root_path") or "/"
