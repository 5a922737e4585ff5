"""These tests have Django set up in their process, with the settings of `tests.django.site`."""

from __future__ import annotations

import os

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.django.site.settings"

import django

django.setup()
