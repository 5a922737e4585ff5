"""Django: an app that configures the default bridge, and a backend of Django's tasks.

`INSTALLED_APPS = [..., "taskbridge.django"]` and a setting `TASKBRIDGE = {"URL": ...}` are all that a project needs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskbridge.django.backend import TaskBackend as TaskBackend

if not TYPE_CHECKING:
    __all__ = ["TaskBackend"]


def __getattr__(name: str) -> Any:
    """Import the backend when it is first asked for: Django imports this package before its apps are ready."""
    if name != "TaskBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from taskbridge.django.backend import TaskBackend

    return TaskBackend
