"""The broker of RabbitMQ, by pika's protocol classes: confirms, delays in a cascade of queues, dead letters.

From the outside in: `broker` is what the bridge asks, `pool` keeps a process's connections, `publishing` is what is
done on one of them, `channel` and `connection` are the protocol. `publication` makes messages ready, `topology` says
how queues are declared, `pump` promotes what is due.
"""

from __future__ import annotations

from taskbridge.brokers.base import Publication, Wire
from taskbridge.brokers.rabbitmq.broker import RabbitMQBroker
from taskbridge.settings import Settings


def connect(settings: Settings, wire: Wire[Publication]) -> RabbitMQBroker:
    """Return a broker that connects when it is first used.

    Raises:
        SettingsError: RabbitMQ can't keep one of the settings.
    """
    return RabbitMQBroker(settings, wire)
