"""A plugin of pytest: the fixtures of Dramatiq's own tests use taskbridge's brokers in the place of Dramatiq's.

A broker that a test makes by itself stays Dramatiq's own.
"""

from __future__ import annotations

from typing import Any

from taskbridge import Bridge

_REDIS = "redis://127.0.0.1:6379/0"


def _memory(*_: Any, **__: Any) -> Any:
    return _native("dramatiq+memory://")


def _redis(*_: Any, **__: Any) -> Any:
    return _native(f"dramatiq+{_REDIS}")


def _rabbitmq(*_: Any, **__: Any) -> Any:
    return _native("dramatiq+amqp://guest:guest@127.0.0.1:5672/%2F", store=_REDIS)


def _native(url: str, **settings: Any) -> Any:
    return Bridge(url, namespace="dramatiq", **settings).native


def pytest_plugin_registered(plugin: Any) -> None:
    """Replace the classes that the tests' conftest has imported."""
    if getattr(plugin, "__name__", "").split(".")[-1] == "conftest":
        for name, made in (("StubBroker", _memory), ("RedisBroker", _redis), ("RabbitmqBroker", _rabbitmq)):
            if hasattr(plugin, name):
                setattr(plugin, name, made)
