"""What a worker that was started by hand does, the same on Redis and RabbitMQ."""

from __future__ import annotations

import json
import time
from typing import Any

from dramatiq import Message

from taskbridge.contract.harness import STOP_S
from taskbridge.contract.stopwatch import Stopwatch
from tests.unit.dramatiq_shop import Shop


def plain_body(queue_name: str, task: str, *args: Any, **options: Any) -> bytes:
    """Return what a Dramatiq client on the other side of the world writes."""
    message = {
        "queue_name": queue_name,
        "actor_name": task,
        "args": args,
        "kwargs": {},
        "options": options,
        "message_id": f"id of {task} {args}",
        "message_timestamp": int(time.time() * 1000),
    }
    return json.dumps(message, separators=(",", ":")).encode()


class WorkerTests:
    """Subclasses give the fixture `shop`, and say how bytes get into a queue."""

    def put(self, shop: Shop, body: bytes) -> None:
        """Put bytes in the default queue."""
        raise NotImplementedError

    def test_every_outcome(self, shop: Shop) -> None:
        poison = [b"\x80\x04.", b"{}", plain_body("elsewhere", "note", "elsewhere", taskbridge="{")]
        for body in poison:
            self.put(shop, body)
        self.put(shop, plain_body("elsewhere", "note", "wrong queue name"))
        self.put(shop, plain_body(shop.native_queue(), "nobody_knows_it"))
        shop.flaky.send()
        for error in ("ValueError", "SystemExit", "Discard"):
            shop.fails.send(error)
        shop.note.schedule(0.5, "delayed")
        shop.bridge.native.get_actor("note").send_with_options(args=("plain",), delay=300)
        with shop.worker() as worker:
            shop.wait(lambda: len(shop.records("dead")) == 3 and len(shop.records("flaky", "note")) == 6)
            shop.idle()
            worker.terminate()
            assert worker.wait(60) == 0

        assert shop.data("flaky") == [[1], [2], [3]]
        assert sorted(shop.data("note")) == [
            [what, 1, "default", "normal"] for what in ("delayed", "plain", "wrong queue name")
        ]
        assert sorted(shop.data("fails")) == [
            ["Discard", 1],
            ["SystemExit", 1],
            *(["ValueError", n] for n in (1, 2, 3)),
        ]
        assert sorted(shop.data("dead")) == [
            ["fails", "exhausted"],
            ["fails", "gave_up"],
            ["nobody_knows_it", "unknown_task"],
        ]
        assert shop.data("discarded") == [["fails", "no"]]
        letters = shop.bridge.dead_letters()
        assert sorted(letter.raw for letter in letters if letter.raw is not None) == sorted(poison)
        assert sorted(letter.reason for letter in letters) == sorted(
            [*["undecodable"] * 3, "exhausted", "gave_up", "unknown_task"]
        )
        assert [len(shop.records(name)) for name in ("worker_started", "worker_stopping")] == [1, 1]

    def test_an_ordinary_actor_is_dramatiqs_own_affair(self, shop: Shop) -> None:
        broker = shop.bridge.native
        broker.declare_queue(shop.own)
        with shop.worker():
            broker.enqueue(Message(queue_name=shop.own, actor_name="ordinary", args=(), kwargs={}, options={}))
            shop.wait(lambda: len(shop.records("ordinary")) == 2)

        assert shop.bridge.counts().dead == 0

    def test_a_worker_that_is_told_to_stop_keeps_to_the_grace_and_gives_the_rest_back(self, shop: Shop) -> None:
        shop.lasts.send("short", 3)
        shop.lasts.send("long", 600)
        shop.is_stuck.send(600)
        with shop.worker(threads=3) as worker:
            shop.wait(lambda: len(shop.records("lasts", "is_stuck")) == 3)
            told_at = time.monotonic()
            with Stopwatch() as watch:
                worker.terminate()
                time.sleep(1)
                shop.note.send("late")
                assert worker.wait(60) == 0
            ended_at = time.monotonic()

        assert ended_at - told_at >= shop.bridge.settings.grace_s
        assert watch.took_s <= shop.bridge.settings.grace_s + STOP_S
        assert shop.data("lasted") == [["short"]]
        assert shop.data("note") == []
        shop.wait(lambda: shop.bridge.counts().waiting["default"] == 3)
        with shop.worker(threads=3):
            shop.wait(lambda: len(shop.records("lasts", "is_stuck", "note")) == 6)

        assert sorted(shop.data("lasts")) == [["long", 1, None], ["long", 1, None], ["short", 1, None]]
        assert shop.data("is_stuck") == [[1], [1]]
        assert shop.data("retrying", "dead", "discarded") == []

    def test_tasks_that_end_one_after_the_other_all_have_the_grace(self, shop: Shop) -> None:
        names = [f"number {number}" for number in range(8)]
        for number, name in enumerate(names):
            shop.lasts.send(name, 0.7 + number * 0.15)
        with shop.worker(threads=8) as worker:
            shop.wait(lambda: len(shop.records("lasts")) == 8)
            worker.terminate()
            assert worker.wait(60) == 0

        assert sorted(shop.data("lasted")) == [[name] for name in names]
        assert shop.bridge.counts().waiting["default"] == 0

    def test_a_process_that_is_not_forked_works_alike(self, shop: Shop) -> None:
        shop.lasts.send("short", 1)
        shop.is_stuck.send(600)
        with shop.worker("--use-spawn") as worker:
            shop.wait(lambda: len(shop.records("lasts", "is_stuck")) == 2)
            worker.terminate()
            assert worker.wait(60) == 0

        assert shop.data("lasted") == [["short"]]
        shop.wait(lambda: shop.bridge.counts().waiting["default"] == 1)
        assert [len(shop.records(name)) for name in ("worker_started", "worker_stopping")] == [1, 0]

    def test_a_second_signal_does_not_cut_the_grace_short(self, shop: Shop) -> None:
        shop.lasts.send("short", 1.5)
        with shop.worker() as worker:
            shop.wait(lambda: shop.records("lasts"))
            for _ in range(3):
                worker.terminate()
                time.sleep(0.2)
            assert worker.wait(60) == 0

        assert shop.data("lasted") == [["short"]]
        assert shop.bridge.counts().waiting["default"] == 0
