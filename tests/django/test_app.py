"""The app configures the default bridge, and finds tasks."""

from __future__ import annotations

from taskbridge import default_bridge


def test_the_default_bridge_has_the_settings_of_the_project() -> None:
    settings = default_bridge().settings

    assert settings.url.engine == "inline"
    assert settings.namespace == "site"


def test_the_tasks_of_all_apps_are_declared() -> None:
    assert default_bridge().knows("tests.django.site.shop.tasks.add")
