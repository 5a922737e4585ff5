from django.urls import path

from shop import views

urlpatterns = [
    path("", views.index, name="index"),
    path("orders/", views.place_order, name="place_order"),
    path("orders/<int:pk>/", views.order, name="order"),
]
