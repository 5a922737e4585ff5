from django.contrib import admin
from django.urls import include, path

from taskbridge.django.page import page_urls

urlpatterns = [
    path("admin/tasks/", include(page_urls())),  # before the admin itself, whose login it is under
    path("admin/", admin.site.urls),
    path("", include("shop.urls")),
]
