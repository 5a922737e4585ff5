"""The broker of RabbitMQ, by pika's protocol classes: confirms, delays in a cascade of queues, dead letters.

From the outside in: `broker` is what the bridge asks, `pool` keeps a process's connections, `channel` is what is done
on one of them, `connection` and `frames` are the protocol. `publication` makes messages ready, `topology` says how
queues are declared, `pump` promotes what is due.
"""

from taskbridge.brokers.rabbitmq.broker import RabbitMQBroker

connect = RabbitMQBroker
"""Returns a broker for settings and a wire; it connects when it is first used."""
