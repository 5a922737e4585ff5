"""Dramatiq's own worker on RabbitMQ: what it runs, what it survives, and what it never loses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from taskbridge.engines.dramatiq.wire import queue_arguments
from tests.servers import PrivateRabbitMQ
from tests.unit.dramatiq_shop import Shop
from tests.unit.dramatiq_worker_tests import WorkerTests


class TestWorkersOnRabbitMQ(WorkerTests):
    @pytest.fixture
    def shop(self, rabbitmq_server: PrivateRabbitMQ, tmp_path: Path) -> Iterator[Shop]:
        shop = Shop.at(f"dramatiq+{rabbitmq_server.url}", tmp_path)
        yield shop
        shop.bridge.close()

    def put(self, shop: Shop, body: bytes) -> None:
        parameters = pika.URLParameters(shop.bridge.settings.url.broker_url)
        with pika.BlockingConnection(parameters) as connection:
            channel = connection.channel()
            queue = shop.native_queue()
            channel.queue_declare(queue, durable=True, arguments=queue_arguments(queue, "classic"))
            channel.basic_publish("", queue, body)
