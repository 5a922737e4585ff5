"""A FastAPI app that answers at once and leaves the work to tasks.

From the repository's root:

    export TASKBRIDGE_URL=celery+redis://localhost:6379/0    # or dramatiq+..., or inline:// while developing
    fastapi dev examples/fastapi_app/web.py                  # pip install 'fastapi[standard]'
    taskbridge worker examples.fastapi_app.tasks             # in another terminal

With OPERATORS_PASSWORD set, /ops/tasks shows what goes on, with any name and this password.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from examples.fastapi_app import operators, reports
from examples.fastapi_app.tasks import send_reminder, send_welcome_email
from taskbridge import BrokerUnavailable, default_bridge


class SignUp(BaseModel):
    address: str


class Accepted(BaseModel):
    welcome: str
    reminder: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    yield
    default_bridge().close()


app = FastAPI(lifespan=lifespan)
app.include_router(reports.router)
for error, answer in reports.ERRORS.items():
    app.add_exception_handler(error, answer)
app.mount("/ops/tasks", operators.page)


@app.post("/signups", status_code=202)
async def sign_up(new: SignUp) -> Accepted:
    welcome = await send_welcome_email.asend(new.address)  # the broker has it now; the event loop was never blocked
    reminder = await send_reminder.aschedule(timedelta(days=3), new.address)
    return Accepted(welcome=welcome.id, reminder=reminder.id)


@app.exception_handler(BrokerUnavailable)
async def queue_is_away(request: Request, exc: Exception) -> JSONResponse:
    return JSONResponse({"detail": "try again in a moment"}, status_code=503, headers={"Retry-After": "5"})
