"""Reports: a request starts one and gets its id; others ask how it is doing, follow it to its end, or cancel it.

curl -i -X POST 'localhost:8000/reports?year=2026'          # 202, and where to look
curl localhost:8000/reports/ID
curl -N localhost:8000/reports/ID/events                    # server-sent events, until it is done
curl -X DELETE localhost:8000/reports/ID
"""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from examples.fastapi_app.tasks import make_report
from taskbridge import Handle, NoSuchRecord, ResultTimeout, Status, TaskCancelled, TaskDiscarded, TaskFailed
from taskbridge import default_bridge as bridge

_LOOK_S = 2.0
"""How often a stream tells what a report is doing, until it ends; its end is told at once."""


class Report(BaseModel):
    """What a client is told: not the traceback, which is for us."""

    id: str
    state: str
    attempts: int
    months: dict[str, int] | None = None
    problem: str | None = None


router = APIRouter()


@router.post("/reports", status_code=202)
async def start(year: int, response: Response) -> Report:
    handle = await make_report.asend(year)
    response.headers["Location"] = f"/reports/{handle.id}"
    return _report(await handle.astatus())  # there is a record as soon as the broker has the message


@router.get("/reports/{report_id}")
async def look(report_id: str) -> Report:
    return await _now(bridge().handle(report_id))


@router.delete("/reports/{report_id}")
async def stop(report_id: str) -> Report:
    return _report(await bridge().handle(report_id).acancel())


@router.get("/reports/{report_id}/events")
async def follow(report_id: str) -> StreamingResponse:
    handle = bridge().handle(report_id)
    first = await _now(handle)  # a 404 is only possible before the stream begins
    return StreamingResponse(_events(handle, first), media_type="text/event-stream")


async def _events(handle: Handle[Any], first: Report) -> AsyncIterator[str]:
    yield _event(first)
    while True:
        try:
            await handle.aresult(timeout=_LOOK_S)  # holds no thread, and is woken by the end
        except ResultTimeout:
            yield _event(await _now(handle))
        except (TaskFailed, TaskCancelled, TaskDiscarded):
            break
        else:
            break
    yield _event(await _now(handle))


async def _now(handle: Handle[Any]) -> Report:
    status = await handle.astatus()
    months = await handle.aresult() if status.state == "done" else None
    return _report(status, months)


def _report(status: Status, months: dict[str, int] | None = None) -> Report:
    problem = status.error.message if status.state == "dead" and status.error is not None else None
    return Report(id=status.id, state=status.state, attempts=len(status.attempts), months=months, problem=problem)


def _event(report: Report) -> str:
    return f"event: {report.state}\ndata: {report.model_dump_json()}\n\n"


async def there_is_none(request: Request, exc: Exception) -> JSONResponse:
    """Answer for `NoSuchRecord`."""
    return JSONResponse({"detail": "there is no such report"}, status_code=404)


ERRORS = {NoSuchRecord: there_is_none}
