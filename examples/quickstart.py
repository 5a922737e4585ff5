"""Declare tasks once; send, delay, prioritise, fail and retry them.

From the repository's root:

    python -m examples.quickstart                                    # inline: no engine, no server
    TASKBRIDGE_URL=celery+memory:// python -m examples.quickstart    # a Celery worker in this process
    TASKBRIDGE_URL=dramatiq+redis://localhost python -m examples.quickstart    # sends; a worker runs them:
    TASKBRIDGE_URL=dramatiq+redis://localhost taskbridge worker examples.quickstart
"""

import os
import threading
from datetime import timedelta

from taskbridge import Event, RetryPolicy, configure, current, on, task

ended = threading.Semaphore(0)


@task(queue="email", retry=RetryPolicy(max_attempts=3, min_delay=0.2))
def send_welcome_email(user_id: int) -> str:
    if user_id == 42 and current().attempt < 3:
        raise ConnectionError("the mail server is busy")
    return f"welcome, user {user_id}"


@task(retry=RetryPolicy(give_up_on=ValueError))
def charge(cents: int) -> None:
    raise ValueError(f"cannot charge {cents} cents")


@on("retrying")
@on("succeeded")
@on("dead")
def tell(event: Event) -> None:
    if event.message is not None:
        what = f"{event.message.task}, attempt {event.message.attempt}: {event.name} ({event.error or event.result})"
        print(what + "\n", end="", flush=True)  # in one piece, for many threads print
    if event.name != "retrying":
        ended.release()


if __name__ == "__main__":
    bridge = configure(os.environ.get("TASKBRIDGE_URL", "inline://?threads=0"))
    send_welcome_email.send(1)
    send_welcome_email.send(42)
    send_welcome_email.using(priority="high").send(2)
    send_welcome_email.schedule(timedelta(seconds=1), 3)
    charge.send(-5)
    print(f"sent 5 messages to {bridge.settings.url.target}", flush=True)

    if bridge.settings.url.broker == "memory":  # no other process can see them, so they run in this one
        with bridge.embedded_worker():
            for _ in range(5):
                ended.acquire(timeout=30)
