"""Celery as the engine."""
