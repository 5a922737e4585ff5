"""The page of `taskbridge.web` in a Django project, under the login of the admin and its permissions."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from asgiref.sync import async_to_sync
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, re_path
from django.utils.crypto import salted_hmac
from django.views.decorators.csrf import csrf_exempt
from starlette.requests import Request

from taskbridge.bridge import default_bridge
from taskbridge.web import app

_NEEDED: Final = {
    "messages": ("view_message",),
    "message": ("view_message", "view_arguments"),
    "dead": ("view_deadletter",),
    "letter": ("view_deadletter", "view_arguments"),
    "schedules": ("view_schedule",),
    **dict.fromkeys(("flows", "flow"), ("view_flow",)),
    **dict.fromkeys(("replay", "replay_all"), ("replay_deadletter",)),
    **dict.fromkeys(("purge", "purge_all"), ("delete_deadletter",)),
    **dict.fromkeys(("pause", "resume", "pause_task", "resume_task"), ("pause_queue",)),
    **dict.fromkeys(("pause_schedule", "resume_schedule"), ("change_schedule",)),
    "cancel": ("cancel_message",),
    "run_schedule": ("run_schedule",),
    "cancel_flow": ("cancel_flow",),
    "retry_flow": ("retry_flow",),
}
"""The permissions that a page or an act needs; other pages need `view_queue`, and an act that is not named here needs
a superuser."""


def page_urls() -> list[URLPattern]:
    """Return URL patterns of the page, as in `path("admin/tasks/", include(page_urls()))`, before those of the admin.

    It shows the default bridge to the admin's users, as their permissions allow (those of `taskbridge.django`).
    """
    return [re_path(r"^(?P<path>.*)$", admin.site.admin_view(_page))]


@csrf_exempt  # the page has tokens of its own
def _page(request: HttpRequest, path: str) -> HttpResponse:
    user: Any = request.user
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "root_path": request.path.removesuffix(path).rstrip("/"),
        "query_string": request.META.get("QUERY_STRING", "").encode("latin-1"),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in request.headers.items()],
        "user": user,
        "taskbridge.permissions": user.get_all_permissions(),  # asked here: other threads have other connections
    }
    answered: HttpResponse = async_to_sync(_answered)(scope, request.body)
    return answered


@cache
def _app() -> Any:
    secret = salted_hmac("taskbridge.page", "", algorithm="sha256").hexdigest()  # of the SECRET_KEY, for this alone
    return app(default_bridge(), allow=_may, secret=secret)


def _may(request: Request, action: str, target: str) -> bool:
    needed = _NEEDED.get(target, ("view_queue",)) if action == "read" else _NEEDED.get(action)
    if request.user.is_superuser or needed is None:
        return bool(request.user.is_superuser)
    had: set[str] = request.scope["taskbridge.permissions"]
    return had.issuperset(f"taskbridge.{name}" for name in needed)


async def _answered(scope: dict[str, Any], content: bytes) -> HttpResponse:
    response = HttpResponse()
    del response.headers["Content-Type"]
    body: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        body.append(message.get("body", b""))
        if message["type"] == "http.response.start":
            response.status_code = message["status"]
            for name, value in message["headers"]:
                if name == b"set-cookie":
                    response.cookies.load(value.decode("latin-1"))
                else:
                    response[name.decode()] = value.decode("latin-1")

    await _app()(scope, receive, send)
    response.content = b"".join(body)
    return response
