"""Django: an app that configures the default bridge, and a backend of Django's tasks.

`INSTALLED_APPS = [..., "taskbridge.django"]` and a setting `TASKBRIDGE = {"URL": ...}` are all that a project needs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskbridge.django.backend import TaskBackend as TaskBackend

_HOMES = {"TaskBackend": "backend"}

if not TYPE_CHECKING:
    __all__ = [*_HOMES]  # noqa: PLE0604 - they are strings


def __getattr__(name: str) -> Any:
    """Import a name from its module: Django imports this package before its models can be imported."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = __import__(f"{__name__}.{_HOMES[name]}", fromlist=[name])
    value = globals()[name] = getattr(module, name)
    return value
