"""Rows about messages that a worker can't run."""

from __future__ import annotations

import time
from typing import Final

from benchmarks.guarantees.outcome import Outcome
from benchmarks.guarantees.table import Issue, row
from benchmarks.guarantees.trial import Trial

_PATIENCE_S: Final = 30.0


def _ends(t: Trial) -> str:
    if not t.ends:
        return ""
    return "the worker ended once" if t.ends == 1 else f"the worker ended {t.ends} times"


@row(
    "Something that is no message lies in the queue, among good ones",
    kept="the good ones are run, and the worker stays",
    issues=(
        Issue(
            engine="celery",
            place="celery/celery#4308",
            says="a message that the worker can't decode ends the worker",
        ),
        Issue(engine="celery", place="celery/kombu#2421", says="the same on SQS, with an item that is not JSON"),
    ),
)
def garbage_in_the_queue(t: Trial) -> Outcome:
    """Bytes that are not JSON, among three good messages, before the worker starts. Watched for 30 s."""
    keys = [t.send()]
    answer = t.office.call("send_garbage")
    keys += [t.send() for _ in range(2)]
    t.start_worker(ready=False)
    done = t.wait_done(keys, _PATIENCE_S)
    time.sleep(1)
    return Outcome(
        kept=answer.ok and done and not t.ends,
        sent=len(keys),
        lost=t.lost(keys),
        twice=t.twice(keys),
        remark=", ".join(word for word in (answer.error, _ends(t)) if word),
    )


@row(
    "A deploy: tasks are sent that the old worker doesn't know yet",
    kept="the new worker runs them",
)
def unknown_task(t: Trial) -> Outcome:
    """Three messages of a new task, for 5 s before an old worker that doesn't know it; then it is replaced.

    The new worker is watched for 40 s. Lost is what was not run then and is no dead letter either.
    """
    old = t.start_worker(late=False)
    keys = [t.send(late=True) for _ in range(3)]
    time.sleep(5)
    old.terminate()
    old.wait(10)
    old.kill()
    t.start_worker()
    done = t.wait_done(keys, 40)
    not_run, letters = t.lost(keys), t.dead_letters()
    return Outcome(
        kept=done,
        sent=len(keys),
        lost=max(0, not_run - letters),
        twice=t.twice(keys),
        remark="" if done else f"not run {not_run}, dead letters {letters}",
    )


@row(
    "The other engine already has a queue of this name, on the same server",
    kept="both engines' messages are run, and the workers stay",
    issues=(
        Issue(
            engine="dramatiq",
            place="Bogdanp/dramatiq#301",
            says="a queue that exists with other arguments is refused (406); the advice is to delete it",
        ),
    ),
)
def same_queue_name(t: Trial) -> Outcome:
    """The other engine's worker and one message first; then three messages, a worker, and one more of the other's.

    Watched for 30 s.
    """
    other = t.neighbour()
    other_clerk = t.clerk(of=other)
    keys = [t.send(by=other_clerk)]
    t.start_worker(of=other)
    t.wait_done(keys, _PATIENCE_S)
    errors: list[str] = []
    for _ in range(3):
        key, answer = t.try_send()
        keys.append(key)
        errors += [] if answer.ok else [answer.error.partition(" - ")[0][:60] or "it hangs"]
    t.start_worker(ready=False)
    keys.append(t.send(by=other_clerk))
    done = t.wait_done(keys, _PATIENCE_S)
    time.sleep(1)
    return Outcome(
        kept=done and not t.ends,
        sent=len(keys),
        lost=t.lost(keys),
        twice=t.twice(keys),
        remark=", ".join(word for word in (_ends(t), *dict.fromkeys(errors)) if word),
    )
