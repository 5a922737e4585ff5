"""What the page shows: each view asks the broker and the store for a fixed number of things."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import Any, Final, get_args
from urllib.parse import parse_qsl, urlencode, urlsplit

from markupsafe import Markup, escape
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from taskbridge._version import __version__
from taskbridge.bridge import Bridge
from taskbridge.dead import DeadEntry, filters_text
from taskbridge.durations import moment
from taskbridge.exceptions import BrokerUnavailable, NoSuchDeadLetter, NoSuchRecord, TaskBridgeError, UnsupportedError
from taskbridge.failures import clipped
from taskbridge.flows.states import FlowState
from taskbridge.locks import Lock
from taskbridge.logs import logger
from taskbridge.message import DeadLetter, Message, is_id
from taskbridge.stores.states import State, Status
from taskbridge.web.acts import ACTS, Form
from taskbridge.web.guard import Guard, who
from taskbridge.web.showing import MOST_VALUE, environment

Context = Mapping[str, Any]
"""What a template shows."""

_RECENT_S: Final = 2.0  # for so long an answer counts: many viewers cost as little as one
_MOST_FORM: Final = 16_384  # bytes
_MOST_FILTER: Final = 255  # characters
_LETTERS: Final = 50  # on a page
_STEPS: Final = 50
_MOST_DIGITS: Final = 9
_FLOW_STATES: Final = (*get_args(FlowState), "stalled")
_SINCE: Final = {"15 min": 900.0, "1 h": 3600.0, "24 h": 86400.0, "7 d": 604800.0}

TITLES: Final = {
    "": "Now",
    "running": "Running",
    "failures": "Failures",
    "messages": "Messages",
    "dead": "Dead",
    "flows": "Flows",
    "schedules": "Schedules",
    "workers": "Workers",
}
"""The pages of the navigation, by their paths."""

_log = logger("taskbridge.web")


class _Gone(TaskBridgeError):
    """What a page was to show isn't there."""


@contextmanager
def _gone(error: type[Exception], text: str = "There is no such page.") -> Generator[None]:
    try:
        yield
    except error:
        raise _Gone(text) from None


def _failures(bridge: Bridge) -> Any:
    shown = bridge.dead.shown_error
    return [(each, shown(each.task, each.last_id, each.error)) for each in bridge.operations.failures()]


_ANSWERS: Final[Mapping[str, Callable[[Bridge], Any]]] = {
    "running": lambda bridge: bridge.operations.running(),
    "failures": _failures,
    "schedules": lambda bridge: bridge.schedules.list(),
    "workers": lambda bridge: bridge.operations.workers(),
}
"""What is shown whole on the pages of these names."""


def routes(bridge: Bridge, guard: Guard) -> list[BaseRoute]:
    """Return the routes of the page."""
    pages = _Pages(bridge, guard)
    views: Mapping[str, Callable[[Request], Context]] = {
        "": pages.now,
        "messages": pages.messages,
        "message": pages.message,
        "dead": pages.dead,
        "letter": pages.letter,
        "flows": pages.flows,
        "flow": pages.flow,
        **{name: pages.recent(name) for name in _ANSWERS},
    }
    return [
        *(Route(f"/{path}", pages.viewed(path or "now", view)) for path, view in views.items()),
        Route("/act/{action}", pages.act, methods=["POST"]),
        Mount("/static", StaticFiles(packages=[("taskbridge.web", "static")])),
        Route("/{rest:path}", pages.nowhere),
    ]


class _Recent:
    """Answers that were asked for a moment ago; who asks while somebody else does so waits for that answer."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._asking: dict[str, Any] = {}
        self._known: dict[str, tuple[float, Any, Exception | None]] = {}

    def get(self, name: str, ask: Callable[[], Any]) -> Any:
        """Return an answer, or raise what it was answered with."""
        with self._lock:
            asking, known = self._asking.setdefault(name, Lock()), self._known
        with asking:
            until, answer, error = known.get(name, (0.0, None, None))
            if until < monotonic():
                answer = error = None
                try:
                    answer = ask()
                except TaskBridgeError as exc:
                    error = exc
                known[name] = monotonic() + _RECENT_S, answer, error
        if error is not None:
            raise error
        return answer

    def forget(self) -> None:
        """Ask for everything again: somebody has changed it. What is being asked for now may be old already."""
        with self._lock:
            self._asking, self._known = {}, {}


class _Pages:
    """The views of a bridge."""

    def __init__(self, bridge: Bridge, guard: Guard) -> None:
        self._bridge = bridge
        self._guard = guard
        self._templates = environment()
        self._recent = _Recent()

    # What stands around a view

    def viewed(self, page: str, view: Callable[[Request], Context]) -> Callable[[Request], Response]:
        """Return the endpoint of a view, whose template has the name of its page."""

        def endpoint(request: Request) -> Response:
            if self._guard.refuses(request, "read", page):
                return self._problem(request, "You may not see this page.", HTTPStatus.FORBIDDEN, page)
            try:
                return self._rendered(request, page, view(request))
            except _Gone as exc:
                return self._problem(request, str(exc), HTTPStatus.NOT_FOUND, page)
            except UnsupportedError as exc:
                return self._problem(request, exc.remedy, HTTPStatus.OK, page)
            except TaskBridgeError as exc:
                text = exc.problem if isinstance(exc, BrokerUnavailable) else str(exc)
                return self._problem(request, text, HTTPStatus.SERVICE_UNAVAILABLE, page)

        return endpoint

    def nowhere(self, request: Request) -> Response:
        return self._problem(request, "There is no such page.", HTTPStatus.NOT_FOUND, "")

    def _problem(self, request: Request, text: str, status: HTTPStatus, page: str) -> Response:
        return self._rendered(request, "problem", {"text": text, "of": page, "status": status}, status)

    def _rendered(
        self, request: Request, template: str, context: Context, status: HTTPStatus = HTTPStatus.OK
    ) -> Response:
        root = request.scope.get("root_path", "")
        token = self._guard.token(request)
        settings = self._bridge.settings

        def url(path: str, **query: str | None) -> Markup:
            given = {name: clipped(value, MOST_VALUE) for name, value in query.items() if value}
            return escape(f"{root}/{path}{'?' if given else ''}{urlencode(given)}")

        text = self._templates.get_template(f"{template}.html").render(
            {
                "may": partial(self._guard.may, request),
                "namespace": settings.namespace,
                "now": moment(self._bridge.now()),
                "page": template,
                "said": self._guard.said(request),
                "target": settings.url.target,
                "titles": TITLES,
                "token": token,
                "url": url,
                "version": __version__,
                **context,
            }
        )
        return self._guard.finished(request, HTMLResponse(text, status), token)

    # The views

    def now(self, request: Request) -> Context:
        """Show the queues, the rates of the last hour, and what somebody should look at."""
        operations = self._bridge.operations
        counts = self._recent.get("counts", self._bridge.counts)
        queues = self._recent.get("queues", operations.queues)
        rates = self._or_remedy("rates", operations.rates)
        alarms = partial(operations.alarms, queues=queues, rates=None if isinstance(rates, str) else rates)
        columns = ("oldest_s", "running")
        return {
            "alarms": self._recent.get("alarms", alarms),
            "counts": counts,
            "known": [name for name in columns if any(getattr(each, name) is not None for each in queues)],
            "queues": queues,
            "rates": rates,
            "paused": self._or_remedy("paused", self._bridge.paused),
        }

    def _or_remedy(self, name: str, ask: Callable[[], Any]) -> Any:
        """Return an answer, or the text that says what must be set for it."""
        try:
            return self._recent.get(name, ask)
        except UnsupportedError as exc:
            return exc.remedy

    def recent(self, name: str) -> Callable[[Request], Context]:
        """Return the view that shows one answer."""
        return lambda _: {name: self._recent.get(name, partial(_ANSWERS[name], self._bridge))}

    def messages(self, request: Request) -> Context:
        given = _filters_in(request, "task", "queue", "state", "since")
        since_s = _SINCE.get(given["since"] or "")
        filters: dict[str, Any] = {
            "task": given["task"] or "*",
            "queue": given["queue"],
            "state": given["state"] if given["state"] in get_args(State) else None,
            "since": None if since_s is None else moment(self._bridge.now() - since_s),
        }
        with _gone(ValueError):  # the cursor is no page's
            found = self._bridge.operations.messages(**filters, cursor=request.query_params.get("cursor", ""))
        return {
            "given": given,
            "items": [self._bridge.dead.shown_status(each) for each in found.items],
            "cursor": found.cursor,
            "queues": self._bridge.queues(),
            "states": get_args(State),
            "times": list(_SINCE),
        }

    def message(self, request: Request) -> Context:
        asked = _id_in(request)
        with _gone(NoSuchRecord, f"No message {asked} is recorded. Records are forgotten a while after their end."):
            status = self._bridge.handle(asked).status()
        entry = self._entry_of(status)
        hides = self._bridge.dead.redacts  # what a task returned may be as secret as what it was given
        return {"status": self._bridge.dead.shown_status(status), "entry": entry, "hides_result": hides}

    def _entry_of(self, status: Status) -> DeadEntry | None:
        """Return what may be shown of a message's arguments and last error; None if its arguments are not kept."""
        if status.state == "dead":
            with suppress(NoSuchDeadLetter):
                return self._bridge.dead.get(status.id)
        if status.sent is None:
            return None
        args_json, kwargs_json, headers = status.sent
        texts: Any = {"args_json": args_json, "kwargs_json": kwargs_json, "headers": dict(headers)}
        message = Message(
            id=status.id, task=status.task, queue=status.queue, enqueued_at=status.enqueued_at.timestamp(), **texts
        )
        return self._bridge.dead.shown(DeadLetter(message=message, reason="", died_at=0.0, error=status.error))

    def dead(self, request: Request) -> Context:
        filters = _filters_in(request, "task", "reason", "queue")
        with _gone(ValueError):  # `after` is no page's
            found = self._bridge.dead.list(**filters, limit=_LETTERS, after=request.query_params.get("after") or None)
        counts = self._recent.get("counts", self._bridge.counts)
        return {
            "filters": filters,
            "scope": filters_text(**filters),
            "entries": found.entries,
            "next": found.next,
            "total": counts.dead,
            "queues": self._bridge.queues(),
        }

    def letter(self, request: Request) -> Context:
        asked = _id_in(request)
        gone = f"There is no dead letter {asked} any more: it was replayed, purged, or its time is over."
        with _gone(NoSuchDeadLetter, gone):
            return {"entry": self._bridge.dead.get(asked)}

    def flows(self, request: Request) -> Context:
        state: Any = request.query_params.get("state")
        chosen = state if state in _FLOW_STATES else None
        with _gone(ValueError):  # the cursor is no page's
            found = self._bridge.operations.flows(state=chosen, cursor=request.query_params.get("cursor", ""))
        items = [self._bridge.dead.shown_flow(each) for each in found.items]
        return {"items": items, "cursor": found.cursor, "state": chosen, "states": _FLOW_STATES}

    def flow(self, request: Request) -> Context:
        asked, given = _id_in(request), request.query_params.get("first", "0")
        if not (given.isascii() and given.isdecimal() and len(given) <= _MOST_DIGITS):
            raise _Gone("There is no such page.")
        with _gone(NoSuchRecord, f"There is no flow {asked}. Flows are forgotten a while after their end."):
            flow = self._bridge.flows.status(asked)
            steps = self._bridge.flows.steps(asked, first=int(given), most=_STEPS)
        following = int(given) + _STEPS
        return {
            "flow": self._bridge.dead.shown_flow(flow),
            "first": int(given),
            "next": following if len(steps) >= _STEPS and following < flow.total else None,
            "steps": [self._bridge.dead.shown_status(each) for each in steps],
        }

    # Acts

    async def act(self, request: Request) -> Response:
        """Do what a form asks for, and go back to where it was sent from."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _MOST_FORM:
                return Response("the form is too long", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        form = dict(parse_qsl(body.decode("ascii", "replace")))
        return await run_in_threadpool(self._act, request, form)

    def _act(self, request: Request, form: Form) -> Response:
        name = request.path_params["action"]
        if name not in ACTS:
            return self.nowhere(request)
        if self._guard.is_forged(request, form.get("token", "")):
            text = "This form is not of this page, or too old: go back, load the page again, and try once more."
            return self._problem(request, text, HTTPStatus.FORBIDDEN, "")
        act = ACTS[name]
        target = act.target(form)
        if self._guard.refuses(request, name, target):
            return self._problem(request, f"You may not do this: {name}.", HTTPStatus.FORBIDDEN, "")
        try:
            text = act.do(self._bridge, form)
            self._bridge.hooks.operated(who(request), name, target)
        except (TaskBridgeError, ValueError) as exc:  # if the broker doesn't answer, a part may be done
            text = f"Not done: {exc}"
            _log.warning("%s tried %s: %s: %s", who(request), name, target, exc)
        self._recent.forget()
        response = RedirectResponse(self._from(request, act.page), HTTPStatus.SEE_OTHER)
        return self._guard.finished(request, response, self._guard.token(request), text)

    def _from(self, request: Request, otherwise: str) -> str:
        """Return the path and query of the page that a form was on: of this app, whatever a header says."""
        root = request.scope.get("root_path", "")
        came = urlsplit(request.headers.get("referer", ""))
        path = came.path.removeprefix(f"{root}/")
        if came.path.startswith(f"{root}/") and path in (*TITLES, "message", "flow"):
            return f"{root}/{path}{'?' if came.query else ''}{came.query}"
        return f"{root}/{otherwise}"


def _filters_in(request: Request, *names: str) -> dict[str, str | None]:
    given = {name: request.query_params.get(name) or None for name in names}
    if any(value is not None and len(value) > _MOST_FILTER for value in given.values()):
        raise _Gone(f"A filter has at most {_MOST_FILTER} characters.")
    return given


def _id_in(request: Request) -> str:
    asked = request.query_params.get("id")
    if not is_id(asked):
        raise _Gone("This is no message's or flow's id.")
    return asked
