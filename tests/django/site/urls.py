"""The site's pages: Django's admin alone."""

from __future__ import annotations

from typing import Final

from django.contrib import admin
from django.urls import path

urlpatterns: Final = [path("admin/", admin.site.urls)]
