"""Dramatiq as the engine."""
